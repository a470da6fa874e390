"""ViViT with BackPACK: the Gram matrix of the Gauss-Newton square root, twice the kernel for a squared loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from peers.task import Method, Task

PACKAGES = ("vivit-for-pytorch", "backpack-for-pytorch", "torch")


def gram(task: Task) -> Callable[[], Tensor]:
    """The full kernel, (C, n, C, n), added up over parameters; the trace is taken from it.

    The residual net goes through BackPACK's converter, which makes its sums modules.
    """
    from backpack import backpack, extend
    from vivit.extensions.secondorder.vivit import ViViTGGNExact

    model = extend(task.model(), use_converter=task.name == "cnn")
    loss = extend(nn.MSELoss(reduction="sum"))
    x, target = task.inputs(), torch.zeros(len(task.x), task.outputs)

    def work() -> Tensor:
        total = None
        with backpack(ViViTGGNExact()):
            loss(model(x), target).backward()
        for p in model.parameters():
            part = p.vivit_ggn_exact["gram_mat"]()
            total = part if total is None else total.add_(part)
            del p.vivit_ggn_exact, part
            p.grad = None
        full = total.mul_(0.5)
        return torch.einsum("cicj->ij", full) if task.kind == "trace" else full.permute(1, 0, 3, 2)

    return work


METHODS = {"Gauss-Newton Gram / 2": Method(gram, ("trace", "full"))}
