"""The smallest eigenvalue and the condition number of a kernel as intervals: what is known, and no more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._block import orthonormal, working_dtype
from wideangle.kernel.lanczos import KernelOperator, rounding, top_eigenpairs
from wideangle.kernel.spectrum import as_matrix, eigenpairs, factor_error, symmetric_part
from wideangle.result import Result

__all__ = ["ConditionInterval", "condition_interval"]

_LOOK = 10  # Lanczos steps between two looks at the smallest Ritz value


@dataclass(frozen=True)
class ConditionInterval(Result):
    """Where the smallest eigenvalue of a kernel and its condition number lie.

        smallest_low <= lambda_min <= smallest_high,   low <= lambda_max / lambda_min <= high

    `smallest_low` is never negative; where it is 0, `high` is inf. `resolved` says that the smallest
    eigenvalue is known to be above zero: where it is not, no positive rate of convergence (mu of the
    Polyak-Lojasiewicz condition) can be read off this kernel. `resolution` is the size at and below which
    an eigenvalue counts as zero; `products` the products with K spent. `verdict` says what is known of
    the smallest eigenvalue: "between ... and ...", "below resolution" or "at most ...".

    Example:
        >>> print(condition_interval(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))))
        ConditionInterval
          largest eigenvalue   4
          smallest eigenvalue  between 1 and 1
          condition number     between 4 and 4
          resolution           1.776e-15
          method               dense
          products             0
    """

    largest: float
    smallest_low: float
    smallest_high: float
    low: float
    high: float
    resolved: bool
    resolution: float
    method: str
    verdict: str
    products: int = 0

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of the printed table as (name, value) pairs."""
        bound = f"at least {self.low:.4g}"
        return [
            ("largest eigenvalue", f"{self.largest:.4g}"),
            ("smallest eigenvalue", self.verdict),
            ("condition number", f"between {self.low:.4g} and {self.high:.4g}" if self.resolved else bound),
            ("resolution", f"{self.resolution:.4g}"),
            ("method", self.method),
            ("products", str(self.products)),
        ]


class _Matrix:
    """A matrix as a `KernelOperator` of one output."""

    def __init__(self, matrix: Tensor):
        self.matrix, self.samples, self.outputs = matrix, len(matrix), 1
        self.dtype, self.device = matrix.dtype, matrix.device

    def __matmul__(self, v: Tensor, /) -> Tensor:
        return self.matrix @ v

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal()


