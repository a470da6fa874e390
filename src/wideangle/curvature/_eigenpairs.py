"""Several eigenpairs at the ends of a curvature operator's spectrum, through ARPACK."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from wideangle.curvature._norm import SymmetricOperator
from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["Eigenpairs", "End", "eigenpairs"]

End = Literal["largest", "smallest", "magnitude", "both"]
_CODES = {"largest": "LA", "smallest": "SA", "magnitude": "LM", "both": "BE"}
_DENSE = 64


@dataclass(frozen=True)
class Eigenpairs(Result):
    """Eigenvalues in falling order with unit vectors (columns) and residuals |H v - value v|.

    Each value lies within its residual of an eigenvalue. `products` counts those of the search and one a pair
    for the residuals.
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

        H v = value v,   |H v - value v| <= tolerance * max |value|

    "largest" and "smallest" are algebraic: the smallest of a loss Hessian is its most negative curvature.
    "magnitude" takes the largest |value|, "both" half from each end (the odd one from the top).

    Cost: some 20 + 10 k products and 2 k + 20 vectors of p float64 numbers on the host; up to p = 64
    the matrix is formed.

    Args:
        operator: a `LossHessian`, `OutputHessian`, `GaussNewton`, or anything with size, device, dtype and
            product(vector).
        k: how many, below p.
        which: "largest", "smallest", "magnitude" or "both".
        tolerance: residual allowed, relative to the largest |value| found.
        max_products: products allowed.
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
    rounding = 10 * torch.finfo(operator.dtype).eps
    if not tolerance > rounding:
        raise InputError(
            f"tolerance={tolerance:g} is below the rounding of {operator.dtype} products ({rounding:.2g}); "
            "raise it, or compute in dtype=torch.float64"
        )
    count = [0]

    def apply(vector: np.ndarray) -> np.ndarray:
        count[0] += 1
        if count[0] > max_products + k:
            raise ConvergenceError(
                f"{max_products} products did not reach tolerance {tolerance:g} for {k} eigenpairs; raise "
                "max_products or tolerance"
            )
        v = torch.as_tensor(np.ascontiguousarray(vector).reshape(-1), dtype=torch.float64)
        image = operator.product(v.to(operator.device)).detach().cpu().numpy()
        if not np.isfinite(image).all():
            raise NumericsError(
                f"product {count[0]} with the curvature holds non-finite numbers; compute in float64 "
                "(dtype=torch.float64), or check the weights and the loss for overflow"
            )
        return image

    if size <= _DENSE:
        matrix = np.stack([apply(column) for column in np.eye(size)], axis=1)
        values, vectors = _ends(*np.linalg.eigh((matrix + matrix.T) / 2), k, which)
    else:
        values, vectors = _arpack(apply, size, k, which, tolerance / 2, seed)
    order = np.argsort(-values)
    values, vectors = values[order], vectors[:, order]
    images = np.stack([apply(vector) for vector in vectors.T], axis=1)
    residuals = np.linalg.norm(images - vectors * values, axis=0)
    allowed = tolerance * float(np.abs(values).max()) + rounding * float(np.abs(values).max())
    if (residuals > max(allowed, np.finfo(np.float64).tiny)).any():
        raise ConvergenceError(
            f"the largest residual is {residuals.max():.2g}, above {allowed:.2g} (tolerance {tolerance:g} of the "
            "largest value); raise tolerance, or compute in dtype=torch.float64"
        )
    return Eigenpairs(
        values=values,
        residuals=residuals,
        which=which,
        products=count[0],
        vectors=vectors,
        provenance=Provenance.here(seed=seed, device=str(operator.device)),
    )


def _arpack(apply, size: int, k: int, which: End, tolerance: float, seed: int):
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    start = torch.randn(size, generator=generator(seed, "eigenpairs"), dtype=torch.float64).numpy()
    linear = LinearOperator((size, size), matvec=apply, dtype=np.float64)  # type: ignore[call-arg]
    basis = min(size, max(2 * k + 1, 20))
    try:
        return eigsh(linear, k=k, which=_CODES[which], v0=start, ncv=basis, tol=tolerance)  # type: ignore[arg-type]
    except ArpackNoConvergence as error:
        raise ConvergenceError(
            f"{len(error.eigenvalues)} of {k} eigenpairs converged to {tolerance:g}; raise the tolerance"
        ) from error


def _ends(values: np.ndarray, vectors: np.ndarray, k: int, which: End) -> tuple[np.ndarray, np.ndarray]:
    """Return k of all eigenpairs."""
    order = np.argsort(-values)
    if which == "smallest":
        order = order[::-1]
    elif which == "magnitude":
        order = np.argsort(-np.abs(values))
    elif which == "both":
        order = np.concatenate([order[: k - k // 2], order[len(order) - k // 2 :]])
    return values[order[:k]], vectors[:, order[:k]]
