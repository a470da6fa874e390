"""What an embedding contributes: positions that hold the same token are alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wideangle.kernel._structures import TEMPORARY_BYTES, Explicit, Kind, Positions, Structure

__all__ = ["Lookup"]


@dataclass
class Lookup(Positions):
    """An Embedding: positions are alike where they hold the same token, and the padding token never counts.

    K[i,c,j,d] = sum_{t,s} [tok_it = tok_js] (G_ict . G_jds); `a` holds the tokens, -1 for padding
    """

    def add_tile(self, other: Structure, kind: Kind, total: Tensor) -> None:
        assert isinstance(other, Lookup)
        known = torch.unique(self.a[self.a >= 0])
        b, outputs, positions, width = self.g.shape[1:]
        if len(known) >= positions * other.g.shape[3]:
            super().add_tile(other, kind, total)
            return
        # fewer tokens than pairs of positions: per-sample gradients of the rows used, some rows at a time
        each = (b + other.g.shape[1]) * outputs * width * total.dtype.itemsize
        step = max(1, TEMPORARY_BYTES // each)
        for start in range(0, len(known), step):
            some = known[start : start + step]
            mine, theirs = (
                Explicit(one.names, one.shapes, one.rows(some, total.dtype)) for one in (self, other)
            )
            mine.add_tile(theirs, kind, total)

    def rows(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the per-sample gradients of some rows of the table, (b, C, tokens * width); tokens sorted."""
        b, outputs, positions, width = self.g.shape[1:]
        flat = self.a[0, :, :, 0]
        place = torch.searchsorted(tokens, flat.contiguous()).clamp_max(len(tokens) - 1)
        hit = (tokens[place] == flat)[:, None, :, None].to(dtype)
        table = torch.zeros(b, outputs, len(tokens), width, dtype=dtype, device=self.g.device)
        index = place[:, None, :, None].expand(b, outputs, positions, width)
        return table.scatter_add_(2, index, self.g[0].to(dtype) * hit).flatten(2)

    def _similarity(self, group: int, rows: slice, other: Positions) -> Tensor:
        mine, theirs = self.a[group, rows, :, 0], other.a[group, :, :, 0]
        same = mine[:, :, None, None] == theirs[None, None]
        return (same & (mine >= 0)[:, :, None, None]).to(self.g.dtype)

    def _scatter(self, h: Tensor) -> Tensor:
        tokens = self.a[0, :, :, 0].flatten()
        flat = h[:, 0].flatten(1, 2) * (tokens >= 0)[None, :, None].to(h.dtype)
        table = torch.zeros(h.shape[0], *self.shapes[0], dtype=h.dtype, device=h.device)
        return table.index_add_(1, tokens.clamp_min(0), flat)

    def _gather(self, u: Tensor) -> Tensor:
        tokens = self.a[0, :, :, 0]
        rows = u[:, tokens.clamp_min(0).flatten()].view(u.shape[0], *tokens.shape, u.shape[2])
        return (rows * (tokens >= 0)[None, :, :, None].to(u.dtype)).unsqueeze(1)
