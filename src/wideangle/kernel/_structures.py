"""What one layer contributes to the tangent kernel, in the cheapest exact form.

Each class holds the factors of the Jacobian J (n samples, C outputs, p parameters of that layer) of one
chunk of samples without forming J where its structure avoids it, and offers the same products: a Gram tile,
the diagonal blocks, J^T v and J u. Two chunks of one layer may come in different forms; `matched` brings both
to the more general one.

Letters: b samples, C outputs, g groups, T positions a weight is shared over, K fan-in, O fan-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

__all__ = ["Explicit", "Outer", "Positions", "Structure", "Turned", "add_tile", "as_tile_rows", "joined"]

Kind = Literal["full", "trace"]
TEMPORARY_BYTES = 64 * 2**20


class Structure:
    """The contribution of one layer (or of one group of parameters) for one chunk of samples.

    `sample_axis` says where each of its tensors has the samples; `generality` orders the forms.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    sample_axis: ClassVar[dict[str, int]] = {}
    generality: ClassVar[int] = 0

    @property
    def nbytes(self) -> int:
        """Bytes held by the factors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        named = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def part(self, rows: slice) -> Self:
        """Return the same for some of the samples, sharing memory."""
        held = self._tensors()
        cut = {
            n: held[n].movedim(axis, 0)[rows].movedim(0, axis)
            for n, axis in self.sample_axis.items()
            if n in held
        }
        return replace(self, **cut)  # type: ignore[type-var]

    def to(self, dtype: torch.dtype) -> Self:
        """Return the same in another precision; itself where it has that precision."""
        cast = {
            n: v.to(dtype) for n, v in self._tensors().items() if v.is_floating_point() and v.dtype != dtype
        }
        return replace(self, **cast) if cast else self  # type: ignore[type-var]

    def own(self) -> Self:
        """Return the same with memory of its own: of a part, a stored or sent copy would take the whole along."""
        return replace(self, **{name: value.clone() for name, value in self._tensors().items()})  # type: ignore[type-var]

    @classmethod
    def joined(cls, parts: Sequence[Any]) -> Self | None:
        """Return the contribution of several chunks as one, or None where their forms do not allow it."""
        held = [one._tensors() for one in parts]
        return replace(
            parts[0],
            **{
                n: torch.cat([h[n] for h in held], dim=axis)
                for n, axis in cls.sample_axis.items()
                if n in held[0]
            },
        )  # type: ignore[type-var]

    def general(self) -> Structure:
        """Return the same contribution in a more general form."""
        raise NotImplementedError

    def add_tile(self, other: Structure, kind: Kind, total: Tensor) -> None:
        """Add J J'^T to `total`: (b, C, b', C) for "full", (b, b') summed over outputs for "trace".

        Both are of one class and of the precision of `total`.
        """
        raise NotImplementedError

    def blocks(self, dtype: torch.dtype) -> Tensor:
        """Return the diagonal blocks K[i, :, i, :], shape (b, C, C)."""
        raise NotImplementedError

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        """Return J^T v for v (k, b, C): one tensor (k, *shape) per parameter."""
        raise NotImplementedError

    def push(self, u: tuple[Tensor, ...]) -> Tensor:
        """Return J u, shape (k, b, C), for what `pull` returns."""
        raise NotImplementedError


def joined(parts: list[Structure]) -> Structure | None:
    """Return several chunks of one layer as one, or None where they come in different forms."""
    kind = type(parts[0])
    return kind.joined(parts) if all(type(one) is kind for one in parts) else None


def add_tile(mine: Structure, theirs: Structure, kind: Kind, total: Tensor) -> None:
    """Add the Gram tile of two structures of one layer, whatever their forms, to `total`."""
    while mine.generality != theirs.generality:
        if mine.generality < theirs.generality:
            mine = mine.general()
        else:
            theirs = theirs.general()
    mine.to(total.dtype).add_tile(theirs.to(total.dtype), kind, total)


def as_tile_rows(total: Tensor, kind: Kind) -> Tensor:
    """Return a tile as a matrix that shares its memory: (b, b') for "trace", (b C, b' C) for "full"."""
    return total if kind == "trace" else total.view(total.shape[0] * total.shape[1], -1)


@dataclass
class Outer(Structure):
    """A Linear layer used at one position: J[i, c] = G[i, c] (x) A[i].

    K[i,c,j,d] = (w A_i . A_j + b) (G_ic . G_jd), with w, b = 1 where weight, bias are included
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    a: Tensor  # (b, K)
    g: Tensor  # (b, C, O)
    weight: bool
    bias: bool

    sample_axis: ClassVar[dict[str, int]] = {"a": 0, "g": 0}
    generality: ClassVar[int] = 1

    def similarity(self, other: Outer) -> Tensor:
        """Return w A A'^T + b, (b, b')."""
        rows, columns = self.a.shape[0], other.a.shape[0]
        if not self.weight:
            return torch.ones(rows, columns, dtype=self.a.dtype, device=self.a.device)
        gram = self.a @ other.a.T
        return gram.add_(1.0) if self.bias else gram

    def general(self) -> Positions:
        a, g = self.a[None, :, None], self.g[None, :, :, None]
        return Positions(self.names, self.shapes, a, g, self.weight, self.bias)

    def add_tile(self, other: Structure, kind: Kind, total: Tensor) -> None:
        assert isinstance(other, Outer)
        similarity = self.similarity(other)
        if kind == "trace":
            total.addcmul_(similarity, self.g.flatten(1) @ other.g.flatten(1).T)
            return
        product = self.g.flatten(0, 1) @ other.g.flatten(0, 1).T
        total.addcmul_(product.view_as(total), similarity[:, None, :, None])

    def blocks(self, dtype: torch.dtype) -> Tensor:
        g = self.g.to(dtype)
        square = self.a.to(dtype).square().sum(1) * float(self.weight) + float(self.bias)
        return (g @ g.mT) * square[:, None, None]

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        h = _over_logits(v, self.g.to(v.dtype))
        parts = []
        if self.weight:
            parts.append(h.mT @ self.a.to(v.dtype))
        if self.bias:
            parts.append(h.sum(1))
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))

    def push(self, u: tuple[Tensor, ...]) -> Tensor:
        queue = [part.reshape(part.shape[0], self.g.shape[2], -1) for part in u]
        h = self.a.to(u[0].dtype) @ queue.pop(0).mT if self.weight else 0.0
        if self.bias:
            h = h + queue.pop(0).mT
        h = torch.as_tensor(h).expand(u[0].shape[0], *self.g[:, 0].shape)
        return _over_units(h, self.g.to(u[0].dtype))


