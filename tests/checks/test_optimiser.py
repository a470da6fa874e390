"""The section on the optimiser: what it decides, when it writes the plan, and that its race is fair."""

from __future__ import annotations

import copy

import pytest
import torch
from nets_to_check import digits, small_mlp
from torch import nn

import wideangle
from wideangle.checks import checkup
from wideangle.checks._race import Entrant, entrants, race
from wideangle.checks._study import open_study
from wideangle.errors import InputError
from wideangle.optim import recommend


def study(model, n=60, loss="mse"):
    x, y = digits(n)
    return open_study(
        model, x, y, loss=loss, output=None, steps=None, seed=0, device="cpu", name="m", data="digits"
    )


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_alone_it_writes_a_plan_that_trains(loss):
    x, y = digits(200)
    found = checkup(small_mlp(), x, y, loss=loss, only="optimiser", batch_size=20)
    plan = found.plan
    section = found.section("optimiser")
    assert section.status == "done"
    assert plan.batch_size.value == 20
    assert plan.optimizer.value == section.values["method"] in ("mass", "nesterov", "sgd")
    assert plan.stop.value == 100
    assert plan.predicted_loss == []
    expected = recommend(small_mlp(), x, y, loss, batch_size=20, budget=10)
    assert plan.step_size.value == pytest.approx(expected.lr)
    result = wideangle.train(small_mlp(), x, y, plan)
    assert result.steps == 100
    assert result.losses[-1][1] < 0.5 * result.losses[0][1]


def test_beside_the_step_size_section_the_plan_keeps_plain_descent_unless_a_batch_is_named():
    x, y = digits(80)
    kept = checkup(small_mlp(), x, y, only=["step-size", "optimiser"])
    assert kept.plan.optimizer.value == "sgd"
    assert kept.plan.predicted_loss
    assert "the plan keeps plain descent" in kept.section("optimiser").summary
    named = checkup(small_mlp(), x, y, only=["step-size", "optimiser"], batch_size=80)
    assert named.plan.optimizer.value == named.section("optimiser").values["method"] == "nesterov"
    assert named.plan.batch_size.value == 80
    assert named.plan.predicted_loss == []


def test_the_race_gives_everyone_the_same_batches_and_is_the_plain_loop():
    work = study(small_mlp())
    found = recommend(work.model, work.x, work.y, batch_size=16, budget=5)
    runners = entrants(found)
    again = Entrant("SGD", "", runners[0].make)
    race(work, [*runners, again], 16, 12)
    assert [r.name for r in runners] == ["SGD", "Nesterov", "Adam", "MaSS"]
    assert again.losses == runners[0].losses  # nothing is left over from one run to the next
    assert len({r.losses[0] for r in runners}) == 1
    assert all(r.passes == runners[0].passes for r in runners)
    assert runners[0].passes[-1] == pytest.approx(12 * 16 / 60)

    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([p.grad.clone() for p in self.param_groups[0]["params"]])
            return super().step(closure)

    race(work, [Entrant("spy", "", lambda p: Spy(p, lr=0.0))], 16, 4)
    model = copy.deepcopy(work.model)
    whole = torch.autograd.grad(work.loss_of(work.evaluate(model)), list(model.parameters()))
    # three batches of 16 and no sample twice before the order is drawn anew: their mean is near the whole gradient
    mean = [sum(parts) / 3 for parts in zip(*seen[:3], strict=True)]
    apart = sum(float((a - b).square().sum()) for a, b in zip(mean, whole, strict=True))
    assert apart < 0.2 * sum(float(b.square().sum()) for b in whole)


def test_a_diverging_runner_is_said_and_stopped():
    work = study(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))  # a ReLU net dies instead
    wild = Entrant("wild", "", lambda p: torch.optim.SGD(p, lr=1e6))
    race(work, [wild], 16, 200)
    assert wild.diverged
    assert len(wild.losses) < 10


def test_batch_norm_runs_in_train_mode_and_the_model_stays():
    x, y = digits(64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    before = copy.deepcopy(model.state_dict())
    found = checkup(model, x, y, loss="cross-entropy", only="optimiser", batch_size=16)
    assert found.section("optimiser").status == "done"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_batch_outside_the_samples_is_refused():
    x, y = digits(60)
    for batch in (0, 61):
        with pytest.raises(InputError, match=f"batch size {batch} of 60"):
            checkup(small_mlp(), x, y, only="optimiser", batch_size=batch)


def test_batches_that_make_no_sense_are_refused():
    x, y = digits(60)
    for batch in (1.5, "8", True):
        with pytest.raises(InputError, match="whole number"):
            checkup(small_mlp(), x, y, only="optimiser", batch_size=batch)
    norm = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    with pytest.raises(InputError, match="BatchNorm"):
        checkup(norm, x, y, only="optimiser", batch_size=1)


def test_a_plain_verdict_for_small_batches_predicts_no_full_batch_course():
    x = torch.eye(16)
    model = nn.Linear(16, 1, bias=False)
    nn.init.zeros_(model.weight)
    found = checkup(model, x, torch.ones(16, 1), only="optimiser", batch_size=4)
    assert found.plan.optimizer.value == "sgd"
    assert found.plan.predicted_loss == []
