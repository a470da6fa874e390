"""Intervals of the smallest eigenvalue: they hold the true one, are never negative, and claim no more."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import fresh, normal

from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.kernel import ConditionInterval, condition_interval, condition_number, eigenpairs, factors
from wideangle.seeds import generator


class Operator:
    """A matrix known by its products, with a diagonal where wanted; counts the products."""

    def __init__(self, matrix: Tensor, outputs: int = 1):
        self.matrix, self.outputs, self.samples = matrix, outputs, len(matrix) // outputs
        self.dtype, self.device, self.products = matrix.dtype, matrix.device, 0

    def __matmul__(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ v


class WithDiagonal(Operator):
    def diagonal(self) -> Tensor:
        return self.matrix.diagonal().reshape(self.samples, self.outputs)


def rotated(values: list[float] | np.ndarray, name: str = "rotation") -> Tensor:
    draws = generator(0, "test-interval", name)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=draws, dtype=torch.float64))
    matrix = q @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ q.T
    return (matrix + matrix.T) / 2


WELL = {
    "powers": [2.0**-i for i in range(30)],
    "multiple": [5.0] * 4 + [4.0] * 3 + [1.0] * 30,
    "cluster at the low end": [3.0] * 20 + [1e-6 * (1 + i * 1e-5) for i in range(20)],
    "all equal": [2.0] * 25,
    "large": [1e150, 1e145],
    "one": [7.0],
}
BELOW = {
    "rank three": [3.0, 2.0, 1.0] + [0.0] * 40,
    "near-singular": [1.0] * 30 + [1e-17],
    "wide": [10.0**-i for i in range(25)],
    "zero": [0.0] * 5,
}


@pytest.mark.parametrize("name", WELL)
def test_dense_interval_holds_the_smallest_eigenvalue(name: str):
    values = WELL[name]
    found = condition_interval(rotated(values))
    slack, rounded = 1e-12, 1e-14 * max(values)
    assert 0 < found.smallest_low <= min(values) <= found.smallest_high * (1 + slack)
    assert found.smallest_low > min(values) - 4 * found.resolution - rounded
    assert found.smallest_high < min(values) + 4 * found.resolution + rounded
    assert found.low <= max(values) / min(values) <= found.high
    assert found.largest == pytest.approx(max(values))
    assert found.resolved
    assert found.verdict.startswith("between ")
    assert (found.method, found.products) == ("dense", 0)
    assert found.low >= 1


@pytest.mark.parametrize("name", BELOW)
def test_below_resolution_is_zero_to_resolution_and_never_negative(name: str):
    matrix = rotated(BELOW[name])
    found = condition_interval(matrix)
    assert found.smallest_low == 0
    assert found.resolution <= found.smallest_high <= 2 * found.resolution * (1 + 1e-9)
    assert found.high == math.inf
    assert 1 <= found.low < math.inf
    assert not found.resolved
    assert found.verdict == "below resolution"
    assert found.resolution == pytest.approx(eigenpairs(matrix).resolution, rel=1e-9)
    assert condition_number(matrix) == math.inf
    if name != "zero":
        assert found.low == pytest.approx(max(BELOW[name]) / found.smallest_high)


@pytest.mark.parametrize("scale", [0.5, 0.99, 1.01, 1.5, 3.0, 1e3])
def test_around_the_resolution_the_verdict_is_the_spectrum_s(scale: float):
    smallest = scale * 40 * torch.finfo(torch.float64).eps
    matrix = torch.diag(torch.cat([torch.ones(39).double(), torch.tensor([smallest]).double()]))
    found = condition_interval(matrix)
    assert found.smallest_low <= smallest <= found.smallest_high
    assert found.resolved == (not eigenpairs(matrix).rank_deficient)
    assert (found.smallest_low > 0) == found.resolved


def mlp(dtype: torch.dtype, width: int = 64) -> nn.Module:
    model = fresh(nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)))
    return model.to(dtype)


def test_factors_of_a_net_and_its_gram_agree():
    cache = factors(mlp(torch.float64), normal(12, 6))
    found, dense = condition_interval(cache), condition_interval(cache.gram())
    exact = torch.linalg.eigvalsh(cache.gram().reshape(36, 36))
    assert found == dense
    assert found.smallest_low <= float(exact[0]) <= found.smallest_high
    assert found.high / found.low < 1 + 1e-6


@pytest.mark.parametrize("samples", [12, 40, 80])
def test_float32_gradients_widen_the_interval_to_hold_the_exact_eigenvalue(samples: int):
    x = normal(samples, 6).float()
    exact = eigenpairs(factors(mlp(torch.float32).double(), x.double()).gram()).eigenvalues
    cache = factors(mlp(torch.float32), x)
    found = condition_interval(cache)
    assert found.smallest_low <= exact[-1] <= found.smallest_high
    assert found.low <= exact[0] / exact[-1] <= found.high
    close = condition_interval(cache, factor_dtype=torch.float64)
    assert close.smallest_high - close.smallest_low < found.smallest_high - found.smallest_low


@pytest.mark.parametrize("make", [Operator, WithDiagonal])
@pytest.mark.parametrize("name", [*WELL, *BELOW])
def test_bound_from_products(name: str, make: Callable[[Tensor], Operator]):
    values = (WELL | BELOW)[name]
    if len(values) < 12 and name != "one":
        values = values + [values[0]] * 12
    operator = make(rotated(values))
    found = condition_interval(operator, dense_limit=0)
    assert found.smallest_low == 0
    assert min(values) <= found.smallest_high * (1 + 1e-9) + 1e-300
    assert found.high == math.inf
    assert found.low <= max(values) / min(values) if min(values) else found.low >= 1
    assert not found.resolved
    assert found.method == "Lanczos bound"
    assert found.products == operator.products
    assert (found.verdict == "below resolution") == (min(values) <= found.resolution)


def test_bound_is_tight_where_the_low_end_stands_apart():
    values = np.concatenate([[1e-3], np.linspace(0.5, 1, 400)])
    found = condition_interval(Operator(rotated(values)), dense_limit=100)
    assert found.smallest_high == pytest.approx(1e-3, rel=1e-6)
    assert found.verdict == "at most 0.001"
    assert found.low == pytest.approx(1000, rel=1e-6)


def test_more_products_give_a_lower_bound_and_stay_within_the_budget():
    matrix = rotated(np.logspace(0, -8, 500))
    highs = []
    for budget in (40, 80, 200):
        operator = WithDiagonal(matrix)
        found = condition_interval(operator, dense_limit=100, max_products=budget)
        assert found.products == operator.products <= budget + 2
        highs.append(found.smallest_high)
    assert highs[0] > highs[1] > highs[2] > 1e-8


def test_stops_early_at_the_resolution():
    matrix = rotated([1.0 + i / 100 for i in range(30)] + [0.0] * 300)
    operator = Operator(matrix)
    found = condition_interval(operator, dense_limit=100)
    assert found.verdict == "below resolution"
    assert found.products < 100


def test_smallest_diagonal_entry_bounds_without_lanczos():
    matrix = torch.diag(torch.cat([torch.linspace(1, 2, 100), torch.zeros(1)])).double()
    found = condition_interval(WithDiagonal(matrix), dense_limit=10)
    assert found.verdict == "below resolution"
    plain = condition_interval(matrix, dense_limit=10)
    assert plain.smallest_high == found.smallest_high


def test_factors_above_the_limit_bound_the_exact_eigenvalue():
    for dtype in (torch.float64, torch.float32):
        cache = factors(mlp(dtype), normal(40, 6).to(dtype))
        exact = condition_interval(cache)
        found = condition_interval(cache, dense_limit=100)
        assert exact.smallest_low <= found.smallest_high
        assert found.low <= exact.low * (1 + 1e-3)
        assert found.largest == pytest.approx(exact.largest, rel=1e-4)


def test_operator_without_a_gram_is_formed_from_one_product():
    operator = Operator(rotated(WELL["multiple"]))
    found = condition_interval(operator)
    assert (found.method, found.products, operator.products) == ("dense", 1, 1)
    assert found.smallest_low == pytest.approx(1.0)


def test_prints_and_round_trips():
    resolved = condition_interval(np.diag([4.0, 1.0]))
    below = condition_interval(np.ones((3, 3)))
    bound = condition_interval(Operator(rotated(np.linspace(0.25, 1, 60))), dense_limit=10)
    assert "smallest eigenvalue  between 1 and 1\n" in str(resolved)
    assert "smallest eigenvalue  below resolution\n  condition number     at least " in str(below)
    assert "smallest eigenvalue  at most 0.25\n  condition number     at least 4\n" in str(bound)
    for found in (resolved, below, bound):
        assert ConditionInterval.from_json(found.to_json()) == found


def test_bad_input():
    with pytest.raises(InputError, match="not symmetric"):
        condition_interval(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(InputError, match="not symmetric"):
        condition_interval(torch.ones(30, 30).triu(), dense_limit=10)
    with pytest.raises(InputError, match="the matrix is no kernel"):
        condition_interval(torch.diag(torch.tensor([1.0, -1.0])))
    indefinite = rotated(np.linspace(-1, 1, 40))
    with pytest.raises(InputError, match="the operator is no kernel"):
        condition_interval(Operator(indefinite), dense_limit=10)
    with pytest.raises(InputError, match="a kernel is real"):
        condition_interval(torch.ones(3, 4))
    with pytest.raises(NumericsError, match="non-finite"):
        condition_interval(torch.full((3, 3), float("nan")))
    with pytest.raises(NumericsError, match="not finite"):
        condition_interval(Operator(torch.full((30, 30), float("nan"))), dense_limit=10)
    for bad in ({"dense_limit": -1}, {"max_products": 0}):
        with pytest.raises(InputError, match="must be zero or more"):
            condition_interval(torch.eye(3), **bad)
    with pytest.raises(ConvergenceError, match="max_products=12 products were not enough"):
        condition_interval(Operator(rotated(np.linspace(0, 1, 600))), dense_limit=10, max_products=12)