@dataclass
class Positions(Structure):
    """A weight shared over T positions (tokens, pixels, several calls), kept factorised.

    K[i,c,j,d] = sum_{t,s} (w A_it . A_js + b) (G_ict . G_jds), summed over groups
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    a: Tensor  # (g, b, T, K)
    g: Tensor  # (g, b, C, T, O)
    weight: bool
    bias: bool

    sample_axis: ClassVar[dict[str, int]] = {"a": 1, "g": 1}
    generality: ClassVar[int] = 2

    def _similarity(self, group: int, rows: slice, other: Positions) -> Tensor:
        """Return w A A'^T + b as (rows, T, b', T')."""
        mine, theirs = self.a[group, rows], other.a[group]
        shape = (*mine.shape[:2], *theirs.shape[:2])
        if not self.weight:
            return torch.ones(shape, dtype=mine.dtype, device=mine.device)
        gram = (mine.flatten(0, 1) @ theirs.flatten(0, 1).T).view(shape)
        return gram.add_(1.0) if self.bias else gram

    def add_tile(self, other: Structure, kind: Kind, total: Tensor) -> None:
        assert isinstance(other, Positions)
        groups, b, outputs, positions, _ = self.g.shape
        columns, theirs = other.g.shape[1], other.g.shape[3]
        wide = outputs if kind == "full" else 1
        each = positions * columns * theirs * total.dtype.itemsize * (2 + wide)
        step = max(1, min(b, TEMPORARY_BYTES // max(each, 1)))
        for start in range(0, b, step):
            rows = slice(start, min(start + step, b))
            for group in range(groups):
                similarity = self._similarity(group, rows, other)
                mine, others = self.g[group, rows], other.g[group]
                if kind == "trace":
                    product = mine.transpose(1, 2).flatten(2).flatten(0, 1)
                    product = product @ others.transpose(1, 2).flatten(2).flatten(0, 1).T
                    total[rows] += product.view_as(similarity).mul_(similarity).sum((1, 3))
                    continue
                flat = others.flatten(0, 2).T
                for c in range(outputs):
                    product = (mine[:, c].flatten(0, 1) @ flat).view(*similarity.shape[:3], outputs, theirs)
                    # (rows, T, b', C, T') weighted by the similarity of the positions
                    total[rows, c] += product.mul_(similarity.unsqueeze(3)).sum((1, 4))

    def blocks(self, dtype: torch.dtype) -> Tensor:
        _, b, outputs, _, _ = self.g.shape
        result = torch.zeros(b, outputs, outputs, dtype=dtype, device=self.g.device)
        for i in range(b):
            one = self.part(slice(i, i + 1)).to(dtype)
            one.add_tile(one, "full", result[i][None, :, None, :])
        return result

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        h = torch.einsum("kbc,gbcto->kgbto", v, self.g.to(v.dtype))
        parts = []
        if self.weight:
            parts.append(self._scatter(h))
        if self.bias:
            parts.append(h.sum((2, 3)))
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))

    def push(self, u: tuple[Tensor, ...]) -> Tensor:
        groups, _, _, _, fan_out = self.g.shape
        queue = list(u)
        h: Tensor | float = 0.0
        if self.weight:
            h = self._gather(queue.pop(0))
        if self.bias:
            h = h + queue.pop(0).reshape(u[0].shape[0], groups, 1, 1, fan_out)
        h = torch.as_tensor(h).expand(u[0].shape[0], *self.g[:, :, 0].shape)
        return torch.einsum("kgbto,gbcto->kbc", h, self.g.to(u[0].dtype))

    def general(self) -> Explicit:
        parts = []
        if self.weight:
            parts.append(torch.einsum("gbcto,gbti->bcgoi", self.g, self.a).flatten(2, 3))
        if self.bias:
            parts.append(self.g.sum(3).permute(1, 2, 0, 3).flatten(2)[..., None])
        units = self.g.shape[0] * self.g.shape[4]
        return Explicit(self.names, self.shapes, torch.cat(parts, dim=3).flatten(2), units)

    def _scatter(self, h: Tensor) -> Tensor:
        return torch.einsum("kgbto,gbti->kgoi", h, self.a.to(h.dtype))

    def _gather(self, u: Tensor) -> Tensor:
        weight = u.reshape(u.shape[0], self.a.shape[0], -1, self.a.shape[3])
        return torch.einsum("kgoi,gbti->kgbto", weight, self.a.to(u.dtype))


