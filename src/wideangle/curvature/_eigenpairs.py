"""Several eigenpairs at the ends of a curvature operator's spectrum, through ARPACK."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from wideangle.curvature._lanczos import top_pair
from wideangle.curvature._norm import SymmetricOperator
from wideangle.errors import InputError
from wideangle.kernel.lanczos import lanczos_eigenpairs
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["Eigenpairs", "End", "eigenpairs"]

End = Literal["largest", "smallest", "magnitude", "both"]
_ROUGH = 12  # products for a first idea of the norm


@dataclass(frozen=True)
class Eigenpairs(Result):
    """Eigenvalues in falling order with unit vectors (columns) and residuals |H v - value v|.

    Each value lies within its residual of an eigenvalue. `products` counts all products spent.
    """

    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    residuals: np.ndarray = field(default_factory=lambda: np.zeros(0))
    which: str = "largest"
    products: int = 0
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)


def eigenpairs(
    operator: SymmetricOperator,
    k: int = 1,
    which: End = "largest",
    *,
    tolerance: float = 1e-3,
    max_products: int = 1000,
    seed: int = 0,
) -> Eigenpairs:
    """Return k eigenpairs at an end of the spectrum of a symmetric operator, each with its residual.

        H v = value v,   |H v - value v| <= tolerance |H|, the norm of H

    "largest" and "smallest" are algebraic: the smallest of a loss Hessian is its most negative curvature.
    "magnitude" takes the largest |value|, "both" half from each end (the odd one from the top).

    Copies of a multiple eigenvalue, which one Krylov space does not see, are searched for and counted.

    Cost: some 50 + 10 k products and 2 k + 20 vectors of p float64 numbers on the host; "both" and "magnitude"
    search both ends.

    Args:
        operator: a `LossHessian`, `OutputHessian`, `GaussNewton`, or anything with size, device, dtype and
            product(vector).
        k: how many, below p.
        which: "largest", "smallest", "magnitude" or "both".
        tolerance: residual allowed, relative to the norm of H.
        max_products: products allowed at an end.
        seed: of the random start.

    Returns:
        An `Eigenpairs`.

    Raises:
        InputError: k below 1 or not below p, an unknown end, a tolerance finer than the operator's rounding.
        ConvergenceError: a residual stayed above the tolerance.
        NumericsError: a product was not finite.

    Example:
        >>> from wideangle.curvature import LossHessian
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> hessian = LossHessian(model, "mse", torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.zeros(3, 1))
        >>> eigenpairs(hessian, 2).values.round(3).tolist()
        [6.0, 2.667]

    Reference: Lehoucq, Sorensen, Yang 1998 (ARPACK, through scipy.sparse.linalg.eigsh).
    """
    size = operator.size
    if which not in get_args(End):
        raise InputError(f"unknown which={which!r}; choose {', '.join(get_args(End))}")
    if not 1 <= k < max(size, 2):
        raise InputError(
            f"k={k} eigenpairs of a matrix of order {size}; k must be from 1 to {max(size - 1, 1)}"
        )
    finest = 10 * torch.finfo(operator.dtype).eps
    if not tolerance > finest:
        raise InputError(
            f"tolerance={tolerance:g} is below the rounding of {operator.dtype} products ({finest:.2g}); "
            "raise it, or compute in dtype=torch.float64"
        )
    search = _Search(operator, tolerance, max_products, seed)
    low = k if which in ("smallest", "magnitude") else k // 2 if which == "both" else 0
    high = k - k // 2 if which == "both" else k if which in ("largest", "magnitude") else 0
    found = [search.end(count, sign) for count, sign in ((high, 1), (low, -1)) if count]
    values = np.concatenate([pairs[0] for pairs in found])
    vectors = np.concatenate([pairs[1] for pairs in found], axis=1)
    residuals = np.concatenate([pairs[2] for pairs in found])
    if which == "magnitude":
        best = np.argsort(-np.abs(values), kind="stable")[:k]
        values, vectors, residuals = values[best], vectors[:, best], residuals[best]
    order = np.argsort(-values, kind="stable")
    return Eigenpairs(
        values=values[order],
        residuals=residuals[order],
        which=which,
        products=search.products,
        vectors=vectors[:, order],
        provenance=Provenance.here(seed=seed, device=str(operator.device)),
    )


class _Search:
    """Searches at both ends of one spectrum, shifted so that the end sought is the top of a semi-definite matrix."""

    def __init__(self, operator: SymmetricOperator, tolerance: float, max_products: int, seed: int):
        self.operator, self.tolerance, self.left = operator, tolerance, max_products
        self.noise = torch.randn(operator.size, generator=generator(seed, "eigenpairs"), dtype=torch.float64)
        start = self.noise.to(operator.device, operator.dtype)
        rough = top_pair(
            operator.product,
            start,
            start,
            tolerance=0.1,
            max_products=min(_ROUGH, max_products),
            which="magnitude",
        )
        self.norm, self.products = abs(rough.value) + rough.residual, rough.products

    def end(self, k: int, sign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the k largest (sign 1) or smallest (-1) values, their vectors and residuals."""
        size = self.operator.size
        if self.norm == 0:
            return np.zeros(k), np.eye(size)[:, :k], np.zeros(k)
        shift = 1.5 * self.norm
        found = lanczos_eigenpairs(
            lambda v: sign * self.operator.product(v) + shift * v,
            size,
            k=k,
            tolerance=self.tolerance / 3,  # of the largest shifted value, at most 2.5 times the norm
            start=self.noise,
            device=self.operator.device,
            dtype=self.operator.dtype,
            max_products=self.left,
        )
        self.products += found.products
        return sign * (found.values - shift), found.vectors, found.residuals
