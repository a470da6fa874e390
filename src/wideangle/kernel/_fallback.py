"""The exact generic fallback: per-sample Jacobians of just the parameters no layer rule accounts for."""

from __future__ import annotations

import torch
from torch import Tensor

from wideangle.kernel._capture import Layout, gradient_of, rounding
from wideangle.kernel._model import Batch, batch_size, call, copied, logits, plain_attention, take
from wideangle.kernel._structures import Explicit

__all__ = ["fallback_structure"]

_WORK_BYTES = 256 * 2**20
_CANNOT = (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError, AssertionError)


def fallback_structure(layout: Layout, batch: Batch, cotangents: Tensor) -> Explicit:
    """Return the explicit Jacobian, (b, R, p), of the fallback parameters for one chunk of samples."""
    shapes = tuple(layout.shape(name) for name in layout.fallback)
    width = sum(shape.numel() for shape in shapes)
    samples, rows = batch_size(batch), len(cotangents)
    each = 3 * rows * (width * layout.dtype.itemsize + layout.activation_bytes)
    step = max(1, min(samples, _WORK_BYTES // max(each, 1)))
    batch, parts, vectorised = copied(batch), [], True
    for start in range(0, samples, step):
        piece = take(batch, slice(start, min(start + step, samples)))
        if vectorised:
            try:
                parts.append(_vectorised(layout, piece, cotangents))
                continue
            except _CANNOT:  # what vmap cannot follow: data-dependent control flow, a batch of one
                vectorised = False
        parts.append(_one_by_one(layout, piece, cotangents))
    return Explicit(layout.fallback, shapes, torch.cat(parts))


def _split(layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    mine = {name: layout.parameters[name] for name in layout.fallback}
    return mine, {name: p for name, p in layout.parameters.items() if name not in mine}


def _vectorised(layout: Layout, batch: Batch, cotangents: Tensor) -> Tensor:
    mine, others = _split(layout)

    def one(parameters: dict[str, Tensor], sample: Batch) -> Tensor:
        if isinstance(sample, dict):
            single: Batch = {key: value.unsqueeze(0) for key, value in sample.items()}
        else:
            single = sample.unsqueeze(0)
        z = logits(call(layout.model, {**others, **parameters}, single), layout.output, 1)[0]
        return cotangents.to(z.dtype) @ z

    with plain_attention():
        jacobians = torch.func.vmap(torch.func.jacrev(one), in_dims=(None, 0))(mine, batch)
    return torch.cat([jacobians[name].flatten(2) for name in layout.fallback], dim=2).detach()


def _one_by_one(layout: Layout, batch: Batch, cotangents: Tensor) -> Tensor:
    """Return the same numbers by plain backward passes, through each sample alone.

    A model that cannot take a sample alone, or does otherwise with it, is differentiated through the whole batch.
    """
    together, leaves = _forward(layout, batch, cotangents)
    tolerance = rounding(layout.precision) * together.detach().abs().max()
    parts = []
    for i, expected in enumerate(together):
        try:
            z, own = _forward(layout, take(batch, slice(i, i + 1)), cotangents)
        except _CANNOT:
            return _rows(together, leaves)
        if not bool((z[0] - expected).detach().abs().max() <= tolerance):
            return _rows(together, leaves)
        parts.append(_rows(z, own))
    return torch.cat(parts)


def _forward(layout: Layout, batch: Batch, cotangents: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the combinations of logits (b, R) with their graph, and the fallback parameters they start at."""
    mine, others = _split(layout)
    leaves = {name: parameter.detach().requires_grad_() for name, parameter in mine.items()}
    with torch.enable_grad(), plain_attention():
        raw = call(layout.model, {**others, **leaves}, copied(batch))
        z = logits(raw, layout.output, batch_size(batch))
        return z @ cotangents.to(z.dtype).T, list(leaves.values())


def _rows(z: Tensor, leaves: list[Tensor]) -> Tensor:
    """Return the gradients of each entry of z (b, R) by the leaves, (b, R, p)."""
    rows = []
    for value in z.flatten():
        parts = zip(leaves, gradient_of(value, leaves), strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in parts]))
    return torch.stack(rows).view(*z.shape, -1)
