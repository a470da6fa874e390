"""The exact generic fallback: per-sample Jacobians of just the parameters no layer rule accounts for."""

from __future__ import annotations

import torch
from torch import Tensor

from wideangle.kernel._capture import Layout
from wideangle.kernel._model import Batch, batch_size, call, copied, logits, plain_attention, take
from wideangle.kernel._structures import Explicit

__all__ = ["fallback_structure"]

_WORK_BYTES = 256 * 2**20


def fallback_structure(layout: Layout, batch: Batch, cotangents: Tensor) -> Explicit:
    """Return the explicit Jacobian, (b, R, p), of the fallback parameters for one chunk of samples."""
    shapes = tuple(layout.shape(name) for name in layout.fallback)
    width = sum(shape.numel() for shape in shapes)
    samples, rows = batch_size(batch), len(cotangents)
    each = 3 * rows * (width * layout.dtype.itemsize + layout.activation_bytes)
    step = max(1, min(samples, _WORK_BYTES // max(each, 1)))
    batch, parts = copied(batch), []
    for start in range(0, samples, step):
        piece = take(batch, slice(start, min(start + step, samples)))
        try:
            parts.append(_vectorised(layout, piece, cotangents))
        except (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError, AssertionError):
            # the model does what vmap cannot follow (data-dependent control flow, a batch of one):
            # the same numbers, one backward pass per sample and logit
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
    mine, others = _split(layout)
    leaves = {name: parameter.detach().requires_grad_() for name, parameter in mine.items()}
    samples = batch_size(batch)
    with torch.enable_grad(), plain_attention():
        z = logits(call(layout.model, {**others, **leaves}, batch), layout.output, samples)
        z = z @ cotangents.to(z.dtype).T
    rows = []
    for value in z.flatten():
        parts = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
        flat = [
            torch.zeros_like(leaf).flatten() if part is None else part.flatten()
            for leaf, part in zip(leaves.values(), parts, strict=True)
        ]
        rows.append(torch.cat(flat))
    return torch.stack(rows).view(samples, len(cotangents), -1)
