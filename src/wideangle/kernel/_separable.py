"""The layer below a linear head: its output gradients are one mask a sample, times the head's weights.

    G[i, c, t, o] = w[c, o] D[i, t, o]

holds for the layers between which and the logits there is nothing but maps that act on each unit by itself
(activations, pooling, normalisation with fixed statistics) and one linear map. Then J[i, c, o, :] is
w[c, o] M[i, o, :] with M the per-sample gradient for the cotangent D, and C logits cost what one does. Nothing
is assumed of the model: the gradients of all logits are taken and the factorisation is tried on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from wideangle.kernel._structures import Explicit, Kind, Outer, Structure

__all__ = ["SeparableOuter", "SeparablePositions", "separate"]


def separate(g: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return w (g, C, O) and D (g, b, T, O) with G = w D, or None where the gradients G are no such product.

    For each unit, w is the unit direction over the logits of the largest gradient among all samples and
    positions; the product is compared with G entry by entry, on two samples first.

    Args:
        g: the output gradients, (g, b, C, T, O).
    """
    samples, outputs = g.shape[1:3]
    if outputs == 1 or (samples > 2 and _taken_apart(g[:, :: max(1, samples // 2)]) is None):
        return None
    return _taken_apart(g)


def _taken_apart(g: Tensor) -> tuple[Tensor, Tensor] | None:
    w, largest = _directions(g)
    d = g[:, :, 0] * w[:, None, 0, None]
    for c in range(1, g.shape[2]):
        d.addcmul_(g[:, :, c], w[:, None, c, None])
    limit = 8 * torch.finfo(g.dtype).eps * largest
    for c in range(g.shape[2]):
        error = torch.addcmul(g[:, :, c], w[:, None, c, None], d, value=-1).abs_().amax()
        if not bool(error <= limit):
            return None
    return w, d


def _directions(g: Tensor) -> tuple[Tensor, Tensor]:
    """Return w, and the largest norm |G| over the logits."""
    groups, _, outputs, _, width = g.shape
    sizes = torch.zeros_like(g[:, :, 0])
    for c in range(outputs):
        sizes.addcmul_(g[:, :, c], g[:, :, c])
    place = sizes.flatten(1, 2).argmax(1)  # (g, O)
    index = place[:, None, None, :].expand(groups, 1, outputs, width)
    w = g.transpose(2, 3).flatten(1, 2).gather(1, index)[:, 0]
    w = w / torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
    return w, sizes.amax().sqrt()


@dataclass
class _Separable(Structure):
    """What both forms share: the head's weights by output unit, w (C, O)."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    w: Tensor  # (C, O)

    @classmethod
    def joined(cls, parts: Sequence[Any]) -> Self | None:
        """Return the chunks as one where they have the same head, up to signs and to units that were dead."""
        w = parts[0].w
        for one in parts[1:]:
            w = torch.where(w.any(0), w, one.w)
        turned = []
        for one in parts:
            sign = torch.where((one.w * w).sum(0) < 0, -1.0, 1.0).to(w)
            # entry by entry: the cosine of two directions is 1 up to the square of what they differ by
            apart = (one.w * sign - w).abs()[:, one.w.any(0)]
            if bool((apart > 32 * torch.finfo(w.dtype).eps).any()):
                return None
            turned.append(one.scaled(sign))
        found = super().joined(turned)
        return None if found is None else replace(found, w=w)

    def scaled(self, factor: Tensor) -> Self:
        """Return the same with each unit's mask times a factor, (O,)."""
        raise NotImplementedError

    def unit_squares(self) -> Tensor:
        """Return |M[i, o]|^2, (b, O)."""
        raise NotImplementedError

    def blocks(self, dtype: torch.dtype) -> Tensor:
        one = self.to(dtype)
        pairs = one.w[:, None] * one.w[None]
        return torch.einsum("cdo,bo->bcd", pairs, one.unit_squares())


@dataclass
class SeparableOuter(_Separable):
    """A Linear layer used at one position, below a head: J[i, c, o, :] = w[c, o] D[i, o] (A[i], 1).

    trace:  sum_c K[i,c,j,c] = (A_i . A_j + 1) sum_o |w_o|^2 D_io D_jo: C times fewer multiply-adds
    """

    a: Tensor  # (b, K)
    d: Tensor  # (b, O)
    weight: bool
    bias: bool

    sample_axis: ClassVar[dict[str, int]] = {"a": 0, "d": 0}
    generality: ClassVar[int] = 0

    def general(self) -> Outer:
        return Outer(self.names, self.shapes, self.a, self.w * self.d[:, None], self.weight, self.bias)

    def add_tile(self, other: Structure, kind: Kind, total: Tensor) -> None:
        assert isinstance(other, SeparableOuter)
        if kind == "full" and self._one_logit_each(other):
            each = (self.d[:, None] * other.d[None]) @ (self.w * other.w).T  # (b, b', C)
            total.diagonal(dim1=1, dim2=3).addcmul_(
                each, self._inputs().similarity(other._inputs())[:, :, None]
            )
            return
        if kind == "full":
            self.general().add_tile(other.general(), kind, total)
            return
        gram = (self.d * (self.w * other.w).sum(0)) @ other.d.T
        total.addcmul_(self._inputs().similarity(other._inputs()), gram)

    def scaled(self, factor: Tensor) -> Self:
        return replace(self, d=self.d * factor)

    def _one_logit_each(self, other: SeparableOuter) -> bool:
        """True for the head itself: every unit serves one logit, the same in both, so K is zero between logits."""
        if self.d.shape[1] > 2 * len(self.w):
            return False
        return bool((((self.w != 0) | (other.w != 0)).sum(0) <= 1).all())

    def _inputs(self) -> Outer:
        return Outer(self.names, self.shapes, self.a, self.d, self.weight, self.bias)

    def unit_squares(self) -> Tensor:
        length = self.a.square().sum(1) * float(self.weight) + float(self.bias)
        return self.d.square() * length[:, None]

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        h = (v @ self.w.to(v.dtype)) * self.d.to(v.dtype)
        parts = [h.mT @ self.a.to(v.dtype)] if self.weight else []
        parts += [h.sum(1)] if self.bias else []
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))

    def push(self, u: tuple[Tensor, ...]) -> Tensor:
        dtype = u[0].dtype
        queue = [part.reshape(part.shape[0], self.d.shape[1], -1) for part in u]
        h = self.a.to(dtype) @ queue.pop(0).mT if self.weight else 0.0
        if self.bias:
            h = h + queue.pop(0).mT
        return (h * self.d.to(dtype)) @ self.w.to(dtype).T


@dataclass
class SeparablePositions(_Separable):
    """A weight shared over positions, below a head: J[i, c, o, :] = w[c, o] M[i, o, :].

    trace:  sum_o |w_o|^2 (M_io . M_jo);   full:  sum_o w_co w_do (M_io . M_jo)
    """

    m: Tensor  # (b, O, p), p the entries of one unit: weight, then bias

    sample_axis: ClassVar[dict[str, int]] = {"m": 0}
    generality: ClassVar[int] = 3

    def scaled(self, factor: Tensor) -> Self:
        return replace(self, m=self.m * factor[:, None])

    def general(self) -> Explicit:
        j = (self.w[:, :, None] * self.m[:, None]).flatten(2)
        return Explicit(self.names, self.shapes, j, units=self.m.shape[1])

    def add_tile(self, other: Structure, kind: Kind, total: Tensor) -> None:
        assert isinstance(other, SeparablePositions)
        if kind == "trace":
            weighted = self.m * (self.w * other.w).sum(0)[:, None]
            total.addmm_(weighted.flatten(1), other.m.flatten(1).T)
            return
        grams = self.m.transpose(0, 1) @ other.m.permute(1, 2, 0)  # (O, b, b')
        pairs = (self.w[:, None] * other.w[None]).flatten(0, 1)  # (C C, O)
        product = (pairs @ grams.flatten(1)).view(self.w.shape[0], -1, *grams.shape[1:])
        total += product.permute(2, 0, 3, 1)

    def unit_squares(self) -> Tensor:
        return self.m.square().sum(2)

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        h = v @ self.w.to(v.dtype)
        flat = torch.einsum("kbo,bop->kop", h, self.m.to(v.dtype))
        parts = flat.split([shape.numel() // shape[0] for shape in self.shapes], dim=2)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))

    def push(self, u: tuple[Tensor, ...]) -> Tensor:
        dtype = u[0].dtype
        flat = torch.cat([part.reshape(part.shape[0], self.m.shape[1], -1) for part in u], dim=2)
        return torch.einsum("kop,bop->kbo", flat, self.m.to(dtype)) @ self.w.to(dtype).T
