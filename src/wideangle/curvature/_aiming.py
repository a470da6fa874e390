"""The aiming condition: does the negative gradient point towards the solutions, and how well."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wideangle.curvature._gauss_newton import Solution, check_tolerance, descend
from wideangle.curvature._landscape_rates import quadratic_growth
from wideangle.curvature._problem import Problem, State, check_margin, floor, inner, squared
from wideangle.errors import InputError
from wideangle.kernel._model import OutputPick
from wideangle.result import Provenance, Result

__all__ = ["Aiming", "AimingPath", "Target", "aiming", "aiming_along"]

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

    Gauss-Newton may land far from the nearest solution, and theta there says little. Hence `first_step`, the
    length of its first step, and `first_loss`, L after it over L(w) (0 for a linear model), None for other
    targets. `far` says that `distance` is above twice `first_step` or `first_loss` above 1/4; `violated` is
    then never set, whatever theta is. Not far is no proof that w* is the nearest.
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
    first_step: float | None = None
    first_loss: float | None = None
    far: bool = False


@dataclass(frozen=True)
class AimingPath(Result):
    """The aiming ratio along a path; None where the loss is 0 to rounding or the state is the target.

    `clear` counts the states that decide: loss at least `margin` times `target_loss` (nearer to a target that
    is no solution the ratio falls whatever the landscape, see `aiming_along`), and not in `far`. `smallest`
    is the minimum over these, None without any, and `violations` their numbers where theta <= 0. `far` has
    the numbers of the states whose Gauss-Newton solution may not be the nearest (see `Aiming`); `first_steps`
    and `first_losses` are what that is judged by, empty for other targets. Distances are over the parameters
    that move.
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
    first_steps: list[float | None] = field(default_factory=list)
    first_losses: list[float | None] = field(default_factory=list)
    far: list[int] = field(default_factory=list)