def condition_interval(
    op_or_K: KernelOperator | Any,
    *,
    dense_limit: int = 4096,
    factor_dtype: torch.dtype | None = None,
    max_products: int = 200,
) -> ConditionInterval:
    """Return intervals that hold the smallest eigenvalue of a kernel and its condition number.

    Up to `dense_limit` rows all eigenvalues are computed in float64 (`eigenpairs`). With l the smallest
    one computed, r the resolution and e = 4 eps_f sqrt(tr K), eps_f of `factor_dtype`,

        lambda_min in [min(l - r, (sqrt(l) - e)^2), max(l + r, (sqrt(l) + e)^2)]    where l > r
        lambda_min in [0, max(l' + r, (sqrt(l') + e)^2)], l' = max(l, 0)            else: below resolution

    r is what the eigenvalue solver and the entries of K lose. e is what the gradients J behind K = J J^T
    lose: by Weyl's inequality singular values of J, so square roots of eigenvalues, are off by at most e.
    For float32 gradients that is far more than r: 2 e sqrt(l). The largest eigenvalue has the same errors.

    Above the limit there is only an upper bound, max(b + r, (sqrt(b) + e)^2) with b the smaller of

        min over x in span(q, K q, ..., K^(m-1) q) of x^T K x / x^T x        q random
        min_i K_ii                                                           where `op` has `diagonal()`

    both at least lambda_min by the Courant-Fischer theorem. The lower bound is then 0, as K is positive
    semi-definite, and the condition number has no upper bound. A positive lower bound needs proof that
    *no* x has a smaller quotient, and products with K cannot give one short of a basis of the whole space:
    what they left out may hold an eigenvector of eigenvalue 0 (two equal samples do), and the products
    would be the same. Residuals only say that some eigenvalue is near a Ritz value. A certificate is a
    factorisation of K - s I, as dear as the dense way; solves with K take of the order of
    sqrt(lambda_max / lambda_min) products and stall where that is asked for because it is large.

    Cost: dense, 4/3 N^3 multiply-adds and three N x N float64 matrices, N = nC. Above the limit at most
    about `max_products` products, one vector each, and that many vectors of memory; fewer where the bound
    falls to the resolution.

    Args:
        op_or_K: `Factors` or any `KernelOperator` (its `gram()` and `diagonal()` are used where it has
            them); or the kernel as a tensor or array, (n, n) or (n, C, n, C).
        dense_limit: the largest N for which K is formed and decomposed.
        factor_dtype: precision in which the gradients behind K were computed; the operator's dtype where
            left out, float64 for a matrix.
        max_products: the products to spend above the limit, those for the largest eigenvalue included.

    Returns:
        A `ConditionInterval`; for a kernel of zeros the condition number is at least 1.

    Raises:
        InputError: not a kernel (see `eigenpairs`), or a negative limit, or fewer than 1 product.
        ConvergenceError: above the limit, `max_products` are too few for the largest eigenvalue.
        NumericsError: a non-finite entry or product.

    Example:
        >>> twice = torch.ones(2, 2)      # the same sample two times
        >>> found = condition_interval(twice)
        >>> found.smallest_low, found.high, found.verdict
        (0.0, inf, 'below resolution')

    Reference: Parlett 1998, The Symmetric Eigenvalue Problem, chapters 10 and 13 (what Ritz values bound).
    """
    if dense_limit < 0 or max_products < 1:
        raise InputError(
            f"dense_limit={dense_limit} must be zero or more and max_products={max_products} at least 1"
        )
    if isinstance(op_or_K, KernelOperator):
        op, dtype = op_or_K, factor_dtype or op_or_K.dtype
        if op.samples * op.outputs > dense_limit:
            return _bound(op, dtype, max_products)
        if not hasattr(op, "gram"):
            return _dense(_formed(op), dtype, 1)
        return _dense(op.gram(), dtype, 0)  # type: ignore[attr-defined]
    dtype = factor_dtype or torch.float64
    matrix = as_matrix(op_or_K)
    if len(matrix) <= dense_limit:
        return _dense(matrix, dtype, 0)
    return _bound(_Matrix(symmetric_part(matrix)), dtype, max_products, torch.finfo(matrix.dtype).eps)


def _formed(op: KernelOperator) -> Tensor:
    """Return K from one block product with the identity."""
    return op @ torch.eye(op.samples * op.outputs, dtype=op.dtype, device=op.device)


def _around(value: float, resolution: float, error: float) -> tuple[float, float]:
    """Return where an eigenvalue lies: value +- resolution, and its square root +- error."""
    positive = max(value, 0.0)
    high = max(positive + resolution, (math.sqrt(positive) + error) ** 2)
    if value <= resolution:
        return 0.0, high
    return max(min(value - resolution, (math.sqrt(value) - error) ** 2), 0.0), high


def _dense(K: Tensor, dtype: torch.dtype, products: int) -> ConditionInterval:
    found = eigenpairs(K, vectors=False, factor_dtype=dtype)
    values, error = found.eigenvalues, factor_error(float(found.eigenvalues.sum()), dtype)
    low, high = _around(float(values[-1]), found.resolution, error)
    verdict = f"between {low:.4g} and {high:.4g}" if low > 0 else "below resolution"
    return _interval(float(values[0]), low, high, found.resolution, error, "dense", verdict, products)


