"""The trial run: the critical step on a wide net, rising sharpness, and divergence that is noticed."""

from __future__ import annotations

import pytest
import torch
from nets_to_check import batch_norm_net, digits, relu_mlp, small_mlp
from torch import nn

import wideangle
from wideangle import checks
from wideangle.checks._descent import Trial, _looks, descend, displaced, top_mode
from wideangle.checks._study import Study, open_study
from wideangle.checks.trial import _dead


def study_of(model: nn.Module, n: int = 60, loss: str = "mse") -> Study:
    x, y = digits(n)
    return open_study(model, x, y, loss=loss, output=None, steps=None, seed=0, device="cpu", name="", data="")


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_top_mode_energy_is_multiplied_by_the_predicted_rate_on_a_wide_net(factor: float):
    """(1 - step L)^2 a step, within 10 %: from the start of a wide net with small outputs."""
    model = small_mlp(width=4096)
    with torch.no_grad():
        list(model.parameters())[-1].mul_(0.1)  # small outputs: little to remove, little movement
    study = study_of(model)
    mode = top_mode(study, study.model)
    assert mode.curvature == pytest.approx(study.constants.smoothness, rel=1e-3)
    study.targets.mul_(0.01)
    trial = descend(study, factor * 2.0 / mode.curvature, 6, mode=mode)
    rates = [b / a for a, b in zip(trial.energies, trial.energies[1:], strict=False)]
    expected = (1.0 - 2.0 * factor) ** 2
    assert all(abs(rate / expected - 1) < 0.1 for rate in rates), rates


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_a_push_moves_the_residual_along_the_mode(loss: str):
    study = study_of(small_mlp(width=256).double(), loss=loss)
    mode = top_mode(study, study.model)

    def projection(model: nn.Module) -> float:
        with torch.no_grad():
            return float((study.residual_of(study.evaluate(model)) * mode.direction).sum())

    amount = 1e-4
    moved = projection(displaced(study.model, mode, amount)) - projection(study.model)
    assert moved == pytest.approx(amount, rel=1e-2)


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_pushed_copy_shrinks_below_and_grows_above(loss: str):
    x, y = digits(100)
    found = checks.checkup(small_mlp(width=256), x, y, loss=loss, only=["step-size", "trial"], steps=60)
    figure = found.section("trial").figures[1]
    energies = {series.name: series.y for series in figure.series}
    below, above = energies["0.9 x critical, measured"], energies["1.1 x critical, measured"]
    for t in range(3):
        assert below[t + 1] < below[t]
        assert above[t + 1] > above[t]
    if loss == "mse":
        assert above[4] / above[0] == pytest.approx(1.44**4, rel=0.25)
        assert below[4] / below[0] == pytest.approx(0.64**4, rel=0.35)


def test_cross_entropy_sharpens_and_the_step_follows():
    x, y = digits(200)
    found = checks.checkup(relu_mlp(), x, y, loss="cross-entropy", only=["step-size", "trial"], steps=150)
    trial = found.section("trial")
    assert "edge of stability" in trial.summary
    assert trial.values["loss at the end, measured"] < 0.5 * trial.values["loss at the start"]
    assert trial.values["last step size"] < trial.values["step size at the start"]
    assert found.plan is not None
    unlowered = found.section("step-size").values["recommended step at that batch"]
    assert found.plan.step_size.value < unlowered / 1.2
    assert "the rise of the sharpness" in found.plan.step_size.evidence


def test_batch_norm_sharpens_and_the_step_follows():
    x, y = digits(150)
    found = checks.checkup(
        batch_norm_net(), x, y, loss="cross-entropy", only=["step-size", "trial"], steps=80
    )
    trial = found.section("trial")
    assert "edge of stability" in trial.summary
    assert trial.values["largest sharpness on the way"] > 1.2 * trial.values["sharpness at the start"]
    assert trial.values["loss at the end, measured"] < trial.values["loss at the start"]


def test_divergence_is_noticed_also_where_the_net_dies_on_the_way():
    study = study_of(small_mlp())
    assert descend(study, 1e3 / study.constants.smoothness, 30).diverged
    assert not descend(study, 1.0 / study.constants.smoothness, 30).diverged
    assert Trial(nn.Linear(1, 1), losses=[1.0, 1e9, 0.1]).diverged
    assert Trial(nn.Linear(1, 1), losses=[1.0, float("nan")]).diverged
    assert not Trial(nn.Linear(1, 1), losses=[1.0, 50.0, 0.1]).diverged


def test_looks_cover_both_ends_and_the_first_steps():
    looks = _looks(200, 12)
    assert {0, 1, 2, 4, 8, 16, 200} <= looks
    assert max(looks) == 200
    assert _looks(50, 0) == set()
    assert _looks(50, 2) == {0, 50}


@pytest.mark.parametrize("build", [relu_mlp, batch_norm_net])
def test_the_plan_for_cross_entropy_trains(build):
    """Also where the sharpness rises: the plan is tried with its own batches and lowered only as needed."""
    x, y = digits(150)
    found = checks.checkup(build(), x, y, loss="cross-entropy", steps=60)
    assert found.plan is not None
    assert "tried for" in found.plan.step_size.evidence
    result = wideangle.train(build(), x, y, found.plan, steps=200)
    assert result.losses[-1][1] < 0.5 * result.losses[0][1]


def test_the_same_seed_gives_the_same_plan():
    x, y = digits(60)
    plans = [checks.checkup(small_mlp(), x, y, steps=10).plan for _ in range(2)]
    assert plans[0].step_size.value == plans[1].step_size.value
    assert plans[0].batch_size == plans[1].batch_size
    assert plans[0].stop.value == plans[1].stop.value


def test_a_net_that_dies_is_not_called_training():
    study = study_of(relu_mlp(), loss="cross-entropy")
    dead = Trial(nn.Linear(1, 1), losses=[2.31, 40.0, study.guess])
    alive = Trial(nn.Linear(1, 1), losses=[2.31, 40.0, 0.5])
    assert _dead(study, dead)
    assert not _dead(study, alive)
