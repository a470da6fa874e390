"""Closed forms of the accelerated methods against their recurrences, published values and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wideangle.errors import InputError
from wideangle.kernel import eigenpairs
from wideangle.optim import accelerated
from wideangle.seeds import generator

METHODS = ("nesterov", "heavy_ball", "chebyshev")
ASSUMED = (1.0, 1.3, 10.0, 1e4, 1e9)


def cases(method: str, *shares: float):
    """Pairs (s, kappa_hat) around the cut-off and at the ends."""
    for kappa_hat in ASSUMED if method != "chebyshev" else ASSUMED[1:]:
        around = (0.0, 0.01 / kappa_hat, 0.9 / kappa_hat, 1 / kappa_hat, min(1.0, 1.1 / kappa_hat))
        for s in (*around, 1e-9, 1e-3, 0.3, 0.99, 1.0, *shares):
            yield s, kappa_hat


def recurrence(s: float, kappa_hat: float, method: str, steps: int) -> list[float]:
    """The error of one direction by the algorithms as they are written, in extended precision."""
    number = np.longdouble
    s, kappa = number(s), number(kappa_hat)
    k = np.sqrt(kappa)
    gamma = (k - 1) / (k + 1)
    before = now = number(1)
    errors = [now]
    theta, d = (1 + 1 / kappa) / 2, (1 - 1 / kappa) / 2
    rho = d / theta
    for t in range(steps):
        if method == "nesterov":
            u = now + gamma * (now - before)
            ahead = u - s * u
        elif method == "heavy_ball":
            ahead = now - 4 * kappa / (k + 1) ** 2 * s * now + gamma**2 * (now - before)
        elif t == 0:
            ahead = now - s * now / theta
        else:
            new = 1 / (2 * theta / d - rho)
            ahead = now + new * rho * (now - before) - 2 * new / d * s * now
            rho = new
        before, now = now, ahead
        errors.append(now)
    return errors


@pytest.mark.parametrize("method", METHODS)
def test_polynomials_are_the_recurrences(method: str):
    steps = np.arange(51)
    for s, kappa_hat in cases(method):
        true = np.array(recurrence(s, kappa_hat, method, 50), dtype=float)
        found = accelerated.residual_polynomial(s, steps, kappa_hat, method)
        # relative to what the oscillation has as its envelope: near a zero of e_t no digit is its own
        size = np.maximum(abs(true), float(accelerated.convergence_factor(s, kappa_hat, method)) ** steps)
        seen = size > 1e-280
        assert (abs(found - true)[seen] <= 1e-10 * size[seen]).all(), (s, kappa_hat)


@pytest.mark.parametrize("method", METHODS)
def test_factors_are_the_largest_roots(method: str):
    for s, kappa_hat in cases(method, 2e-4, 0.06):
        k = math.sqrt(kappa_hat)
        gamma = (k - 1) / (k + 1)
        if method == "nesterov":
            matrix = [[(1 + gamma) * (1 - s), -gamma * (1 - s)], [1, 0]]
        else:  # Chebyshev's coefficients tend to those of the heavy ball
            matrix = [[1 + gamma**2 - 4 * kappa_hat / (k + 1) ** 2 * s, -(gamma**2)], [1, 0]]
        root = abs(np.linalg.eigvals(np.array(matrix))).max()
        # a double root at the cut-off, and for the heavy ball at s = 1
        double = abs(kappa_hat * s - 1) < 1e-3 or (method != "nesterov" and s > 0.999)
        found = float(accelerated.convergence_factor(s, kappa_hat, method))
        assert found == pytest.approx(root, abs=1e-6 if double else 1e-9), (s, kappa_hat)


def test_small_gaps_keep_their_digits():
    s = np.array([1e-12, 1e-15])
    for method, gain in (("nesterov", 101 / 2), ("heavy_ball", 100.0)):
        gap = accelerated.worst_case(1 / s, 1e4, method)
        assert gap == pytest.approx(gain * s, rel=1e-6)
        assert (gap >= gain * s).all()


@pytest.mark.parametrize(
    ("method", "published"),
    [
        ("nesterov", [1e-4, 2.1e-4, 5.5e-4, 1.7e-3, 1.0e-2, 3.2e-3, 1.0e-3]),
        ("heavy_ball", [1e-4, 3.2e-4, 1.0e-3, 3.2e-3, 2.0e-2, 6.3e-3, 2.0e-3]),
    ],
)
def test_worst_case_at_kappa_1e4(method: str, published: list[float]):
    assumed = np.logspace(0, 6, 7)
    found = accelerated.worst_case(1e4, assumed, method)
    assert [f"{v:.1e}" for v in found] == [f"{v:.1e}" for v in published]
    # the maximum over all directions, looked for
    s = np.geomspace(1e-4, 1.0, 4001)
    slowest = [1 - accelerated.convergence_factor(s, k, method).max() for k in assumed]
    assert found == pytest.approx(np.array(slowest), rel=1e-6)
    many = accelerated.worst_case(1e4, np.geomspace(1.01, 1e8, 400), method)
    rises = np.diff(many) > 0
    assert rises[: int(rises.sum())].all()  # up and then down
    assert abs(math.log(np.geomspace(1.01, 1e8, 400)[many.argmax()] / 1e4)) < 0.05


def test_worst_case_bounds_when_kappa_hat_is_too_small():
    for kappa in (10.0, 1e3, 1e7):
        for assumed in np.geomspace(1.001, kappa, 20):
            k = math.sqrt(assumed)
            slack = 1 - 1e-9
            assert accelerated.worst_case(kappa, assumed) >= slack * (k + 1) / (2 * kappa)
            assert accelerated.worst_case(kappa, assumed, "heavy_ball") >= slack * k / kappa
        assert accelerated.worst_case(kappa, kappa) == pytest.approx(kappa**-0.5, rel=1e-6)


def test_no_overflow_and_no_nan_anywhere():
    s = np.array([0.0, 1e-300, 1e-12, 1e-4, 0.5, 1.0])[:, None]
    t = np.array([0, 1, 10**3, 10**9, 10**15])
    for method in METHODS:
        for kappa_hat in (1.0, 1 + 1e-15, 2.0, 1e4, 1e16, 1e300):
            if method == "chebyshev" and kappa_hat == 1:
                continue
            found = accelerated.residual_polynomial(s, t, kappa_hat, method)
            assert found.shape == (6, 5)
            assert np.isfinite(found).all()
            assert (found[:, 0] == 1).all()
            assert found[0] == pytest.approx(1.0)
            assert np.isfinite(accelerated.convergence_factor(s, kappa_hat, method)).all()


def test_limits():
    s, t = np.linspace(0, 1, 11), 7
    for method in ("nesterov", "heavy_ball"):
        assert accelerated.residual_polynomial(s, t, 1.0, method) == pytest.approx((1 - s) ** t)
        assert accelerated.convergence_factor(s, 1.0, method) == pytest.approx(1 - s)
    barely = accelerated.residual_polynomial(s, t, 1 + 1e-9, "chebyshev")
    assert barely == pytest.approx((1 - s) ** t, abs=1e-8)
    # kappa_hat without end: Chebyshev's polynomial on [0, L]
    endless = accelerated.residual_polynomial(s, t, 1e14, "chebyshev")
    assert endless == pytest.approx(np.polynomial.chebyshev.chebval(1 - 2 * s, [0] * t + [1]), abs=1e-4)


def test_chebyshev_is_the_smallest_polynomial_on_its_interval():
    s = np.linspace(1e-2, 1, 20001)
    for t in (3, 10, 40):
        largest = [abs(accelerated.residual_polynomial(s, t, 100.0, m)).max() for m in METHODS]
        assert largest[2] < min(largest[:2])
        bound = 1 / math.cosh(t * math.acosh(101 / 99))
        assert largest[2] == pytest.approx(bound, rel=1e-6)


def test_transient_of_the_double_root():
    """At the cut-off e_t = r^t (1 + t (1 - r) ...): a factor of order t, which Chebyshev does not have."""
    kappa_hat, t = 1e4, 300
    r = float(accelerated.convergence_factor(1 / kappa_hat, kappa_hat, "heavy_ball"))
    ratio = {m: abs(float(accelerated.residual_polynomial(1 / kappa_hat, t, kappa_hat, m))) for m in METHODS}
    assert ratio["heavy_ball"] / r**t == pytest.approx(1 + t * (1 - r), rel=1e-9)
    assert ratio["chebyshev"] / r**t == pytest.approx(2 / (1 + r ** (2 * t)), rel=1e-9)
    top = abs(accelerated.residual_polynomial(1.0, np.arange(2000), kappa_hat, "heavy_ball"))
    assert 30 < top.max() < 60  # about sqrt(kappa_hat) / e: not monotone even at the largest eigenvalue
    assert abs(accelerated.residual_polynomial(1.0, np.arange(2000), kappa_hat)).max() == 1


def brute(spectrum: np.ndarray, steps: int, method: str, energies: np.ndarray | None = None) -> float:
    low = 1.001 if method == "chebyshev" else 1.0
    grid = np.geomspace(low, 1e6 * (steps + 1) ** 2, 2500)[:, None]
    left = accelerated.residual_polynomial(spectrum / spectrum.max(), steps, grid, method)
    return float((left**2 @ (spectrum if energies is None else energies)).min()) / 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 17, 300])
def test_best_kappa_hat_is_as_good_as_brute_force(method: str, steps: int):
    draws = generator(0, "kappa hat", steps)
    random = torch.rand(30, generator=draws, dtype=torch.float64).numpy() ** 6
    spectra = [np.arange(1, 80.0) ** -2, np.exp(-np.arange(40) / 3.0), np.array([1.0, 0.9, 1e-2]), random]
    for spectrum in spectra:
        for energies in (None, np.ones_like(spectrum)):
            best = accelerated.best_kappa_hat(spectrum, steps, method, energies)
            assert isinstance(best, float)
            found = float(accelerated.predicted_loss(spectrum, steps, best, method, energies))
            assert found <= brute(spectrum, steps, method, energies) * (1 + 1e-6)


def test_best_kappa_hat_does_not_care_for_order_scale_and_kind():
    values = np.arange(1, 60.0) ** -1.5
    best = accelerated.best_kappa_hat(values, 40)
    assert accelerated.best_kappa_hat(values[::-1].copy(), 40) == pytest.approx(best, rel=1e-6)
    assert accelerated.best_kappa_hat(torch.tensor(values) * 1e7, 40) == pytest.approx(best, rel=1e-6)
    assert accelerated.best_kappa_hat([*values.tolist(), 0.0, 0.0], 40) == pytest.approx(best, rel=1e-6)
    assert accelerated.best_kappa_hat(eigenpairs(np.diag(values)), 40) == pytest.approx(best, rel=1e-6)
    # twice the L: every s is half as large
    assert accelerated.best_kappa_hat(values, 40, smoothness=2.0) > 1.5 * best


def test_gradient_descent_is_best_where_all_eigenvalues_are_one():
    for steps in (1, 5, 100):
        assert accelerated.best_kappa_hat(np.ones(4), steps) == 1.0
    assert accelerated.best_kappa_hat([1.0, 0.0], 5, coefficients=[0.0, 1.0]) == 1.0


def test_the_upper_end_is_far_enough():
    """With few steps for a slow spectrum the best momentum is next to 1: what is left to gain is small."""
    values = np.r_[1.0, np.full(50, 1e-4)]
    for steps in (3, 10):
        best = accelerated.best_kappa_hat(values, steps)
        found = float(accelerated.predicted_loss(values, steps, best))
        assert found < float(accelerated.predicted_loss(values, steps, 1e16)) * 1.002


def test_predicted_loss_by_hand():
    values, energies = np.array([2.0, 1.0, 0.0]), np.array([1.0, 2.0, 4.0])
    found = accelerated.predicted_loss(values, [[0, 1], [2, 3]], 1.0, coefficients=energies)
    assert found == pytest.approx(np.array([[3.5, 2.25], [2.0625, 2.015625]]))
    assert accelerated.predicted_loss(values, 0, 9.0) == pytest.approx(1.5)
    assert accelerated.cut_off(2.0, 100.0) == 0.02


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: accelerated.convergence_factor(0.5, 0.5), "kappa_hat is 0.5"),
        (lambda: accelerated.convergence_factor(0.5, math.nan), "not finite"),
        (lambda: accelerated.convergence_factor(1.1, 4.0), r"must lie in \[0, 1\]"),
        (lambda: accelerated.convergence_factor(-0.1, 4.0), r"must lie in \[0, 1\]"),
        (lambda: accelerated.convergence_factor(0.5, 4.0, "nestrov"), "did you mean 'nesterov'"),
        (lambda: accelerated.convergence_factor("a", 4.0), "real numbers"),
        (lambda: accelerated.convergence_factor(0.5, 1.0, "chebyshev"), "has no length"),
        (lambda: accelerated.residual_polynomial(0.5, 1.5, 4.0), "counts steps"),
        (lambda: accelerated.residual_polynomial(0.5, -1, 4.0), "counts steps"),
        (lambda: accelerated.worst_case(0.1, 4.0), "kappa is 0.1"),
        (lambda: accelerated.cut_off(0.0, 4.0), "smoothness is 0.0"),
        (lambda: accelerated.best_kappa_hat([1.0, math.nan], 3), "spectrum has 1 of 2 entries not finite"),
        (lambda: accelerated.best_kappa_hat([1.0, -0.1], 3), "not convex"),
        (lambda: accelerated.best_kappa_hat([0.0], 3), "must be positive"),
        (lambda: accelerated.best_kappa_hat([], 3), "must be positive"),
        (lambda: accelerated.best_kappa_hat([1.0], 0), "whole number"),
        (lambda: accelerated.best_kappa_hat([1.0], 2.5), "whole number"),  # type: ignore[arg-type]
        (lambda: accelerated.best_kappa_hat([1.0, 0.5], 3, coefficients=[1.0]), "1 coefficients for 2"),
        (lambda: accelerated.best_kappa_hat([1.0, 0.5], 3, coefficients=[1.0, -1.0]), "zero or more"),
        (lambda: accelerated.best_kappa_hat([1.0, 0.5], 3, smoothness=0.9), "upper bound"),
        (lambda: accelerated.predicted_loss([1.0], 1, 0.0), "kappa_hat is 0"),
    ],
)
def test_bad_input_is_refused(call, words: str):
    with pytest.raises(InputError, match=words):
        call()
