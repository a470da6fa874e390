"""Gradient descent of the linearised model in function space, for any loss, from the factor cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wideangle.errors import InputError
from wideangle.kernel._factors import Factors
from wideangle.kernel.cost import memory_limit
from wideangle.progress import track
from wideangle.result import Result

__all__ = ["DenseKernel", "LinearisedRun", "linearised_descent", "quickest_product"]


class DenseKernel:
    """The full kernel held as a matrix: for many products, where the factors are larger than it is.

    Made by `quickest_product`; multiplies like `Factors`, in the factors' precision.
    """

    def __init__(self, factors: Factors):
        self.samples, self.outputs = factors.samples, factors.outputs
        size = self.samples * self.outputs
        self.matrix = factors.gram(dtype=factors.dtype).reshape(size, size)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return K v for v of shape (n, C) or (nC,)."""
        return (self.matrix @ v.reshape(-1)).reshape(v.shape)


def quickest_product(factors: Factors, *, max_memory: int | None = None) -> Factors | DenseKernel:
    """Return what multiplies fastest when many products with K are wanted: the factors, or K itself.

    K is formed where it takes less than half the memory of the factors (convolutions on many samples) and
    fits: a product reads either of them once or twice, and memory traffic is what it costs.

    Args:
        factors: the factor cache with all outputs.
        max_memory: bytes K may take; a quarter of the free memory where left out.

    Example:
        >>> from wideangle.kernel import factors
        >>> type(quickest_product(factors(torch.nn.Linear(64, 2), torch.ones(3, 64)))).__name__
        'DenseKernel'
    """
    size = (factors.samples * factors.outputs) ** 2 * factors.dtype.itemsize
    fits = size <= memory_limit(max_memory, factors.device)
    return DenseKernel(factors) if fits and 2 * size < factors.nbytes else factors


@dataclass(frozen=True)
class LinearisedRun(Result):
    """What gradient descent on the linearised model does: the loss before each step and the way gone.

    `losses[t]` is the loss after t steps; `distance[t]` = |w_t - w_0|. After the last step, `outputs` are
    f_T (n, C) and `way` is the a (n, C) with w_T - w_0 = J^T a, which `Factors.pull` turns into weights.
    """

    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    distance: np.ndarray = field(default_factory=lambda: np.zeros(0))
    outputs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    way: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)


def linearised_descent(
    factors: Factors | DenseKernel,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    step: float | Sequence[float],
    steps: int,
) -> LinearisedRun:
    """Return the exact course of full-batch gradient descent on the linearised model.

    f_{t+1} = f_t - step_t * K dL/df(f_t),   w_t - w_0 = -J^T sum_s step_s * dL/df(f_s)

    Exact for the linearisation, for any loss and without an eigendecomposition.

    Cost: one product with K a step.

    Args:
        factors: the factor cache with all outputs, or what `quickest_product` makes of it.
        start: the model's outputs f_0, (n, C).
        loss: outputs (n, C) -> scalar loss; the targets are inside.
        step: the step size, or one for each step.
        steps: T.

    Returns:
        Losses and distances at t = 0..T; after an overflow the rest is inf.

    Raises:
        InputError: the start does not fit the factors, step or steps are not positive, or there are fewer
            step sizes than steps.

    Example:
        >>> from wideangle.kernel import factors
        >>> model, x = torch.nn.Linear(2, 1, bias=False).double(), torch.eye(2, dtype=torch.float64)
        >>> run = linearised_descent(factors(model, x), model(x), lambda f: f.square().sum() / 2, 0.5, 3)
        >>> bool(abs(run.losses[1] / run.losses[0] - 0.25) < 1e-12)
        True
    """
    if tuple(start.shape) != (factors.samples, factors.outputs):
        raise InputError(
            f"start has shape {tuple(start.shape)}, the factors are of {factors.samples} samples and "
            f"{factors.outputs} outputs"
        )
    sizes = list(step) if isinstance(step, Sequence) else [step] * steps
    if steps < 1 or not all(size > 0 for size in sizes):
        raise InputError(f"step={step} and steps={steps} must be positive")
    if len(sizes) < steps:
        raise InputError(f"{len(sizes)} step sizes for steps={steps}; give one number, or one for each step")
    f = start.detach().clone()
    losses = np.full(steps + 1, np.inf)
    distance = np.full(steps + 1, np.inf)
    distance[0] = 0.0
    travelled = torch.zeros_like(f)
    square = 0.0
    for t in track(range(steps + 1), "linearised model"):
        f.requires_grad_(True)
        with torch.enable_grad():
            value = loss(f)
        losses[t] = float(value.detach())
        if t == steps or not np.isfinite(losses[t]):
            break
        move = -sizes[t] * torch.autograd.grad(value, f)[0]
        change = factors @ move
        # |J^T (a + b)|^2 = |J^T a|^2 + 2 a . K b + b . K b
        square += float((2 * travelled * change).sum() + (move * change).sum())
        travelled = travelled + move
        distance[t + 1] = max(square, 0.0) ** 0.5
        f = f.detach() + change
    ends = (tensor.detach().double().cpu().numpy() for tensor in (f, travelled))
    return LinearisedRun(losses, distance, *ends)
