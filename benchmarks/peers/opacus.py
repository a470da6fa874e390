"""Opacus: per-sample gradients of one logit after the other from its GradSampleModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from peers.task import Method, Task

PACKAGES = ("opacus", "torch")


def _per_logit(task: Task) -> Iterator[list[Tensor]]:
    from opacus.grad_sample import GradSampleModule

    model = GradSampleModule(task.model().train(), loss_reduction="sum")  # in eval mode it records nothing
    x = task.inputs()
    for c in range(task.outputs):
        model.zero_grad()
        model(x)[:, c].sum().backward()
        yield [p.grad_sample.flatten(1) for p in model.parameters()]


def trace(task: Task) -> Callable[[], Tensor]:
    """The trace kernel: the Gram matrix of each logit's gradients, added up."""

    def work() -> Tensor:
        total = torch.zeros(len(task.x), len(task.x))
        for gradients in _per_logit(task):
            for part in gradients:
                total.addmm_(part, part.T)
        return total

    return work


def full(task: Task) -> Callable[[], Tensor]:
    """The full kernel: the gradients of all logits kept, which is the Jacobian."""

    def work() -> Tensor:
        logits = list(_per_logit(task))
        size = len(task.x) * task.outputs
        total = torch.zeros(size, size)
        for parts in zip(*logits, strict=True):
            rows = torch.stack(parts, 1).flatten(0, 1)
            total.addmm_(rows, rows.T)
        return total.reshape(len(task.x), task.outputs, len(task.x), task.outputs)

    return work


METHODS = {
    "GradSampleModule per logit": Method(trace, ("trace",)),
    "GradSampleModule, all kept": Method(full, ("full",)),
}
