"""The aiming condition: does the negative gradient point towards the solutions, and how well."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wideangle.curvature._landscape_rates import quadratic_growth
from wideangle.curvature._problem import Problem, State, floor, inner, squared
from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.kernel._model import OutputPick
from wideangle.result import Provenance, Result

__all__ = ["Aiming", "AimingPath", "Solution", "Target", "aiming", "aiming_along", "gauss_newton_solution"]

Target = Literal["gauss_newton", "final"] | State

_SURROGATES = {
    "gauss_newton": "solution reached by minimum-norm Gauss-Newton steps (first-order projection)",
    "final": "final iterate (no projection: raises theta where it is far)",
    "given": "state given by the caller",
}


@dataclass(frozen=True)
class Aiming(Result):
    """The aiming ratio at one point: `theta` = <grad L, w - w*> / L, w* a stand-in for the nearest solution.

    `surrogate` names the stand-in; `target_loss` is L(w*), which the condition takes as 0. theta = 2 for
    every least-squares problem; `violated` says theta <= 0: a step against the gradient leads away from w*.
    `growth` = 2 L / |w - w*|^2. `steps` counts Gauss-Newton steps.
    """

    theta: float = 0.0
    surrogate: str = ""
    inner: float = 0.0
    loss: float = 0.0
    distance: float = 0.0
    growth: float = 0.0
    violated: bool = False
    target_loss: float = 0.0
    steps: int = 0
    convention: str = "half_mean"


@dataclass(frozen=True)
class AimingPath(Result):
    """The aiming ratio along a path; None where the loss is 0 to rounding or the state is the target.

    `clear` counts the states whose loss is at least `margin` times `target_loss`: nearer to a target that
    is no solution the ratio falls whatever the landscape (see `aiming_along`). `smallest` is the minimum
    over these, None without any, and `violations` their numbers where theta <= 0.
    """

    smallest: float | None = None
    thetas: list[float | None] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    distances: list[float | None] = field(default_factory=list)
    growths: list[float | None] = field(default_factory=list)
    violations: list[int] = field(default_factory=list)
    clear: int = 0
    margin: float = 100.0
    surrogate: str = ""
    target_loss: float = 0.0
    convention: str = "half_mean"


@dataclass(frozen=True)
class Solution:
    """An interpolating point: the weights that move, the loss there (in the convention asked), and the steps."""

    weights: dict[str, Tensor]
    loss: float
    steps: int


def _descend(problem: Problem, tolerance: float, max_steps: int) -> Solution:
    """Run minimum-norm Gauss-Newton steps from the problem's weights; they are put back afterwards."""
    start = {name: w.detach().clone() for name, w in problem.weights().items()}
    first, losses = None, []
    try:
        for steps in range(max_steps + 1):
            residual = problem.residual()
            value = problem.loss_of(residual)
            first = value if first is None else first
            losses.append(value)
            if value <= tolerance * first:
                weights = {name: w.detach().clone() for name, w in problem.weights().items()}
                return Solution(weights, value, steps)
            if steps == max_steps or not value <= 1e6 * first:
                break
            move = _step(problem, residual)
            with torch.no_grad():
                for name, weight in problem.weights().items():
                    if name in move:
                        weight -= move[name]
    except NumericsError:
        losses.append(math.inf)
    finally:
        problem.load(start)
    raise ConvergenceError(
        f"Gauss-Newton steps from here reach no solution: loss {losses[0]:.3g} -> {losses[-1]:.3g} after "
        f"{len(losses) - 1} steps ({problem.parameters} parameters, {problem.equations} equations); the targets "
        "may not be interpolable from here: use target='final' with the weights at the end of training"
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
    tolerance: float = 1e-20,
    max_steps: int = 50,
    params: Any = None,
    output: OutputPick = None,
    dtype: torch.dtype | None = torch.float64,
    loss: str = "half_mean",
) -> Solution:
    """Return a point with F(w*) = y near the model's weights: the stand-in for the nearest solution.

        w <- w - J^T K^+ (F(w) - y),  K = J J^T      until L(w) <= tolerance L(w_0)

    For a linear model one step is the projection on the solutions. Otherwise each step is the projection
    on those of the linear expansion, and the point reached is correct to first order only.

    Cost: for each step one factor pass, the kernel of nC x nC numbers and its eigenvectors (9 (nC)^3), one
    product with J^T. Usually 3 to 6 steps.

    Args:
        model: a module whose outputs do not depend on the other samples.
        x: n inputs.
        y: n targets, numbers (n, C) or class labels taken as one-hot rows.
        tolerance: loss to reach, relative to that at the start.
        max_steps: steps allowed.
        params: parameters that move; all that require a gradient where left out.
        output: which part of a tuple, dict or ModelOutput is the output.
        dtype: compute in this type; None keeps the model's.
        loss: the convention of the loss returned, one of `wideangle.losses.SQUARED_LOSSES`.

    Returns:
        A `Solution`.

    Raises:
        ConvergenceError: the loss did not fall that far: too few parameters, or contradictory targets.
        InputError: as for `aiming`.

    Example:
        >>> net, x = nn.Linear(2, 1, bias=False).double(), torch.eye(2, dtype=torch.float64)
        >>> gauss_newton_solution(net, x, torch.ones(2, 1)).weights["weight"].round(decimals=6).tolist()
        [[1.0, 1.0]]

    Reference: Ben-Israel 1966 (minimum-norm Gauss-Newton steps); used here for Liu et al. 2023 (arXiv
    2306.02601), where the projection is on the exact solution set.
    """
    problem = Problem(model, x, y, params=params, output=output, dtype=dtype, loss=loss)
    return _descend(problem, tolerance, max_steps)