@dataclass
class Explicit(Structure):
    """Per-sample gradients, kept as they are: best where positions are many and parameters few.

    K[i,c,j,d] = J_ic . J_jd
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    j: Tensor  # (b, C, p)
    units: int = 1  # p runs over so many units, in each over the parameters

    sample_axis: ClassVar[dict[str, int]] = {"j": 0}
    generality: ClassVar[int] = 4

    def add_tile(self, other: Structure, kind: Kind, total: Tensor) -> None:
        assert isinstance(other, Explicit)
        mine, theirs = (j.flatten(1) if kind == "trace" else j.flatten(0, 1) for j in (self.j, other.j))
        as_tile_rows(total, kind).addmm_(mine, theirs.T)

    def blocks(self, dtype: torch.dtype) -> Tensor:
        j = self.j.to(dtype)
        return j @ j.mT

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        flat = (v.flatten(1) @ self.j.flatten(0, 1).to(v.dtype)).unflatten(1, (self.units, -1))
        parts = flat.split([shape.numel() // self.units for shape in self.shapes], dim=2)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))

    def push(self, u: tuple[Tensor, ...]) -> Tensor:
        flat = torch.cat([part.reshape(len(part), self.units, -1) for part in u], dim=2).flatten(1)
        return (flat @ self.j.flatten(0, 1).to(flat.dtype).T).view(-1, *self.j.shape[:2])


@dataclass
class Turned(Structure):
    """A layer whose weight is stored as (K, O): its transpose is handled within, parameters are turned.

    K[i,c,j,d] does not depend on the order of a weight's entries
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    within: Structure

    @property
    def nbytes(self) -> int:
        return self.within.nbytes

    def part(self, rows: slice) -> Self:
        return replace(self, within=self.within.part(rows))

    def to(self, dtype: torch.dtype) -> Self:
        return replace(self, within=self.within.to(dtype))

    def own(self) -> Self:
        return replace(self, within=self.within.own())

    @classmethod
    def joined(cls, parts: Sequence[Any]) -> Self | None:
        within = joined([one.within for one in parts])
        return None if within is None else replace(parts[0], within=within)

    def add_tile(self, other: Structure, kind: Kind, total: Tensor) -> None:
        assert isinstance(other, Turned)
        add_tile(self.within, other.within, kind, total)

    def blocks(self, dtype: torch.dtype) -> Tensor:
        return self.within.blocks(dtype)

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        weight, *rest = self.within.pull(v)
        return weight.mT.contiguous(), *rest

    def push(self, u: tuple[Tensor, ...]) -> Tensor:
        return self.within.push((u[0].mT, *u[1:]))


_FEW = 64  # logits up to which a loop over them beats one tiny product a sample


def _over_logits(v: Tensor, g: Tensor) -> Tensor:
    """Return sum_c v[k, b, c] g[b, c, o], (k, b, O)."""
    if v.shape[0] > 4 or v.shape[2] > _FEW:
        return torch.einsum("kbc,bco->kbo", v, g)
    total = v[:, :, 0, None] * g[:, 0]
    for c in range(1, v.shape[2]):
        total.addcmul_(v[:, :, c, None], g[:, c])
    return total


def _over_units(h: Tensor, g: Tensor) -> Tensor:
    """Return sum_o h[k, b, o] g[b, c, o], (k, b, C)."""
    if h.shape[0] > 4 or g.shape[1] > _FEW:
        return torch.einsum("kbo,bco->kbc", h, g)
    return torch.stack([(h * g[:, c]).sum(2) for c in range(g.shape[1])], dim=2)
