"""Runs the sections of a check-up in order and draws up the verdict and the plan."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from wideangle.checks._registry import CHECKS, Check, chosen
from wideangle.checks._study import PATH_STEPS, Study, open_study
from wideangle.document import Document, Section
from wideangle.errors import InputError, WideangleError
from wideangle.kernel._model import OutputPick
from wideangle.plan import Plan
from wideangle.result import Provenance

__all__ = ["Checkup", "checkup"]


@dataclass(frozen=True)
class Checkup(Document):
    """The outcome of a check-up: sections, a sentence of verdict from each, and a plan.

    `section("kernel").values` holds the numbers of a section; `plan` the recommendations. A check-up
    that was interrupted has `complete=False` and the sections finished by then.
    """


def checkup(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    loss: str = "mse",
    only: Sequence[str] | str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    output: OutputPick = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    name: str | None = None,
    data: str = "",
    command: str | None = None,
    on_section: Callable[[Section], None] | None = None,
) -> Checkup:
    """Return a check-up of how a model will train on some data: measured first, then tried.

    step = 1/L,  L = lambda_max((1/n) S^T K S),  S S^T = the loss Hessian in the outputs;  eta_crit = 2/L

    Regime, kernel, step size, labels, trial run, landscape, optimiser, verdict: each section states what it
    measured and what follows. The model is copied; yours is left as it is, trained or not. BatchNorm is
    measured with fixed statistics, dropout is off.

    Cost: the kernel's (one forward and C backward passes, n^2 terms), some 20 products with it, and a few
    hundred full-batch steps; a minute for 512 samples and a small net.

    Args:
        model: any module whose output for a sample does not depend on the other samples.
        x: n inputs: a tensor, a dict of tensors, or a loader of (x, y) pairs with `y` left out.
        y: class labels (n,), or numbers (n, C).
        loss: "mse" (torch.nn.MSELoss on one-hot labels) or "cross-entropy", both averaged over samples.
        only: names of the sections to run; all where left out.
        steps: length of the trial run; by default 200, or fewer where the section's time would not do.
        batch_size: samples a step in the plan; the section "optimiser" then writes its recommendation for it into
            the plan, as it does where it runs alone. Chosen from the constants where left out.
        output: which part of a tuple, dict or ModelOutput holds the logits.
        seed: of every random choice.
        device: where to compute; where the model lies, if left out.
        name: what to call the model in the report.
        data: what to call the data in the report and the plan.
        command: the command that repeats this check-up, for the report.
        on_section: called with each section as it is finished.

    Returns:
        A `Checkup`; Ctrl-C returns the sections finished by then with `complete=False`.

    Raises:
        InputError: data, labels, loss or model cannot be used; the message says what to do.
        NumericsError: the model returns non-finite numbers.

    Example:
        >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> net = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 1))
        >>> found = checkup(net, x, x[:, 0].sign(), only="step-size")
        >>> found.plan.step_size.measured
        True

    Reference: Liu, Hui et al. 2023 (conditioning); Marreddy, Liu 2026 (alignment and curves); Lee et al. 2019
    (critical step of the linearisation).
    """
    begun = time.perf_counter()
    checks = chosen([only] if isinstance(only, str) else None if only is None else list(only))
    where = device if device is not None else _device(model)
    label = name or type(model).__name__
    study = open_study(
        model,
        x,
        y,
        loss=loss,
        output=output,
        steps=steps,
        seed=seed,
        device=where,
        name=label,
        data=data,
        batch=batch_size,
    )
    _refuse_solved(study)
    sections: list[Section] = []
    complete = True
    for check in checks:
        try:
            section = _run(check, study)
        except KeyboardInterrupt:
            complete = False
            reason = "Interrupted; the sections before this one are complete."
            section = Section(name=check.name, title=check.title, summary=reason, status="interrupted")
        sections.append(section)
        if on_section is not None:
            on_section(section)
        if not complete:
            break
    plan = _plan(study, complete)
    provenance = Provenance.here(
        seed=seed, device=str(study.device), seconds=time.perf_counter() - begun, command=command
    )
    return Checkup(
        title=f"Check-up of {label}{f' on {data}' if data else ''}",
        subject=_subject(study),
        verdict=_verdict(study, sections),
        sections=sections,
        plan=replace(plan, provenance=provenance),
        complete=complete,
        provenance=provenance,
    )


def _refuse_solved(study: Study) -> None:
    """Refuse a model whose loss is already 0: there is nothing to train, and every ratio below is 0 / 0."""
    loss = float(study.loss_of(study.start))
    if loss == 0:
        raise InputError(
            f"the {study.loss} loss of the model on this data is 0 before any training: there is nothing to check up; "
            "look at y, or give the model before training"
        )


def _device(model: Any) -> torch.device | str:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return "cpu" if parameter is None else parameter.device


def _run(check: Check, study: Study) -> Section:
    begun = time.perf_counter()
    try:
        section = check.load()(study)
    except WideangleError as error:
        early = check.name in ("regime", "kernel", "step-size")
        if early and (isinstance(error, InputError) or not study.sentences):
            raise  # data or model cannot be used: the caller hears it as an error
        section = Section(summary=str(error), status="failed")
    return replace(
        section,
        name=check.name,
        title=check.title,
        seconds=time.perf_counter() - begun,
        budget=check.budget,
    )


def _subject(study: Study) -> str:
    parameters = sum(p.numel() for p in study.model.parameters() if p.requires_grad)
    return (
        f"{parameters:,} trainable parameters, {study.samples} samples, "
        f"{study.outputs} outputs, loss {study.loss}"
    )


def _verdict(study: Study, sections: Sequence[Section]) -> list[str]:
    state = {section.name: section.status for section in sections}
    why = {"failed": "failed", "interrupted": "interrupted", "done": "no sentence"}
    missed = "not reached" if "interrupted" in state.values() else "left out"
    lines = []
    for check in CHECKS:
        heading = check.title.partition(":")[0]
        reason = why[state[check.name]] if check.name in state else missed
        lines.append(f"{heading}: {study.sentences.get(check.name, f'not measured ({reason})')}.")
    return lines


def _plan(study: Study, complete: bool) -> Plan:
    return Plan(
        model=study.name,
        data=study.data,
        samples=study.samples,
        loss=study.loss,
        seed=study.seed,
        predicted_loss=_predicted(study) if complete else [],
        **study.decisions,  # type: ignore[arg-type]
    )


def _predicted(study: Study) -> list[list[float]]:
    """Return [step, loss] of the linearised model at the planned step, at log-spaced steps."""
    planned = study.decisions.get("step_size")
    if planned is None or planned.value is None or not study.predicts:
        return []
    same = math.isclose(planned.value, 1.0 / study.constants.smoothness)
    losses = (study.path if same else study.linearised(planned.value, PATH_STEPS)).losses
    times = [0, *np.unique(np.geomspace(1, PATH_STEPS, 60).astype(int))]
    return [[float(t), float(losses[t])] for t in times if math.isfinite(losses[t])]
