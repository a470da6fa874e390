"""One layer of a graph of neurons: a flat vector of edge weights and its product with the earlier neurons."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wideangle.errors import InputError

__all__ = ["Stage", "Storage"]

Storage = Literal["auto", "dense", "sparse"]
SPARSE_BELOW = 1 / 64  # share of the matrix that is edges; under it a matrix is slower than the edges
COMPACT_BELOW = 0.5  # share of the columns in use; under it they are picked before the product


class Stage(nn.Module):
    """The pre-activations of one layer from the values of the earlier neurons it needs.

        pre_v = (1 / sqrt(in(v))) sum_e weight_e value_{source(e)} over the edges e into v

    `weight` holds one number an edge, ordered by target, then source. The product takes one of three ways:
    the weights seen as a matrix where every pair is an edge; scattered into a matrix that is zero elsewhere
    where enough pairs are; one multiply-add an edge and sample where few are.

    Args:
        needed: the earlier layers whose values are concatenated, in order, as the columns.
        columns: their number of neurons together.
        source: column of each edge.
        target: row of each edge, rising.
        rows: neurons of this layer.
        groups: (first row, last row + 1, function) of each activation.
        storage: "auto", "dense" or "sparse".
        weight: the first weights, one an edge.
    """

    source: Tensor
    target: Tensor
    degree: Tensor
    picked: Tensor | None

    def __init__(
        self,
        needed: list[int],
        columns: int,
        source: np.ndarray,
        target: np.ndarray,
        rows: int,
        groups: list[tuple[int, int, Callable[[Tensor], Tensor]]],
        storage: Storage,
        weight: Tensor,
    ):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.needed, self.rows, self.groups = needed, rows, groups
        degree = np.bincount(target, minlength=rows)
        self.even = int(degree[0]) if (degree == degree[0]).all() else None
        used = np.unique(source)
        compact = len(used) < COMPACT_BELOW * columns
        if compact:
            source = np.searchsorted(used, source)
        self.columns = len(used) if compact else columns
        share = len(source) / (rows * self.columns)
        self.complete = share == 1 and storage != "sparse"
        sparse = storage == "sparse" or (storage == "auto" and share < SPARSE_BELOW)
        self.kind = "complete" if self.complete else "sparse" if sparse else "dense"
        empty = np.zeros(0, dtype=np.int64)
        place = target * self.columns + source if self.kind == "dense" else source
        device = weight.device
        self._keep("source", empty if self.complete else place, device)
        self._keep("target", target if self.kind == "sparse" else empty, device)
        self._keep("degree", empty if self.even else degree, device)
        self.register_buffer("picked", None, persistent=False)
        if compact:
            self._keep("picked", used, device)

    def _keep(self, name: str, numbers: np.ndarray, device: torch.device) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(numbers)).to(device), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return the pre-activations (n, rows) of values (n, columns)."""
        if self.picked is not None:
            h = h.index_select(1, self.picked)
        if self.kind == "sparse":
            products = h.T.index_select(0, self.source) * self.weight[:, None]
            pre = products.new_zeros(self.rows, h.shape[0]).index_add(0, self.target, products).T
        else:
            pre = functional.linear(h, self._matrix())
        return pre * (1 / math.sqrt(self.even) if self.even else self.degree.to(pre.dtype).rsqrt())

    def _matrix(self) -> Tensor:
        if self.complete:
            return self.weight.view(self.rows, self.columns)
        blank = self.weight.new_zeros(self.rows * self.columns)
        return blank.scatter(0, self.source, self.weight).view(self.rows, self.columns)

    def activate(self, pre: Tensor, layer: int) -> Tensor:
        """Return the values of the neurons, each group of rows through its activation.

        Args:
            pre: pre-activations (n, rows).
            layer: the number of this layer, for the message.

        Raises:
            InputError: an activation that changes the shape, or returns no tensor.
        """
        if len(self.groups) == 1:
            return _activated(self.groups[0][2], pre, layer)
        return torch.cat([_activated(f, pre[:, a:b], layer) for a, b, f in self.groups], 1)

    def extra_repr(self) -> str:
        """Return the line that repr shows."""
        return f"{self.rows} neurons, {self.weight.numel()} edges from layers {self.needed}, {self.kind}"


def _activated(function: Callable[[Tensor], Tensor], pre: Tensor, layer: int) -> Tensor:
    found = function(pre)
    if not isinstance(found, Tensor) or found.shape != pre.shape:
        made = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError(
            f"the activation {getattr(function, '__name__', function)!r} of layer {layer} turned {tuple(pre.shape)} "
            f"into {made}; an activation must keep the shape"
        )
    return found
