"""Largest eigenpairs of operators known by their products only: scipy's Lanczos, residuals checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.kernel._factors import Factors
from wideangle.result import Result

__all__ = ["TopEigenpairs", "lanczos_eigenpairs", "top_eigenpairs"]


@dataclass(frozen=True)
class TopEigenpairs(Result):
    """The k largest eigenvalues, descending, with their vectors and residuals.

    `vectors` holds one unit vector a column; `residuals[i]` is |A v_i - value_i v_i|; `products` counts the
    products with A.
    """

    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    residuals: np.ndarray = field(default_factory=lambda: np.zeros(0))
    products: int = 0


def lanczos_eigenpairs(
    product: Callable[[Tensor], Tensor],
    size: int,
    *,
    k: int = 1,
    tolerance: float = 1e-4,
    start: Tensor | np.ndarray | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    max_products: int | None = None,
) -> TopEigenpairs:
    """Return the k algebraically largest eigenpairs of a symmetric operator, each with its residual.

    |A v - theta v| <= tolerance * |theta_1| is checked with one more product for each pair, never assumed.

    Cost: some 10 to 40 products; host memory of about 20 vectors of `size` float64 numbers.

    Args:
        product: v -> A v on tensors of shape (size,).
        size: N, the dimension of A.
        k: how many pairs, at least 1; dense if k is not below `size`.
        tolerance: the residual allowed, relative to the largest value.
        start: a vector to start from, such as the last eigenvector found; a fixed one where left out.
        device: where `product` takes its vectors.
        dtype: the precision in which `product` takes its vectors.
        max_products: give up after so many products.

    Raises:
        InputError: k or the start do not fit the size.
        ConvergenceError: a residual above the tolerance when the products are used up.
        NumericsError: a product holds non-finite numbers.

    Example:
        >>> scale = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
        >>> round(float(lanczos_eigenpairs(lambda v: scale * v, 4).values[0]), 6)
        3.0

    Reference: Lehoucq, Sorensen, Yang 1998 (ARPACK, through scipy.sparse.linalg.eigsh).
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if not 1 <= k <= size:
        raise InputError(f"k={k} eigenpairs of an operator of size {size}; k must be between 1 and the size")
    count = 0

    def apply(vector: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        image = product(torch.as_tensor(np.ravel(vector), device=device).to(dtype))
        if not bool(torch.isfinite(image).all()):
            raise NumericsError(
                "a product with the operator is not finite; check the weights, or use float64"
            )
        return image.detach().to("cpu", torch.float64).numpy()

    if size <= max(2 * k + 1, 12):
        dense = np.stack([apply(column) for column in np.eye(size)], axis=1)
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    else:
        if start is None:
            first = np.random.default_rng(0).standard_normal(size)
        else:
            first = np.ravel(torch.as_tensor(start).detach().to("cpu", torch.float64).numpy())
            if first.size != size:
                raise InputError(f"start has {first.size} entries, the operator has size {size}")
        if not bool(apply(first).any()):
            return TopEigenpairs(np.zeros(k), np.eye(size)[:, :k], np.zeros(k), count)
        operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)  # type: ignore[call-arg]
        basis = min(size, max(2 * k + 8, 12))
        rounds = None if max_products is None else max(1, max_products // basis)
        try:
            values, vectors = eigsh(
                operator,
                k=k,
                which="LA",
                v0=first,
                ncv=basis,
                tol=tolerance / 4,  # type: ignore[arg-type]
                maxiter=rounds,
            )
        except ArpackNoConvergence as error:
            raise ConvergenceError(
                f"{len(error.eigenvalues)} of {k} eigenpairs converged to {tolerance:g} in {count} products; "
                "raise the tolerance or max_products"
            ) from error
        values, vectors = values[::-1], vectors[:, ::-1]
        if k > 1:
            values, vectors = _with_multiplicities(apply, values, vectors, tolerance)
    images = np.stack([apply(column) for column in vectors.T], axis=1)
    residuals = np.linalg.norm(images - vectors * values, axis=0)
    scale = max(float(np.abs(values).max()), 1e-300)
    floor = tolerance + (1e-5 if dtype == torch.float32 else 0.0)
    if bool((residuals > floor * scale).any()):
        raise ConvergenceError(
            f"the residual {residuals.max() / scale:.2g} is above the tolerance {tolerance:g} after {count} "
            "products; use float64 or raise the tolerance"
        )
    return TopEigenpairs(values.copy(), vectors.copy(), residuals, count)


def _with_multiplicities(
    apply: Callable[[np.ndarray], np.ndarray], values: np.ndarray, vectors: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs with copies of multiple eigenvalues that one Krylov space cannot see.

    What is found is moved out of the way (deflated), and a search from another start must find nothing
    above the smallest value kept; what it does find takes its place.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    size, k = vectors.shape
    draws = np.random.default_rng(1)
    for _ in range(2 * k):
        basis = vectors

        def deflated(v: np.ndarray, basis: np.ndarray = basis) -> np.ndarray:
            inside = basis.T @ v
            image = apply(v - basis @ inside)
            return image - basis @ (basis.T @ image)

        operator = LinearOperator((size, size), matvec=deflated, dtype=np.float64)  # type: ignore[call-arg]
        start = draws.standard_normal(size)
        start -= basis @ (basis.T @ start)
        value, vector = eigsh(operator, k=1, which="LA", v0=start, ncv=min(size, 20), tol=tolerance / 4)  # type: ignore[arg-type]
        if value[0] <= values[-1] * (1 + tolerance) + 1e-300:
            break
        vector = vector[:, 0] - basis @ (basis.T @ vector[:, 0])
        vector /= np.linalg.norm(vector)
        values, vectors = np.append(values, value[0]), np.column_stack([vectors, vector])
        order = np.argsort(-values)[:k]
        values, vectors = values[order], vectors[:, order]
    return values, vectors


def top_eigenpairs(factors: Factors, k: int = 1, *, tolerance: float = 1e-4) -> TopEigenpairs:
    """Return the k largest eigenpairs of the full kernel (nC x nC) from its factors, without forming it.

    K v_i = lambda_i v_i, i = 1..k; vectors are sample-major: entry i C + c belongs to sample i, output c

    Cost: about 20 products, each two passes over the factors.

    Args:
        factors: the factor cache, made with outputs="full".
        k: how many pairs.
        tolerance: residual allowed, relative to lambda_1.

    Raises:
        ConvergenceError: the tolerance was not reached.

    Example:
        >>> from wideangle.kernel import factors
        >>> cache = factors(torch.nn.Linear(3, 2, bias=False).double(), torch.eye(3, dtype=torch.float64))
        >>> [round(float(v), 6) for v in top_eigenpairs(cache).values]
        [1.0]
    """
    size = factors.samples * factors.outputs
    return lanczos_eigenpairs(
        lambda v: factors @ v, size, k=k, tolerance=tolerance, device=factors.device, dtype=factors.dtype
    )
