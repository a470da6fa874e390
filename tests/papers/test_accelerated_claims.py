"""The fast claims of `accelerated`, and what makes each of them fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from claims import has_verdict

from wideangle.optim import accelerated
from wideangle.papers import _accelerated_forms as forms
from wideangle.papers import _accelerated_kernels as kernels
from wideangle.papers import _accelerated_training as training
from wideangle.papers._frame import Setting

CLAIMS = [
    (forms.roots, True),
    (forms.polynomials, True),
    (forms.worst_case, True),
    (forms.rate_of_the_loss, True),
    (forms.below_cut_off, True),
    (forms.transient, True),
    (forms.null_space, True),
    (forms.small_smoothness, False),
    (training.regularises, True),
    (training.mini_batches, False),
]
ON_KERNELS = (kernels.per_direction, kernels.wrong_kappa, kernels.gain_below)


@pytest.mark.parametrize(("test", "holds"), CLAIMS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_fast_claims_have_the_verdict_known(setting: Setting, test, holds: bool):
    has_verdict(test(setting), holds)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Digits alone, 60 of them, few steps: enough for what a run has to show."""
    monkeypatch.delenv("WIDEANGLE_DATA", raising=False)
    monkeypatch.setattr(Setting, "pick", lambda self, smoke, cpu, paper: {200: 60, 300: 60, 600: 300}[smoke])
    return Setting()


def test_kernel_claims_hold_on_digits_alone(small: Setting):
    for test in ON_KERNELS:
        found = test(small)
        has_verdict(found, True)
        assert "skipped, not in the data folder: mnist" in found.detail


def test_early_stopping_on_digits_alone(small: Setting):
    has_verdict(training.early_stopping(small), True)
    has_verdict(training.free_choice(small), False)
    table = training.sooner(small).tables[0]
    assert len(table.cells) == 1
    assert len(table.cells[0]) == 2 + 6


def test_wrong_closed_forms_are_noticed(monkeypatch: pytest.MonkeyPatch):
    factor, polynomial, worst = (
        accelerated.convergence_factor,
        accelerated.residual_polynomial,
        accelerated.worst_case,
    )
    with monkeypatch.context() as wrong:
        wrong.setattr(accelerated, "convergence_factor", lambda *a: factor(*a) * (1 - 1e-8))
        assert not forms.roots(Setting()).holds
    with monkeypatch.context() as wrong:
        wrong.setattr(accelerated, "residual_polynomial", lambda s, t, *a: polynomial(s, t, *a) + 1e-9)
        assert not forms.polynomials(Setting()).holds
    with monkeypatch.context() as wrong:
        wrong.setattr(
            accelerated, "worst_case", lambda kappa, guess, m: worst(kappa, np.asarray(guess) * 1.3, m)
        )
        assert not forms.worst_case(Setting()).holds
    with monkeypatch.context() as wrong:
        wrong.setattr(accelerated, "worst_case", lambda *a: worst(*a) * 0.99)
        assert not forms.below_cut_off(Setting()).holds


def test_another_method_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """Runs with a kappa_hat other than the one the closed forms are told."""
    solve = accelerated.solve_quadratic
    with monkeypatch.context() as wrong:
        wrong.setattr(
            accelerated, "solve_quadratic", lambda H, b, L, kappa, **k: solve(H, b, L, kappa / 4, **k)
        )
        assert not forms.rate_of_the_loss(Setting()).holds
    with monkeypatch.context() as wrong:
        wrong.setattr(
            accelerated,
            "solve_quadratic",
            lambda H, b, L, kappa, method, **k: solve(
                H + 1e-9 * torch.eye(len(H), dtype=H.dtype), b, L * 1.01, kappa, method, **k
            ),
        )
        assert not forms.null_space(Setting()).holds


def test_runs_off_the_closed_forms_are_noticed(small: Setting, monkeypatch: pytest.MonkeyPatch):
    run = accelerated.kernel_regression
    with monkeypatch.context() as wrong:
        wrong.setattr(
            accelerated,
            "kernel_regression",
            lambda K, y, kappa, method="nesterov", **k: run(K, y, 1 + (kappa - 1) * 1.2, method, **k),
        )
        for test in ON_KERNELS:
            assert not test(Setting()).holds
        assert not kernels.best_guess(Setting()).holds


def test_the_best_guess_is_compared_with_runs(small: Setting, monkeypatch: pytest.MonkeyPatch):
    has_verdict(kernels.best_guess(small), True)
    monkeypatch.setattr(accelerated, "best_kappa_hat", lambda *a, **k: 3.0)
    assert not kernels.best_guess(small).holds


def test_gaps_are_measured_from_the_course_alone(small: Setting):
    runs, _ = kernels.courses(small)
    for run in runs:
        gap = kernels._measured_gap(run)
        predicted = 1 - float(accelerated.convergence_factor(run.shares[-1], run.kappa_hat, run.method))
        if gap is None:
            assert run.method == "chebyshev"
        else:
            assert gap == pytest.approx(predicted, rel=1e-2)


def test_full_batch_training_reports_what_it_finds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Setting, "pick", lambda self, smoke, cpu, paper: {60: 12, 64: 16, 150: 40}[smoke])
    found = training.network(Setting())
    has_verdict(found, True)
    row = dict(zip(found.tables[0].columns, found.tables[0].cells[0], strict=True))
    assert row["loss"] < row["gradient descent"]
    trained = training._trained
    monkeypatch.setattr(
        training,
        "_trained",
        lambda net, x, y, lr, k, m, steps: 1.0 if k == 1 else trained(net, x, y, 1e3, k, m, steps),
    )
    diverged = training.network(Setting())
    has_verdict(diverged, False)
    assert math.isinf(diverged.tables[0].cells[0][2])


def test_mini_batches_are_the_difference(monkeypatch: pytest.MonkeyPatch):
    """With the whole set in each batch the claim holds, and nothing is warned of."""
    monkeypatch.setattr(Setting, "pick", lambda self, smoke, cpu, paper: 60)
    squares = training._least_squares
    monkeypatch.setattr(
        training,
        "_least_squares",
        lambda x, y, lr, k, rows, steps, seed: squares(x, y, lr, k, len(x), steps, seed),
    )
    found = training.mini_batches(Setting())
    has_verdict(found, True)
    assert "warned in 0 of 2" in found.measured
