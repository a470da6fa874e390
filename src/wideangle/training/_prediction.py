"""What a training run says: predicted against measured, the plan's decisions, the sentences."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

from wideangle.document import Figure, Section, Series, Table
from wideangle.plan import Decision, Plan
from wideangle.training._recipe import Recipe

__all__ = ["agreement", "deviations", "plan_section", "prediction_section", "run_section", "short"]

FLOOR = 1e-6  # of the largest loss: below it, rounding is compared with rounding
DECIDES = {
    "step_size": "step_size",
    "batch_size": "batch_size",
    "optimizer": "optimizer",
    "momentum": "momentum",
    "kappa_tilde": "kappa_tilde",
    "warmup_steps": "warmup_steps",
    "stop": "steps",
}


def deviations(plan: Plan, recipe: Recipe, samples: int) -> tuple[list[str], list[str]]:
    """Return why the predicted curve does not apply at all, and what makes it apply only roughly."""
    hard, soft = [], []
    if recipe.loss != plan.loss:
        hard.append(f"the loss is {recipe.loss}, predicted was {plan.loss}")
    planned = plan.step_size.value
    if planned is not None and not math.isclose(recipe.step_size, planned, rel_tol=1e-9):
        hard.append(f"the step size is {recipe.step_size:.4g}, predicted was for {planned:.4g}")
    for name in ("optimizer", "momentum", "kappa_tilde"):
        if recipe.source[name] == "argument" and getattr(recipe, name) != getattr(plan, name).value:
            hard.append(f"the {name} is {getattr(recipe, name)}, predicted was for another")
    if plan.samples is not None and plan.samples != samples:
        soft.append(f"the prediction was made on {plan.samples} samples, the run has {samples}")
    if recipe.source["batch_size"] == "argument" and recipe.batch_size < samples:
        soft.append(f"the batches have {recipe.batch_size} samples, not those of the plan")
    return hard, soft


def agreement(plan: Plan, losses: dict[int, float]) -> tuple[float, int] | None:
    """Return the median |log10 (measured / predicted)| over the steps after 0 in both, and their number."""
    floor = FLOOR * max(losses.values(), default=0.0)
    ratios = [
        abs(math.log10(losses[int(step)] / value))
        for step, value in plan.predicted_loss
        if step > 0 and int(step) in losses and min(value, losses[int(step)]) > floor
    ]
    return (statistics.median(ratios), len(ratios)) if ratios else None


def run_section(
    recipe: Recipe, losses: dict[int, float], accuracies: dict[int, float], step: int, seconds: float
) -> Section:
    """Return the section on the run itself: settings, loss and accuracy."""
    first, last = losses[min(losses)], losses[step]
    summary = f"{step} steps took the {recipe.loss} loss from {first:.4g} to {last:.4g}"
    if step in accuracies:
        summary += f"; {accuracies[step]:.1%} of the training samples are classified as labelled"
    values: dict[str, Any] = {
        "steps": step,
        "step size": recipe.step_size,
        "batch size": recipe.batch_size,
        "optimizer": recipe.optimizer,
        "momentum": recipe.momentum,
        **({"kappa tilde": recipe.kappa_tilde} if recipe.optimizer == "mass" else {}),
        "warm-up steps": recipe.warmup_steps,
        "last loss": last,
        "last accuracy": accuracies.get(step),
    }
    figures = [_curve("Training loss", f"{recipe.loss} loss", {"measured": (losses, "line")}, True)]
    if accuracies:
        figures.append(_curve("Training accuracy", "accuracy", {"measured": (accuracies, "line")}, False))
    return Section(
        name="run",
        title="The run",
        summary=summary + ".",
        status="done" if step >= recipe.steps else "interrupted",
        values=values,
        notes=[
            "Loss and accuracy are of all training samples in eval mode; the last value, not the best.",
            *_default_length(recipe),
        ],
        figures=figures,
        seconds=seconds,
    )


def _default_length(recipe: Recipe) -> list[str]:
    if recipe.source["steps"] in ("argument", "plan"):
        return []
    return [f"The plan has no stop rule, so the run took {recipe.steps} steps; --steps sets more."]


def _curve(title: str, label: str, curves: dict[str, tuple[dict[int, float], Any]], log: bool) -> Figure:
    series = []
    for name, (points, style) in curves.items():
        shown = sorted((step, value) for step, value in points.items() if step > 0)
        series.append(Series(name, [float(s) for s, _ in shown], [v for _, v in shown], style))
    positive = all(y is not None and y > 0 for part in series for y in part.y)
    return Figure(
        title, "step", label, series, x_log=True, y_log=log and positive, caption=f"{label} by step."
    )


def prediction_section(
    plan: Plan, recipe: Recipe, losses: dict[int, float], samples: int
) -> tuple[Section | None, float | None]:
    """Return the section "predicted against measured" and the agreement; None where nothing was predicted."""
    if not plan.predicted_loss:
        return None, None
    hard, soft = deviations(plan, recipe, samples)
    title = "Predicted against measured"
    if hard:
        text = f"Not compared: {'; '.join(hard)}."
        return Section(name="prediction", title=title, summary=text, status="skipped"), None
    predicted = {int(step): float(value) for step, value in plan.predicted_loss if step <= max(losses)}
    found = agreement(plan, losses)
    curves: dict[str, tuple[dict[int, float], Any]] = {
        "predicted": (predicted, "dashed"),
        "measured": (losses, "points"),
    }
    figure = _curve(title, f"{recipe.loss} loss", curves, True)
    if found is None:
        text, value = "The run was too short to compare with the prediction.", None
    else:
        value, count = found
        text = (
            f"Median |log10 (measured / predicted)| is {value:.3f} over {count} steps: the prediction is off "
            f"by a factor of {10**value:.2f} in the median{_reach(predicted, losses)}."
        )
    common = [[s, predicted[s], losses[s]] for s in sorted(predicted) if s in losses]
    table = Table("Loss by step", ["step", "predicted", "measured"], common)
    values = {"median |log10 ratio|": value, "steps compared": found[1] if found else 0}
    section = Section(
        name="prediction",
        title=title,
        summary=text,
        values=values,
        notes=[f"{part[0].upper()}{part[1:]}." for part in soft],
        figures=[figure],
        tables=[table],
    )
    return section, value


def _reach(predicted: dict[int, float], losses: dict[int, float]) -> str:
    """Say how far the prediction goes, where the run went on, and whether the loss moved at all."""
    reach, end = max(predicted), max(losses)
    words = f"; it covers the first {reach} of {end} steps" if end > reach else ""
    if losses[end] > 0.9 * losses[min(losses)]:
        words += "; but the loss hardly fell, so this says little"
    return words


def plan_section(plan: Plan, recipe: Recipe) -> Section:
    """Return the section that says of each decision of the plan whether it was used."""
    cells: list[list[Any]] = []
    used = 0
    for item in dataclasses.fields(plan):
        decision = getattr(plan, item.name)
        if not isinstance(decision, Decision):
            continue
        setting = DECIDES.get(item.name)
        if not decision.measured:
            taken = f"not measured; {short(getattr(recipe, setting))} taken" if setting else "not measured"
        elif setting is None:
            taken = "not acted on: all samples stay in" if item.name == "suspect_labels" else "not acted on"
        elif recipe.source[setting] == "plan":
            taken, used = "used", used + 1
        else:
            taken = f"replaced by {short(getattr(recipe, setting))}"
        value = f"{short(decision.value)} {decision.unit}".strip() if decision.measured else "-"
        cells.append([item.name.replace("_", " "), value, taken, decision.evidence])
    measured = sum(1 for row in cells if row[1] != "-")
    return Section(
        name="plan",
        title="The plan",
        summary=f"{used} of the {measured} decisions the plan holds were used.",
        tables=[Table("Decisions", ["decision", "value", "in this run", "evidence"], cells)],
    )


def short(value: Any) -> str:
    """Return a value in a few characters: lists by their length."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple, dict)):
        return f"{len(value)} entries"
    return str(value)
