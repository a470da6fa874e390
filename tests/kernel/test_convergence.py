"""Predicted loss curves against explicit iteration, and bounds that must hold, or must not."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wideangle.errors import InputError
from wideangle.kernel import convergence
from wideangle.kernel._curves import trace_curve
from wideangle.kernel.convergence import (
    Prediction,
    generalization_bound,
    loss_bound_lambda_min,
    loss_bound_trace,
    loss_curve,
    power_law,
    predict,
    residual_energies,
    steps_to,
    time_grid,
    trace_constant,
)
from wideangle.kernel.infinite import nngp, ntk
from wideangle.kernel.spectrum import Spectrum, eigenpairs
from wideangle.losses import SQUARED_LOSSES, hessian_factor
from wideangle.seeds import generator


def normal(*shape, name="x"):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, "test-convergence", name))


def diagonal(*eigenvalues):
    return eigenpairs(np.diag(np.array(eigenvalues, dtype=float)))


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    bunch, pick = load_digits(), np.random.default_rng(0).permutation(1797)[:1000]
    x = torch.tensor(bunch.data[pick])
    return x / x.norm(dim=1, keepdim=True), np.where(bunch.target[pick] % 2 == 0, 1.0, -1.0)


@pytest.fixture(scope="module")
def kernels(digits):
    return {depth: eigenpairs(ntk(digits[0], depth)) for depth in (1, 4)}


def initial_residual(digits, depth, seed):
    root = torch.linalg.cholesky(nngp(digits[0], depth) + 1e-12 * torch.eye(1000))
    return (root @ normal(1000, name=seed)).numpy() - digits[1]


@pytest.mark.parametrize("fraction", [0.3, 1.0, 1.9, 2.05])
@pytest.mark.parametrize("loss", SQUARED_LOSSES)
def test_the_curve_is_gradient_descent_step_by_step(loss, fraction):
    n, outputs = 9, 2
    rows = normal(n * outputs, 40, name="rows")
    kernel, r = rows @ rows.T, normal(n * outputs, name="r")
    c = hessian_factor(loss, n, outputs)
    full = kernel.reshape(n, outputs, n, outputs)
    spectrum = eigenpairs(full)
    step = fraction / (c * spectrum.eigenvalues[0])
    wanted, residual = [], r.clone()
    for _ in range(30):
        wanted.append(float(c / 2 * residual @ residual))
        residual = residual - step * c * kernel @ residual
    found = predict(spectrum, r.reshape(n, outputs), step, 29, loss=loss)
    assert found.exact == pytest.approx(wanted, rel=1e-10)
    assert predict(spectrum, r, step, 29, loss=loss).exact == pytest.approx(wanted, rel=1e-10)
    assert loss_curve(spectrum, r, step, np.arange(30), c=c) == pytest.approx(wanted, rel=1e-10)
    assert found.diverges == (fraction > 2)
    assert found.critical_step == pytest.approx(2 / (c * spectrum.eigenvalues[0]))


def test_one_kernel_for_all_outputs_is_the_full_kernel_of_equal_blocks():
    rows = normal(12, 30, name="shared")
    kernel, r = rows @ rows.T, normal(12, 3, name="r3")
    one = eigenpairs(kernel)
    full = eigenpairs(torch.einsum("ij,cd->icjd", kernel, torch.eye(3, dtype=torch.float64)))
    step = 1 / one.eigenvalues[0]
    a, b = predict(one, r, step, 50, loss="mse"), predict(full, r, step, 50, loss="mse")
    assert a.exact == pytest.approx(b.exact, rel=1e-10)
    assert a.c == b.c == pytest.approx(2 / 36)
    assert "full kernel" in a.warnings[0]
    assert b.warnings == []
    assert residual_energies(one, r).sum() == pytest.approx(float((r**2).sum()))


eigenvalue_lists = st.lists(st.floats(1e-6, 10), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(eigenvalue_lists, st.integers(0, 3), st.integers(0, 10**6), st.floats(0.05, 2.3), st.floats(0.1, 3))
def test_both_bounds_hold_for_every_time_residual_and_step(eigenvalues, zeros, seed, fraction, c):
    spectrum = diagonal(*eigenvalues, *[0.0] * zeros)
    r = normal(spectrum.size, name=seed).numpy()
    step = fraction / (c * max(eigenvalues))
    times = np.concatenate([np.arange(20), np.geomspace(20, 1e7, 30)])
    exact = loss_curve(spectrum, r, step, times, c)
    assert not np.isnan(exact).any()
    for bound in (
        loss_bound_trace(spectrum, r, step, times, c),
        loss_bound_lambda_min(spectrum, r, step, times, c),
    ):
        assert (bound >= exact * (1 - 1e-12)).all()
    fitted = loss_bound_trace(spectrum, r, step, times, c, constant="fitted")
    assert fitted[0] == pytest.approx(exact[0], rel=1e-12)
    assert trace_constant(spectrum, r) >= trace_constant(spectrum, r, "fitted") * (1 - 1e-12)


def test_the_fitted_constant_is_no_bound_on_digits_but_the_rigorous_one_is_and_beats_lambda_min(
    digits, kernels
):
    times = np.array([1000, 10000])
    spectrum, step = kernels[1], 1 / kernels[1].eigenvalues[0]
    worst = np.inf
    for seed in range(4):
        r = initial_residual(digits, 1, seed)
        exact = loss_curve(spectrum, r, step, times)
        assert exact == pytest.approx([59.0, 5.37], rel=0.15)
        rigorous = loss_bound_trace(spectrum, r, step, times)
        assert (exact <= rigorous).all()
        assert rigorous[1] < 0.7 * loss_bound_lambda_min(spectrum, r, step, 10000)
        worst = min(worst, float(loss_bound_trace(spectrum, r, step, 1000, constant="fitted") / exact[0]))
    assert worst < 0.7  # the true loss is above the fitted curve for some initialisations
    r = initial_residual(digits, 4, 0)
    step = 1 / kernels[4].eigenvalues[0]
    assert loss_curve(kernels[4], r, step, times) == pytest.approx([23.0, 0.0755], rel=0.25)
    bounds = [f(kernels[4], r, step, 10000) for f in (loss_bound_trace, loss_bound_lambda_min)]
    assert bounds[0] < 0.2 * bounds[1]


def test_depth_accelerates_and_permuted_labels_take_longer():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.data[:300])
    x = x / x.norm(dim=1, keepdim=True)
    y = np.where(bunch.target[:300] % 2 == 0, 1.0, -1.0)
    shuffled = np.random.default_rng(0).permutation(y)
    counts, control = [], []
    for depth in (1, 2, 3, 5, 10):
        spectrum = eigenpairs(ntk(x, depth))
        step = 1 / spectrum.eigenvalues[0]
        counts.append(steps_to(spectrum, y, step, 0.01 * 150))
        control.append(steps_to(spectrum, shuffled, step, 0.01 * 150))
    assert all(deep < shallow for shallow, deep in pairwise(counts))
    assert counts == pytest.approx([3099, 1559, 1041, 641, 379], rel=0.12)  # measured on other samples
    assert all(a > 2.5 * b for a, b in zip(control, counts, strict=True))


@settings(max_examples=60, deadline=None)
@given(eigenvalue_lists, st.integers(0, 10**6), st.floats(0.05, 2.2), st.floats(1e-4, 1.5))
def test_steps_to_is_the_first_step_at_or_below_the_target(eigenvalues, seed, fraction, share):
    spectrum = diagonal(*eigenvalues)
    r = normal(spectrum.size, name=seed).numpy()
    step = fraction / max(eigenvalues)
    curve = loss_curve(spectrum, r, step, np.arange(4000))
    target = share * curve[0]
    below = np.flatnonzero(curve <= target)
    found = steps_to(spectrum, r, step, target)
    if len(below):
        assert found == below[0]
    else:
        assert found >= 4000


def test_large_times_are_exact_and_cheap():
    spectrum = diagonal(1.0, 1e-9)
    times = np.array([0, 1, 1e9, 5e9, 1e18])
    found = loss_curve(spectrum, [0.0, 1.0], step=1e-3, steps=times)
    assert found == pytest.approx(0.5 * np.exp(2 * times * math.log1p(-1e-12)), rel=1e-14)
    assert found[2] == pytest.approx(0.5 * math.exp(-0.002), rel=1e-12)
    assert steps_to(spectrum, [0.0, 1.0], 1e-3, 0.5 * math.exp(-2)) == pytest.approx(1e12, rel=1e-11)
    assert loss_curve(spectrum, [1.0, 1.0], 1.0, [[3, 4], [5, 6]]).shape == (2, 2)
    assert loss_curve(spectrum, [1.0, 1.0], 1.0, 3).shape == ()


def test_a_mode_at_the_exact_step_vanishes_at_once():
    spectrum = diagonal(2.0, 1.0)
    assert loss_curve(spectrum, [1.0, 0.0], 0.5, [0, 1, 10]).tolist() == [0.5, 0.0, 0.0]
    assert steps_to(spectrum, [1.0, 0.0], 0.5, 0.0) == 1


def test_too_large_a_step_is_seen_to_turn_and_overflows_to_inf():
    spectrum, r = diagonal(1.0, 0.1), np.array([1e-3, 10.0])
    found = predict(spectrum, r, 2.1, np.arange(300), target=1.0)
    assert found.diverges
    assert found.turning_step == int(np.argmin(found.exact))
    assert found.exact[0] > found.exact[int(found.turning_step)] < found.exact[-1]
    assert "above the critical 2" in found.warnings[0]
    assert f"smallest at step {found.turning_step:.0f}" in found.warnings[0]
    assert math.isfinite(found.steps_to_target["exact"])
    never = predict(spectrum, r, 2.1, 10, target=1e-30)
    assert never.steps_to_target["exact"] == math.inf
    far = loss_curve(spectrum, r, 2.1, [1e4, 1e300])
    assert far.tolist() == [math.inf, math.inf]
    assert loss_curve(spectrum, [0.0, 1.0], 2.1, [1e4, 1e300]).tolist() == pytest.approx([0, 0])
    quiet = predict(spectrum, [0.0, 1.0], 2.1, 10)
    assert (quiet.diverges, quiet.turning_step) == (True, math.inf)
    assert "only rounding" in quiet.warnings[0]
    assert predict(spectrum, r, 1.9, 10).turning_step == math.inf
    # at the critical step itself the top mode neither falls nor rises
    assert predict(spectrum, r, 2.0, 10).floor == pytest.approx(0.5e-6)


def test_a_singular_kernel_leaves_a_floor_and_a_flat_classic_bound():
    spectrum = diagonal(1.0, 0.5, 0.0)
    r = np.array([1.0, 1.0, 2.0])
    found = predict(spectrum, r, 1.0, [0, 10, 1000], target=1.0)
    assert found.floor == pytest.approx(2.0)
    assert found.exact[-1] == pytest.approx(2.0)
    assert found.bound_lambda_min == [3.0, 3.0, 3.0]
    assert found.bound_rigorous[-1] == pytest.approx(2.0)
    assert set(found.steps_to_target.values()) == {math.inf}
    assert any("below the resolution" in text for text in found.warnings)
    assert any("never reached" in text for text in found.warnings)
    zero = predict(eigenpairs(torch.zeros(2, 2)), [1.0, 1.0], 1.0, 5)
    assert zero.exact == [1.0] * 6
    assert zero.critical_step == math.inf


def test_the_prediction_round_trips_and_prints():
    found = predict(diagonal(1.0, 0.2), [1.0, 1.0], 1.0, 1_000_000)
    assert found.times[0] == 0
    assert found.times[-1] == 1_000_000
    assert len(found.times) <= 402
    assert Prediction.from_json(found.to_json()) == found
    assert "steps to target" in str(found)


def test_time_grid_is_full_where_short_and_logarithmic_where_long():
    assert time_grid(400).tolist() == list(range(401))
    grid = time_grid(10**9)
    assert (grid[0], grid[1], grid[-1]) == (0, 1, 10**9)
    assert (np.diff(grid) > 0).all()
    assert (grid == np.round(grid)).all()


@pytest.mark.parametrize(("q", "slope"), [(1.5, -0.339), (2.0, -0.500), (3.0, -0.667)])
def test_power_law_spectra_decay_with_the_predicted_exponent(q, slope):
    eigenvalues = np.arange(1.0, 300_001.0) ** -q
    spectrum = Spectrum(eigenvalues, 0.0, len(eigenvalues), False, 1 / eigenvalues[-1], 1.0)
    law = power_law(spectrum)
    assert law.exponent == pytest.approx(q, rel=1e-9)
    assert law.high - law.low < 1e-6
    assert law.decay_exponent == pytest.approx((q - 1) / q, rel=1e-9)
    times = np.geomspace(1e2, 1e4, 12)
    curve = trace_curve(spectrum, eigenvalues, 0.5, 1.0, "rigorous")  # b = lambda, so C = 1
    values = curve.at(times)
    fitted = np.polyfit(np.log(times), np.log(values), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.02)
    assert fitted == pytest.approx(-law.decay_exponent, abs=0.02)
    # the prefactor: tr[(I - step K)^(2t) K] ~ (1/q) Gamma(1 - 1/q) (2 step t)^(-(q - 1)/q)
    wanted = 0.5 / q * math.gamma(1 - 1 / q) * (2 * 0.5 * times) ** (-(q - 1) / q)
    assert values[:8] == pytest.approx(wanted[:8], rel=0.04)  # later the finite number of modes shows
    # steps to epsilon grow like epsilon^(-q/(q-1)): an exponent for log T, not log(1/epsilon)/(q-1)
    counts = [curve.first_below(goal) for goal in (values[3], values[3] / 2)]
    assert math.log2(counts[1] / counts[0]) == pytest.approx(q / (q - 1), rel=0.05)


def test_alignment_changes_the_decay_and_a_slow_spectrum_has_none():
    spectrum = eigenpairs(np.diag(np.arange(1.0, 500.0) ** -2.0), vectors=False)
    assert power_law(spectrum, alignment=2).decay_exponent == pytest.approx(1.5)
    flat = eigenpairs(np.diag(np.arange(1.0, 500.0) ** -0.8), vectors=False)
    assert power_law(flat).decay_exponent == 0
    assert power_law(flat, first=10, last=100).exponent == pytest.approx(0.8)
    noisy = np.sort(np.arange(1.0, 500.0) ** -1.5 * np.exp(0.3 * normal(499, name="noise").numpy()))
    law = power_law(eigenpairs(np.diag(noisy), vectors=False))
    assert law.low < 1.5 < law.high
    assert 0.9 < law.r_squared < 1


def test_digits_generalisation_bounds_match_the_table(digits, kernels):
    shuffled = np.random.default_rng(1).permutation(digits[1])
    for depth, parity, permuted in ((1, 1.32, 4.64), (4, 0.476, 1.53)):
        spectrum = kernels[depth]
        assert generalization_bound(spectrum, digits[1]) == pytest.approx(parity, abs=0.006)
        assert generalization_bound(spectrum, shuffled) == pytest.approx(permuted, rel=0.03)
        aligned = generalization_bound(spectrum, digits[1], "aligned")
        assert aligned < generalization_bound(spectrum, digits[1])
        # it knows the labels by their norm only: permuting changes nothing, so it is no test of alignment
        assert aligned == pytest.approx(generalization_bound(spectrum, shuffled, "aligned"))


def test_the_two_generalisation_bounds_agree_where_labels_follow_the_squared_eigenvalues():
    rows = normal(30, 60, name="gen")
    spectrum = eigenpairs(rows @ rows.T)
    y = spectrum.vectors @ spectrum.eigenvalues
    both = [generalization_bound(spectrum, y, kind) for kind in ("arora", "aligned")]
    assert both[0] == pytest.approx(both[1], rel=1e-9)
    direct = 2 * y @ np.linalg.solve((rows @ rows.T).numpy(), y) / 30
    assert both[0] == pytest.approx(math.sqrt(direct), rel=1e-6)
    scaled = generalization_bound(9 * rows @ rows.T, y)
    assert scaled == pytest.approx(both[0] / 3)
    two = generalization_bound(spectrum, np.stack([y, y], 1))
    assert two == pytest.approx(math.sqrt(2) * both[0])


def test_labels_in_the_null_space_cannot_be_fitted():
    spectrum = eigenpairs(torch.ones(2, 2, dtype=torch.float64))
    assert generalization_bound(spectrum, [1.0, -1.0]) == math.inf
    assert generalization_bound(spectrum, [1.0, 1.0]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: loss_curve(s, [1.0, 1.0], 0.0, [1]), "step must be positive"),
        (lambda s: loss_curve(s, [1.0, 1.0], 1.0, [1], c=math.nan), "c must be positive"),
        (lambda s: loss_curve(s, [1.0, 1.0], 1.0, [-1]), "zero or more"),
        (lambda s: loss_curve(s, [1.0], 1.0, [1]), "does not fit"),
        (lambda s: loss_bound_trace(s, [1.0, 1.0], 1.0, [1], constant="best"), "best"),
        (lambda s: predict(s, [1.0, 1.0], 1.0, [1], loss="hinge"), "hinge"),
        (lambda s: predict(s, [1.0, 1.0], 1.0, [1], target=-1.0), "-1"),
        (lambda s: loss_curve(s, [1.0, 1.0], 1.0, [0], c=-1.0), "c must be positive"),
        (lambda s: time_grid(-1), "-1"),
        (lambda s: power_law(s), "eight eigenvalues"),
        (lambda s: generalization_bound(s, torch.tensor([0, 7])), "one-hot"),
        (lambda s: generalization_bound(s, [1.0, 1.0], "rademacher"), "rademacher"),
        (lambda s: generalization_bound(torch.zeros(2, 2), [1.0, 1.0]), "zero"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call(diagonal(1.0, 0.5))


def test_no_public_function_is_named_like_a_module():
    assert not {"infinite", "spectrum", "angles", "alignment", "convergence"} & set(convergence.__all__)
