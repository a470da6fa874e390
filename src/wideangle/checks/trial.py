"""Section 5, the trial run: copies of the model are trained, and the predictions held against them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.checks._study import PATH_STEPS, Study
from wideangle.curvature.hessian import sharpness
from wideangle.document import Figure, Mark, Section, Series, Table
from wideangle.plan import Decision
from wideangle.progress import track

__all__ = ["run"]

_CRITICAL_STEPS = 25
_FACTORS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_BLOWN = 1e4  # a loss this many times the start's is not coming back to anything useful
_SECONDS = {"main": 9.0, "critical": 3.0, "divergence": 6.0}
_RISE = 1.2


@dataclass
class Trial:
    """One full-batch run of a copy: losses at each step, and what was followed on the way."""

    losses: list[float]
    projections: list[float]
    sharpness: list[tuple[int, float]]
    steps: list[float]

    @property
    def diverged(self) -> bool:
        """True where the loss blew up on the way, or ended ten times above where it began."""
        worst = max(self.losses) if all(map(math.isfinite, self.losses)) else math.inf
        return worst > _BLOWN * self.losses[0] or self.losses[-1] > 10 * self.losses[0]


def run(study: Study) -> Section:
    """Return the trial at the recommended step, two at 0.9 and 1.1 of the critical one, and where it breaks."""
    constants = study.constants
    step = 1.0 / constants.smoothness
    seconds = _step_seconds(study)
    length = study.steps or max(20, min(PATH_STEPS, int(_SECONDS["main"] / seconds)))
    path = study.path if length <= PATH_STEPS else study.linearised(step, length)
    predicted = path.losses[: length + 1]
    trial = descend(study, step, length, follow=max(1, length // 6))
    error = _log_error(trial.losses, predicted)
    short = max(8, min(_CRITICAL_STEPS, int(_SECONDS["critical"] / seconds / 2)))
    critical = {
        factor: descend(study, factor * constants.critical_step, short, project=True) for factor in (0.9, 1.1)
    }
    table, stable, broken = _breaking(study, seconds)
    rise = _rise(trial)
    edge = step * max((s for _, s in trial.sharpness), default=0.0)
    values: dict[str, object] = {
        "step size": step,
        "steps": length,
        "loss at the start": trial.losses[0],
        "loss at the end, measured": trial.losses[-1],
        "loss at the end, predicted by the linearised model": float(predicted[-1]),
        "median |log10(measured / predicted)|": error,
        "sharpness at the start": trial.sharpness[0][1] if trial.sharpness else None,
        "largest sharpness on the way": max((s for _, s in trial.sharpness), default=None),
        "sharpness times first step (2 is the edge)": edge,
        "largest stable multiple of the critical step": stable,
        "smallest diverging multiple of the critical step": broken,
    }
    _decide(study, rise, step)
    study.sentences["trial"] = _sentence(
        study, trial, float(predicted[-1]), error, rise, edge, stable, broken
    )
    notes = [
        "For the quadratic model and the squared loss, steps between 1 and 2 times the critical one make the "
        "loss spike and come back; for a network the factor at which it breaks is measured here."
    ]
    if length < PATH_STEPS and study.steps is None:
        notes.append(
            f"Shortened to {length} steps of {seconds:.2g} s each to keep to its time; --steps sets it."
        )
    figures = [_run_figure(trial, predicted), *_critical_figures(study, critical), *_sharpness_figure(trial)]
    return Section(
        summary=study.sentences["trial"], values=values, notes=notes, figures=figures, tables=[table]
    )


def descend(study: Study, step: float, steps: int, *, follow: int = 0, project: bool = False) -> Trial:
    """Return a full-batch run of a fresh copy with a constant step, or one that follows the sharpness.

    Args:
        study: the study whose model, data and loss are used.
        step: the step size; with `follow` it is divided by how far the sharpness has risen over its start.
        steps: how many.
        follow: measure the sharpness every so many steps; 0 leaves it out.
        project: record the projection of the residual on the top mode.
    """
    model = study.fresh()
    wanted = [p for p in model.parameters() if p.requires_grad]
    mode = torch.as_tensor(study.constants.top_vector, dtype=torch.float64, device=study.device)
    mode = mode.reshape(study.samples, study.outputs)
    trial = Trial([], [], [], [])
    vector, rise, first = None, 1.0, 0.0
    for t in track(range(steps + 1), "trial run"):
        z = study.evaluate(model)
        loss = study.loss_of(z)
        trial.losses.append(float(loss.detach()))
        if project:
            trial.projections.append(float((_residual(study, z.detach()) * mode).sum()))
        if not trial.losses[-1] <= _BLOWN * trial.losses[0] or t == steps:
            break
        if follow and t % follow == 0:
            value, vector = _sharpness(study, model, vector)
            trial.sharpness.append((t, value))
            first = first or value
            rise = max(rise, value / first) if first > 0 else rise
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        trial.steps.append(step / rise if rise > _RISE else step)
        with torch.no_grad():
            for parameter, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    parameter -= trial.steps[-1] * gradient
    if follow and math.isfinite(trial.losses[-1]):
        trial.sharpness.append((steps, _sharpness(study, model, vector)[0]))
    return trial


def _residual(study: Study, z: Tensor) -> Tensor:
    if study.loss == "mse":
        return z.double() - study.targets.double()
    hot = study.targets
    if hot.dim() == 1:
        hot = nn.functional.one_hot(hot, study.outputs)
    return torch.softmax(z.double(), 1) - hot.double()


def _sharpness(study: Study, model: nn.Module, start: np.ndarray | None) -> tuple[float, np.ndarray]:
    found = sharpness(
        model, study.loss, study.x, study.y, start=start, tolerance=0.05, strict=False, output=study.output,
        max_products=60, seed=study.seed,
    )  # fmt: skip
    return found.value, found.vector


def _step_seconds(study: Study) -> float:
    model = study.fresh()
    wanted = [p for p in model.parameters() if p.requires_grad]
    best = math.inf
    for _ in range(3):
        begun = time.perf_counter()
        torch.autograd.grad(study.loss_of(study.evaluate(model)), wanted, allow_unused=True)
        best = min(best, time.perf_counter() - begun)
    return best


def _log_error(measured: list[float], predicted: np.ndarray) -> float:
    pairs = [
        (m, p) for m, p in zip(measured, predicted, strict=False) if math.isfinite(m) and m > 0 and p > 0
    ]
    return float(np.median([abs(math.log10(m / p)) for m, p in pairs])) if pairs else math.inf


def _breaking(study: Study, seconds: float) -> tuple[Table, float, float | None]:
    """Return the multiples of the critical step tried, the largest stable one and the first that diverged."""
    each = max(15, min(40, int(_SECONDS["divergence"] / seconds / len(_FACTORS))))
    cells: list[list[object]] = []
    stable, broken = 1.0, None
    for factor in _FACTORS:
        trial = descend(study, factor * study.constants.critical_step, each)
        cells.append(
            [
                factor,
                max(trial.losses) / trial.losses[0],
                trial.losses[-1],
                "diverged" if trial.diverged else "stable",
            ]
        )
        if trial.diverged:
            broken = factor
            break
        stable = factor
    title = f"Multiples of the critical step, {each} full-batch steps each"
    return Table(title, ["multiple", "highest loss / start", "last loss", "outcome"], cells), stable, broken


def _rise(trial: Trial) -> float:
    if len(trial.sharpness) < 2 or trial.sharpness[0][1] <= 0:
        return 1.0
    return max(value for _, value in trial.sharpness) / trial.sharpness[0][1]


def _decide(study: Study, rise: float, step: float) -> None:
    planned = study.decisions.get("step_size")
    if rise <= _RISE or planned is None or planned.value is None:
        return
    study.decisions["step_size"] = Decision(
        planned.value / rise,
        planned.unit,
        f"{planned.evidence}; divided by {rise:.3g}, the rise of the sharpness in the trial run",
    )


def _sentence(
    study: Study,
    trial: Trial,
    predicted: float,
    error: float,
    rise: float,
    edge: float,
    stable: float,
    broken: float | None,
) -> str:
    follows = (
        f"the loss went from {trial.losses[0]:.3g} to {trial.losses[-1]:.3g} where {predicted:.3g} was predicted "
        f"(median factor {10**error:.3g})"
    )
    breaks = (
        f"it still trains at {stable:g} times the critical step"
        if broken is None
        else f"training breaks between {stable:g} and {broken:g} times the critical step"
    )
    if rise > _RISE:
        return (
            f"edge of stability; the sharpness rose {rise:.2f}-fold, to {edge:.2f} of 2 at the first step "
            f"size, so the step was lowered with it; {follows}; {breaks}"
        )
    plain = "plain gradient descent is fine here" if error < 0.1 else "the prediction is an estimate here"
    return f"{plain}; {follows}; {breaks}"


def _run_figure(trial: Trial, predicted: np.ndarray) -> Figure:
    steps = list(range(len(trial.losses)))
    shown = [float(p) if math.isfinite(p) else None for p in predicted[: len(steps)]]
    return Figure(
        title="Loss of a trained copy at the recommended step",
        x_label="step",
        y_label="loss",
        y_log=True,
        series=[
            Series("measured", [float(t) for t in steps], list(trial.losses)),
            Series("predicted by the linearised model", [float(t) for t in steps], shown, "dashed"),
        ],
        caption="Full batches. Where the two part, the kernel has moved.",
    )


def _critical_figures(study: Study, runs: dict[float, Trial]) -> list[Figure]:
    series, marks = [], []
    for factor, trial in runs.items():
        energy = [p * p if math.isfinite(p) and p != 0 else None for p in trial.projections]
        series.append(
            Series(f"{factor:g} x critical, measured", [float(t) for t in range(len(energy))], energy)
        )
        if study.loss == "mse":
            rate = (1.0 - 2.0 * factor) ** 2
            start = trial.projections[0] ** 2
            line: list[float | None] = [start * rate**t for t in range(len(energy))]
            series.append(
                Series(
                    f"{factor:g} x critical, predicted",
                    [float(t) for t in range(len(energy))],
                    line,
                    "dashed",
                )
            )
        known = [e for e in energy if e is not None]
        if factor > 1 and known:
            turn = energy.index(max(known))
            if 0 < turn < len(energy) - 1:
                marks.append(Mark(float(turn), "turning point"))
    rates = " (each step multiplies it by (1 - step L)^2)" if study.loss == "mse" else ""
    return [
        Figure(
            title="Energy of the residual in the top mode, below and above the critical step",
            x_label="step",
            y_label="energy in the top mode",
            y_log=True,
            series=series,
            marks=marks,
            caption=f"Below the critical step the top mode shrinks, above it grows{rates}; a network may turn "
            "back (catapult) where the linearised model diverges.",
        )
    ]


def _sharpness_figure(trial: Trial) -> list[Figure]:
    if len(trial.sharpness) < 2:
        return []
    times = [float(t) for t, _ in trial.sharpness]
    edge = [2.0 / trial.steps[min(int(t), len(trial.steps) - 1)] for t in times]
    return [
        Figure(
            title="Sharpness along the run",
            x_label="step",
            y_label="largest eigenvalue of the loss Hessian",
            series=[
                Series("sharpness", times, [s for _, s in trial.sharpness]),
                Series("2 / step: the edge of stability", times, list(edge), "dashed"),
            ],
            caption="Descent is stable while the sharpness stays below the dashed line.",
        )
    ]
