"""The data of a curvature operator in parts: chunks of samples, each with its share of the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.errors import InputError
from wideangle.kernel._group import Ranks
from wideangle.kernel._model import Batch, batch_size, from_numpy, take

__all__ = ["Part", "chunk_size", "parts"]

_PROBE = 4


@dataclass(frozen=True)
class Part:
    """Some samples with their targets, and the factor with which their loss enters the whole."""

    x: Batch
    y: Any
    weight: float

    def rows(self, rows: slice) -> Part:
        """Return some samples of this part, with the same factor."""
        return Part(take(self.x, rows), None if self.y is None else self.y[rows], self.weight)


def parts(model: nn.Module, x: Any, y: Any, chunk: int | None, reduction: str, ranks: Ranks) -> list[Part]:
    """Return this process's samples in chunks of at most `chunk`.

    Raises:
        InputError: no samples, x and y of different length, a bad chunk or reduction, or samples that are
            to be taken apart and that the model couples.
    """
    if reduction not in ("mean", "sum"):
        raise InputError(f"unknown reduction {reduction!r}; choose mean or sum")
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    items = _items(x, y)
    samples = sum(batch_size(batch) for batch, _ in items)
    if samples == 0:
        raise InputError("x holds no samples")
    edges = ranks.edges(samples)
    begin, end = edges[ranks.rank], edges[ranks.rank + 1]
    found, first = [], 0
    for batch, targets in items:
        size = batch_size(batch)
        low, high = max(begin - first, 0), min(end - first, size)
        for start in range(low, high, chunk or max(size, 1)):
            stop = min(high, start + (chunk or size))
            weight = (stop - start) / samples if reduction == "mean" else 1.0
            found.append(Part(batch, targets, weight).rows(slice(start, stop)))
        first += size
    if len(found) > 1 or ranks.size > 1:
        _refuse_coupled(model)
    return found


def _items(x: Any, y: Any) -> list[tuple[Batch, Any]]:
    """Return (inputs, targets) batch by batch: one batch, or those of a loader of (x, y) pairs."""
    if isinstance(x, np.ndarray):
        x = from_numpy(x)
    if isinstance(x, (Tensor, dict)):
        if y is not None and len(y) != batch_size(x):
            raise InputError(f"x has {batch_size(x)} samples and y has {len(y)}; they must be equal")
        return [(x, y)]
    pairs = list(x) if hasattr(x, "__iter__") and not isinstance(x, (str, bytes)) else None
    if pairs is None or y is not None:
        raise InputError(
            f"x is a {type(x).__name__}; give a tensor or a dict of tensors with y, or a loader of (x, y) pairs "
            "with y=None"
        )
    if not pairs or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise InputError("without y, x must be a tensor, a dict of tensors, or a loader of (x, y) pairs")
    return [(pair[0], pair[1]) for pair in pairs]


def _refuse_coupled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"layer {name!r} couples the samples of a batch in train mode, so chunks would change the "
                "loss; take all samples at once on one process, or call model.eval()"
            )


def chunk_size(
    model: nn.Module,
    part: Part,
    work: Callable[[Part], None],
    limit: int,
    cut: Callable[[Part, slice], Part],
) -> int | None:
    """Return how many samples a pass may take within `limit` bytes; None where all may, or must.

    The graph of a few samples is made twice, with another number of them, and its bytes counted.
    """
    samples = batch_size(part.x)
    coupled = any(m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if samples <= 2 * _PROBE or coupled:
        return None
    few, more = (_graph_bytes(work, cut(part, slice(0, count))) for count in (_PROBE, 2 * _PROBE))
    each = max((more - few) / _PROBE, 1.0)
    allowed = int((limit - max(few - _PROBE * each, 0)) / each)
    return None if allowed >= samples else max(1, allowed)


def _graph_bytes(work: Callable[[Part], None], part: Part) -> float:
    """Return the bytes that autograd keeps for a part's graph, each storage counted once."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work(part)
    return float(sum(seen.values()))
