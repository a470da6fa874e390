"""NNGeometry: its GramMatrix, one backward pass for each pair of logits and pair of batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from peers.task import Method, Task

PACKAGES = ("nngeometry", "torch")


def gram(task: Task) -> Callable[[], Tensor]:
    """The full kernel, (C, n, C, n), from one batch; the trace is taken from it, there is no shorter way."""
    from nngeometry.gram import GramMatrix

    model, x = task.model(), task.inputs()
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))

    def work() -> Tensor:
        full = GramMatrix(model=model, loader=loader, function=lambda *batch: model(batch[0])).to_torch()
        return torch.einsum("cicj->ij", full) if task.kind == "trace" else full.permute(1, 0, 3, 2)

    return work


METHODS = {"GramMatrix": Method(gram, ("trace", "full"))}
