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

__all__ = ["LEAST", "Part", "as_batch", "chunk_size", "ends", "parts"]

_PROBE = 4
LEAST = 2 * _PROBE  # samples taken in one pass without asking for the memory


@dataclass(frozen=True)
class Part:
    """Some samples with their targets, and the factor with which their loss enters the whole."""

    x: Batch
    y: Any
    weight: float

    def rows(self, rows: slice) -> Part:
        """Return some samples of this part, with the same factor."""
        return Part(take(self.x, rows), None if self.y is None else self.y[rows], self.weight)


def as_batch(x: Any, dtype: torch.dtype) -> Any:
    """Return an array as a tensor in the precision of the model; anything else as it is."""
    if not isinstance(x, np.ndarray):
        return x
    tensor = from_numpy(x)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def ends(found: list[Part]) -> tuple[Part, Part, Part] | None:
    """Return a few samples of the beginning, a few of the end, and both together; None where they cannot be joined.

    By these one can see whether a loss is a mean over samples: targets are often sorted.
    """
    first, last = found[0], found[-1]
    if type(first.y) is not type(last.y) or not isinstance(first.y, (Tensor, np.ndarray, type(None))):
        return None
    sizes = batch_size(first.x), batch_size(last.x)
    few = min(_PROBE, sizes[0] // 2 if first is last else sizes[0]), min(_PROBE, sizes[1])
    low, high = first.rows(slice(0, few[0])), last.rows(slice(sizes[1] - few[1], sizes[1]))
    if isinstance(low.x, dict) and isinstance(high.x, dict):
        x: Batch = {key: torch.cat([low.x[key], high.x[key]]) for key in low.x}
    elif isinstance(low.x, Tensor) and isinstance(high.x, Tensor):
        x = torch.cat([low.x, high.x])
    else:
        return None
    if isinstance(low.y, Tensor):
        return low, high, Part(x, torch.cat([low.y, high.y]), 1.0)
    return low, high, Part(x, None if low.y is None else np.concatenate([low.y, high.y]), 1.0)


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


def chunk_size(model: nn.Module, part: Part, work: Callable[[Part], None], limit: int) -> int | None:
    """Return how many samples a pass may take within `limit` bytes; None where all may, or must.

    The graph of a few samples is made twice, with another number of them, and its bytes counted.
    """
    samples = batch_size(part.x)
    coupled = any(m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if samples <= LEAST or coupled:
        return None
    try:
        few, more = (_graph_bytes(work, part.rows(slice(0, count))) for count in (_PROBE, LEAST))
    except Exception:  # a loss that wants all samples, or has no value on these: the pass over all will tell
        return None
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
