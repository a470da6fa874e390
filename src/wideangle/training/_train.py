"""Training: act on a plan with a plain loop, and set predicted beside measured."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.document import Document
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._model import (
    Batch,
    OutputPick,
    batch_size,
    batches,
    from_numpy,
    select_parameters,
    take,
)
from wideangle.kernel._push import pick_tensor
from wideangle.plan import Plan
from wideangle.result import Provenance
from wideangle.targets import prepare_targets
from wideangle.training import _checkpoint
from wideangle.training._loop import DivergedError, Interrupt, Run, log_spaced, private_randomness
from wideangle.training._prediction import plan_section, prediction_section, run_section
from wideangle.training._recipe import Recipe, make_recipe
from wideangle.training._stopped import explain, how_to_resume

__all__ = ["Training", "train"]


@dataclass(frozen=True)
class Training(Document):
    """What a training run did: losses and accuracies as [step, value], and the plan beside them.

    `accuracy` is the last one, None for regression. `agreement` is the median of
    |log10 (measured / predicted)| over the steps after 0 that were predicted and measured.
    """

    losses: list[list[float]] = field(default_factory=list)
    accuracies: list[list[float]] = field(default_factory=list)
    accuracy: float | None = None
    steps: int = 0
    agreement: float | None = None
    checkpoint: str | None = None


def train(
    model: nn.Module,
    x: Batch,
    y: Tensor,
    plan: Plan,
    *,
    loss: str | None = None,
    step_size: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    momentum: float | None = None,
    kappa_tilde: float | None = None,
    warmup_steps: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int = 500,
    seed: int | None = None,
    device: str | torch.device | None = None,
    output: OutputPick = None,
    command: str | None = None,
    name: str | None = None,
    data: str | None = None,
) -> Training:
    """Return what training `model` as the plan says did; the model is trained in place.

        w_{t+1} = w_t - eta_t grad L_batch(w_t),   eta_t = step_size min(1, (t + 1) / warmup_steps)

    for "sgd" without momentum, L a mean over the batch (`wideangle.targets.loss_function`). An argument
    that is not None takes the place of the plan's value. Without a batch size, or with one of n or more,
    each step takes all samples; else every sample once an epoch, in an order drawn from the seed. A last
    batch of one sample joins the one before; for "nesterov" and "mass" the samples are spread over n // m
    batches of at least m, since a small last one may be unstable at the step made for m. The model trains in
    train mode, or in the modes its layers have if it is in train mode already; afterwards modes and `.grad`
    are as before, and torch's random generators too. Loss and accuracy of all samples are measured in eval
    mode at the predicted and at log-spaced steps. Batches above 1024 samples are cut into slices whose
    gradients add up, unless BatchNorm couples them.

    Ctrl-C ends the run between two steps: the checkpoint is written and the result says `complete=False`.
    A run taken up with `resume` ends with the same bits as one that was never stopped.

    Cost: one forward and one backward pass a step, about eight evaluations a decade of steps; memory of
    the model, its gradients and optimiser state, and one copy of the weights.

    Args:
        model: any module; its parameters are changed.
        x: n inputs, a tensor or a dict of tensors (then called with them by name).
        y: n class labels, or n x C numbers, as `wideangle.targets.prepare_targets` takes them.
        plan: a `Plan`, e.g. of `wideangle.checkup`; ``Plan()`` with a step size given works too.
        loss: "mse" or "cross-entropy".
        step_size: eta, per step.
        steps: updates in all (with `resume`, counted from the beginning of the run).
        batch_size: samples a step.
        optimizer: "sgd" (heavy ball), "nesterov", "mass", "adam" or "adamw".
        momentum: in [0, 1), gamma of MaSS; for Adam its first beta.
        kappa_tilde: of MaSS, at least 1.
        warmup_steps: over how many steps the step size rises to its value.
        checkpoint: file in which to keep the state.
        resume: go on from the checkpoint; refused where model, data or settings differ from it.
        checkpoint_every: steps between checkpoints; one more is written at the end.
        seed: root of the order of samples and of dropout.
        device: where to train; None leaves the model where it is.
        output: which part of a tuple, dict or ModelOutput is the output.
        command: what the user typed, for the report.
        name: what the model is called in the report.
        data: what the data are called in the report.

    Returns:
        A `Training`: a document with the run, predicted against measured, and the plan's decisions.

    Raises:
        InputError: y, a setting or the checkpoint does not fit.
        NumericsError: the loss became infinite or nan. The model gets its starting weights back, the last
            good checkpoint stays, and the message compares the step size with the critical one.

    Example:
        >>> from wideangle.plan import Decision
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> plan = Plan(step_size=Decision(0.25, "per step", "by hand"), stop=Decision(20))
        >>> result = train(model, torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 6.0]), plan)
        >>> round(model.weight.item(), 3), result.complete
        (3.0, True)
    """
    began = time.monotonic()
    place = torch.device(device) if device is not None else next(model.parameters(), torch.zeros(0)).device
    given = {
        "loss": loss,
        "step_size": step_size,
        "steps": steps,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "momentum": momentum,
        "kappa_tilde": kappa_tilde,
        "warmup_steps": warmup_steps,
        "seed": seed,
    }
    file = _check_file(checkpoint, resume, checkpoint_every)
    inputs = _check_inputs(model, x, y, place)
    recipe = make_recipe(plan, len(y), given)
    _check_batch(model, recipe)
    targets = _targets(model, inputs, y, recipe, output, place)
    wanted = log_spaced(recipe.steps, [int(point[0]) for point in plan.predicted_loss])
    with _gradients_kept(model), private_randomness(recipe.seed, place), Interrupt() as interrupt:
        facts = _checkpoint.fingerprint(model, inputs, targets, recipe) if file is not None else {}
        run = Run(model, inputs, targets, recipe, output, facts)
        if file is not None and resume:
            run.load(file, wanted)
        _go(run, wanted, file, checkpoint_every, interrupt)
    names = (name or plan.model or type(model).__name__, data or plan.data or "the data given")
    return _document(run, plan, names, file, command, time.monotonic() - began)


def _check_file(checkpoint: str | os.PathLike[str] | None, resume: bool, every: int) -> Path | None:
    if every < 1:
        raise InputError(f"checkpoint_every must be at least 1, got {every}")
    if checkpoint is None:
        if resume:
            raise InputError("resume=True needs checkpoint=FILE, the state to go on from")
        return None
    path = Path(checkpoint)
    if not resume:
        _checkpoint.check_free(path)
    return path


def _check_inputs(model: nn.Module, x: Batch, y: Any, place: torch.device) -> Batch:
    """Move model and inputs to the device; floating inputs take the type of the parameters."""
    for key, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InputError(f"parameter {key!r} is not finite before training; initialise the model again")
    chosen = select_parameters(model, None)
    if isinstance(x, np.ndarray):
        x = from_numpy(x)
    if not isinstance(x, (Tensor, dict)):
        raise InputError(f"x is a {type(x).__name__}; give a tensor or a dict of tensors")
    if not hasattr(y, "__len__") or len(y) != batch_size(x):
        count = len(y) if hasattr(y, "__len__") else "no length"
        raise InputError(f"x has {batch_size(x)} samples and y has {count}; give one target a sample")
    model.to(place)
    kind = model.get_parameter(chosen[0]).dtype
    (moved,) = batches(x, place)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(kind) if tensor.is_floating_point() else tensor

    return {key: cast(value) for key, value in moved.items()} if isinstance(moved, dict) else cast(moved)


def _targets(
    model: nn.Module, x: Batch, y: Any, recipe: Recipe, output: OutputPick, place: torch.device
) -> Tensor:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            part = take(x, slice(0, 2))
            outputs = pick_tensor(model(**part) if isinstance(part, dict) else model(part), output)
    finally:
        for module, mode in modes:
            module.training = mode
    if outputs.ndim == 0 or len(outputs) != batch_size(part):
        raise InputError(
            f"the model returns shape {tuple(outputs.shape)} for {batch_size(part)} samples; its first "
            "dimension must be the sample"
        )
    return prepare_targets(y, outputs[0].numel(), recipe.loss, outputs.dtype).to(place)


def _check_batch(model: nn.Module, recipe: Recipe) -> None:
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms and recipe.batch_size == 1:
        raise InputError(
            f"batch_size=1, but layer {norms[0]!r} is a BatchNorm, which needs 2 samples or more a step; give "
            "batch_size=2 or more"
        )


@contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """Give every parameter the `.grad` it had."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _go(run: Run, wanted: list[int], file: Path | None, every: int, interrupt: Interrupt) -> None:
    start, first = {key: value.clone() for key, value in run.model.state_dict().items()}, run.step
    try:
        run.go(wanted, file, every, interrupt)
    except DivergedError as error:
        run.model.load_state_dict(start)
        raise NumericsError(explain(run, error, first, file)) from error


def _document(
    run: Run, plan: Plan, names: tuple[str, str], file: Path | None, command: str | None, seconds: float
) -> Training:
    recipe, losses = run.recipe, dict(sorted(run.losses.items()))
    complete = run.step >= recipe.steps
    sections = [run_section(recipe, losses, run.accuracies, run.step, seconds)]
    prediction, agreement = prediction_section(plan, recipe, losses, run.samples)
    sections += [prediction] if prediction is not None else []
    sections.append(plan_section(plan, recipe))
    verdict = [section.summary for section in sections[:-1]]
    if not complete:
        verdict.append(how_to_resume(run, file))
    return Training(
        title="Training",
        subject=f"{names[0]} on {names[1]}, {run.samples} samples",
        verdict=verdict,
        sections=sections,
        plan=plan,
        complete=complete,
        losses=[[step, value] for step, value in losses.items()],
        accuracies=[[step, value] for step, value in sorted(run.accuracies.items())],
        accuracy=run.accuracies.get(run.step),
        steps=run.step,
        agreement=agreement,
        checkpoint=None if file is None else str(file),
        provenance=Provenance.here(
            seed=recipe.seed, device=str(run.device), seconds=seconds, command=command
        ),
    )
