"""Products with the tangent kernel without factors: K v = J (J^T v), one pass over the data each way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from wideangle.kernel._capture import gradient_of
from wideangle.kernel._model import Batch, batch_size, call, copied, logits, plain_attention, take
from wideangle.kernel._pass import Setting
from wideangle.kernel._push import Mode, Named, push_forward
from wideangle.progress import track

__all__ = ["Stream", "pads"]

_WORK_BYTES = 64 * 2**20
_SMALLEST, _LARGEST = 16, 1024


class Stream:
    """J^T v and J u of a model on batches, chunk by chunk: memory of one chunk and of the weights.

    J^T v is one backward pass a chunk; J u one forward-mode pass, or two backward passes where a layer has
    no forward mode. The sums over samples are in float64.
    """

    def __init__(self, setting: Setting, items: list[Batch], limit: int):
        self.setting, self.items = setting, items
        self.samples = sum(batch_size(item) for item in items)
        layout = setting.layout
        covered = {name for cover in layout.covers for name in cover.names}
        self.names = [n for n in layout.parameters if n in covered or n in layout.fallback]
        rows = setting.cotangents
        self._whole = rows.shape[0] == rows.shape[1] and bool((rows == torch.eye(len(rows)).to(rows)).all())
        self._mode: Mode = "reverse" if pads(layout.model) else "auto"
        each = max(1, 6 * layout.activation_bytes)
        self.size = max(1, min(_LARGEST, max(_SMALLEST, _WORK_BYTES // each), limit // (2 * each)))

    def pull(self, v: Tensor) -> Named:
        """Return J^T v by parameter name, each (k, *shape) in float64, for v of shape (k, n, C)."""
        layout = self.setting.layout
        total = {
            name: torch.zeros(len(v), *layout.shape(name), dtype=torch.float64, device=layout.device)
            for name in self.names
        }
        for rows, batch in self._chunks("J^T v"):
            leaves = {name: layout.parameters[name].detach().requires_grad_() for name in self.names}
            with torch.enable_grad():
                z = self._logits(leaves, batch)
                values = [(z * column).sum() for column in v[:, rows].to(z.dtype)]
            for k, value in enumerate(values):
                for name, gradient in zip(self.names, gradient_of(value, list(leaves.values())), strict=True):
                    if gradient is not None:
                        total[name][k] += gradient
        return total

    def push(self, u: Named) -> Tensor:
        """Return J u, shape (k, n, C), for u as `pull` returns it."""
        layout = self.setting.layout
        point = {name: layout.parameters[name] for name in self.names}
        count = len(next(iter(u.values())))
        parts = []
        for _, batch in self._chunks("J u"):
            columns = []
            for k in range(count):
                direction = {name: u[name][k].to(point[name]) for name in self.names}
                _, slope, _ = push_forward(
                    lambda w, b=batch: self._logits(w, b), point, direction, self._mode
                )
                columns.append(slope.detach())
            parts.append(torch.stack(columns))
        return torch.cat(parts, dim=1)

    def _logits(self, weights: Named, batch: Batch) -> Tensor:
        """Return the combinations of logits that the kernel is of, (b, R)."""
        layout = self.setting.layout
        with plain_attention():
            raw = call(layout.model, {**layout.parameters, **weights}, copied(batch))
        z = logits(raw, layout.output, batch_size(batch))
        return z if self._whole else z @ self.setting.cotangents.to(z.dtype).T

    def _chunks(self, doing: str) -> Iterator[tuple[slice, Batch]]:
        start = 0
        spans = []
        for item in self.items:
            size = batch_size(item)
            count = -(-size // self.size)
            edges = [size * k // count for k in range(count + 1)]
            spans += [(start, item, slice(a, b)) for a, b in pairwise(edges)]
            start += size
        for first, item, rows in track(spans, doing):
            yield slice(first + rows.start, first + rows.stop), take(item, rows)


def pads(model: nn.Module) -> bool:
    """Tell whether an embedding has a padding row: the backward pass leaves it out, forward mode does not."""
    return any(
        isinstance(module, nn.Embedding) and module.padding_idx is not None for module in model.modules()
    )
