"""Samples as rows, and the angle between every two of them."""

from __future__ import annotations

import torch
from torch import Tensor

from wideangle.errors import InputError

_NEAR = 1e-3  # pairs with 1 - |cosine| below this are redone from differences and sums
_BLOCK = 2**22  # numbers held while doing so


def as_rows(x: Tensor, name: str = "x") -> Tensor:
    """Return samples as a finite float64 matrix (n, d), one flattened sample a row."""
    x = torch.as_tensor(x)
    if x.dim() < 2 or x.numel() == 0 or x.is_complex():
        raise InputError(
            f"{name} must hold real samples along its first axis, (n, d), got {tuple(x.shape)} {x.dtype}"
        )
    rows = x.detach().flatten(1).to(torch.float64)
    bad = ~torch.isfinite(rows).all(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise InputError(
            f"{name} has {int(bad.sum())} rows with a non-finite entry (first: row {first}); drop them"
        )
    return rows


def norms_and_directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norm of each row and the rows at unit norm (a zero row stays zero)."""
    largest = rows.abs().amax(1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1.0)  # so that squares neither overflow nor vanish
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return (length * largest).squeeze(1), scaled / torch.where(length > 0, length, 1.0)


def pair_angles(u: Tensor, v: Tensor | None = None) -> Tensor:
    """Return the angles between unit rows, (n, m); a zero row is at a right angle to everything.

    angle = 2 atan2(|u_i - v_j|, |u_i + v_j|), from differences where the cosine has too few digits.
    """
    other = u if v is None else v
    cosine = torch.clamp(u @ other.T, -1, 1)
    if v is None:
        cosine = (cosine + cosine.T) / 2
    angles, near = torch.acos(cosine), cosine.abs() > 1 - _NEAR
    if bool(near.any()):
        squares, good = _centred_squares(u, other)
        angles = torch.where(near & good & (cosine > 0), 2 * torch.asin(squares.sqrt() / 2), angles)
        _redo(angles, u, other, near & ~(good & (cosine > 0)))
    if v is None:
        angles = torch.triu(angles, 1)
        angles = angles + angles.T
    return angles


def _centred_squares(u: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return |u_i - v_j|^2 from rows less their mean, and where that keeps its digits.

    For a tight cluster of rows it does, at the cost of one more matrix product.
    """
    centre = u.mean(0)
    a, b = u - centre, other - centre
    sizes = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :]
    squares = sizes - 2 * (a @ b.T)
    return torch.clamp(squares, min=0), squares > _NEAR * sizes


def _redo(angles: Tensor, u: Tensor, other: Tensor, which: Tensor) -> None:
    """Write the angles of the marked pairs from explicit differences and sums, block by block."""
    for part in which.nonzero().split(max(1, _BLOCK // u.shape[1])):
        a, b = u[part[:, 0]], other[part[:, 1]]
        apart, together = (torch.linalg.vector_norm(c, dim=1) for c in (a - b, a + b))
        angles[part[:, 0], part[:, 1]] = 2 * torch.atan2(apart, together)