def _interval(
    largest: float,
    low: float,
    high: float,
    resolution: float,
    error: float,
    method: str,
    verdict: str,
    products: int,
) -> ConditionInterval:
    least, most = _around(largest, resolution, error)
    return ConditionInterval(
        largest=largest,
        smallest_low=low,
        smallest_high=high,
        low=max(least / high, 1.0) if high > 0 else 1.0,
        high=most / low if low > 0 else math.inf,
        resolved=low > 0,
        resolution=resolution,
        method=method,
        verdict=verdict,
        products=products,
    )


def _bound(
    op: KernelOperator, dtype: torch.dtype, max_products: int, entries: float = 0.0
) -> ConditionInterval:
    """Return what products with K say; `entries` is the relative rounding of its entries, where it has any."""
    size = op.samples * op.outputs
    top = top_eigenpairs(op, max_products=max_products)
    largest = max(float(top.values[0]), 0.0)
    diagonal = getattr(op, "diagonal", None)
    entry, trace = math.inf, size * largest
    if callable(diagonal):
        numbers = torch.as_tensor(diagonal()).double()
        if not bool(torch.isfinite(numbers).all()):
            raise NumericsError("the kernel's diagonal is not finite; check the weights, or use float64")
        entry, trace = float(numbers.min()), float(numbers.sum())
    error = factor_error(trace, dtype)
    lost = max(rounding(op.dtype), size * max(torch.finfo(torch.float64).eps, entries)) * largest
    resolution = max(lost, error**2)
    bound, products = entry, top.products
    if bound > resolution:
        ritz, used = _smallest_ritz(op, max_products - top.products, resolution)
        bound, products = min(bound, ritz), products + used
    if bound < -0.01 * largest:
        raise InputError(
            f"the operator is no kernel: it has a quotient x^T K x / x^T x of {bound:.4g} beside the largest "
            f"eigenvalue {largest:.4g}, but a Gram matrix has none below zero"
        )
    high = _around(bound, resolution, error)[1]
    verdict = f"at most {high:.4g}" if bound > resolution else "below resolution"
    return _interval(largest, 0.0, high, resolution, error, "Lanczos bound", verdict, products)


def _smallest_ritz(op: KernelOperator, steps: int, resolution: float) -> tuple[float, int]:
    """Return the smallest quotient x^T K x / x^T x found in a Krylov space, and the products it took.

    Lanczos with full reorthogonalisation; one product is kept for the quotient of the vector found.
    """
    size, kind = op.samples * op.outputs, working_dtype(torch.device(op.device))

    def apply(v: Tensor) -> Tensor:
        image = (op @ v.to(op.dtype)).detach().to(kind)
        if not bool(torch.isfinite(image).all()):
            raise NumericsError(
                "a product with the operator is not finite; check the weights, or use float64"
            )
        return image

    steps = max(min(steps - 1, size), 1)
    draws = torch.Generator().manual_seed(2)
    q = torch.randn(size, generator=draws, dtype=torch.float64).to(op.device, kind)
    basis = torch.empty(size, steps, dtype=kind, device=op.device)
    inside = torch.zeros(steps, steps, dtype=torch.float64)
    q = q / q.norm()
    turn = torch.ones(1, dtype=torch.float64)
    done = 0
    while done < steps:
        basis[:, done] = q
        image = apply(q)
        done += 1
        known = basis[:, :done]
        shares = known.T @ image
        inside[:done, done - 1] = inside[done - 1, :done] = shares.to("cpu", torch.float64)
        if done % _LOOK == 0 or done == steps:
            values, turns = torch.linalg.eigh(inside[:done, :done])
            turn = turns[:, 0]
            if float(values[0]) <= resolution:
                break
        fresh = orthonormal((image - known @ shares)[:, None], known)
        if not fresh.shape[1]:  # the space is invariant: its Ritz values are eigenvalues
            turn = torch.linalg.eigh(inside[:done, :done]).eigenvectors[:, 0]
            break
        q = fresh[:, 0]
    x = basis[:, :done] @ turn.to(op.device, kind)
    return float(x @ apply(x) / (x @ x)), done + 1
