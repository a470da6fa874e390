"""The top eigenpair of a symmetric operator by thick-restart Lanczos with full reorthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wideangle.errors import NumericsError

__all__ = ["Pair", "Space", "Which", "top_pair"]

Which = Literal["largest", "magnitude"]
BASIS, KEEP, LEAST, BLEND = 24, 6, 8, 0.3
_LOST = 0.7


@dataclass
class Pair:
    """An eigenpair with its residual |H v - value v| and whether that passed the tolerance."""

    value: float
    vector: Tensor
    residual: float
    products: int
    converged: bool
    exhausted: bool = False  # the space was invariant: nothing is left outside it


class Space:
    """An orthonormal basis V (rows) and T = V H V^T, grown by one vector a product."""

    def __init__(self, size: int, like: Tensor, basis: int):
        self.rows = like.new_empty(min(basis, size), size)
        self.projected = np.zeros((len(self.rows), len(self.rows)))
        self.count = 0

    def grow(self, unit: Tensor, image: Tensor) -> tuple[Tensor, float]:
        """Add `unit`, whose image under H is given; return the part of the image outside the space, and its length.

        Raises:
            NumericsError: the image is not finite.
        """
        k = self.count
        self.rows[k] = unit
        self.count = k + 1
        basis = self.rows[: k + 1]
        overlap = basis @ image
        rest = image - overlap @ basis
        length = float(rest.norm())
        if not math.isfinite(length):
            raise NumericsError(
                f"product {k + 1} with the curvature holds non-finite numbers; compute in float64 "
                "(dtype=torch.float64), or check the weights and the loss for overflow"
            )
        if length < _LOST * float(image.norm()):  # what is left is no longer orthogonal to rounding
            again = basis @ rest
            rest = rest - again @ basis
            overlap, length = overlap + again, float(rest.norm())
        column = overlap.double().cpu().numpy()
        self.projected[k, : k + 1] = self.projected[: k + 1, k] = column
        return rest, length

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the Ritz values and the coefficients of their vectors in the basis."""
        return np.linalg.eigh(self.projected[: self.count, : self.count])

    def scale(self) -> float:
        """Return a lower bound of the operator's norm: the largest entry of T."""
        return float(np.abs(self.projected[: self.count, : self.count]).max())

    def vector(self, coefficients: np.ndarray) -> Tensor:
        weights = torch.as_tensor(coefficients.T, dtype=self.rows.dtype, device=self.rows.device)
        return weights @ self.rows[: self.count]

    def restart(self, values: np.ndarray, coefficients: np.ndarray, best: np.ndarray) -> None:
        """Shrink the space to the Ritz vectors numbered in `best`."""
        kept = self.vector(coefficients[:, best])
        self.count = len(best)
        self.rows[: self.count] = kept
        self.projected[:] = 0
        np.fill_diagonal(self.projected[: self.count, : self.count], values[best])


def top_pair(
    apply: Callable[[Tensor], Tensor],
    start: Tensor,
    noise: Tensor,
    *,
    tolerance: float,
    max_products: int,
    which: Which = "largest",
    rounding: float = 1e-14,
    least: int = LEAST,
) -> Pair:
    """Return the eigenpair of the largest (algebraic) eigenvalue, or of the largest in magnitude.

    Stops when |H v - theta v| <= max(tolerance |theta|, rounding |H|), after at least `least` products:
    the start is blended with `noise`, so an eigenvector that was the top one before is not taken for the
    present top. The value is a Rayleigh quotient: at most the largest eigenvalue, for "largest". The basis
    is not cut before `least` products.
    """
    direction = start / start.norm() + BLEND * noise / noise.norm()
    direction = direction / direction.norm()
    size = direction.numel()
    space = Space(size, direction, max(BASIS, least))
    products = 0
    while True:
        image = apply(direction)
        products += 1
        rest, length = space.grow(direction, image)
        values, coefficients = space.ritz()
        order = np.argsort(-(values if which == "largest" else np.abs(values)))
        top = order[0]
        residual = length * abs(float(coefficients[-1, top]))
        floor = rounding * float(np.abs(values).max())
        exhausted = length <= floor or space.count == size
        small = residual <= max(tolerance * abs(float(values[top])), floor)
        converged = exhausted or (small and products >= least)
        if converged or products >= max_products:
            vector = space.vector(coefficients[:, top])
            unit = vector / vector.norm()
            return Pair(float(values[top]), unit, residual, products, converged, exhausted)
        if space.count == len(space.rows):
            space.restart(values, coefficients, order[:KEEP])
        direction = rest / length