def aiming(
    model: nn.Module,
    x: Any,
    y: Any,
    target: Target = "gauss_newton",
    *,
    final: State | None = None,
    tolerance: float | None = None,
    max_steps: int = 50,
    loss: str = "half_mean",
    params: Any = None,
    output: OutputPick = None,
    dtype: torch.dtype | None = torch.float64,
) -> Aiming:
    """Return the aiming ratio at the model's weights, towards a named stand-in for the nearest solution.

        theta = <grad L(w), w - w*> / L(w),   L = 1/(2n) sum_i |f_i - y_i|^2    (the gradient of all data)

    theta does not depend on the factor of L. Aiming with theta > 0 on a tube around the solutions, growth alpha
    there and beta the smoothness of every sample's loss give SGD with step theta / (2 beta) a number of steps
    of the order of beta / alpha. Gradient descent has beta_L of the mean loss in place of beta: the same order
    in the conditioning, but SGD takes up to beta / beta_L times the steps, which can be as large as n. The
    nearest solution of a net cannot be found; w* is what `target` says, and the result names it.

    Cost: a forward and a backward pass on all data; "gauss_newton" adds `gauss_newton_solution`.

    Args:
        model: a module whose outputs do not depend on the other samples.
        x: n inputs.
        y: n targets, numbers (n, C) or class labels taken as one-hot rows.
        target: "gauss_newton", "final" (then give `final`), or a state dict or module; w - w* is over the
            parameters that move, `target_loss` is at all the state has.
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
            unknown target, weights that are the target, a negative tolerance.
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
    check_tolerance(tolerance)
    problem = Problem(model, x, y, params=params, output=output, dtype=dtype, loss=loss)
    residual, gradient = problem.slope()
    value = problem.loss_of(residual)
    problem.positive(value, "the aiming ratio")
    if isinstance(target, str) and target == "gauss_newton":
        solution, surrogate = descend(problem, tolerance, max_steps), _SURROGATES[target]
        goal = solution.weights
    else:
        solution, (goal, surrogate) = None, _given(problem, target, final)
    found = _ratio(problem, gradient, value, goal)
    if found is None:
        raise InputError("the weights are the target's own; measure at weights before it")
    product, distance = found
    far = solution is not None and solution.far
    return Aiming(
        theta=product / value,
        surrogate=surrogate,
        inner=product,
        loss=value,
        distance=distance,
        growth=quadratic_growth(value, distance),
        violated=product <= 0 and not far,
        target_loss=_loss_at(problem, goal) if solution is None else solution.loss,
        steps=0 if solution is None else solution.steps,
        convention=loss,
        first_step=None if solution is None else solution.first_step,
        first_loss=None if solution is None else solution.first_loss,
        far=far,
        provenance=Provenance.here(device=str(problem.device)),
    )


def _given(problem: Problem, target: Any, final: State | None) -> tuple[dict[str, Tensor], str]:
    """Return the state aimed at, all of it, and its name."""
    if not isinstance(target, str):
        return problem.held(target), _SURROGATES["given"]
    if target != "final":
        raise InputError(f"unknown target {target!r}; choose gauss_newton, final or give a state dict")
    if final is None:
        raise InputError("target='final' needs final=, the state dict at the end of training")
    return problem.held(final), _SURROGATES[target]


def _loss_at(problem: Problem, state: dict[str, Tensor]) -> float:
    problem.load(state)
    return problem.loss_of(problem.residual())


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
    tolerance: float | None = None,
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
    tends to 1 on the last steps. So verdicts are from states with L >= margin L(w*), where that is 1.8; and
    of "gauss_newton" from those whose solution is not `far`. All else a state has, frozen layers and buffers,
    is loaded with it.

    Cost: that of `aiming` for each state; "final" holds copies of the states.

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
        InputError: as for `aiming`; no state, a margin below 0 or not finite.
        ConvergenceError: "gauss_newton" reached no solution from a state.

    Example:
        >>> net, x = nn.Linear(2, 1, bias=False).double(), torch.eye(2, dtype=torch.float64)
        >>> states = [{"weight": k * torch.ones(1, 2)} for k in (3.0, 2.0, 1.0)]
        >>> aiming_along(net, x, torch.ones(2, 1), states).thetas
        [2.0, 2.0, None]

    Reference: as `aiming`.
    """
    check_margin(margin)
    check_tolerance(tolerance)
    problem = Problem(model, x, y, params=params, output=output, dtype=dtype, loss=loss)
    path: Iterable[State] = states
    fixed, surrogate = None, _SURROGATES["gauss_newton"]
    if not (isinstance(target, str) and target == "gauss_newton"):
        last = None
        if isinstance(target, str):
            held = [problem.held(state) for state in states]
            path, last = held, held[-1] if held else None
            if last is None:
                raise InputError("states is empty; give at least one state dict")
        fixed, surrogate = _given(problem, target, last)
    thetas, losses, distances, growths = [], [], [], []
    solutions: list[Solution | None] = []
    for state in path:
        problem.load(state)
        residual, gradient = problem.slope()
        value = problem.loss_of(residual)
        losses.append(value)
        goal, solution = fixed, None
        if fixed is None and value >= floor(problem.dtype):
            solution = descend(problem, tolerance, max_steps)
            goal = solution.weights
        solutions.append(None if solution is None else replace(solution, weights={}))
        found = None if goal is None else _ratio(problem, gradient, value, goal)
        thetas.append(None if found is None else found[0] / value)
        distances.append(None if found is None else found[1])
        growths.append(None if found is None else quadratic_growth(value, found[1]))
    if not losses:
        raise InputError("states is empty; give at least one state dict")
    if fixed is not None:
        reached = _loss_at(problem, fixed)
    else:
        reached = max((solution.loss for solution in solutions if solution), default=0.0)
    far = [k for k, solution in enumerate(solutions) if solution and solution.far]
    clear = {k for k, value in enumerate(losses) if value >= margin * reached and k not in far}
    counted = {k: theta for k, theta in enumerate(thetas) if theta is not None and k in clear}
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
        first_steps=[] if fixed is not None else [s and s.first_step for s in solutions],
        first_losses=[] if fixed is not None else [s and s.first_loss for s in solutions],
        far=far,
        provenance=Provenance.here(device=str(problem.device)),
    )