def aiming(
    model: nn.Module,
    x: Any,
    y: Any,
    target: Target = "gauss_newton",
    *,
    final: State | None = None,
    tolerance: float = 1e-20,
    max_steps: int = 50,
    loss: str = "half_mean",
    params: Any = None,
    output: OutputPick = None,
    dtype: torch.dtype | None = torch.float64,
) -> Aiming:
    """Return the aiming ratio at the model's weights, towards a named stand-in for the nearest solution.

        theta = <grad L(w), w - w*> / L(w),   L = 1/(2n) sum_i |f_i - y_i|^2    (the gradient of all data)

    theta does not depend on the factor of L. Aiming with theta > 0 on a tube around the solutions makes SGD
    with step theta / (2 beta) as fast, per step and in the worst case, as gradient descent. The nearest
    solution of a net cannot be found; w* is what `target` says, and the result names it.

    Cost: a forward and a backward pass on all data; "gauss_newton" adds `gauss_newton_solution`.

    Args:
        model: a module whose outputs do not depend on the other samples.
        x: n inputs.
        y: n targets, numbers (n, C) or class labels taken as one-hot rows.
        target: "gauss_newton", "final" (then give `final`), or a state dict or module.
        final: the weights at the end of training, for target="final".
        tolerance: as for `gauss_newton_solution`.
        max_steps: as for `gauss_newton_solution`.
        loss: the convention of L: "half_mean", the paper's, or another of `wideangle.losses.SQUARED_LOSSES`.
        params: parameters that move; all that require a gradient where left out.
        output: which part of a tuple, dict or ModelOutput is the output.
        dtype: compute in this type; None keeps the model's.

    Returns:
        An `Aiming`.

    Raises:
        InputError: cross-entropy (its solutions are at infinity), BatchNorm or dropout in train mode, an
            unknown target, weights that are the target.
        NumericsError: the loss is 0 to rounding: the ratio is 0/0.
        ConvergenceError: no solution was reached from here.

    Example:
        >>> net = nn.Linear(3, 1).double()
        >>> x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 5.0]], dtype=torch.float64)
        >>> found = aiming(net, x, torch.ones(2, 1))
        >>> round(found.theta, 9), found.violated
        (2.0, False)

    Reference: Liu, Drusvyatskiy, Belkin, Davis & Ma 2023 (arXiv 2306.02601), aiming condition; differs in
    that the projection on the solution set is replaced by a named stand-in.
    """
    problem = Problem(model, x, y, params=params, output=output, dtype=dtype, loss=loss)
    residual, gradient = problem.slope()
    value = problem.loss_of(residual)
    problem.positive(value, "the aiming ratio")
    goal, surrogate, steps = _goal(problem, target, final, tolerance, max_steps)
    found = _ratio(problem, gradient, value, goal)
    if found is None:
        raise InputError("the weights are the target's own; measure at weights before it")
    product, distance = found
    here = {name: w.detach().clone() for name, w in problem.weights().items()}
    problem.load(goal)
    reached = problem.loss_of(problem.residual())
    problem.load(here)
    return Aiming(
        theta=product / value,
        surrogate=surrogate,
        inner=product,
        loss=value,
        distance=distance,
        growth=quadratic_growth(value, distance),
        violated=product <= 0,
        target_loss=reached,
        steps=steps,
        convention=loss,
        provenance=Provenance.here(device=str(problem.device)),
    )


