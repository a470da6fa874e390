"""Block Rayleigh-Ritz: the largest eigenpairs of a symmetric operator from vectors that are nearly them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wideangle.errors import ConvergenceError, NumericsError

__all__ = ["block_eigenpairs", "orthonormal", "working_dtype"]

_HIDDEN = 0.1  # |z| of a standard normal z is below this in 8 cases of 100
_WIDTH = 6  # columns of the basis for each pair wanted, before a restart
_LEAST = 20  # and the fewest it may grow to
_PRODUCTS = 300


def working_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def orthonormal(block: Tensor, basis: Tensor | None = None) -> Tensor:
    """Return orthonormal columns that span `block`, orthogonal to an orthonormal `basis`.

    Directions that are zero, or within sqrt(eps) of the other columns' or the basis' span, are left out.
    """
    norms = block.norm(dim=0)
    block = block[:, norms > 0] / norms[norms > 0]
    for _ in range(2):
        if basis is not None:
            block = block - basis @ (basis.T @ block)
        if not block.shape[1]:
            break
        columns, sizes, _ = torch.linalg.svd(block, full_matrices=False)
        block = columns[:, sizes > math.sqrt(torch.finfo(block.dtype).eps)]
    return block


def block_eigenpairs(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    k: int,
    *,
    tolerance: float,
    max_products: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the k largest values, Ritz vectors, k residuals and the number of block products they took.

    The basis is the start and one random column, the guard. Each round diagonalises A in the basis and
    adds the residuals of the pairs that are not yet within the tolerance; past six columns a pair (or
    twenty) the basis is cut back to its best Ritz vectors, whose images are known. As many Ritz vectors
    as the start had columns come back, if that is more than k, for the next start.

    The guard is there for eigenvectors that the start is orthogonal to. With g standard normal in the
    complement of the start and B the operator there, |B g| >= |B| |z| with z standard normal: where
    10 |B g| is below the k-th value, the pairs are taken after one product; else A g joins the basis, and
    two products are the fewest.

    Args:
        product: V -> A V on tensors of shape (N, m), in the precision of `start`.
        start: (N, m), not zero, finite, on the device to work on.
        k: how many pairs, at most N.
        tolerance: the residual allowed, relative to the largest |value|.
        max_products: give up after so many; 300 where left out.

    Raises:
        ConvergenceError: a residual above the tolerance when the products are used up, or none of the
            residuals points out of the basis any more.
        NumericsError: a product holds non-finite numbers.
    """
    count, most = 0, _PRODUCTS if max_products is None else max_products

    def apply(block: Tensor) -> Tensor:
        nonlocal count
        count += 1
        image = product(block)
        if not bool(torch.isfinite(image).all()):
            raise NumericsError(
                "a product with the operator is not finite; check the weights, or use float64"
            )
        return image

    basis, guard, weight = _first_basis(start, k)
    wide = max(k, guard)  # Ritz vectors that are carried along
    limit = max(_WIDTH * k, _LEAST) + basis.shape[1]
    images = apply(basis)
    pull = images[:, guard:]  # what A makes of the random column
    while True:
        inside = basis.T @ images
        values, turns = torch.linalg.eigh((inside + inside.T) / 2)
        values, turns = values.flip(0), turns.flip(1)
        vectors = basis @ turns[:, :k]
        rest = images @ turns[:, :k] - vectors * values[:k]
        residuals = rest.norm(dim=0)
        scale = max(float(values[:k].abs().max()), 1e-300)
        unfinished = residuals > tolerance * scale
        if count == 1:
            others = basis[:, :guard]
            outside = float((pull - others @ (others.T @ pull)).norm()) * weight
            watched = outside <= _HIDDEN * float(values[k - 1])
        else:
            watched = True
        if watched and not bool(unfinished.any()):
            break
        worst = float(residuals.max()) / scale
        if count >= most:
            reason = (
                f"the largest residual is {worst:.2g}"
                if bool(unfinished.any())
                else "the residuals pass, but whether the start missed a larger eigenvalue takes a second product"
            )
            raise ConvergenceError(
                f"{k - int(unfinished.sum())} of {k} eigenpairs converged to {tolerance:.2g} in {count} "
                f"products: {reason}; raise the tolerance or max_products"
            )
        block = rest[:, unfinished] if watched else torch.cat([rest[:, unfinished], pull], dim=1)
        if basis.shape[1] + block.shape[1] > limit:
            kept = turns[:, : max(k + max(k, 5), wide)]
            basis, images = basis @ kept, images @ kept
        fresh = orthonormal(block, basis)
        if not fresh.shape[1]:
            if not bool(unfinished.any()):
                break
            raise ConvergenceError(
                f"the residual {worst:.2g} stays above the tolerance {tolerance:.2g} after {count} products: they "
                "are rounded, or the operator is not symmetric; use float64 or raise the tolerance"
            )
        basis, images = torch.cat([basis, fresh], dim=1), torch.cat([images, apply(fresh)], dim=1)
    return values[:k], basis @ turns[:, :wide], residuals, count


def _first_basis(start: Tensor, k: int) -> tuple[Tensor, int, float]:
    """Return the start made orthonormal with the guard behind it, the guard's index and |g|."""
    size, draws = len(start), torch.Generator().manual_seed(0)

    def random(columns: int) -> Tensor:
        return torch.randn(size, columns, generator=draws, dtype=torch.float64).to(start)

    basis = orthonormal(start)
    while basis.shape[1] < k:  # fewer columns than pairs, or columns alike
        basis = torch.cat([basis, orthonormal(random(k - basis.shape[1]), basis)], dim=1)
    guard = random(1)
    guard = guard - basis @ (basis.T @ guard)
    weight = float(guard.norm())
    return torch.cat([basis, orthonormal(guard, basis)], dim=1), basis.shape[1], weight
