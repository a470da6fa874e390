"""The section on the landscape: pace, kernel and aiming along the trial run, against models where they are known."""

from __future__ import annotations

import math

import pytest
import torch
from nets_to_check import batch_norm_net, digits, small_mlp
from torch import nn

from wideangle import checks
from wideangle.checks._course import main_course
from wideangle.checks._descent import Trial, descend
from wideangle.checks._study import open_study
from wideangle.checks.landscape import _more, pl_ratios, run
from wideangle.errors import InputError
from wideangle.kernel import tangent_kernel
from wideangle.seeds import generator


def study_of(model: nn.Module, x, y, loss: str = "mse", steps: int | None = 30):
    return open_study(
        model, x, y, loss=loss, output=None, steps=steps, seed=0, device="cpu", name="net", data=""
    )


def linear(n: int = 12, d: int = 20) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    draws = generator(0, "linear")
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, d, generator=draws))
    x = torch.randn(n, d, generator=draws, dtype=torch.float64)
    return model, x, torch.randn(n, 1, generator=draws, dtype=torch.float64)


def test_the_ratio_lies_between_the_kernel_s_ends_and_gives_the_pace():
    model, x, y = linear()
    study = study_of(model, x, y)
    course = main_course(study)
    assert main_course(study) is course
    ratios = pl_ratios(course.trial)
    assert len(ratios) == 30
    values = torch.linalg.eigvalsh(tangent_kernel(model, x).reshape(12, 12)) * 2 / 12
    assert all(float(values[0]) <= ratio * (1 + 1e-9) <= float(values[-1]) * (1 + 1e-6) for ratio in ratios)
    loss = float((model(x) - y).square().mean().detach())
    slope = torch.autograd.grad((model(x) - y).square().mean(), model.weight)[0]
    assert course.trial.losses[0] == pytest.approx(loss)
    assert ratios[0] == pytest.approx(float(slope.square().sum()) / (2 * loss), rel=1e-12)


def test_a_ratio_needs_a_loss_above_rounding():
    trial = Trial(nn.Linear(1, 1), losses=[1.0, 1e-7, 0.5, math.inf], slopes=[4.0, 1.0, math.nan])
    assert pl_ratios(trial) == [2.0, None, None]


def test_the_steps_still_to_go_are_those_a_slow_descent_takes():
    """One eigenvalue, a small step: the loss falls by (1 - step c)^2 each time, and so the count is known."""
    model, x, y = linear(4, 8)
    x = torch.linalg.qr(x.T)[0].T[:4].contiguous()
    study = study_of(model, x, y)
    step = 0.01 / study.constants.smoothness
    trial = descend(study, step, 50)
    study.course = main_course(study).__class__(trial, step, step, 1.0, 50, 0.0)
    goal = 0.01 * study.reference
    needed = math.log(trial.losses[-1] / goal) / (-2 * math.log(1 - 0.01))
    assert _more(study, study.course, pl_ratios(trial)[-1]) == pytest.approx(needed, rel=0.02)


def test_least_squares_aims_with_two_and_says_so():
    model, x, y = linear()
    section = run(study_of(model, x, y))
    assert section.values["smallest aiming ratio"] == pytest.approx(2, abs=1e-6)
    assert section.values["largest aiming ratio"] == pytest.approx(2, abs=1e-6)
    study = study_of(model, x, y)
    expected = 2 / (2 * study.constants.sample_smoothness)
    assert section.values["SGD step theta / (2 beta), single samples"] == pytest.approx(expected, rel=1e-6)
    ratio = study.constants.sample_smoothness / study.constants.smoothness
    assert f"single samples need about {ratio:.2g} times the steps" in section.summary
    assert "stayed regular" in section.summary
    steps = [row[0] for row in section.tables[0].cells]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 30)
    assert section.tables[0].cells[0][4] == 0.0
    assert section.tables[0].cells[-1][4] > 0


def test_fewer_parameters_than_equations():
    x, y = digits(40)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Tanh(), nn.Linear(2, 10))
    section = run(study_of(model, x, y))
    assert "singular to rounding on 40 samples" in section.summary
    assert section.summary.startswith("not to a loss of")
    assert 0 < section.values["share of the residual out of the kernel's reach"] < 1
    assert section.values["smallest kernel eigenvalue at the start (40 samples)"] == 0
    assert section.values["smallest aiming ratio"] is None
    assert any("no solution is near" in note for note in section.notes)


def test_equal_inputs_with_different_targets_are_never_fitted():
    model, x, y = linear(8)
    x, y = torch.cat([x, x]), torch.cat([y, y + 1.0])
    study = study_of(model, x, y)
    section = run(study)
    residual = (study.evaluate(main_course(study).trial.model) - y).detach()
    lost = (residual[:8] - residual[8:]).square().sum() / 2  # the part no model can remove
    share = section.values["share of the residual out of the kernel's reach"]
    assert share == pytest.approx(float(lost / residual.square().sum()), rel=1e-9)
    assert section.summary.startswith("not to a loss of")


def test_a_falling_pace_is_no_promise():
    """Two eigenvalues far apart: at the end of the run the fast one is done, and the slow one sets the pace."""
    x = torch.diag(torch.tensor([1.0, 0.05], dtype=torch.float64))
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    section = run(study_of(model, x, torch.ones(2, 1), steps=60))
    assert section.summary.startswith("on its way, more slowly")
    assert "at least" in section.summary


def test_a_solved_problem_is_refused():
    model, x, _ = linear()
    nn.init.zeros_(model.weight)
    with pytest.raises(InputError, match="nothing to check up"):
        checks.checkup(model, x, torch.zeros(12, 1))


def test_cross_entropy_has_no_point_to_aim_at_and_batch_norm_is_explained():
    x, y = digits(40)
    section = run(study_of(small_mlp(), x, y, loss="cross-entropy"))
    assert section.values["largest aiming ratio"] is None
    assert any("lie at infinity" in note for note in section.notes)
    section = run(study_of(batch_norm_net(), x, y))
    assert any("batch statistics" in note for note in section.notes)


def test_a_run_that_ends_above_its_start_is_no_promise():
    model, x, y = linear()
    study = study_of(model, x, y)
    step = 2.5 / study.constants.smoothness
    trial = descend(study, step, 10, keep={0, 10})
    assert set(trial.states) == {0, 10}
    study.course = main_course(study).__class__(trial, step, step, 1.0, 10, 0.0)
    assert run(study).summary.startswith("not at this step")


def test_the_section_by_itself_and_after_the_trial():
    x, y = digits(60)
    found = checks.checkup(small_mlp(), x, y, only=["landscape"], steps=20)
    assert found.section("landscape").status == "done"
    assert found.verdict[-2].startswith("Will it get there: ")
    whole = checks.checkup(small_mlp(), x, y, only=["trial", "landscape"], steps=20)
    first, second = (f.section("landscape").values["PL ratio at the end"] for f in (found, whole))
    assert first == pytest.approx(second, rel=1e-4)
