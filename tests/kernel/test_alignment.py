"""Slopes of label and residual energy: exact power laws, the digits table, and the permuted control."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wideangle.errors import InputError
from wideangle.kernel.alignment import Alignment, label_alignment, residual_alignment
from wideangle.kernel.infinite import nngp, ntk
from wideangle.kernel.spectrum import eigenpairs
from wideangle.seeds import generator


def spectrum_of(eigenvalues):
    """A kernel with these eigenvalues, decreasing, in a random basis; its spectrum."""
    n = len(eigenvalues)
    draws = torch.randn(n, n, dtype=torch.float64, generator=generator(0, "test-alignment", n))
    basis = torch.linalg.qr(draws)[0]
    return eigenpairs(basis @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ basis.T)


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    bunch, pick = load_digits(), np.random.default_rng(0).permutation(1797)[:1000]
    x = torch.tensor(bunch.data[pick])
    return x / x.norm(dim=1, keepdim=True), bunch.target[pick]


@pytest.fixture(scope="module")
def kernels(digits):
    return {depth: eigenpairs(ntk(digits[0], depth)) for depth in (1, 4)}


@settings(max_examples=25, deadline=None)
@given(st.floats(-0.5, 2.5), st.integers(60, 200))
def test_an_exact_power_law_gives_its_exponent_and_a_tiny_interval(power, n):
    spectrum = spectrum_of(np.geomspace(1, 1e-3, n))
    signs = np.where(np.arange(n) % 2, 1.0, -1.0)
    target = spectrum.vectors @ (signs * spectrum.eigenvalues ** (power / 2))
    found = residual_alignment(spectrum, target, bins=10, permutations=0)
    assert found.slope == pytest.approx(power, abs=0.03)
    assert found.low <= found.slope <= found.high < found.slope + 0.1
    assert (found.control_slope, found.above_control) == (None, False)
    assert found.modes_used + found.modes_left_out == n
    assert found.bin_energy == pytest.approx(np.array(found.bin_eigenvalue) ** power, rel=0.3, abs=0)
    energy = spectrum.eigenvalues**power
    assert abs(found.modes_for_90 - 1 - int((np.cumsum(energy) < 0.9 * energy.sum()).sum())) <= 1


@pytest.mark.parametrize(("depth", "one_hot", "parity"), [(1, 1.21, 1.19), (4, 1.78, 1.65)])
def test_digits_label_slopes_match_the_table_and_beat_the_permuted_control(
    digits, kernels, depth, one_hot, parity
):
    labels = digits[1]
    found = label_alignment(kernels[depth], labels)
    assert found.slope == pytest.approx(one_hot, abs=0.006)
    assert found.low < found.slope < found.high
    assert abs(found.control_slope) < 0.1
    assert found.above_control
    assert found.modes_for_90 < 200 < 800 < found.control_modes_for_90
    binary = label_alignment(kernels[depth], np.where(labels % 2 == 0, 1.0, -1.0), permutations=2)
    assert binary.slope == pytest.approx(parity, abs=0.006)
    assert binary.slope == pytest.approx(label_alignment(kernels[depth], labels % 2, permutations=2).slope)


@pytest.mark.parametrize("depth", [1, 4])
def test_permuted_digits_labels_have_slope_zero(digits, kernels, depth):
    shuffled = np.random.default_rng(1).permutation(digits[1])
    found = label_alignment(kernels[depth], shuffled)
    assert abs(found.slope) < 0.15
    assert not found.above_control


@pytest.mark.parametrize(("depth", "outputs", "residual"), [(1, 1.44, 1.23), (4, 1.58, 1.65)])
def test_initial_outputs_and_residuals_follow_the_kernel(digits, kernels, depth, outputs, residual):
    x, labels = digits
    root = torch.linalg.cholesky(nngp(x, depth) + 1e-12 * torch.eye(len(x)))
    draws = torch.randn(len(x), 40, dtype=torch.float64, generator=generator(0, "outputs"))
    start = (root @ draws).numpy()
    parity = np.where(labels % 2 == 0, 1.0, -1.0)[:, None]
    assert residual_alignment(kernels[depth], start, permutations=0).slope == pytest.approx(outputs, abs=0.1)
    found = residual_alignment(kernels[depth], start - parity, permutations=3)
    assert found.slope == pytest.approx(residual, abs=0.1)
    assert abs(found.control_slope) < 0.15
    energies = ((kernels[depth].vectors.T @ start) ** 2).mean(
        1
    )  # E (v . f_0)^2 <= lambda, with sampling noise
    assert float((energies / kernels[depth].eigenvalues).max()) < 1.0


def test_initial_output_energy_is_below_the_eigenvalue_exactly(digits, kernels):
    for depth, highest in ((1, 0.59), (4, 0.32)):
        vectors = kernels[depth].vectors
        ratio = (vectors * (nngp(digits[0], depth).numpy() @ vectors)).sum(0) / kernels[depth].eigenvalues
        assert float(ratio.max()) == pytest.approx(highest, abs=0.03)


def test_a_full_kernel_of_equal_outputs_gives_the_same_slope_as_one_kernel_for_all():
    spectrum = spectrum_of(np.geomspace(1, 1e-3, 60))
    kernel = torch.tensor(spectrum.vectors * spectrum.eigenvalues @ spectrum.vectors.T)
    full = eigenpairs(torch.einsum("ij,cd->icjd", kernel, torch.eye(3, dtype=torch.float64)))
    labels = torch.arange(60) % 3
    one, both = label_alignment(spectrum, labels, bins=8), label_alignment(full, labels, bins=8)
    assert both.slope == pytest.approx(one.slope, abs=1e-6)
    assert both.bin_count == [3 * count for count in one.bin_count]
    hot = torch.nn.functional.one_hot(labels).double()
    assert label_alignment(full, hot.flatten(), bins=8).slope == pytest.approx(both.slope)
    assert label_alignment(full, hot, bins=8).control_slope == pytest.approx(both.control_slope)
    assert both.control_slope == pytest.approx(one.control_slope, abs=1e-6)  # permutes samples, not entries


def test_centring_and_dropping_take_the_constant_mode_away():
    n = 100
    kernel = torch.ones(n, n, dtype=torch.float64) + torch.diag(torch.logspace(-3, 0, n, dtype=torch.float64))
    spectrum = eigenpairs(kernel)
    target = 5 + torch.randn(n, dtype=torch.float64, generator=generator(0, "centre"))
    raw = residual_alignment(spectrum, target, bins=5)
    centred = residual_alignment(spectrum, target, bins=5, centre=True)
    assert raw.modes_for_90 == 1
    assert centred.modes_for_90 > 50
    assert label_alignment(spectrum, target, bins=5).modes_for_90 == centred.modes_for_90
    dropped = residual_alignment(spectrum, target, bins=5, drop_top=40)
    assert max(dropped.bin_eigenvalue) <= spectrum.eigenvalues[40]
    assert dropped.modes_used <= 60


def test_after_training_the_slope_survives_on_the_slow_modes_only():
    spectrum = spectrum_of(np.geomspace(1, 1e-6, 300))
    start = np.sqrt(spectrum.eigenvalues)
    steps, step = 300, 1.0
    later = spectrum.vectors @ (start * (1 - step * spectrum.eigenvalues) ** steps)
    slow = residual_alignment(spectrum, later, bins=8, below=0.1 / (step * steps))
    assert slow.slope == pytest.approx(1, abs=0.06)
    assert max(slow.bin_eigenvalue) <= 0.1 / (step * steps)
    with_fast = residual_alignment(spectrum, later, bins=12)
    assert abs(with_fast.slope - 1) > 0.5


def test_energy_under_the_resolution_is_reported_and_left_out():
    spectrum = spectrum_of(np.concatenate([np.geomspace(1, 1e-2, 60), np.zeros(20)]))
    coefficients = np.concatenate([np.ones(60), 2 * np.ones(20)])
    found = residual_alignment(spectrum, spectrum.vectors @ coefficients, bins=6)
    assert found.unresolved_share == pytest.approx(80 / 140)
    assert found.modes_used <= 60
    assert found.slope == pytest.approx(0, abs=1e-6)


def test_the_control_is_repeatable_and_the_record_round_trips(digits, kernels):
    first = label_alignment(kernels[1], digits[1], permutations=3)
    again = label_alignment(kernels[1], digits[1], permutations=3)
    other = label_alignment(kernels[1], digits[1], permutations=3, generator=generator(9, "other"))
    assert first == again
    assert first.control_slope != other.control_slope
    assert first.slope == other.slope
    assert Alignment.from_json(first.to_json()) == first
    assert "control slope" in str(first)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: label_alignment(s, torch.zeros(5)), "does not fit"),
        (lambda s: label_alignment(s, torch.zeros(40, dtype=torch.long)), "constant"),
        (lambda s: residual_alignment(s, torch.zeros(40)), "zero"),
        (lambda s: residual_alignment(s, torch.full((40,), math.nan)), "finite"),
        (lambda s: residual_alignment(s, torch.arange(40.0), bins=2), "bins"),
        (lambda s: residual_alignment(s, torch.arange(40.0), bins=40), "three bins"),
        (lambda s: residual_alignment(s, torch.arange(40.0), bins=5, permutations=1), "two permutations"),
        (lambda s: residual_alignment(s, torch.arange(40.0), below=1e-9), "0 of 40 modes"),
        (
            lambda s: residual_alignment(eigenpairs(torch.eye(40), vectors=False), torch.arange(40.0)),
            "vectors",
        ),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call(spectrum_of(np.geomspace(1, 1e-2, 40)))
