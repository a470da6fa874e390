"""Eigenvalues, the rank verdict and projections."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wideangle.errors import InputError, NumericsError
from wideangle.kernel.infinite import ntk
from wideangle.kernel.spectrum import (
    Spectrum,
    as_matrix,
    condition_number,
    effective_rank,
    eigenpairs,
    project,
)
from wideangle.nets import MLP
from wideangle.seeds import generator


def normal(*shape, name="x", dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=generator(0, "test-spectrum", name))


def rotated(eigenvalues):
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    q, _ = torch.linalg.qr(normal(len(values), len(values), name="rotation"))
    return q @ torch.diag(values) @ q.T


def test_known_eigenvalues_come_back_in_order_with_vectors():
    kernel = rotated([1.0, 10.0, 0.1, 4.0])
    found = eigenpairs(kernel)
    assert found.eigenvalues == pytest.approx([10, 4, 1, 0.1], rel=1e-12)
    rebuilt = found.vectors @ np.diag(found.eigenvalues) @ found.vectors.T
    assert rebuilt == pytest.approx(kernel.numpy(), abs=1e-12)
    assert (found.rank, found.rank_deficient, found.size, found.samples) == (4, False, 4, 4)
    assert found.condition_number == pytest.approx(100)
    assert found.effective_rank == pytest.approx(15.1**2 / (100 + 16 + 1 + 0.01))
    assert condition_number(found) == found.condition_number
    assert condition_number(kernel) == pytest.approx(found.condition_number, rel=1e-9)
    assert effective_rank(kernel) == pytest.approx(effective_rank(found))


def test_low_rank_is_a_verdict_and_not_a_huge_ratio():
    factor = normal(30, 5, name="thin")
    gram = factor @ factor.T
    raw = torch.linalg.eigvalsh(gram)
    assert abs(float(raw[-1] / raw[0])) > 1e12  # what a naive ratio says
    found = eigenpairs(gram, vectors=False)
    assert (found.rank, found.rank_deficient, found.condition_number) == (5, True, math.inf)
    assert found.vectors is None
    assert int((found.resolved > 0).sum()) == 5
    zero = eigenpairs(torch.zeros(3, 3))
    assert (zero.rank, zero.condition_number, zero.effective_rank) == (0, math.inf, 0.0)


def gradient_rows(net, x):
    """Per-sample gradients of the first output, in the net's precision, one batch for each part of x."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def output(p, row):
        return torch.func.functional_call(net, p, (row[None],))[0, 0]

    rows = []
    for part in x:
        jacobian = torch.func.vmap(torch.func.grad(output), (None, 0))(parameters, part)
        rows.append(torch.cat([block.flatten(1) for block in jacobian.values()], 1))
    return torch.cat(rows).double()


@pytest.mark.parametrize("together", [True, False])
def test_duplicated_samples_in_a_float32_net_are_rank_deficient(together):
    x = normal(60, 20, name="data", dtype=torch.float32)
    net = MLP(20, 1, width=64, depth=3)
    parts = [torch.cat([x, x[7:8]])] if together else [x, x[7:8]]
    rows = gradient_rows(net, parts)
    found = eigenpairs(rows @ rows.T, factor_dtype=torch.float32)
    assert (found.size, found.rank, found.condition_number) == (61, 60, math.inf)
    once = gradient_rows(net, [x])
    assert not eigenpairs(once @ once.T, factor_dtype=torch.float32).rank_deficient


def test_the_resolution_follows_the_precision_of_kernel_and_factors():
    kernel = rotated(list(np.geomspace(1, 1e-6, 20)))
    double = eigenpairs(kernel)
    assert double.resolution == pytest.approx(20 * np.finfo(float).eps, rel=1e-6, abs=0)
    single = eigenpairs(kernel, factor_dtype=torch.float32)
    assert single.resolution == pytest.approx(16 * 2.0**-46 * float(kernel.trace()), rel=1e-6, abs=0)
    assert not double.rank_deficient
    assert not single.rank_deficient
    lossy = eigenpairs(kernel.float())
    assert lossy.resolution >= 20 * 2.0**-23
    assert lossy.rank_deficient
    assert eigenpairs(kernel, resolution=1e-3).rank == 10


