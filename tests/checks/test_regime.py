"""The regime: the gap is that of the weights where linearised descent leads, written out by hand here."""

from __future__ import annotations

import pytest
import torch
from nets_to_check import digits, small_mlp

from wideangle import checkup
from wideangle.checks import trial
from wideangle.checks._study import open_study
from wideangle.kernel import jacobian


def study_of(model, x, y):
    return open_study(
        model, x, y, loss="mse", output=None, steps=20, seed=0, device="cpu", name="net", data="digits"
    )


def test_the_gap_is_that_of_the_way_training_is_predicted_to_go():
    x, y = digits(40)
    model = small_mlp().double()
    found = checkup(model, x, y, only=["regime", "step-size"])
    step = 1 / found.section("step-size").values["L, largest curvature of the loss"]
    x, target = x.double(), torch.nn.functional.one_hot(y, 10).double()
    start = model(x).detach()
    parts = jacobian(model, x)
    rows = parts.reshape(start.numel(), -1)
    moved = torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(50):
        z = start + (rows @ moved).reshape(start.shape)
        moved -= step * rows.T @ (2 * (z - target) / z.numel()).flatten()
    linear = (rows @ moved).reshape(start.shape)
    place = 0
    with torch.no_grad():
        for parameter in model.parameters():
            count = parameter.numel()
            parameter += moved[place : place + count].reshape(parameter.shape)
            place += count
        change = model(x) - start
    expected = float((change - linear).norm() / linear.norm())
    values = found.section("regime").values
    assert values["relative linearity gap there"] == pytest.approx(expected, rel=1e-4)
    assert values["predicted distance of 50 steps"] == pytest.approx(float(moved.norm()), rel=1e-4)


def test_the_trial_run_overrules_the_first_sentence():
    study = study_of(small_mlp(), *digits(20))
    study.sentences["regime"] = "near-linear: so the kernel below describes its training"
    trial._overrule(study, 0.1)
    assert "but over the whole trial run" not in study.sentences["regime"]
    trial._overrule(study, 0.3)
    assert "the prediction is off by a factor 2 in the median" in study.sentences["regime"]
