"""The official recipe on tiny files in CIFAR's format: the network, its groups, the schedule, stopping and going on."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from claims import has_verdict

from wideangle.data import cifar
from wideangle.errors import InputError
from wideangle.optim import MaSS
from wideangle.papers import _mass_cifar as recipe
from wideangle.papers import _mass_resnet as resnet
from wideangle.papers._frame import Setting, SkippedError
from wideangle.seeds import generator

CPU = torch.device("cpu")
TINY = recipe.Recipe(epochs=4, drops=(2, 3), batch=5, blocks=1, step=0.05)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A data folder with two images a batch file, in CIFAR's own format."""
    monkeypatch.setattr(cifar, "MD5", {})
    folder = tmp_path / "data" / cifar.FOLDER
    folder.mkdir(parents=True)
    draws = np.random.default_rng(3)
    for k, name in enumerate([*cifar.FILES["train"], *cifar.FILES["test"]]):
        batch = {"data": draws.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [k, 9 - k]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return Setting("paper", 0, str(tmp_path / "data"))


def sets(tiny: Setting):
    return tiny.load("cifar10", None), tiny.load("cifar10", None, split="test")


def test_the_network_has_the_published_size_and_penalises_kernels_only():
    net = resnet.CifarResNet()
    assert sum(p.numel() for p in net.parameters()) == resnet.PARAMETERS == 467_946
    layers = [m for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(layers) == 32 + 2  # two convolutions on skips are not counted
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    decayed, rest = net.groups(1e-4)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (2e-4, 0.0)
    assert all(p.ndim == 4 for p in decayed["params"])
    assert len(decayed["params"]) == 33
    assert any(p.ndim == 2 for p in rest["params"])
    total = sum(p.numel() for group in (decayed, rest) for p in group["params"])
    assert total == resnet.PARAMETERS
    big = next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels == 64)
    assert float(big.weight.detach().std()) == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert torch.equal(net.stem.weight, resnet.CifarResNet().stem.weight)
    with pytest.raises(InputError, match="blocks is 0"):
        resnet.CifarResNet(0)


def test_images_are_moved_and_mirrored():
    ramp = torch.arange(32.0).expand(1, 3, 32, 32).contiguous()
    images = ramp.expand(400, 3, 32, 32)
    seen = resnet.augmented(images, generator(0, "augment"))
    middle = seen[:, 0, 16, 8:24]
    slopes = (middle[:, -1] - middle[:, 0]) / 15
    assert torch.allclose(slopes.abs(), torch.ones(400), atol=1e-3)
    mirrored = slopes < 0
    assert 150 < int(mirrored.sum()) < 250
    moved = torch.where(mirrored, middle.flip(1)[:, 0], middle[:, 0]) - 8
    assert 2.9 < float(moved.abs().max()) <= 3.2 + 1e-3
    assert float(moved.mean()) == pytest.approx(0, abs=0.3)
    flat = torch.ones(50, 3, 32, 32)  # the border is repeated
    assert torch.allclose(resnet.augmented(flat, generator(2, "augment")), flat, atol=1e-5)
    still = resnet.augmented(images[:40], generator(1, "augment"), shift=0.0)
    same = torch.isclose(still[:, 0, 0], ramp[0, 0, 0], atol=1e-4).all(1)
    assert 5 < int(same.sum()) < 35


def test_the_schedule_is_the_published_one():
    plain = recipe.Recipe()
    assert (plain.method, plain.batch, plain.alpha, plain.kappa_tilde, plain.blocks) == (
        "MaSS",
        64,
        0.05,
        2.0,
        5,
    )
    steps = [plain.step_at(epoch) for epoch in (0, 149, 150, 224, 225, 299)]
    assert steps == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    made = plain.optimiser(resnet.CifarResNet(1), 160)
    assert isinstance(made, MaSS)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([0.01, 0.01])
    assert [group["kappa_tilde"] for group in made.param_groups] == [2.0, 2.0]
    assert [group["weight_decay"] for group in made.param_groups] == [2e-4, 0.0]
    assert [r.step for r in recipe.recipes()] == [0.1, 0.1, 0.1, 0.001]
    with pytest.raises(InputError, match="unknown method"):
        replace(plain, method="MASS").optimiser(resnet.CifarResNet(1), 0)


def test_the_mean_image_of_the_training_set_is_subtracted(tiny: Setting):
    train_set, test_set = sets(tiny)
    x, z = recipe.centred(train_set, test_set, CPU)
    assert float(x.mean(0).abs().max()) < 1e-6
    torch.testing.assert_close(z, test_set.x - train_set.x.mean(0))


@pytest.mark.parametrize("method", recipe.METHODS)
def test_a_run_goes_on_as_if_it_had_not_stopped(tiny: Setting, tmp_path: Path, method: str):
    train_set, test_set = sets(tiny)
    assert train_set.x.shape == (10, 3, 32, 32)
    used = replace(TINY, method=method, step=0.001 if method == "Adam" else 0.05)
    whole = recipe.train(used, train_set, test_set, 0, CPU)
    assert len(whole.losses) == len(whole.accuracies) == 4
    assert len(set(whole.losses)) == 4
    for stop in (1, 2, 3) if method == "MaSS" else (2,):
        file = tmp_path / f"run{stop}.pt"
        first = recipe.train(used, train_set, test_set, 0, CPU, file, stop_after=stop)
        assert first.losses == whole.losses[:stop]
        assert recipe.train(used, train_set, test_set, 0, CPU, file) == whole
        assert recipe.train(used, train_set, test_set, 0, CPU, file) == whole  # finished: nothing left to do


def test_momentum_is_dropped_with_the_step(tiny: Setting, monkeypatch: pytest.MonkeyPatch):
    train_set, test_set = sets(tiny)
    whole = recipe.train(TINY, train_set, test_set, 0, CPU)
    made, fresh = [], recipe.Recipe.optimiser

    def counted(self, net, epoch):
        made.append(epoch)
        return fresh(self, net, epoch)

    monkeypatch.setattr(recipe.Recipe, "optimiser", counted)
    assert recipe.train(TINY, train_set, test_set, 0, CPU) == whole
    assert made == [0, 2, 3]


def test_a_checkpoint_of_another_run_is_refused(tiny: Setting, tmp_path: Path):
    train_set, test_set = sets(tiny)
    file = tmp_path / "run.pt"
    recipe.train(TINY, train_set, test_set, 0, CPU, file, stop_after=1)
    with pytest.raises(InputError, match=r"step: 0\.05 there, 0\.1 here"):
        recipe.train(replace(TINY, step=0.1), train_set, test_set, 0, CPU, file)
    with pytest.raises(InputError, match="seed: 0 there, 1 here"):
        recipe.train(TINY, train_set, test_set, 1, CPU, file)
    with pytest.raises(InputError, match="images"):
        recipe.train(TINY, test_set, train_set, 0, CPU, file)
    for content in (b"", b"nothing", pickle.dumps({"facts": {}}, protocol=2)):
        file.write_bytes(content)
        with pytest.raises(InputError, match="no readable checkpoint"):
            recipe.train(TINY, train_set, test_set, 0, CPU, file)
    torch.save({"facts": {}}, file)
    with pytest.raises(InputError, match="no readable checkpoint"):
        recipe.train(TINY, train_set, test_set, 0, CPU, file)


def test_a_diverged_run_ends(tiny: Setting):
    train_set, test_set = sets(tiny)
    history = recipe.train(replace(TINY, step=1e20), train_set, test_set, 0, CPU)
    assert len(history.losses) < 4
    assert not np.isfinite(history.losses[-1])


def test_the_claim_runs_all_methods_and_says_what_it_lacks(
    tiny: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for size in ("smoke", "cpu"):
        with pytest.raises(SkippedError, match="size paper"):
            recipe.official_recipe(Setting(size))  # type: ignore[arg-type]
    with pytest.raises(SkippedError, match="cifar10"):
        recipe.official_recipe(Setting("paper", 0, str(tmp_path)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SkippedError, match="CUDA"):
        recipe.official_recipe(tiny)
    monkeypatch.setattr(recipe, "_device", lambda: CPU)
    monkeypatch.setenv("WIDEANGLE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(
        recipe, "recipes", lambda: [replace(TINY, method=m, epochs=1) for m in recipe.METHODS]
    )
    found = recipe.official_recipe(tiny)
    has_verdict(found, False)
    assert [row[0] for row in found.tables[0].cells] == list(recipe.METHODS)
    assert len(list((tmp_path / "runs").glob("*.pt"))) == 12
    true = recipe.train

    def published(used, *rest):
        history = true(used, *rest)
        return recipe.History(history.losses, [92.7 if used.method == "MaSS" else 92.5])

    monkeypatch.setattr(recipe, "train", published)
    assert recipe.official_recipe(tiny).holds
