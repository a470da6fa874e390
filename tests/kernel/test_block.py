"""Warm starts: the block method against dense eigenvalues, and along a training run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from wideangle import data
from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.kernel import Factors, KernelOperator, TopEigenpairs, factors, top_eigenpairs
from wideangle.kernel._block import orthonormal
from wideangle.seeds import generator


class Operator:
    """A matrix with the attributes of a kernel of C outputs; remembers the columns of its products."""

    def __init__(self, matrix: Tensor, outputs: int = 1):
        self.matrix, self.outputs, self.samples = matrix, outputs, len(matrix) // outputs
        self.dtype, self.device = matrix.dtype, matrix.device
        self.columns: list[int] = []

    def __matmul__(self, v: Tensor) -> Tensor:
        assert v.dtype == self.dtype
        self.columns.append(v.shape[1] if v.dim() == 2 else 1)
        return self.matrix @ v


def normal(*shape: int, name: str = "block") -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, "test-block", name))


def rotated(values: list[float] | np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """A matrix with these eigenvalues, and its eigenvectors in their order."""
    q, _ = torch.linalg.qr(normal(len(values), len(values), name="rotation"))
    matrix = q @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ q.T
    return (matrix + matrix.T) / 2, q


SPECTRA = {
    "powers": [2.0**-i for i in range(60)],
    "slow": [1 / (i + 1) for i in range(200)],
    "multiple": [5.0] * 4 + [4.0] * 3 + [1.0] * 30,
    "cluster": [1.0, 1 - 1e-4, 1 - 2e-4, 1 - 3e-4] + [0.5 - i / 500 for i in range(100)],
    "rank three": [3.0, 2.0, 1.0] + [0.0] * 40,
    "indefinite": [2.0, 1.0] + [-50.0 + i for i in range(40)],
    "tiny": [1e-100, 1e-101, 1e-102, 0.0, 0.0],
}


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", SPECTRA)
def test_random_start_against_the_known_spectrum(name: str, k: int):
    expected = np.sort(SPECTRA[name])[::-1][:k]
    matrix, _ = rotated(SPECTRA[name])
    operator = Operator(matrix)
    found = top_eigenpairs(operator, k, tolerance=1e-8, start=normal(len(matrix), k))
    scale = abs(expected).max()
    assert np.allclose(found.values, expected, rtol=0, atol=1e-7 * scale)
    assert np.allclose(found.vectors.T @ found.vectors, np.eye(k), atol=1e-10)
    images = matrix.numpy() @ found.vectors
    residuals = np.linalg.norm(images - found.vectors * found.values, axis=0)
    assert residuals.max() < 2e-8 * scale
    assert np.allclose(residuals, found.residuals, rtol=0, atol=1e-12 * scale)
    assert found.products == len(operator.columns)
    assert operator.columns[0] == min(k + 1, len(matrix))


@pytest.mark.parametrize("missed", [1, 2, 3])
def test_start_orthogonal_to_the_largest_eigenvectors(missed: int):
    matrix, q = rotated([10.0, 8.0, 6.0, *[1 / (i + 1) for i in range(150)]])
    found = top_eigenpairs(Operator(matrix), 2, tolerance=1e-6, start=q[:, missed : missed + 2])
    assert np.allclose(found.values, [10, 8], atol=1e-5)


def test_start_of_all_but_one_copy_of_a_multiple_eigenvalue():
    matrix, q = rotated([7.0, 7.0, 7.0] + [1.0 - i / 100 for i in range(90)])
    found = top_eigenpairs(Operator(matrix), 3, tolerance=1e-6, start=q[:, [0, 1, 3]])
    assert np.allclose(found.values, 7.0)


def test_exact_start_takes_one_product_where_the_rest_is_small_and_two_else():
    matrix, q = rotated([100.0, 90.0, *[0.01] * 98])
    assert top_eigenpairs(Operator(matrix), 2, start=q[:, :2]).products == 1
    matrix, q = rotated([1.0, 0.9, *[0.5, 0.4] * 49])
    assert top_eigenpairs(Operator(matrix), 2, start=q[:, :2]).products == 2


def test_one_product_that_leaves_the_guard_unwatched_is_not_enough():
    matrix, q = rotated([1.0, 0.9, *[0.5, 0.4] * 49])
    with pytest.raises(ConvergenceError, match="whether the start missed a larger eigenvalue"):
        top_eigenpairs(Operator(matrix), 2, start=q[:, :2], max_products=1)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_small_operators_and_all_pairs(size: int):
    matrix, _ = rotated([float(size - i) for i in range(size)])
    found = top_eigenpairs(Operator(matrix), size, tolerance=1e-9, start=normal(size))
    assert np.allclose(found.values, np.arange(size, 0, -1))


def test_zero_operator():
    found = top_eigenpairs(Operator(torch.zeros(30, 30, dtype=torch.float64)), 2, start=normal(30, 2))
    assert (found.values.tolist(), found.products) == ([0.0, 0.0], 1)


def test_start_may_be_dependent_scaled_short_and_an_array():
    matrix, q = rotated([4.0, 3.0, 2.0] + [0.1] * 40)
    starts = [q[:, [0, 0, 0]], q[:, :1] * 1e-150, (q[:, :3] * 1e6).numpy(), q[:, 0], normal(43, 20)]
    starts.append(torch.stack([q[:, 0], torch.zeros(43, dtype=torch.float64)], dim=1))
    for start in starts:
        found = top_eigenpairs(Operator(matrix), 3, tolerance=1e-7, start=start)
        assert np.allclose(found.values, [4, 3, 2], atol=1e-6)


def test_restarts_keep_the_basis_small_and_converge():
    values = np.concatenate([[1.0], np.linspace(0.97, 0, 400)])
    matrix, _ = rotated(values)
    operator = Operator(matrix)
    found = top_eigenpairs(operator, 1, tolerance=1e-7, start=normal(401))
    assert abs(found.values[0] - 1) < 1e-7
    assert sum(operator.columns) > 2 * 22  # more columns than a basis holds


def test_float32_products():
    matrix, q = rotated([4.0, 3.0, 2.0] + [0.1] * 40)
    found = top_eigenpairs(Operator(matrix.float()), 3, tolerance=1e-6, start=q[:, :3] + 0.01 * normal(43, 3))
    assert found.vectors.dtype == np.float64
    assert np.allclose(found.values, [4, 3, 2], atol=1e-4)


def test_says_when_it_did_not_converge():
    values = np.linspace(0, 1, 600)
    operator = Operator(rotated(values)[0])
    with pytest.raises(ConvergenceError, match="0 of 1 eigenpairs converged to 1e-12 in 4 products"):
        top_eigenpairs(operator, tolerance=1e-12, start=normal(600), max_products=4)
    assert len(operator.columns) == 4
    skew = normal(15, 15)
    operator = Operator(skew @ skew.T + 5 * skew)  # not symmetric: no pair has a small residual
    with pytest.raises(ConvergenceError, match="or the operator is not symmetric"):
        top_eigenpairs(operator, 2, tolerance=1e-10, start=normal(15))


def test_bad_input():
    operator = Operator(torch.eye(30, dtype=torch.float64), outputs=3)
    start = torch.ones(30, dtype=torch.float64)
    for k in (0, 31):
        with pytest.raises(InputError, match=f"k={k} eigenpairs of an operator of size 30"):
            top_eigenpairs(operator, k, start=start)
        with pytest.raises(InputError, match=f"k={k} eigenpairs of an operator of size 30"):
            top_eigenpairs(operator, k)
    for wrong in (torch.ones(10, 3), torch.ones(29), torch.ones(30, 0), torch.ones(30, 1, 1), start * 1j):
        with pytest.raises(InputError, match="the operator takes real vectors of 30 entries"):
            top_eigenpairs(operator, start=wrong)
    with pytest.raises(InputError, match="start has 1 non-finite entries"):
        top_eigenpairs(operator, start=start.index_fill(0, torch.tensor(4), float("nan")))
    with pytest.raises(InputError, match="start is zero"):
        top_eigenpairs(operator, start=start * 0)
    with pytest.raises(InputError, match="the tolerance is 0"):
        top_eigenpairs(operator, tolerance=0.0)
    with pytest.raises(InputError, match="leaves no product"):
        top_eigenpairs(operator, max_products=0)
    other = top_eigenpairs(Operator(torch.eye(20, dtype=torch.float64)))
    with pytest.raises(InputError, match="as many samples and outputs"):
        top_eigenpairs(operator, start=other)
    with pytest.raises(NumericsError, match="not finite"):
        top_eigenpairs(Operator(torch.full((30, 30), float("nan"))), start=start)


def test_orthonormal_leaves_out_what_is_known():
    basis = orthonormal(normal(20, 4))
    block = torch.cat([basis[:, :2] * 3, normal(20, 2, name="more"), torch.zeros(20, 1)], dim=1)
    fresh = orthonormal(block, basis)
    both = torch.cat([basis, fresh], dim=1)
    assert fresh.shape == (20, 2)
    assert torch.allclose(both.T @ both, torch.eye(6, dtype=torch.float64), atol=1e-14)
    assert orthonormal(basis[:, :2], basis).shape == (20, 0)


def test_protocol():
    assert isinstance(Operator(torch.eye(4)), KernelOperator)
    assert isinstance(factors(nn.Linear(3, 2), torch.ones(4, 3)), KernelOperator)
    assert not isinstance(torch.eye(4), KernelOperator)


class Training:
    """A small net on 128 digits, a few steps of SGD at a time."""

    def __init__(self, dtype: torch.dtype, step: float):
        draws = generator(0, "test-block", "weights")
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(dtype)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(
                    torch.randn(p.shape, generator=draws) * (2 / p.shape[1]) ** 0.5 if p.dim() > 1 else 0 * p
                )
        digits = data.load("digits", n=128)
        self.x, self.y = torch.as_tensor(digits.x).to(dtype), torch.as_tensor(digits.y).long()
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=step)

    def factors(self) -> Factors:
        return factors(self.model, self.x)

    def go(self, steps: int = 5) -> None:
        for _ in range(steps):
            self.sgd.zero_grad()
            F.cross_entropy(self.model(self.x), self.y).backward()
            self.sgd.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("k", "tolerance"), [(1, 1e-2), (1, 1e-3), (3, 1e-2), (3, 1e-3)])
def test_tracking_the_top_while_a_net_trains(dtype: torch.dtype, k: int, tolerance: float):
    run = Training(dtype, step=0.02)
    found = top_eigenpairs(run.factors(), 10, tolerance=tolerance)
    assert found.products > 10
    first = torch.as_tensor(found.vectors[:, :k]).to(dtype)
    for _ in range(4):
        run.go()
        cache = run.factors()
        found = top_eigenpairs(cache, k, tolerance=tolerance, start=found)
        exact = torch.linalg.eigvalsh(cache.gram().reshape(1280, 1280)).flip(0)[:k].numpy()
        assert found.products <= 3
        assert np.abs(found.values - exact).max() <= tolerance * exact[0]
        assert found.vectors.shape == (1280, k)
    image = cache @ first
    away = image - first @ (first.T @ image)
    assert float(away.norm(dim=0).max()) > 2 * tolerance * exact[0]  # the kernel did move


def test_tracking_one_vector_at_a_loose_tolerance():
    run = Training(torch.float64, step=0.01)
    found = top_eigenpairs(run.factors(), tolerance=1e-2)
    for _ in range(4):
        run.go()
        cache = run.factors()
        found = top_eigenpairs(cache, tolerance=1e-2, start=found)
        exact = float(torch.linalg.eigvalsh(cache.gram().reshape(1280, 1280))[-1])
        assert found.products <= 3
        assert abs(found.values[0] - exact) <= 1e-2 * exact


def test_a_result_read_from_json_still_starts():
    matrix, _ = rotated([4.0, 3.0, 2.0] + [0.1] * 40)
    found = top_eigenpairs(Operator(matrix), 2, start=normal(43, 5))
    again = TopEigenpairs.from_json(found.to_json())
    assert top_eigenpairs(Operator(matrix), 2, start=again).products <= 2
    operator = Operator(matrix)
    top_eigenpairs(operator, 1, start=found)
    assert operator.columns[0] == 6  # the five columns it carries, and the guard
