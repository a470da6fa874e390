"""wideangle itself, timed as its peers are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from peers.task import TOLERANCE, TOP, Method, Task
from wideangle import kernel

PACKAGES = ("wideangle", "torch")


def gram(task: Task) -> Callable[[], Tensor]:
    """The kernel itself, sums in float32."""
    model, x, kind = task.model(), task.inputs(), task.kind
    return lambda: kernel.tangent_kernel(model, x, outputs=kind, dtype=torch.float32)


def product(task: Task) -> Callable[[], Tensor]:
    """K v from the factors, which are the set-up."""
    cache, v = kernel.factors(task.model(), task.inputs()), torch.from_numpy(task.v)
    return lambda: cache @ v


def eigen(task: Task) -> Callable[[], object]:
    """The largest eigenpairs, the pass that makes the factors included."""
    model, x = task.model(), task.inputs()
    return lambda: kernel.top_eigenpairs(kernel.factors(model, x), TOP, tolerance=TOLERANCE).values.copy()


METHODS = {
    "tangent_kernel": Method(gram, ("trace", "full")),
    "factors @ v": Method(product, ("product",)),
    "top_eigenpairs": Method(eigen, ("eigen",)),
}