def test_a_float32_kernel_in_float64_clothes_is_recognised_by_its_negative_eigenvalue():
    factor = normal(40, 3, name="rank3", dtype=torch.float32)
    upcast = (factor @ factor.T).double()
    found = eigenpairs(upcast)
    assert found.eigenvalues[-1] < 0
    assert found.resolution >= -found.eigenvalues[-1]
    assert found.condition_number == math.inf


def test_full_kernels_are_flattened_sample_by_sample():
    rows = normal(4, 3, 50, name="full")
    full = torch.einsum("icp,jdp->icjd", rows, rows)
    matrix = as_matrix(full)
    assert float(matrix[2 * 3 + 1, 3 * 3 + 2]) == float(full[2, 1, 3, 2])
    found = eigenpairs(full)
    assert (found.size, found.samples, found.outputs) == (12, 4, 3)
    assert eigenpairs(matrix, outputs=3).samples == 4
    target = normal(4, 3, name="y")
    assert project(found, target) == pytest.approx(project(found, target.flatten()))
    assert project(found, target).shape == (12, 1)
    with pytest.raises(InputError, match="5 outputs"):
        eigenpairs(matrix, outputs=5)


def test_projection_gives_the_coefficients_of_each_column():
    kernel = rotated([3.0, 2.0, 1.0])
    found = eigenpairs(kernel)
    target = found.vectors @ np.array([[1.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    assert project(found, target) == pytest.approx(np.array([[1, 0], [0, 2], [5, 0]]), abs=1e-12)
    assert project(found, torch.tensor(target[:, 0])).shape == (3, 1)
    for wrong in (np.ones(4), np.ones((2, 3)), np.ones((3, 1, 1))):
        with pytest.raises(InputError, match="does not fit"):
            project(found, wrong)
    with pytest.raises(InputError, match="non-finite"):
        project(found, [1.0, math.nan, 0.0])
    with pytest.raises(InputError, match="vectors=True"):
        project(eigenpairs(kernel, vectors=False), target)


def test_the_record_is_light_and_comes_back_without_vectors():
    found = eigenpairs(ntk(normal(50, 10), 2))
    text = found.to_json()
    assert len(text) < 50 * 60
    back = Spectrum.from_json(text)
    assert back.eigenvalues == pytest.approx(found.eigenvalues, rel=1e-15)
    assert back.vectors is None
    assert back.condition_number == found.condition_number
    assert "effective rank" in str(found)
    assert Spectrum.from_json(eigenpairs(torch.ones(2, 2)).to_json()).condition_number == math.inf


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=8),
    st.integers(-250, 250),
)
def test_ratios_do_not_depend_on_the_scale_of_the_kernel(eigenvalues, power):
    kernel = rotated(eigenvalues)
    found, scaled = eigenpairs(kernel), eigenpairs(kernel * 10.0**power)
    wanted = max(eigenvalues) / min(eigenvalues)
    assert found.condition_number == pytest.approx(wanted, rel=1e-6)
    assert scaled.condition_number == pytest.approx(found.condition_number, rel=1e-6)
    assert scaled.effective_rank == pytest.approx(found.effective_rank, rel=1e-9)
    assert 1 - 1e-9 <= found.effective_rank <= len(eigenvalues) + 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_rank_is_that_of_the_factor(n, p, seed):
    factor = normal(n, p, name=seed)
    found = eigenpairs(factor @ factor.T, vectors=False)
    assert found.rank == min(n, p)
    assert found.rank_deficient == (p < n)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (torch.zeros(2, 3), "cross kernel"),
        (torch.zeros(2, 3, 3, 2), "cross kernel"),
        (torch.zeros(0, 0), "real"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "no kernel"),
    ],
)
def test_what_is_no_kernel_is_refused(kernel, words):
    with pytest.raises(InputError, match=words):
        eigenpairs(kernel)


def test_non_finite_kernels_are_a_numerics_error_and_a_bad_resolution_an_input_error():
    kernel = torch.eye(3)
    kernel[0, 1] = kernel[1, 0] = math.inf
    with pytest.raises(NumericsError, match="2 non-finite"):
        condition_number(kernel)
    with pytest.raises(InputError, match="-1"):
        eigenpairs(torch.eye(3), resolution=-1)
