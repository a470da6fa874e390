"""Section 1, the regime: what the model is made of and how near it is to its linear expansion."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch
from torch import Tensor

from wideangle.checks._study import Study
from wideangle.curvature import HessianNorm, LinearityGap, audit, hessian_norm, linearity_gap
from wideangle.document import Figure, Section, Series
from wideangle.errors import WideangleError
from wideangle.kernel._model import Batch, take

__all__ = ["run"]

_SAMPLES = 64
_STEPS = 50
_BENDS, _BEND_SECONDS = 2, 2.0
_SHARES = (0.03, 0.1, 0.3, 1.0, 3.0)


def run(study: Study) -> Section:
    """Return the audit and the linearity gap at the distance that training is predicted to go."""
    few = take(study.x, slice(0, _SAMPLES))
    found = audit(study.model, few, output=study.output, seed=study.seed)
    way, distance = _way(study)
    if not distance > 0:
        study.sentences["regime"] = (
            f"nothing moves: the loss is {float(study.loss_of(study.start)):.3g} at the start"
        )
        return Section(
            summary=study.sentences["regime"],
            values={"parameters": found.parameters, "trainable parameters": found.trainable},
            notes=[*found.findings, *study.notes],
        )
    gaps = [
        linearity_gap(study.model, few, share * distance, way, output=study.output, seed=study.seed)
        for share in _SHARES
    ]
    here = gaps[_SHARES.index(1.0)]
    uphill = [
        linearity_gap(study.model, few, share * distance, "gradient", output=study.output, seed=study.seed)
        for share in _SHARES
    ]
    bend, remark = _bend(study, few, distance)
    near = (
        "near-linear" if here.relative < 0.1 else "mildly non-linear" if here.relative < 0.5 else "non-linear"
    )
    study.sentences["regime"] = (
        f"{near}: where the first {_STEPS} steps lead{_share(here.displacement)} the "
        f"outputs differ from the linear expansion by {here.relative:.1%} of their change"
        f"{_consequence(here.relative)}"
    )
    figure = Figure(
        title=f"Distance from the linear expansion, up to and beyond where {_STEPS} steps lead",
        x_label="distance from the start",
        y_label="gap / first-order change",
        x_log=True,
        y_log=True,
        series=[
            _curve("where the linearised steps lead", gaps, "line"),
            _curve("along the gradient of one output", uphill, "dashed"),
        ],
        caption="Below 0.1 the kernel at the start predicts training; near 1 features move and it does not.",
    )
    return Section(
        summary=study.sentences["regime"],
        values={
            "parameters": found.parameters,
            "trainable parameters": found.trainable,
            "narrowest hidden layer": found.narrowest,
            "typical width": found.typical_width,
            "linear output": found.linear_output,
            "parameterisation": found.parameterization,
            "normalisation layers": sum(found.normalization.values()),
            f"predicted distance of {_STEPS} steps": distance,
            "relative linearity gap there": here.relative,
            "relative gap at that distance along the gradient": uphill[_SHARES.index(1.0)].relative,
            "relative gap at unit output change": linearity_gap(
                study.model, few, None, "gradient", output=study.output, seed=study.seed
            ).relative,
            **bend,
        },
        notes=[*found.findings, *remark, *study.notes],
        figures=[figure],
    )


def _curve(name: str, gaps: list[LinearityGap], style: Literal["line", "dashed"]) -> Series:
    return Series(
        name,
        [gap.radius for gap in gaps],
        [gap.relative if gap.relative > 0 else None for gap in gaps],
        style,
    )


def _bend(study: Study, few: Batch, distance: float) -> tuple[dict[str, float], list[str]]:
    """Return the Hessian norm of the first output at a sample or two, with what it bounds, or why there is none."""
    found: list[HessianNorm] = []
    begun = time.perf_counter()
    try:
        for row in range(_BENDS):
            one = take(few, slice(row, row + 1))
            found.append(
                hessian_norm(
                    study.model, one, outputs=0, output=study.output, tolerance=0.05, seed=study.seed
                )
            )
            if time.perf_counter() - begun > _BEND_SECONDS:
                break
    except WideangleError as error:
        if not found:
            return {}, [f"Hessian norm: {error}."]
    norm, ratio = max(f.value for f in found), max(f.ratio for f in found)
    steep = max(float(f.gradient_norms.max()) for f in found)
    limit = distance * norm / (2 * steep) if steep else math.inf
    return {
        f"Hessian norm |H| (first output, {len(found)} samples)": norm,
        "|H| / |grad f|^2": ratio,
        "R |H| / (2 |grad f|), the relative gap to second order": limit,
    }, []


def _way(study: Study) -> tuple[Tensor, float]:
    """Return where `_STEPS` full-batch steps of the linearised model lead, flat, and how far that is."""
    course = study.linearised(1.0 / study.constants.smoothness, _STEPS)
    pulled = study.factors.pull(torch.as_tensor(course.way, dtype=study.factors.dtype)[None])
    moved = [
        pulled[name][0] if name in pulled else torch.zeros_like(parameter)
        for name, parameter in study.model.named_parameters()
        if parameter.requires_grad
    ]
    return torch.cat([part.flatten().to(moved[0]) for part in moved]), float(course.distance[_STEPS])


def _share(displacement: float) -> str:
    return f" ({displacement:.2%} of the weights' norm away)" if math.isfinite(displacement) else ""


def _consequence(relative: float) -> str:
    if relative < 0.1:
        return ", so the kernel below describes its training"
    if relative < 0.5:
        return ", so read the predictions below as estimates"
    return ", so the kernel moves in training and predictions hold for the first steps only"
