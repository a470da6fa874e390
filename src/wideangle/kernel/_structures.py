"""What one layer contributes to the tangent kernel, in the cheapest exact form.

Each class holds the factors of the Jacobian J (n samples, C outputs, p parameters of that layer) of one
chunk of samples without forming J where its structure avoids it, and offers the same six products:
a Gram tile, the diagonal blocks, J^T v, J u, the parameters it covers and its size in memory.

Letters: b samples, C outputs, g groups, T positions a weight is shared over, K fan-in, O fan-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Explicit", "Lookup", "Outer", "Positions", "Structure", "Turned"]

Kind = Literal["full", "trace"]
_TEMPORARY_BYTES = 64 * 2**20


class Structure:
    """The contribution of one layer (or of one group of parameters) for one chunk of samples."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held by the factors."""
        raise NotImplementedError

    def tile(self, other: Structure, kind: Kind, dtype: torch.dtype) -> Tensor:
        """Return J J'^T between two chunks: (b, C, b', C) for "full", (b, b') summed over outputs for "trace"."""
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

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.g.nbytes

    def _similarity(self, other: Outer, dtype: torch.dtype) -> Tensor:
        rows, columns = self.a.shape[0], other.a.shape[0]
        if not self.weight:
            return torch.ones(rows, columns, dtype=dtype, device=self.a.device)
        gram = self.a.to(dtype) @ other.a.to(dtype).T
        return gram.add_(1.0) if self.bias else gram

    def spread(self) -> Positions:
        """Return the same contribution as positions, T = 1."""
        a, g = self.a[None, :, None], self.g[None, :, :, None]
        return Positions(self.names, self.shapes, a, g, self.weight, self.bias)

    def tile(self, other: Structure, kind: Kind, dtype: torch.dtype) -> Tensor:
        if isinstance(other, (Positions, Explicit)):
            return self.spread().tile(other, kind, dtype)
        assert isinstance(other, Outer)
        similarity = self._similarity(other, dtype)
        mine, theirs = self.g.to(dtype), other.g.to(dtype)
        if kind == "trace":
            return similarity.mul_(mine.flatten(1) @ theirs.flatten(1).T)
        (b, outputs, _), (columns, _, _) = mine.shape, theirs.shape
        product = (mine.flatten(0, 1) @ theirs.flatten(0, 1).T).view(b, outputs, columns, outputs)
        return product.mul_(similarity[:, None, :, None])

    def blocks(self, dtype: torch.dtype) -> Tensor:
        g = self.g.to(dtype)
        square = self.a.to(dtype).square().sum(1) * float(self.weight) + float(self.bias)
        return (g @ g.mT) * square[:, None, None]

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        h = torch.einsum("kbc,bco->kbo", v, self.g.to(v.dtype))
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
        return torch.einsum("kbo,bco->kbc", h, self.g.to(u[0].dtype))


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

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.g.nbytes

    def _similarity(self, group: int, rows: slice, other: Positions, dtype: torch.dtype) -> Tensor:
        """Return w A A'^T + b as (rows, T, b', T')."""
        mine, theirs = self.a[group, rows].to(dtype), other.a[group].to(dtype)
        shape = (*mine.shape[:2], *theirs.shape[:2])
        if not self.weight:
            return torch.ones(shape, dtype=dtype, device=mine.device)
        gram = (mine.flatten(0, 1) @ theirs.flatten(0, 1).T).view(shape)
        return gram.add_(1.0) if self.bias else gram

    def tile(self, other: Structure, kind: Kind, dtype: torch.dtype) -> Tensor:
        if isinstance(other, Explicit):
            return self.explicit().tile(other, kind, dtype)
        if isinstance(other, Outer):
            other = other.spread()
        assert isinstance(other, Positions)
        groups, b, outputs, positions, _ = self.g.shape
        columns, theirs = other.g.shape[1], other.g.shape[3]
        wide = outputs if kind == "full" else 1
        each = positions * columns * theirs * dtype.itemsize * (2 + wide)
        step = max(1, min(b, _TEMPORARY_BYTES // max(each, 1)))
        shape = (b, outputs, columns, outputs) if kind == "full" else (b, columns)
        result = torch.zeros(shape, dtype=dtype, device=self.g.device)
        for start in range(0, b, step):
            rows = slice(start, min(start + step, b))
            for group in range(groups):
                similarity = self._similarity(group, rows, other, dtype)
                mine, others = self.g[group, rows].to(dtype), other.g[group].to(dtype)
                if kind == "trace":
                    product = mine.transpose(1, 2).flatten(2).flatten(0, 1)
                    product = product @ others.transpose(1, 2).flatten(2).flatten(0, 1).T
                    result[rows] += product.view_as(similarity).mul_(similarity).sum((1, 3))
                    continue
                flat = others.flatten(0, 2).T
                for c in range(outputs):
                    product = (mine[:, c].flatten(0, 1) @ flat).view(*similarity.shape[:3], outputs, theirs)
                    # (rows, T, b', C, T') weighted by the similarity of the positions
                    result[rows, c] += product.mul_(similarity.unsqueeze(3)).sum((1, 4))
        return result

    def blocks(self, dtype: torch.dtype) -> Tensor:
        _, b, outputs, _, _ = self.g.shape
        result = torch.zeros(b, outputs, outputs, dtype=dtype, device=self.g.device)
        for i in range(b):
            one = type(self)(
                self.names, self.shapes, self.a[:, i : i + 1], self.g[:, i : i + 1], self.weight, self.bias
            )
            result[i] = one.tile(one, "full", dtype)[0, :, 0, :]
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

    def explicit(self) -> Explicit:
        """Return the same contribution as per-sample gradients."""
        parts = []
        if self.weight:
            parts.append(torch.einsum("gbcto,gbti->bcgoi", self.g, self.a).flatten(2))
        if self.bias:
            parts.append(self.g.sum(3).permute(1, 2, 0, 3).flatten(2))
        return Explicit(self.names, self.shapes, torch.cat(parts, dim=2))

    def _scatter(self, h: Tensor) -> Tensor:
        return torch.einsum("kgbto,gbti->kgoi", h, self.a.to(h.dtype))

    def _gather(self, u: Tensor) -> Tensor:
        weight = u.reshape(u.shape[0], self.a.shape[0], -1, self.a.shape[3])
        return torch.einsum("kgoi,gbti->kgbto", weight, self.a.to(u.dtype))


@dataclass
class Lookup(Positions):
    """An Embedding: positions are alike where they hold the same token, and the padding token never counts.

    K[i,c,j,d] = sum_{t,s} [tok_it = tok_js] (G_ict . G_jds); `a` holds the tokens, -1 for padding
    """

    def tile(self, other: Structure, kind: Kind, dtype: torch.dtype) -> Tensor:
        assert isinstance(other, Lookup)
        known = torch.unique(self.a[self.a >= 0])
        b, outputs, positions, width = self.g.shape[1:]
        if len(known) >= positions * other.g.shape[3]:
            return super().tile(other, kind, dtype)
        # fewer tokens than pairs of positions: per-sample gradients of the rows used, some rows at a time
        shape = (b, outputs, other.g.shape[1], outputs) if kind == "full" else (b, other.g.shape[1])
        result = torch.zeros(shape, dtype=dtype, device=self.g.device)
        each = (b + other.g.shape[1]) * outputs * width * dtype.itemsize
        step = max(1, _TEMPORARY_BYTES // each)
        for start in range(0, len(known), step):
            some = known[start : start + step]
            mine, theirs = (Explicit(one.names, one.shapes, one.rows(some, dtype)) for one in (self, other))
            result += mine.tile(theirs, kind, dtype)
        return result

    def rows(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the per-sample gradients of some rows of the table, (b, C, tokens * width); tokens sorted."""
        b, outputs, positions, width = self.g.shape[1:]
        flat = self.a[0, :, :, 0]
        place = torch.searchsorted(tokens, flat.contiguous()).clamp_max(len(tokens) - 1)
        hit = (tokens[place] == flat)[:, None, :, None].to(dtype)
        table = torch.zeros(b, outputs, len(tokens), width, dtype=dtype, device=self.g.device)
        index = place[:, None, :, None].expand(b, outputs, positions, width)
        return table.scatter_add_(2, index, self.g[0].to(dtype) * hit).flatten(2)

    def _similarity(self, group: int, rows: slice, other: Positions, dtype: torch.dtype) -> Tensor:
        mine, theirs = self.a[group, rows, :, 0], other.a[group, :, :, 0]
        same = mine[:, :, None, None] == theirs[None, None]
        return (same & (mine >= 0)[:, :, None, None]).to(dtype)

    def _scatter(self, h: Tensor) -> Tensor:
        tokens = self.a[0, :, :, 0].flatten()
        flat = h[:, 0].flatten(1, 2) * (tokens >= 0)[None, :, None].to(h.dtype)
        table = torch.zeros(h.shape[0], *self.shapes[0], dtype=h.dtype, device=h.device)
        return table.index_add_(1, tokens.clamp_min(0), flat)

    def _gather(self, u: Tensor) -> Tensor:
        tokens = self.a[0, :, :, 0]
        rows = u[:, tokens.clamp_min(0).flatten()].view(u.shape[0], *tokens.shape, u.shape[2])
        return (rows * (tokens >= 0)[None, :, :, None].to(u.dtype)).unsqueeze(1)


@dataclass
class Explicit(Structure):
    """Per-sample gradients, kept as they are: best where positions are many and parameters few.

    K[i,c,j,d] = J_ic . J_jd
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    j: Tensor  # (b, C, p)

    @property
    def nbytes(self) -> int:
        return self.j.nbytes

    def tile(self, other: Structure, kind: Kind, dtype: torch.dtype) -> Tensor:
        if isinstance(other, Outer):
            other = other.spread()
        if isinstance(other, Positions):
            other = other.explicit()
        assert isinstance(other, Explicit)
        mine, theirs = self.j.to(dtype), other.j.to(dtype)
        if kind == "trace":
            return mine.flatten(1) @ theirs.flatten(1).T
        (b, outputs, _), columns = mine.shape, theirs.shape[0]
        return (mine.flatten(0, 1) @ theirs.flatten(0, 1).T).view(b, outputs, columns, outputs)

    def blocks(self, dtype: torch.dtype) -> Tensor:
        j = self.j.to(dtype)
        return j @ j.mT

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        flat = v.flatten(1) @ self.j.flatten(0, 1).to(v.dtype)
        parts = flat.split([shape.numel() for shape in self.shapes], dim=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))

    def push(self, u: tuple[Tensor, ...]) -> Tensor:
        flat = torch.cat([part.flatten(1) for part in u], dim=1)
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

    def tile(self, other: Structure, kind: Kind, dtype: torch.dtype) -> Tensor:
        assert isinstance(other, Turned)
        return self.within.tile(other.within, kind, dtype)

    def blocks(self, dtype: torch.dtype) -> Tensor:
        return self.within.blocks(dtype)

    def pull(self, v: Tensor) -> tuple[Tensor, ...]:
        weight, *rest = self.within.pull(v)
        return weight.mT.contiguous(), *rest

    def push(self, u: tuple[Tensor, ...]) -> Tensor:
        return self.within.push((u[0].mT, *u[1:]))
