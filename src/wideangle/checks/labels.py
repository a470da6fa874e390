"""Section 4, the labels: do they lie where the kernel learns fast, and what loss curve follows."""

from __future__ import annotations

import math

import torch

from wideangle.checks._study import Study
from wideangle.document import Figure, Mark, Section, Series, Table
from wideangle.errors import InputError
from wideangle.kernel._factors import factors
from wideangle.kernel._model import take
from wideangle.kernel.alignment import Alignment, label_alignment, residual_alignment
from wideangle.kernel.convergence import Prediction, predict
from wideangle.kernel.spectrum import Spectrum
from wideangle.plan import Decision
from wideangle.seeds import generator

__all__ = ["run"]

_HORIZON = 100_000
_SHARE = 0.01
_FEW = 256
_LONGEST = 1_000_000


def run(study: Study) -> Section:
    """Return the alignments beside permuted labels and, for mse, the predicted curve with its bounds."""
    notes: list[str] = []
    values: dict[str, object] = {}
    figures, tables = [], []
    alignment = _alignments(study, values, notes, figures)
    if study.loss == "mse":
        prediction = _curve(study, values, notes, figures, tables)
        ending = _ending(study, prediction)
        study.decisions["stop"] = _stop(study, prediction)
    else:
        notes.append(
            "The closed-form curve and its bounds are for the squared loss; for cross-entropy the trial run "
            "shows the linearised model step by step."
        )
        ending = ""
    study.sentences["labels"] = f"{alignment}{ending}"
    return Section(
        summary=study.sentences["labels"], values=values, notes=notes, figures=figures, tables=tables
    )


