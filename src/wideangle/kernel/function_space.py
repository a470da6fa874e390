"""Gradient descent of the linearised model in function space, for any loss, from the factor cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wideangle.errors import InputError
from wideangle.kernel._factors import Factors
from wideangle.progress import track
from wideangle.result import Result

__all__ = ["LinearisedRun", "linearised_descent"]


@dataclass(frozen=True)
class LinearisedRun(Result):
    """What gradient descent on the linearised model does: the loss before each step and the way gone.

    `losses[t]` is the loss after t steps; `distance[t]` = |w_t - w_0|.
    """

    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    distance: np.ndarray = field(default_factory=lambda: np.zeros(0))
    outputs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)


def linearised_descent(
    factors: Factors,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    step: float,
    steps: int,
) -> LinearisedRun:
    """Return the exact course of full-batch gradient descent on the linearised model.

    f_{t+1} = f_t - step * K dL/df(f_t),   w_t - w_0 = -J^T sum_s step * dL/df(f_s)

    Exact for the linearisation, for any loss and without an eigendecomposition.

    Cost: one product with K a step.

    Args:
        factors: the factor cache with all outputs.
        start: the model's outputs f_0, (n, C).
        loss: outputs (n, C) -> scalar loss; the targets are inside.
        step: the step size.
        steps: T.

    Returns:
        Losses and distances at t = 0..T; after an overflow the rest is inf.

    Raises:
        InputError: the start does not fit the factors, or step and steps are not positive.

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
    if not (step > 0 and steps > 0):
        raise InputError(f"step={step} and steps={steps} must be positive")
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
        move = -step * torch.autograd.grad(value, f)[0]
        change = factors @ move
        # |J^T (a + b)|^2 = |J^T a|^2 + 2 a . K b + b . K b
        square += float((2 * travelled * change).sum() + (move * change).sum())
        travelled = travelled + move
        distance[t + 1] = max(square, 0.0) ** 0.5
        f = f.detach() + change
    return LinearisedRun(losses, distance, f.detach().double().cpu().numpy())