def _goal(
    problem: Problem, target: Any, final: State | None, tolerance: float, max_steps: int
) -> tuple[dict[str, Tensor], str, int]:
    if not isinstance(target, str):
        return problem.taken(target), _SURROGATES["given"], 0
    if target == "gauss_newton":
        solution = _descend(problem, tolerance, max_steps)
        return solution.weights, _SURROGATES[target], solution.steps
    if target != "final":
        raise InputError(f"unknown target {target!r}; choose gauss_newton, final or give a state dict")
    if final is None:
        raise InputError("target='final' needs final=, the state dict at the end of training")
    return problem.taken(final), _SURROGATES[target], 0


def _ratio(
    problem: Problem, gradient: dict[str, Tensor], value: float, goal: dict[str, Tensor]
) -> tuple[float, float] | None:
    """Return <grad L, w - w*> and |w - w*|; None where there is no ratio."""
    way = {name: w.detach() - goal[name] for name, w in problem.weights().items()}
    distance = math.sqrt(squared(way))
    if value < floor(problem.dtype) or distance == 0:
        return None
    return inner(gradient, way), distance


def aiming_along(
    model: nn.Module,
    x: Any,
    y: Any,
    states: Iterable[State],
    target: Target = "final",
    *,
    margin: float = 100.0,
    tolerance: float = 1e-20,
    max_steps: int = 50,
    loss: str = "half_mean",
    params: Any = None,
    output: OutputPick = None,
    dtype: torch.dtype | None = torch.float64,
) -> AimingPath:
    """Return the aiming ratio at every state of a path.

        theta_t = <grad L(w_t), w_t - w*> / L(w_t)

    With "final" w* is the last state, the same for all; with "gauss_newton" each state has its own. A
    final iterate is no solution: for a linear model theta is then only at least 2 (1 - sqrt(L(w*) / L)) and
    tends to 1 on the last steps. So verdicts are from states with L >= margin L(w*), where that is 1.8.

    Cost: that of `aiming` for each state; "final" holds the states.

    Args:
        model: the module the states belong to.
        x: n inputs.
        y: n targets.
        states: state dicts or modules, in order.
        target: "final" (the last state), "gauss_newton", or a state dict or module.
        margin: how many times the target's loss a state's must be to count.
        tolerance: as for `gauss_newton_solution`.
        max_steps: as for `gauss_newton_solution`.
        loss: the convention of L.
        params: parameters that move.
        output: which part of a tuple, dict or ModelOutput is the output.
        dtype: compute in this type; None keeps the model's.

    Returns:
        An `AimingPath`.

    Raises:
        InputError: as for `aiming`; no state.
        ConvergenceError: "gauss_newton" reached no solution from a state.

    Example:
        >>> net, x = nn.Linear(2, 1, bias=False).double(), torch.eye(2, dtype=torch.float64)
        >>> states = [{"weight": k * torch.ones(1, 2)} for k in (3.0, 2.0, 1.0)]
        >>> aiming_along(net, x, torch.ones(2, 1), states).thetas
        [2.0, 2.0, None]

    Reference: as `aiming`.
    """
    problem = Problem(model, x, y, params=params, output=output, dtype=dtype, loss=loss)
    path: Iterable[State] = states
    fixed: dict[str, Tensor] | None = None
    if not (isinstance(target, str) and target == "gauss_newton"):
        last = None
        if isinstance(target, str):
            held = [problem.taken(state) for state in states]
            path, last = held, held[-1] if held else None
            if last is None:
                raise InputError("states is empty; give at least one state dict")
        fixed, surrogate, _ = _goal(problem, target, last, tolerance, max_steps)
    else:
        surrogate = _SURROGATES[target]
    thetas, losses, distances, growths, reached = [], [], [], [], 0.0
    for state in path:
        problem.load(state)
        residual, gradient = problem.slope()
        value = problem.loss_of(residual)
        losses.append(value)
        goal = fixed
        if goal is None and value >= floor(problem.dtype):
            solution = _descend(problem, tolerance, max_steps)
            goal, reached = solution.weights, max(reached, solution.loss)
        found = None if goal is None else _ratio(problem, gradient, value, goal)
        thetas.append(None if found is None else found[0] / value)
        distances.append(None if found is None else found[1])
        growths.append(None if found is None else quadratic_growth(value, found[1]))
    if not losses:
        raise InputError("states is empty; give at least one state dict")
    if fixed is not None:
        problem.load(fixed)
        reached = problem.loss_of(problem.residual())
    counted = {k: t for k, t in enumerate(thetas) if t is not None and losses[k] >= margin * reached}
    return AimingPath(
        smallest=min(counted.values(), default=None),
        thetas=thetas,
        losses=losses,
        distances=distances,
        growths=growths,
        violations=[k for k, theta in counted.items() if theta <= 0],
        clear=len(counted),
        margin=margin,
        surrogate=surrogate,
        target_loss=reached,
        convention=loss,
        provenance=Provenance.here(device=str(problem.device)),
    )
