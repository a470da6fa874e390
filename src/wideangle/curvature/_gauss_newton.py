"""Gauss-Newton steps of minimum norm: a solution of F(w) = y near the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.curvature._problem import Problem, squared
from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.kernel._model import OutputPick

__all__ = ["Solution", "check_tolerance", "descend", "gauss_newton_solution"]


@dataclass(frozen=True)
class Solution:
    """An interpolating point: the weights that move, the loss there (in the convention asked), and the steps.

    `distance` is |w* - w_0|, `first_step` the length of the first step: the distance to the solutions of the
    linear expansion at w_0; `first_loss` is L after it over L(w_0), 0 for a linear model. `far` says that the
    expansion did not hold: `distance` above twice `first_step`, or `first_loss` above 1/4 (the residual not
    halved). Then nearer solutions are likely. Not far is no proof that there is none.
    """

    weights: dict[str, Tensor]
    loss: float
    steps: int
    distance: float = 0.0
    first_step: float = 0.0
    first_loss: float = 0.0

    @property
    def far(self) -> bool:
        """Whether the solution may lie far from the nearest one."""
        return self.distance > 2 * self.first_step or self.first_loss > 0.25


def check_tolerance(tolerance: float | None) -> None:
    """Refuse a tolerance that no loss can meet.

    Raises:
        InputError: it is below zero or not a number.
    """
    if tolerance is not None and not tolerance >= 0:
        raise InputError(f"tolerance={tolerance} must be zero or more, or None for what the dtype resolves")


def _resolved(dtype: torch.dtype) -> float:
    """Return the default tolerance: 1e-20 in float64, 1.4e-10 in float32."""
    return max(1e-20, 1e4 * torch.finfo(dtype).eps ** 2)


def _is_rounding(problem: Problem, residual: Tensor) -> bool:
    """Tell whether |r| <= 100 eps |F|: as near to the targets as outputs of this type come."""
    outputs = float((residual + problem.y).double().norm())
    return float(residual.double().norm()) <= 100 * torch.finfo(problem.dtype).eps * outputs


def descend(problem: Problem, tolerance: float | None, max_steps: int) -> Solution:
    """Run minimum-norm Gauss-Newton steps from the problem's weights; they are put back afterwards."""
    start, first, losses, length = problem.now(), 0.0, [], 0.0
    goal = _resolved(problem.dtype) if tolerance is None else tolerance
    try:
        for steps in range(max_steps + 1):
            residual = problem.residual()
            value = problem.loss_of(residual)
            first = value if not losses else first
            losses.append(value)
            stalled = tolerance is None and steps > 0 and value > losses[-2] / 2
            if value <= goal * first or (stalled and _is_rounding(problem, residual)):
                weights = problem.now()
                way = math.sqrt(squared({name: weights[name] - start[name] for name in start}))
                left = losses[1] / first if steps else 0.0
                return Solution(weights, value, steps, way, length, left)
            if steps == max_steps or not value <= 1e6 * first:
                break
            move = _step(problem, residual)
            length = length if steps else math.sqrt(squared(move))
            with torch.no_grad():
                for name, weight in problem.weights().items():
                    if name in move:
                        weight -= move[name]
    except NumericsError:
        losses.append(math.inf)
    finally:
        problem.place(start)
    short = (
        ""
        if problem.dtype == torch.float64
        else f"; {problem.dtype} may be too short, dtype=torch.float64 is not"
    )
    raise ConvergenceError(
        f"Gauss-Newton steps from here reach no solution: loss {losses[0]:.3g} -> {losses[-1]:.3g} after "
        f"{len(losses) - 1} steps ({problem.parameters} parameters, {problem.equations} equations); the targets "
        "may not be interpolable from here: use target='final' with the weights at the end of training"
        + short
    )


def _step(problem: Problem, residual: Tensor) -> dict[str, Tensor]:
    """Return J^T K^+ r, by parameter: the smallest move that takes the linear expansion to the targets."""
    cache = problem.cache()
    size = cache.samples * cache.outputs
    values, vectors = torch.linalg.eigh(cache.gram().reshape(size, size))
    cut = size * torch.finfo(problem.dtype).eps * float(values[-1].clamp(min=0.0))
    if not cut > 0:
        raise NumericsError("the tangent kernel is zero: no parameter moves any output")
    inverse = torch.where(values > cut, 1 / values, 0.0)
    way = vectors @ (inverse * (vectors.T @ residual.reshape(-1).to(values)))
    pulled = cache.pull(way.to(cache.dtype).view(1, cache.samples, cache.outputs))
    return {name: piece[0] for name, piece in pulled.items()}


def gauss_newton_solution(
    model: nn.Module,
    x: Any,
    y: Any,
    *,
    tolerance: float | None = None,
    max_steps: int = 50,
    params: Any = None,
    output: OutputPick = None,
    dtype: torch.dtype | None = torch.float64,
    loss: str = "half_mean",
) -> Solution:
    """Return a point with F(w*) = y near the model's weights: the stand-in for the nearest solution.

        w <- w - J^T K^+ (F(w) - y),  K = J J^T      until L(w) <= tolerance L(w_0)

    For a linear model one step is the projection on the solutions. Otherwise each step is the projection
    on those of the linear expansion, and the point reached is correct to first order only: where the first
    step leaves the region of that expansion it may be several times farther than the nearest solution, which
    `Solution.far` tries to tell (a net of 50 parameters: 7.4 where one lies within 3.0; its first step was
    7.3 long and raised the loss 2.9 times).

    Cost: for each step one factor pass, the kernel of nC x nC numbers and its eigenvectors (9 (nC)^3), one
    product with J^T. Usually 3 to 6 steps.

    Args:
        model: a module whose outputs do not depend on the other samples.
        x: n inputs.
        y: n targets, numbers (n, C) or class labels taken as one-hot rows.
        tolerance: loss to reach, relative to that at the start. None takes what `dtype` resolves, 1e-20 in
            float64 and 1.4e-10 in float32, and also stops where the loss no longer halves and |F - y| is
            below 100 eps |F|, rounding.
        max_steps: steps allowed.
        params: parameters that move; all that require a gradient where left out.
        output: which part of a tuple, dict or ModelOutput is the output.
        dtype: compute in this type; None keeps the model's.
        loss: the convention of the loss returned, one of `wideangle.losses.SQUARED_LOSSES`.

    Returns:
        A `Solution`.

    Raises:
        ConvergenceError: the loss did not fall that far: too few parameters, or contradictory targets.
        InputError: as for `aiming`; a negative tolerance.

    Example:
        >>> net, x = nn.Linear(2, 1, bias=False).double(), torch.eye(2, dtype=torch.float64)
        >>> gauss_newton_solution(net, x, torch.ones(2, 1)).weights["weight"].round(decimals=6).tolist()
        [[1.0, 1.0]]

    Reference: Ben-Israel 1966 (minimum-norm Gauss-Newton steps); used here for Liu et al. 2023 (arXiv
    2306.02601), where the projection is on the exact solution set.
    """
    check_tolerance(tolerance)
    problem = Problem(model, x, y, params=params, output=output, dtype=dtype, loss=loss)
    return descend(problem, tolerance, max_steps)
