"""Section 6, the landscape along the trial run: does descent keep its pace, and does it aim at where it ends."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from wideangle.checks._course import Course, main_course
from wideangle.checks._descent import Trial
from wideangle.checks._study import Study
from wideangle.curvature.landscape import aiming, sgd_step
from wideangle.document import Figure, Section, Series, Table
from wideangle.errors import WideangleError
from wideangle.kernel._factors import factors
from wideangle.kernel._model import Batch, take
from wideangle.losses import hessian_factor

__all__ = ["run"]

_EQUATIONS = 640
_FLOOR = 1e-6  # of the starting loss: below it a ratio of roundings is left
_GOAL = 0.01  # of the reference loss
_FAR = 50  # lengths of the trial run
_SLOWER = 3.0
_HALVED = 0.5
_WIDE = 1.5
_SOLVED = 1e-4  # of the loss: what counts as a solution to aim at


@dataclass(frozen=True)
class _Kernel:
    """The kernel of the first samples: its smallest eigenvalue, and how much of the residual it cannot reach."""

    smallest: float  # 0 where it is below the resolution
    unreached: float  # share of the residual's energy in the null space


@dataclass(frozen=True)
class _State:
    """What is measured at one of the states that were kept."""

    step: int
    loss: float
    ratio: float | None
    kernel: _Kernel | None
    theta: float | None
    distance: float


def run(study: Study) -> Section:
    """Return the PL ratio along the trial run, the smallest kernel eigenvalue and the aiming ratio at its states."""
    course = main_course(study)
    trial = course.trial
    ratios = pl_ratios(trial)
    rows = max(2, min(study.samples, _EQUATIONS // study.outputs))
    states, reason = _states(study, trial, ratios, rows)
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        study.sentences["landscape"] = "the trial run has no step at which the loss could be followed"
        return Section(summary=study.sentences["landscape"], notes=[reason] if reason else [])
    thetas = [state.theta for state in states if state.theta is not None]
    lowest = min(thetas, default=None)
    step = sgd_step(lowest, study.constants.sample_smoothness) if lowest is not None and lowest > 0 else None
    more = _more(study, course, known[-1])
    study.sentences["landscape"] = _sentence(study, course, known, more, states, rows, thetas)
    return Section(
        summary=study.sentences["landscape"],
        values={
            "PL ratio at the start": known[0],
            "smallest PL ratio on the way": min(known),
            "PL ratio at the end": known[-1],
            "steps still to go, at least": more,
            f"smallest kernel eigenvalue at the start ({rows} samples)": _smallest(states[0]),
            "smallest kernel eigenvalue at the end": _smallest(states[-1]),
            "share of the residual out of the kernel's reach": _unreached(states),
            "smallest aiming ratio": lowest,
            "largest aiming ratio": max(thetas, default=None),
            "SGD step theta / (2 beta), single samples": step,
        },
        notes=_notes(study, states, rows, reason),
        figures=[_figure(study, ratios, states, rows)],
        tables=[_table(states)],
    )


def pl_ratios(trial: Trial) -> list[float | None]:
    """Return |grad L|^2 / (2 L) at every step taken; None where the loss is rounding or not finite."""
    floor = _FLOOR * trial.losses[0]
    return [
        slope / (2 * loss) if math.isfinite(slope) and floor < loss < math.inf else None
        for slope, loss in zip(trial.slopes, trial.losses, strict=False)
    ]


def _more(study: Study, course: Course, ratio: float) -> float:
    """Return the steps from the end to 1 % of the reference loss at the last pace, dL/dt = -2 ratio L."""
    left = course.trial.losses[-1] / _goal(study)
    if left <= 1:
        return 0.0
    pace = 2 * course.trial.steps[-1] * ratio
    return math.log(left) / pace if pace > 0 and math.isfinite(left) else math.inf


def _goal(study: Study) -> float:
    """Return 1 % of the reference loss, or of the loss at the start where a constant guess leaves none."""
    return _GOAL * (study.reference or float(study.loss_of(study.start)))


def _at(study: Study, weights: dict[str, torch.Tensor]) -> nn.Module:
    model = copy.deepcopy(study.model)
    model.load_state_dict(weights)
    return model.eval()


def _aim(
    study: Study, weights: dict[str, torch.Tensor], rows: int, kernel: _Kernel | None
) -> tuple[float | None, str]:
    """Return the aiming ratio of the loss of the first samples towards the nearest solution, or why there is none."""
    if study.loss != "mse":
        return None, (
            "The aiming ratio is not measured: the solutions of cross-entropy lie at infinity, so there is no "
            "point to aim at. Train with loss mse to see it."
        )
    if kernel is not None and kernel.smallest == 0:
        return None, (
            f"The aiming ratio is not measured: the kernel of {rows} samples is singular to rounding, so no solution "
            "is near to first order."
        )
    few = take(study.x, slice(0, rows))
    try:
        found = aiming(_at(study, weights), few, study.targets[:rows], tolerance=_SOLVED, output=study.output)
    except WideangleError as error:
        return None, f"The aiming ratio could not be measured: {error}."
    if found.far:
        return None, (
            "The aiming ratio is not shown: the solution that Gauss-Newton steps reach from a state lies outside of "
            "where the model is linear, so it is probably not the nearest."
        )
    return found.theta, ""


def _states(study: Study, trial: Trial, ratios: list[float | None], rows: int) -> tuple[list[_State], str]:
    """Return the states kept, with kernel and aim at the first, a middle one and the last; and why there is no aim."""
    steps = list(trial.states)
    looked = {0, len(steps) // 2, len(steps) - 1}
    start = trial.states[steps[0]]
    states, reason = [], ""
    for k, step in enumerate(steps):
        weights = trial.states[step]
        kernel, theta = None, None
        if k in looked:
            kernel = _kernel(study, weights, rows)
            theta, why = _aim(study, weights, rows, kernel)
            reason = why or reason
        ratio = ratios[step] if step < len(ratios) else None
        distance = _distance(study, weights, start)
        states.append(_State(step, trial.losses[step], ratio, kernel, theta, distance))
    return states, reason


def _distance(study: Study, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    names = [name for name, _ in study.model.named_parameters()]
    return math.sqrt(sum(float((one[n] - other[n]).double().square().sum()) for n in names))


def _kernel(study: Study, weights: dict[str, torch.Tensor], rows: int) -> _Kernel | None:
    """Return the lower end of the kernel of the first samples, in float64: float32 does not resolve it."""
    try:
        model = _at(study, weights).double()
        x = _doubled(take(study.x, slice(0, rows)))
        cache = factors(model, x, output=study.output)
        size = rows * study.outputs
        values, vectors = torch.linalg.eigh(cache.gram().reshape(size, size))
        with torch.no_grad():
            z = study.evaluate(model, x)
    except WideangleError:
        return None
    residual = study.residual_of(z, rows).reshape(-1)
    lost = values <= size * torch.finfo(torch.float64).eps * float(values[-1])
    energy = float(residual.square().sum())
    missed = float((vectors[:, lost].T @ residual).square().sum())
    return _Kernel(0.0 if bool(lost.any()) else float(values[0]), missed / energy if energy else 0.0)


def _doubled(x: Batch) -> Batch:
    if isinstance(x, dict):
        return {key: value.double() if value.is_floating_point() else value for key, value in x.items()}
    return x.double() if x.is_floating_point() else x


def _smallest(state: _State) -> float | None:
    """Return the lower end of the smallest eigenvalue: 0 where it is below what float64 resolves."""
    return None if state.kernel is None else state.kernel.smallest


def _sentence(
    study: Study,
    course: Course,
    ratios: list[float],
    more: float,
    states: list[_State],
    rows: int,
    thetas: list[float],
) -> str:
    trial = course.trial
    goal = f"{_goal(study):.2g}"
    if trial.diverged or trial.losses[-1] >= trial.losses[0]:
        return f"not at this step: the trial run ended at {trial.losses[-1]:.3g} from {trial.losses[0]:.3g}; lower it"
    fall = ratios[0] / ratios[-1] if ratios[-1] > 0 else math.inf
    unreached = _unreached(states)
    if more == 0:
        start = f"yes: the loss is below {goal}, 1 % of the constant guess, after {len(trial.steps)} steps"
    elif unreached * trial.losses[-1] > _goal(study):
        start = (
            f"not to a loss of {goal}: {unreached:.0%} of the residual of {rows} samples lies where the kernel does "
            "not reach (too few parameters, or equal inputs with different targets)"
        )
    elif fall <= _SLOWER and more <= _FAR * course.length:
        start = f"yes: its pace holds, and about {_count(more)} more steps lead to a loss of {goal}"
    elif fall <= _SLOWER:
        start = f"slowly at best: at its pace, about {_count(more)} more steps to a loss of {goal}"
    else:
        start = (
            f"on its way, more slowly all the time: a loss of {goal} takes at least {_count(more)} more steps, as "
            f"the pace has fallen {fall:.3g}-fold (PL ratio {ratios[0]:.3g} to {ratios[-1]:.3g})"
            f"{_planned(study)}"
        )
    return "; ".join([start, *_kernel_words(states, rows), *_aiming_words(study, thetas)])


def _unreached(states: list[_State]) -> float:
    kernel = states[-1].kernel
    return 0.0 if kernel is None else kernel.unreached


def _planned(study: Study) -> str:
    """Return where the plan stops, if the section on the labels ran."""
    stop = study.decisions.get("stop")
    return "" if stop is None or stop.value is None else f"; the plan stops after {stop.value:,} steps"


def _count(steps: float) -> str:
    """Return a number of steps in words, to two digits."""
    return "endlessly many" if math.isinf(steps) else f"{float(f'{steps:.2g}'):,.0f}"


def _kernel_words(states: list[_State], rows: int) -> list[str]:
    first, last = _smallest(states[0]), _smallest(states[-1])
    if first is None or last is None:
        return []
    if last == 0:
        return [f"the kernel is singular to rounding on {rows} samples, so no pace is guaranteed"]
    if first > 0 and last < _HALVED * first:
        return [
            f"the smallest kernel eigenvalue ({rows} samples) fell to {last / first:.1%} of its start, so a "
            "guarantee made there would not have held"
        ]
    return [
        f"the kernel stayed regular on the way (smallest eigenvalue {first:.2g} to {last:.2g}, {rows} samples)"
    ]


def _aiming_words(study: Study, thetas: list[float]) -> list[str]:
    if not thetas:
        return []
    low, high = min(thetas), max(thetas)
    span = f"aiming ratio {low:.2f} to {high:.2f}, 2 for least squares"
    if low <= 0:
        return [
            f"at {sum(t <= 0 for t in thetas)} of {len(thetas)} states the gradient leads away from a solution"
        ]
    if low < _WIDE:
        return [f"the gradient aims at a solution only roughly ({span})"]
    ratio = study.constants.critical_batch
    return [
        f"the gradient aims at a solution ({span}), so single samples need about {ratio:.2g} times the steps of full "
        f"batches (L1 / L), each on one of {study.samples}"
    ]


def _notes(study: Study, states: list[_State], rows: int, reason: str) -> list[str]:
    notes = [
        "PL ratio: |grad L|^2 / (2 L) at every step of the trial run. Descent with small steps obeys dL/dt = -2 "
        "ratio L; the ratio at points bounds the constant of PL* on a ball around them from above, never from below."
    ]
    if rows < study.samples:
        notes.append(
            f"The smallest eigenvalue is of the kernel of {rows} samples; that of all {study.samples} is no larger."
        )
    if reason:
        notes.append(reason)
    if any(state.theta is not None for state in states):
        notes.append(
            f"The aiming ratio <grad L, w - w*> / L is of the loss of {rows} samples; w* is the solution that "
            "minimum-norm Gauss-Newton steps reach from each state, which stands in for the nearest one."
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in study.model.modules()):
        notes.append(
            "Kernel and aiming ratio take the running statistics of BatchNorm at each state as fixed; the PL ratio "
            "is of the run itself, with batch statistics."
        )
    return notes


def _figure(study: Study, ratios: list[float | None], states: list[_State], rows: int) -> Figure:
    series = [Series("PL ratio", [float(t) for t in range(len(ratios))], list(ratios))]
    known = [(state.step, _smallest(state)) for state in states]
    points = [(float(step), value) for step, value in known if value is not None and value > 0]
    if study.loss == "mse" and points:
        scale = hessian_factor("mse", study.samples, study.outputs)
        name = f"guaranteed at most (smallest kernel eigenvalue of {rows} samples)"
        series.append(Series(name, [t for t, _ in points], [scale * value for _, value in points], "points"))
    return Figure(
        title="The pace of descent along the trial run",
        x_label="step",
        y_label="|grad L|^2 / (2 L)",
        y_log=True,
        series=series,
        caption="Level: the loss falls by the same factor every step. Falling: the easy directions are fitted, "
        "the rest goes more slowly.",
    )


def _table(states: list[_State]) -> Table:
    cells = [
        [
            state.step,
            state.loss,
            state.ratio,
            _smallest(state),
            state.distance,
            state.theta,
        ]
        for state in states
    ]
    columns = [
        "step",
        "loss",
        "PL ratio",
        "smallest kernel eigenvalue",
        "distance from the start",
        "aiming ratio",
    ]
    return Table("The landscape at states of the trial run", columns, cells)