def _alignments(study: Study, values: dict[str, object], notes: list[str], figures: list[Figure]) -> str:
    bins = min(20, max(3, study.samples // 15))
    draws = generator(study.seed, "checkup", "permuted labels")
    try:
        labels = label_alignment(study.spectrum, study.targets, bins, generator=draws)
        residual = residual_alignment(study.spectrum, study.residual, bins, generator=draws)
    except InputError as error:
        notes.append(f"Alignment is not measured: {error}.")
        return f"alignment with the kernel not measured ({error})"
    for name, found in (("label", labels), ("residual", residual)):
        values[f"{name} alignment slope [95 % interval]"] = (
            f"{found.slope:.2f} [{found.low:.2f}, {found.high:.2f}]"
        )
        values[f"{name} slope, permuted labels"] = f"{found.control_slope:.2f} +- {found.control_spread:.2f}"
    values["modes holding 90 % of the labels"] = labels.modes_for_90
    values["the same, permuted labels"] = labels.control_modes_for_90
    figures.append(_alignment_figure(labels, residual))
    if labels.above_control:
        return (
            f"they follow the kernel (slope {labels.slope:.2f}, permuted {labels.control_slope:.2f}), so structure "
            f"is learned before noise; {labels.modes_for_90} of {study.spectrum.size} modes hold 90 % of them"
        )
    return (
        f"they are no better aligned with the kernel than permuted ones (slope {labels.slope:.2f} against "
        f"{labels.control_slope:.2f}), so fitting them will be slow and may not generalise"
    )


def _alignment_figure(labels: Alignment, residual: Alignment) -> Figure:
    return Figure(
        title="Energy of labels and residual in the kernel's modes",
        x_label="eigenvalue of K_trace / C",
        y_label="mean energy a mode",
        x_log=True,
        y_log=True,
        series=[
            Series("labels (centred)", labels.bin_eigenvalue, list(labels.bin_energy), "points"),
            Series("residual at the start", residual.bin_eigenvalue, list(residual.bin_energy), "points"),
        ],
        caption="Rising to the right: what is to be learned lies in the modes that are learned fast. "
        "Permuted labels give a flat cloud.",
    )


def _curve(
    study: Study, values: dict[str, object], notes: list[str], figures: list[Figure], tables: list[Table]
) -> Prediction:
    step = 1.0 / study.constants.smoothness
    spectrum, residual = _spectrum_for_curve(study, values, notes)
    prediction = predict(spectrum, residual, step, _HORIZON, loss="mse", target=_SHARE * study.reference)
    target = f"{_SHARE:.0%} of {_base(study)}"
    values[f"predicted full-batch steps to {target}"] = prediction.steps_to_target["exact"]
    values["loss that stays (modes below the resolution)"] = prediction.floor
    tables.append(
        Table(
            f"Steps to {target} at step {step:.3g}",
            ["by", "steps"],
            [
                ["exact curve of the linearised model", prediction.steps_to_target["exact"]],
                ["full-spectrum bound, rigorous constant", prediction.steps_to_target["rigorous"]],
                ["full-spectrum curve, fitted constant (no bound)", prediction.steps_to_target["fitted"]],
                ["bound by the smallest eigenvalue", prediction.steps_to_target["lambda_min"]],
            ],
        )
    )
    figures.append(_curve_figure(prediction))
    return prediction


def _spectrum_for_curve(
    study: Study, values: dict[str, object], notes: list[str]
) -> tuple[Spectrum, torch.Tensor]:
    if study.fits_full:
        notes.append("The curve uses the full kernel (nC x nC): it is that of the linearised model, exactly.")
        return study.full_spectrum, study.residual
    few = factors(study.model, take(study.x, slice(0, _FEW)), output=study.output)
    full = few.squared_norm()
    mean = float(few.gram(kind="trace").square().sum()) / few.outputs
    error = math.sqrt(max(full - mean, 0.0) / full)
    values["relative error of using K_trace / C for every output"] = error
    notes.append(
        f"The curve uses K_trace / C for each output (nC is over 3,000); that is off by {error:.1%} of the full "
        f"kernel in Frobenius norm, on {few.samples} samples. The trial run follows the full kernel."
    )
    return study.spectrum, study.residual


def _curve_figure(prediction: Prediction) -> Figure:
    times = [max(t, 0.8) for t in prediction.times]
    lines = [
        ("exact, linearised model", prediction.exact, "line"),
        ("full-spectrum bound, rigorous", prediction.bound_rigorous, "dashed"),
        ("full-spectrum, fitted (no bound)", prediction.bound_fitted, "dashed"),
        ("bound by smallest eigenvalue", prediction.bound_lambda_min, "dashed"),
    ]
    tiny = prediction.initial_loss * 1e-8
    series = [
        Series(name, times, [y if y > tiny else None for y in values], style)  # type: ignore[arg-type]
        for name, values, style in lines
    ]
    marks = []
    reached = prediction.steps_to_target["exact"]
    if math.isfinite(reached):
        marks.append(Mark(max(reached, 0.8), f"{_SHARE:.0%} left"))
    return Figure(
        title="Predicted loss of full-batch descent at the recommended step",
        x_label="step",
        y_label="loss",
        x_log=True,
        y_log=True,
        series=series,
        marks=marks,
        caption="The bound by the smallest eigenvalue alone says little; the whole spectrum follows the curve.",
    )


def _base(study: Study) -> str:
    return "the initial loss" if study.reference < study.guess else "a constant guess's loss"


def _ending(study: Study, prediction: Prediction) -> str:
    steps = prediction.steps_to_target["exact"]
    if math.isinf(steps):
        return f"; {_SHARE:.0%} of {_base(study)} is never reached by the linearised model"
    return f"; {_SHARE:.0%} of {_base(study)} is predicted after {steps:,.0f} full-batch steps"


def _stop(study: Study, prediction: Prediction) -> Decision:
    steps = prediction.steps_to_target["exact"]
    if math.isinf(steps):
        return Decision()
    if steps > _LONGEST:
        return Decision(
            evidence=f"not planned: {_SHARE:.0%} of {_base(study)} would take {steps:,.0f} full-batch steps"
        )
    planned = study.decisions.get("step_size")
    scale = (1.0 / study.constants.smoothness) / planned.value if planned and planned.value else 1.0
    return Decision(
        math.ceil(steps * scale),
        "steps",
        f"the linearised model reaches {_SHARE:.0%} of {_base(study)} there (full-batch curve, scaled to the "
        "planned step)",
    )
