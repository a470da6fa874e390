"""What the sections of a check-up share: the model's copy, the data, and measurements made once on demand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.errors import InputError
from wideangle.kernel._factors import Factors, factors
from wideangle.kernel._model import Batch, OutputPick, batch_size, batches, call, explained, logits, take
from wideangle.kernel._settle import is_batch_norm, settle
from wideangle.kernel.function_space import (
    DenseKernel,
    LinearisedRun,
    linearised_descent,
    quickest_product,
)
from wideangle.kernel.spectrum import Spectrum, eigenpairs
from wideangle.optim.constants import Constants, measure_constants
from wideangle.plan import Decision
from wideangle.targets import LOSSES, loss_function, prepare_targets

__all__ = ["FULL_KERNEL_LIMIT", "PATH_STEPS", "Study", "open_study"]

FULL_KERNEL_LIMIT = 3000
PATH_STEPS = 200


@dataclass
class Study:
    """One check-up in progress. Sections read from it; the plan's decisions and sentences are left in it."""

    model: nn.Module
    x: Batch
    y: Tensor
    targets: Tensor
    loss: str
    output: OutputPick
    seed: int
    steps: int | None
    name: str
    data: str
    batch: int | None = None  # the batch size the user wants
    predicts: bool = True  # the plan's course is that of full-batch descent, which the kernel predicts
    notes: list[str] = field(default_factory=list)
    decisions: dict[str, Decision] = field(default_factory=dict)
    sentences: dict[str, str] = field(default_factory=dict)
    course: Any = None  # the main run, see `checks._course`

    @property
    def samples(self) -> int:
        """How many samples, n."""
        return batch_size(self.x)

    @property
    def outputs(self) -> int:
        """How many outputs, C."""
        return self.start.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    def evaluate(self, model: nn.Module, x: Batch | None = None) -> Tensor:
        """Return the logits (n, C) of a model on the study's data, with their graph."""
        batch = self.x if x is None else x
        raw = model(**batch) if isinstance(batch, dict) else model(batch)
        return logits(raw, self.output, batch_size(batch))

    def loss_of(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the mean loss of logits (n, C) against the study's targets, or those of some rows."""
        targets = self.targets if rows is None else self.targets[rows]
        return loss_function(self.loss)(z, targets.to(z.dtype) if targets.is_floating_point() else targets)

    @cached_property
    def start(self) -> Tensor:
        """The model's outputs before training, (n, C)."""
        with torch.no_grad():
            return self.evaluate(self.model)

    @cached_property
    def guess(self) -> float:
        """The loss of the best constant output: what a model that learns nothing can reach."""
        if self.loss == "mse":
            return float((self.targets.double() - self.targets.double().mean(0)).square().mean())
        hot = self.targets
        if hot.dim() == 1:
            hot = nn.functional.one_hot(hot, self.outputs)
        share = hot.double().mean(0)
        return float(-(share[share > 0] * share[share > 0].log()).sum())

    @property
    def reference(self) -> float:
        """The loss that progress is measured from: the start's or the constant guess's, the smaller."""
        return min(float(self.loss_of(self.start)), self.guess)

    @cached_property
    def residual(self) -> Tensor:
        """The residual at the start, see `residual_of`."""
        return self.residual_of(self.start)

    def residual_of(self, z: Tensor, rows: int | None = None) -> Tensor:
        """Return what is to be removed: f - y for mse, softmax(f) - y for cross-entropy; (n, C), float64.

        With `rows`, z and the result are of the first samples only.
        """
        target = self.targets[:rows]
        if self.loss == "mse":
            return z.double() - target.double()
        if target.dim() == 1:
            target = nn.functional.one_hot(target, z.shape[1])
        return torch.softmax(z.double(), 1) - target.double()

    @cached_property
    def factors(self) -> Factors:
        """The factor cache of the model on the data."""
        return factors(self.model, self.x, output=self.output)

    @cached_property
    def product(self) -> Factors | DenseKernel:
        """What multiplies fastest with the full kernel, for the hundreds of products of a linearised run."""
        return quickest_product(self.factors)

    @cached_property
    def trace(self) -> Tensor:
        """The trace kernel over the number of outputs, K_trace / C, (n, n), float64."""
        return self.factors.gram(kind="trace") / self.factors.outputs

    @cached_property
    def spectrum(self) -> Spectrum:
        """The spectrum of K_trace / C with its eigenvectors."""
        return eigenpairs(self.trace, factor_dtype=self.factors.dtype)

    @property
    def fits_full(self) -> bool:
        """True where the full kernel is decomposed: nC at most `FULL_KERNEL_LIMIT`."""
        return self.samples * self.outputs <= FULL_KERNEL_LIMIT

    @cached_property
    def full_spectrum(self) -> Spectrum:
        """The spectrum of the full kernel, (nC) eigenvalues, with its eigenvectors."""
        return eigenpairs(self.factors.gram(), factor_dtype=self.factors.dtype)

    @cached_property
    def constants(self) -> Constants:
        """L and L1 of the loss at the start."""
        return measure_constants(self.factors, self.start, self.loss)

    @cached_property
    def path(self) -> LinearisedRun:
        """The linearised model's full-batch course at the step 1 / L, `PATH_STEPS` steps."""
        return self.linearised(1.0 / self.constants.smoothness, PATH_STEPS)

    def linearised(self, step: float | Sequence[float], steps: int) -> LinearisedRun:
        """Return the linearised model's full-batch course at a step of choice, or one for each step."""
        return linearised_descent(self.product, self.start, self.loss_of, step, steps)

    def fresh(self) -> nn.Module:
        """Return a copy of the model to train: BatchNorm in train mode, dropout off."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            if is_batch_norm(module):
                module.train()
        return model


def open_study(
    model: nn.Module,
    x: Any,
    y: Any,
    *,
    loss: str,
    output: OutputPick,
    steps: int | None,
    seed: int,
    device: str | torch.device,
    name: str,
    data: str,
    batch: int | None = None,
) -> Study:
    """Return a study of a copy of `model`, with inputs, labels and loss checked.

    Raises:
        InputError: x, y, loss, steps or the model cannot be used; the message says which and why.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    if loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}")
    if steps is not None and steps < 1:
        raise InputError(f"steps={steps}; the trial run needs at least 1")
    if next(model.parameters(), None) is None:
        raise InputError(f"the model ({type(model).__name__}) has no parameters to train")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {str(device)!r} was asked for, but torch sees no CUDA device; use 'cpu'")
    x, y = _joined(x, y, torch.device(device))
    try:
        copied = copy.deepcopy(model).to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the model cannot be put on device {str(device)!r}: {error}") from error
    x = _as_model(x, next(copied.parameters()).dtype)
    with explained(x):
        notes = settle(copied, x)
    with torch.no_grad(), explained(x):
        first = take(x, slice(0, 2))
        outputs = logits(
            call(copied, dict(copied.named_parameters()), first), output, batch_size(first)
        ).shape[1]
    targets = prepare_targets(y, outputs, loss, dtype=next(copied.parameters()).dtype)
    if batch_size(x) != len(targets):
        raise InputError(f"x has {batch_size(x)} samples and y has {len(targets)}; give one target a sample")
    if batch_size(x) < 2:
        raise InputError("the check-up compares samples with each other and needs at least 2, got 1")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int)):
        raise InputError(f"batch size {batch!r}; it must be a whole number of samples")
    if batch == 1 and any(is_batch_norm(module) for module in copied.modules()):
        raise InputError("batch size 1, but the model has BatchNorm, which needs 2 samples or more a step")
    if batch is not None and not 1 <= batch <= batch_size(x):
        raise InputError(
            f"batch size {batch} of {batch_size(x)} samples; it must lie between 1 and the samples"
        )
    return Study(copied, x, y, targets, loss, output, seed, steps, name, data, batch, notes=notes)


def _joined(x: Any, y: Any, device: torch.device) -> tuple[Batch, Tensor]:
    """Return x as one batch and y as one tensor; y comes from the (x, y) pairs of a loader where left out."""
    if y is None:
        if isinstance(x, (Tensor, dict, np.ndarray)):
            raise InputError("y is missing; give the targets, or a loader of (x, y) pairs as x")
        pairs = list(x)
        if not pairs or not all(isinstance(p, (tuple, list)) and len(p) == 2 for p in pairs):
            raise InputError("without y, x must be a loader of (x, y) pairs")
        x, y = [pair[0] for pair in pairs], torch.cat([torch.as_tensor(pair[1]) for pair in pairs])
    parts = batches(x, device)
    if len(parts) != 1:
        raise InputError(f"x holds batches of {len(parts)} different shapes; pad them to one shape first")
    try:
        return parts[0], torch.as_tensor(y).to(device)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"y cannot be used as targets ({error}); give integers or floats") from error


def _as_model(x: Batch, dtype: torch.dtype) -> Batch:
    """Give floating-point inputs the precision of the model."""
    if isinstance(x, Tensor):
        return x.to(dtype) if x.is_floating_point() else x
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in x.items()}
