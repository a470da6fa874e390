"""The check-up as a whole: sections, verdict, plan, interruption, bad input, state left behind."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from nets_to_check import batch_norm_net, digits, small_mlp
from torch import nn

import wideangle
from wideangle.checks import CHECKS, Checkup, checkup
from wideangle.document import Section
from wideangle.errors import InputError


def test_every_section_and_a_plan_that_trains():
    x, y = digits()
    seen: list[Section] = []
    found = checkup(small_mlp(), x, y, steps=12, name="mlp", data="digits", on_section=seen.append)
    assert [s.name for s in found.sections] == [check.name for check in CHECKS]
    assert all(s.status == "done" for s in found.sections), [s.summary for s in found.sections]
    assert [s.name for s in seen] == [s.name for s in found.sections]
    assert all(s.seconds > 0 and s.budget for s in found.sections)
    assert len(found.verdict) == len(CHECKS) == 7
    assert all(any(char.isdigit() for char in sentence) for sentence in found.verdict)
    assert all("not measured" not in sentence for sentence in found.verdict)
    plan = found.plan
    assert plan is not None
    assert plan.step_size.measured
    assert plan.batch_size.measured
    assert plan.stop.measured
    assert not plan.momentum.measured
    assert (plan.samples, plan.loss, plan.model, plan.data) == (60, "mse", "mlp", "digits")
    result = wideangle.train(small_mlp(), x, y, plan, steps=100)
    assert result.agreement is not None
    assert result.agreement < 0.3
    assert result.losses[-1][1] < result.losses[0][1] / 2


def test_result_round_trips(tmp_path):
    x, y = digits(30)
    found = checkup(small_mlp(), x, y, only=["kernel", "step-size"])
    path = found.save(tmp_path / "checkup.json")
    again = Checkup.load(path)
    assert again == found
    assert again.section("kernel").values["condition number"] > 1
    with pytest.raises(KeyError, match="there are kernel, step-size"):
        again.section("trial")
    assert sum("not measured" in sentence for sentence in again.verdict) == 5


def test_numbers_are_those_of_the_explicit_kernel():
    from wideangle.kernel import jacobian_kernel

    x, y = digits(24)
    model = small_mlp().double()
    found = checkup(model, x.double(), y, only=["kernel", "step-size"])
    full = jacobian_kernel(model, x.double()).reshape(240, 240)
    top = float(torch.linalg.eigvalsh(full)[-1])
    values = found.section("step-size").values
    assert values["critical step 2 / L"] == pytest.approx(2 / (2 / 240 * top), rel=1e-3)
    trace = torch.einsum("icjc->ij", jacobian_kernel(model, x.double())) / 10
    spectrum = torch.linalg.eigvalsh(trace)
    kernel = found.section("kernel").values
    assert kernel["condition number"] == pytest.approx(float(spectrum[-1] / spectrum[0]), rel=1e-6)
    assert kernel["full kernel, largest"] == pytest.approx(top, rel=1e-6)


def test_the_model_is_left_as_found():
    x, y = digits(30)
    model = batch_norm_net().train()
    before = copy.deepcopy(model.state_dict())
    checkup(model, x, y, steps=3, only=["step-size", "trial"])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_interruption_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch):
    from wideangle.checks import step_size

    def interrupt(study):
        raise KeyboardInterrupt

    monkeypatch.setattr(step_size, "run", interrupt)
    x, y = digits(24)
    found = checkup(small_mlp(), x, y, only=["kernel", "step-size", "trial"])
    assert not found.complete
    assert [s.status for s in found.sections] == ["done", "interrupted"]
    assert Checkup.from_json(found.to_json()) == found


def test_loaders_dicts_and_one_output():
    x, y = digits(24)
    loader = [(x[:10], y[:10]), (x[10:], y[10:])]
    a = checkup(small_mlp(), loader, only="step-size")
    b = checkup(small_mlp(), x, y, only="step-size")
    key = "critical step 2 / L"
    assert a.section("step-size").values[key] == pytest.approx(b.section("step-size").values[key])

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_mlp()

        def forward(self, image):
            return {"logits": self.inner(image)}

    c = checkup(Named(), {"image": x}, y, only="step-size", output="logits")
    assert c.section("step-size").values[key] == pytest.approx(b.section("step-size").values[key])
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 1))
    regression = checkup(one, x, x.mean((1, 2, 3)), steps=5)
    assert all(s.status == "done" for s in regression.sections), [s.summary for s in regression.sections]


def test_frozen_layers_are_not_trained_nor_measured():
    x, y = digits(24)
    model = small_mlp()
    for parameter in list(model.parameters())[:1]:
        parameter.requires_grad_(False)
    frozen = checkup(model, x, y, only="step-size").section("step-size").values
    free = checkup(small_mlp(), x, y, only="step-size").section("step-size").values
    assert frozen["L, largest curvature of the loss"] < free["L, largest curvature of the loss"]


def test_batch_norm_without_statistics_gets_them_and_says_so():
    x, y = digits(30)
    found = checkup(batch_norm_net(), x, y, steps=3)
    notes = " ".join(found.section("regime").notes)
    assert "2 BatchNorm layers had no statistics yet" in notes
    dropped = nn.Sequential(small_mlp(), nn.Dropout(0.5))
    notes = " ".join(checkup(dropped, x, y, only="regime").section("regime").notes)
    assert "Dropout (1 layers) is switched off" in notes


def test_duplicated_samples_are_rank_deficient_not_badly_conditioned():
    x, y = digits(30)
    x, y = torch.cat([x, x[:2]]), torch.cat([y, y[:2]])
    found = checkup(small_mlp(), x, y, only=["kernel", "step-size", "labels"])
    values = found.section("kernel").values
    assert values["condition number"] == math.inf
    assert values["rank"] == "30 of 32"
    assert "2 duplicated samples" in found.section("kernel").summary


BAD = {
    "nan input": (lambda m, x, y: (m, x * float("nan"), y, {}), "non-finite numbers in 24 of 24"),
    "labels too large": (lambda m, x, y: (m, x, y + 5, {}), "labels run from 5 to 14"),
    "labels as floats": (lambda m, x, y: (m, x, y.float(), {}), "y.long()"),
    "labels too few": (lambda m, x, y: (m, x, y[:7], {}), "24 samples and y has 7"),
    "no samples": (lambda m, x, y: (m, x[:0], y[:0], {}), "holds no samples"),
    "one sample": (lambda m, x, y: (m, x[:1], y[:1], {}), "at least 2, got 1"),
    "unknown loss": (lambda m, x, y: (m, x, y, {"loss": "hinge"}), "unknown loss 'hinge'"),
    "unknown section": (lambda m, x, y: (m, x, y, {"only": "kernle"}), "did you mean 'kernel'"),
    "no steps": (lambda m, x, y: (m, x, y, {"steps": 0}), "steps=0"),
    "wrong shape": (
        lambda m, x, y: (nn.Linear(5, 10), x.flatten(1), y, {}),
        "cannot take this data (x (24, 64)",
    ),
    "no such device": (lambda m, x, y: (m, x, y, {"device": "cuda:9"}), "device 'cuda:9'"),
    "words as targets": (lambda m, x, y: (m, x, ["a"] * 24, {}), "cannot be used as targets"),
    "no module": (lambda m, x, y: (lambda x: x, x, y, {}), "give a torch.nn.Module"),
    "no targets": (lambda m, x, y: (m, x, None, {}), "y is missing"),
    "no parameters": (lambda m, x, y: (nn.Flatten(), x, y, {}), "no parameters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_typed_error(case: str):
    change, words = BAD[case]
    model, x, y, options = change(small_mlp(), *digits(24))
    with pytest.raises(InputError, match=re.escape(words)):
        checkup(model, x, y, **options)


def test_bad_models_are_typed_errors():
    x, y = digits(24)
    broken = small_mlp()
    with torch.no_grad():
        next(broken.parameters())[0, 0] = float("inf")
    with pytest.raises(InputError, match="holds 1 non-finite numbers"):
        checkup(broken, x, y)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_mlp()

        def forward(self, x):
            return self.inner(x), x

    with pytest.raises(InputError, match="returns a tuple, not a tensor; say which part"):
        checkup(Pair(), x, y)

    class Coupled(Pair):
        def forward(self, x):
            return self.inner(x - x.mean(0))

    with pytest.raises(InputError, match="batch-coupled"):
        checkup(Coupled(), x, y)
    blank, labels = torch.cat([x, torch.zeros_like(x[:1])]), torch.cat([y, y[:1]])
    with pytest.raises(InputError, match="1 of 25 samples have a gradient of zero"):
        checkup(small_mlp(), blank, labels)
