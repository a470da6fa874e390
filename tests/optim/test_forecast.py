"""The forecast against the exact second moments of small problems, and against simulated runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from wideangle.errors import InputError
from wideangle.optim import MassParameters
from wideangle.optim._forecast import Quadratic, forecast, quadratic
from wideangle.seeds import generator

SETTINGS = [
    MassParameters(0.3, 1.0, 1.0),
    MassParameters(0.2, 0.1, 1.0),
    MassParameters(0.25, 0.05, 4.0),
    MassParameters(0.3, 0.1, 10.0),
]


def plain(curvatures, start, p, steps):
    """The loss of w without noise, by the two-variable form of the algorithm."""
    w = u = start.copy()
    for _ in range(steps):
        g = curvatures * u
        new = u - p.eta1 * g
        u = (1 + p.gamma) * new - p.gamma * w + p.eta2 * g
        w = new
    return float((curvatures * w**2).sum() / 2)


@pytest.mark.parametrize("p", SETTINGS)
def test_without_noise_it_is_the_algorithm(p):
    curvatures, start = np.array([2.0, 0.7, 0.01]), np.array([1.0, -2.0, 3.0])
    problem = quadratic(curvatures, curvatures * start**2 / 2, alike=1.0)
    times = [0, 1, 2, 7, 40]
    expected = [plain(curvatures, start, p, t) for t in times]
    assert np.allclose(forecast(problem, [p], 0.0, times)[0], expected, rtol=1e-10)


@pytest.mark.parametrize("p", SETTINGS)
def test_with_noise_it_is_the_mean_over_every_sequence_of_batches(p):
    """One direction, samples a_i of random size: E[xi^2] = (E a^4 - (E a^2)^2) u^2 exactly, all 3^5 sequences."""
    sizes = np.array([0.4, 1.0, 0.7])
    curvature = float((sizes**2).mean())
    spread = float((sizes**4).mean() - curvature**2)
    coupling = np.array([[spread / curvature]])  # x lambda u^2 = the noise
    problem = Quadratic(np.array([curvature]), np.array([curvature / 2]), coupling)
    losses = []
    for rows in itertools.product(range(3), repeat=5):
        w = u = 1.0
        for row in rows:
            g = sizes[row] ** 2 * u
            new = u - p.eta1 * g
            u = (1 + p.gamma) * new - p.gamma * w + p.eta2 * g
            w = new
        losses.append(curvature * w**2 / 2)
    assert forecast(problem, [p], 1.0, 5)[0, 0] == pytest.approx(np.mean(losses), rel=1e-10)


def test_it_bounds_what_gaussian_features_do():
    """M = 1 is what single-output Gaussian features give up to 1/d; the forecast is near the mean of 200 runs."""
    d, runs, m, steps = 30, 200, 4, 120
    draws = generator(0, "forecast")
    scale = torch.logspace(0, -1.5, d, dtype=torch.float64)
    curvatures = scale.square().numpy()
    p = MassParameters(0.05, 0.1, 3.0)
    u = torch.ones(runs, d, dtype=torch.float64)
    w = u.clone()
    for _ in range(steps):
        x = torch.randn(runs, m, d, generator=draws, dtype=torch.float64) * scale
        g = torch.einsum("rmd,rm->rd", x, torch.einsum("rmd,rd->rm", x, u)) / m
        new = u - p.eta1 * g
        u = (1 + p.gamma) * new - p.gamma * w + p.eta2 * g
        w = new
    measured = float((torch.as_tensor(curvatures) * w.square()).sum(1).mean() / 2)
    predicted = forecast(quadratic(curvatures, curvatures / 2, alike=1.0), [p], 1 / m, steps)[0, 0]
    assert predicted == pytest.approx(measured, rel=0.15)


def test_divergence_is_infinite_and_does_not_disturb_others():
    problem = quadratic(np.array([1.0, 0.1]), np.array([0.5, 0.5]), alike=1.0)
    good = MassParameters(0.5, 1.0, 1.0)
    found = forecast(problem, [MassParameters(3.0, 1.0, 1.0), good], 0.0, [0, 200])
    assert found[0, 0] == 1.0
    assert np.isinf(found[0, 1])
    assert np.allclose(found[1], forecast(problem, [good], 0.0, [0, 200])[0], rtol=1e-14)


def test_bins_keep_loss_weight_and_nearly_the_course():
    draws = generator(3, "bins")
    curvatures = torch.rand(500, generator=draws, dtype=torch.float64).pow(4).numpy() + 1e-6
    energies = torch.rand(500, generator=draws, dtype=torch.float64).numpy()
    whole = quadratic(curvatures, energies, alike=1.0)
    few = whole.binned()
    assert len(few.curvatures) <= 48 < len(whole.curvatures)
    assert few.loss == pytest.approx(whole.loss, rel=1e-12)
    received = few.coupling @ few.energies
    assert received.sum() == pytest.approx((whole.coupling @ whole.energies).sum(), rel=1e-9)
    for share in (0.0, 0.01):
        a, b = (forecast(q, SETTINGS, share, [30, 300]) for q in (whole, few))
        assert np.allclose(a, b, rtol=0.05)
    assert few.scaled(4.0).loss == pytest.approx(few.loss)
    assert np.allclose(few.scaled(4.0).curvatures, 4 * few.curvatures)


def test_bad_input():
    problem = quadratic(np.array([1.0]), np.array([0.5]), alike=1.0)
    for settings, share, steps in (
        ([], 0.0, 3),
        (SETTINGS, -0.1, 3),
        (SETTINGS, 0.0, [-1]),
        (SETTINGS, 0.0, []),
    ):
        with pytest.raises(InputError):
            forecast(problem, settings, share, steps)
