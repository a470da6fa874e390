"""curvlinops: its Jacobian and the adjoint of it; there is no kernel operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.task import Method, Task, largest_values

PACKAGES = ("curvlinops-for-pytorch", "torch")
COLUMNS = 64  # of the identity at once: J^T I holds as many numbers for each parameter


def _operators(task: Task) -> tuple[Any, Any]:
    from curvlinops import JacobianLinearOperator

    model, x = task.model(), task.inputs()
    data = [(x, torch.zeros(len(x), task.outputs))]
    jacobian = JacobianLinearOperator(model, list(model.parameters()), data, check_deterministic=False)
    return jacobian, jacobian.adjoint()


def full(task: Task) -> Callable[[], Tensor]:
    """J J^T I by blocks of columns."""
    jacobian, transposed = _operators(task)
    size = len(task.x) * task.outputs

    def work() -> Tensor:
        blocks = torch.eye(size).split(COLUMNS, dim=1)
        kernel = torch.cat([jacobian @ (transposed @ block) for block in blocks], dim=1)
        return kernel.reshape(len(task.x), task.outputs, len(task.x), task.outputs)

    return work


def product(task: Task) -> Callable[[], Tensor]:
    """J @ (J^T @ v)."""
    jacobian, transposed = _operators(task)
    v = torch.from_numpy(task.v)
    return lambda: jacobian @ (transposed @ v)


def eigen(task: Task) -> Callable[[], np.ndarray]:
    """The same products under scipy's eigsh."""

    def work() -> np.ndarray:
        jacobian, transposed = _operators(task)
        return largest_values(lambda v: jacobian @ (transposed @ v), len(task.x) * task.outputs)

    return work


METHODS = {
    "J J^T I": Method(full, ("full",)),
    "J @ (J^T @ v)": Method(product, ("product",)),
    "J J^T + eigsh": Method(eigen, ("eigen",)),
}
