"""The fast claims of the paper runs, and what makes each of them fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from claims import has_verdict

from wideangle.kernel import infinite
from wideangle.papers import _alignment_bounds as bounds
from wideangle.papers import _alignment_dynamics as dynamics
from wideangle.papers import _alignment_rates as rates
from wideangle.papers import _alignment_slopes as slopes
from wideangle.papers import _conditioning_angles as angle
from wideangle.papers import _conditioning_kappa as kappa
from wideangle.papers import _conditioning_networks as network
from wideangle.papers import _conditioning_training as training
from wideangle.papers._frame import Setting, SkippedError
from wideangle.papers._samples import DEGREES, gaussian, pair, signs, unit

CLAIMS = [
    (angle.closed_form, True),
    (angle.angle_map, True),
    (angle.separation, True),
    (angle.far_pairs, True),
    (angle.falling_pairs, False),
    (angle.small_angle, True),
    (angle.smooth_ratio, True),
    (kappa.first_layer, True),
    (kappa.schur, True),
    (kappa.always_better, False),
    (kappa.close_data, True),
    (kappa.two_samples, True),
    (kappa.angle_bound, True),
    (network.finite_angles, True),
    (network.gradient_norm, True),
    (network.gradient_norm_printed, False),
    (network.init_variance, True),
    (network.convolutional, True),
    (training.faster, True),
    (bounds.rigorous_bound, True),
    (bounds.tighter, True),
    (bounds.fitted_bound, False),
    (bounds.expected_bound, True),
    (bounds.tighter_generalisation, True),
    (bounds.aligned_is_a_bound, False),
    (slopes.label_slope_shallow, False),
    (slopes.residual_slope_shallow, False),
    (slopes.residual_slope_deep, False),
    (slopes.depth_trend, True),
    (slopes.above_control, True),
    (slopes.start_energy, True),
    (slopes.two_points, True),
    (rates.power_law_rate, True),
    (rates.corrected_rate, True),
    (rates.printed_rate, False),
]


@pytest.mark.parametrize(("test", "holds"), CLAIMS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_fast_claims_have_the_verdict_known(setting: Setting, test, holds: bool):
    has_verdict(test(setting), holds)


def test_recursion_holds_and_a_wrong_step_is_noticed(monkeypatch: pytest.MonkeyPatch):
    assert dynamics.recursion(Setting()).holds
    true = dynamics.descend
    monkeypatch.setattr(
        dynamics, "descend", lambda net, x, y, step, *rest: true(net, x, y, 1.001 * step, *rest)
    )
    assert not dynamics.recursion(Setting()).holds


def test_the_lemma_as_stated_is_an_independent_oracle(monkeypatch: pytest.MonkeyPatch):
    assert angle.lemma(math.radians(1.0), 1) * DEGREES == pytest.approx(4.387, abs=5e-4)
    true = infinite.gradient_angle
    monkeypatch.setattr(infinite, "gradient_angle", lambda t, d, *rest: true(t, d, *rest) * 1.001)
    assert not angle.closed_form(Setting()).holds
    assert not angle.small_angle(Setting()).holds


def test_wrong_limits_are_noticed(monkeypatch: pytest.MonkeyPatch):
    limit = 0.75 * torch.eye(50, dtype=torch.float64) + 0.25
    monkeypatch.setattr(kappa, "_limit_kernel", lambda setting: limit)
    assert kappa.kappa_limit(Setting()).holds
    assert not kappa.kappa_limit_printed(Setting()).holds
    other = 0.75 * torch.eye(50, dtype=torch.float64) + 0.26
    monkeypatch.setattr(kappa, "_limit_kernel", lambda setting: other)
    assert not kappa.kappa_limit(Setting()).holds


def test_a_kernel_that_grows_worse_with_depth_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        kappa, "gaussian", lambda n, d, seed, normalised=True: torch.eye(n, dtype=torch.float64)
    )
    assert not kappa.close_data(Setting()).holds


def test_norms_of_another_scaling_are_noticed(monkeypatch: pytest.MonkeyPatch):
    true = network.mlp_kernel
    monkeypatch.setattr(network, "mlp_kernel", lambda *args, **named: 1.5 * true(*args, **named))
    assert not network.gradient_norm(Setting()).holds


def test_a_bound_that_is_none_is_noticed(monkeypatch: pytest.MonkeyPatch):
    true = bounds.loss_bound_trace
    monkeypatch.setattr(bounds, "loss_bound_trace", lambda *args, **named: 0.9 * true(*args, **named))
    assert not bounds.rigorous_bound(Setting()).holds
    monkeypatch.setattr(bounds, "start_variance", lambda *args: np.full(300, 1e3))
    assert not bounds.expected_bound(Setting()).holds


def test_pooled_slope_of_a_power():
    values = np.logspace(0, -3, 2000)
    noise = np.random.default_rng(0).chisquare(1, 2000)
    line = slopes.pooled_line(values, values**1.5 * noise)
    assert line.contains(1.5)
    assert not line.contains(2.0)
    assert line.low < line.slope < line.high
    exact = slopes.pooled_line(values, values**2)
    assert exact.slope == pytest.approx(2.0, abs=0.02)


def test_table_1_is_left_to_size_paper():
    with pytest.raises(SkippedError, match="size paper"):
        training.test_accuracy(Setting("cpu"))


def test_small_training_runs():
    losses = training._grid(Setting(), "digits", 60, 0, [1, 2], [1.0, 1e30], 16, 2, 20)
    assert len(losses) == 2
    assert all(math.isfinite(row[0]) for row in losses)
    assert losses[0][1] == math.inf


def test_samples():
    assert float(unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).norm()) == pytest.approx(1)
    assert float(torch.acos(pair(0.3)[0] @ pair(0.3)[1])) == pytest.approx(0.3)
    assert gaussian(4, 3, 0).norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert torch.equal(gaussian(4, 3, 0), gaussian(4, 3, 0))
    assert not torch.equal(gaussian(4, 3, 0), gaussian(4, 3, 1))
    assert signs(torch.tensor([0, 1, 2])).tolist() == [-1.0, 1.0, -1.0]
