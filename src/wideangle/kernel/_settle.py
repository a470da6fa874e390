"""Puts a copy of a model into the state in which it can be measured: layers that couple samples fixed."""

from __future__ import annotations

import torch
from torch import nn

from wideangle.kernel._model import Batch

__all__ = ["is_batch_norm", "settle"]


def is_batch_norm(module: nn.Module) -> bool:
    """True for a BatchNorm layer of any dimension."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def settle(model: nn.Module, x: Batch) -> list[str]:
    """Put the copy into eval mode, BatchNorm with statistics of the data where it has none; say so."""
    notes = []
    norms = [module for module in model.modules() if is_batch_norm(module)]
    blank = [m for m in norms if m.track_running_stats and int(m.num_batches_tracked or 0) == 0]  # type: ignore[union-attr]
    if blank:
        model.eval()
        for module in blank:
            module.train()
            module.momentum = None  # type: ignore[assignment]
        with torch.no_grad():
            _ = model(**x) if isinstance(x, dict) else model(x)
        for module in blank:
            module.momentum = 0.1  # type: ignore[assignment]
        notes.append(
            f"{len(blank)} BatchNorm layers had no statistics yet; they were set from the data, and the kernel "
            "is that of the model with these fixed. Training runs use batch statistics."
        )
    elif norms:
        notes.append(
            f"The kernel is measured with the running statistics of {len(norms)} BatchNorm layers fixed; "
            "training runs use batch statistics."
        )
    dropped = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    if dropped:
        notes.append(f"Dropout ({len(dropped)} layers) is switched off throughout.")
    model.eval()
    return notes
