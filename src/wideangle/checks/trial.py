"""Section 5, the trial run: copies of the model are trained, and the predictions held against them."""

from __future__ import annotations

import math

import numpy as np
import torch

from wideangle.checks._course import main_course
from wideangle.checks._descent import RISE, Mode, Trial, descend, displaced, top_mode, try_plan
from wideangle.checks._study import PATH_STEPS, Study
from wideangle.document import Figure, Mark, Section, Series, Table
from wideangle.plan import Decision

__all__ = ["run"]

_CRITICAL_STEPS = 45
_HALVINGS = 6
_PLAN_STEPS = 200
_SMALLEST_SHARE = 0.1  # of a full step's time, which a step with few samples takes all the same
_PROGRESS = 0.9  # of the reference loss
_FALLEN = 0.995  # of the loss at the start
_CONTRADICTS = 0.18  # in log10: a factor 1.5
_FLOOR = 1e-6  # of the starting loss: below it, rounding is compared with rounding
_PUSH = 0.03  # of the residual's norm: small against what is left, large against rounding and other modes
_FACTORS = (0.9, 1.1, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_SECONDS = {"critical": 4.0, "breaking": 8.0, "plan": 4.0}


def run(study: Study) -> Section:
    """Return the trial at the recommended step, two around the critical one, and where training breaks."""
    course = main_course(study)
    trial, step, used, rise = course.trial, course.step, course.used, course.rise
    length, seconds = course.length, course.seconds
    same = length <= PATH_STEPS and all(size == step for size in trial.steps)
    padded = trial.steps + [used] * (length - len(trial.steps))
    predicted = (study.path if same else study.linearised(padded, length)).losses[: length + 1]
    error = _log_error(trial.losses, predicted)
    figures = [_run_figure(trial, predicted)]
    short = max(10, min(_CRITICAL_STEPS, int(_SECONDS["critical"] / seconds / 2)))
    mode, around = _around_critical(study, trial, short)
    figures += [_mode_figure(mode, around), *_sharpness_figure(trial)]
    table, stable, broken = _breaking(study, _SECONDS["breaking"] / seconds)
    largest = max((value for _, value in trial.sharpness), default=0.0)
    plan = _check_plan(study, step / used, rise, _SECONDS["plan"] / seconds)
    study.sentences["trial"] = _sentence(
        study, trial, float(predicted[-1]), error, rise, stable, broken, plan
    )
    _overrule(study, error)
    notes = []
    if study.loss == "mse":
        notes.append(
            "For the quadratic model and the squared loss, steps between 1 and 2 times the critical one make the "
            "loss spike and come back; for a network the factor at which it breaks is measured here."
        )
    if trial.rise > RISE:
        notes.append(
            "The measured run lowers its step as the sharpness rises; the linearised model takes the same steps."
        )
    if used < step:
        notes.append(
            f"At the step 1 / L = {step:.3g} the run was thrown off as the sharpness rose; shown is the run "
            f"begun again at {used:.3g}."
        )
    if length < PATH_STEPS and study.steps is None:
        notes.append(f"Shortened to {length} steps of {seconds:.2g} s to keep to its time; --steps sets it.")
    return Section(
        summary=study.sentences["trial"],
        values={
            "step size at the start": used,
            "last step size": trial.steps[-1],
            "steps": length,
            "loss at the start": trial.losses[0],
            "loss at the end, measured": trial.losses[-1],
            "loss at the end, predicted": float(predicted[-1]),
            "median |log10(measured / predicted)|": error,
            "sharpness at the start": trial.sharpness[0][1],
            "largest sharpness on the way": largest,
            "largest sharpness x step 1 / L (2 is the edge)": step * largest,
            "largest stable multiple of critical": stable,
            "smallest diverging multiple": broken,
            "curvature where the run ended": mode.curvature,
        },
        notes=notes,
        figures=figures,
        tables=[table],
    )


def _overrule(study: Study, error: float) -> None:
    """Say beside the first sentence where the run contradicts it."""
    regime = study.sentences.get("regime", "")
    if regime.startswith("near-linear") and error > _CONTRADICTS:
        study.sentences["regime"] = (
            f"{regime}; but over the whole trial run the prediction is off by a factor {10**error:.3g} in the "
            "median, so not beyond those first steps"
        )


def _log_error(measured: list[float], predicted: np.ndarray) -> float:
    pairs = [
        (m, p)
        for m, p in zip(measured, predicted, strict=False)
        if math.isfinite(m) and min(m, p) > _FLOOR * measured[0]
    ]
    return float(np.median([abs(math.log10(m / p)) for m, p in pairs])) if pairs else math.inf


def _around_critical(study: Study, trial: Trial, steps: int) -> tuple[Mode, dict[float, Trial]]:
    """Go on from the end of the trial, moved a little along the top mode, around the critical step there."""
    mode = top_mode(study, trial.model)
    with torch.no_grad():
        size = float(study.residual_of(study.evaluate(trial.model)).norm())
    start = displaced(trial.model, mode, _PUSH * size)
    critical = 2.0 / mode.curvature
    return mode, {
        factor: descend(study, factor * critical, steps, start=start, mode=mode) for factor in (0.9, 1.1)
    }


def _dead(study: Study, trial: Trial) -> bool:
    """True where a run ended at a constant guess after it had been thrown about: its units are off."""
    return max(trial.losses) > trial.losses[0] and trial.losses[-1] > 0.98 * study.guess


def _breaking(study: Study, afford: float) -> tuple[Table, float, float | None]:
    """Return the multiples of the critical step tried, the largest stable one and the first that diverged."""
    factors = _FACTORS if afford > 15 * len(_FACTORS) else _FACTORS[1::2]
    steps = max(10, min(40, int(afford / len(factors))))
    cells: list[list[object]] = []
    stable, broken = 0.0, None
    for factor in factors:
        trial = descend(study, factor * study.constants.critical_step, steps)
        trains = (
            not trial.diverged and trial.losses[-1] < _FALLEN * trial.losses[0] and not _dead(study, trial)
        )
        outcome = "trains" if trains else "diverged" if trial.diverged else "no progress"
        cells.append([factor, max(trial.losses) / trial.losses[0], trial.losses[-1], outcome])
        if trains:
            stable = factor
        elif trial.diverged or stable:
            broken = factor
            break
    title = f"Multiples of the critical step from the start, {steps} full-batch steps each"
    columns = ["multiple", "highest loss / start", "last loss", "outcome"]
    return Table(title, columns, cells), stable, broken


def _check_plan(study: Study, lowered: float, rise: float, afford: float) -> str:
    """Try the plan's own step and batch, lower the step until that trains, and say what came of it.

    The step starts from the one at which the full-batch run was not thrown off (`lowered` times smaller than
    planned). Where the sharpness rises, or the run ends no lower than it began, its halves are tried too, and
    the one that ends lowest is taken. `afford` is the number of full-batch steps there is time for.
    """
    planned, batch = study.decisions.get("step_size"), study.decisions.get("batch_size")
    if planned is None or planned.value is None or batch is None or batch.value is None:
        return ""
    step = planned.value / lowered
    share = max(batch.value / study.samples, _SMALLEST_SHARE)
    steps = min(int(afford / share), _PLAN_STEPS)
    tried = try_plan(study, step, batch.value, max(steps, 20))
    if rise > RISE or tried.diverged or tried.losses[-1] >= tried.losses[0]:
        steps = steps // 2  # each, and more of them
        halves = [step / 2**k for k in range(_HALVINGS + 1)]
        runs = [try_plan(study, half, batch.value, max(steps, 20)) for half in halves]
        tried = min(runs, key=lambda run: math.inf if run.diverged else run.losses[-1])
        step = halves[runs.index(tried)]
    steps = max(steps, 20)
    first, last = tried.losses[0], tried.losses[-1]
    said = f"tried for {steps} steps with batches of {batch.value}: loss {first:.3g} to {last:.3g}"
    if step < planned.value:
        ratio = planned.value / step
        reason = f"; divided by {ratio:.3g} for the rise of the sharpness in the trial run ({rise:.3g}-fold)"
        study.decisions["step_size"] = Decision(step, planned.unit, f"{planned.evidence}{reason}; {said}")
        stop = study.decisions.get("stop")
        if stop is not None and stop.value is not None:
            count = math.ceil(stop.value * planned.value / step)
            study.decisions["stop"] = Decision(count, stop.unit, stop.evidence)
        sentence = study.sentences.get("step-size", "")
        study.sentences["step-size"] = f"{sentence}; the trial run lowers the step to {step:.3g}"
    else:
        study.decisions["step_size"] = Decision(step, planned.unit, f"{planned.evidence}; {said}")
    little = "" if _moved(study, tried) else ", which is little: this plan hardly trains"
    return f"; the plan's step {step:.3g} was {said}{little}"


def _moved(study: Study, trial: Trial) -> bool:
    """True where a run took the loss well below its start and what a constant guess reaches."""
    return trial.losses[-1] < _PROGRESS * study.reference


def _sentence(
    study: Study,
    trial: Trial,
    predicted: float,
    error: float,
    rise: float,
    stable: float,
    broken: float | None,
    plan: str,
) -> str:
    follows = (
        f"the loss went from {trial.losses[0]:.3g} to {trial.losses[-1]:.3g} where {predicted:.3g} was predicted "
        f"(median factor {10**error:.3g})"
    )
    if stable == 0.0:
        breaks = "no multiple of the critical step made progress in its few steps"
    elif broken is None:
        breaks = f"it still trains at {stable:g} times the critical step"
    else:
        breaks = f"training breaks between {stable:g} and {broken:g} times the critical step"
    if rise > RISE:
        start = (
            f"edge of stability; the sharpness rose {rise:.2f}-fold over its start, and the step followed it"
        )
    elif not _moved(study, trial):
        start = f"slow; a constant guess leaves {study.guess:.3g}, and the run hardly got below it"
    elif error < 0.1:
        start = "plain gradient descent is fine here"
    else:
        start = "the prediction is an estimate here"
    return f"{start}; {follows}; {breaks}{plan}"


def _run_figure(trial: Trial, predicted: np.ndarray) -> Figure:
    steps = [float(t) for t in range(len(trial.losses))]
    shown = [float(p) if math.isfinite(p) else None for p in predicted[: len(steps)]]
    return Figure(
        title="Loss of a trained copy, full batches",
        x_label="step",
        y_label="loss",
        y_log=True,
        series=[
            Series("measured", steps, list(trial.losses)),
            Series("predicted by the linearised model", steps, shown, "dashed"),
        ],
        caption="Both take the same steps; where the two part, the kernel has moved.",
    )


def _mode_figure(mode: Mode, runs: dict[float, Trial]) -> Figure:
    series, marks = [], []
    for factor, trial in runs.items():
        energy = [e if math.isfinite(e) and e > 0 else None for e in trial.energies]
        steps = [float(t) for t in range(len(energy))]
        line: list[float | None] = [
            trial.energies[0] * (1.0 - 2.0 * factor) ** (2 * t) for t in range(len(energy))
        ]
        series.append(Series(f"{factor:g} x critical, measured", steps, energy))
        series.append(Series(f"{factor:g} x critical, predicted", steps, line, "dashed"))
        known = [e for e in energy if e is not None]
        turn = energy.index(max(known)) if known else 0
        if factor > 1 and 0 < turn < len(energy) - 1:
            marks.append(Mark(float(turn), "turning point"))
    return Figure(
        title="Energy of the residual in the top mode, below and above the critical step",
        x_label="step",
        y_label="energy in the top mode",
        y_log=True,
        series=series,
        marks=marks,
        caption=f"Started where the trial run ended, pushed a little along the mode; the curvature there is "
        f"{mode.curvature:.3g}. Each step multiplies the energy by (1 - step x curvature)^2: 0.64 below and 1.44 "
        "above, where the linearised model diverges and a network may turn back (catapult).",
    )


def _sharpness_figure(trial: Trial) -> list[Figure]:
    if len(trial.sharpness) < 2:
        return []
    times = [float(t) for t, _ in trial.sharpness]
    edge: list[float | None] = [2.0 / trial.steps[min(int(t), len(trial.steps) - 1)] for t in times]
    return [
        Figure(
            title="Sharpness along the run",
            x_label="step",
            y_label="largest eigenvalue of the loss Hessian",
            series=[
                Series("sharpness", times, [value for _, value in trial.sharpness]),
                Series("2 / step: the edge of stability", times, edge, "dashed"),
            ],
            caption="Descent is stable while the sharpness stays below the dashed line.",
        )
    ]
