"""Full-batch runs of a copy of the model: constant or sharpness-following step, with a mode watched."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wideangle.checks._study import Study
from wideangle.curvature import sharpness
from wideangle.curvature.ggn import output_root
from wideangle.kernel._factors import factors
from wideangle.kernel._model import take
from wideangle.optim.constants import measure_constants
from wideangle.progress import track
from wideangle.seeds import generator

__all__ = ["RISE", "Mode", "Trial", "descend", "displaced", "step_seconds", "top_mode", "try_plan"]

RISE = 1.2
_BLOWN = 1e4  # a loss this many times the start's is not coming back to anything useful


@dataclass
class Trial:
    """One run: losses, squared gradient norms, step sizes, and where asked for, energies, sharpness and states."""

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    sharpness: list[tuple[int, float]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    slopes: list[float] = field(default_factory=list)
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """True where the loss blew up on the way, or ended ten times above where it began."""
        return _blown(self) or self.losses[-1] > 10 * self.losses[0]

    @property
    def rise(self) -> float:
        """Largest sharpness over that at the start; 1 where it was not followed."""
        if len(self.sharpness) < 2 or self.sharpness[0][1] <= 0:
            return 1.0
        return max(value for _, value in self.sharpness) / self.sharpness[0][1]


@dataclass(frozen=True)
class Mode:
    """The direction of the residual that gradient descent multiplies by 1 - step * curvature.

    `push` is the direction of the weights that moves the residual along it, by 1 to first order.
    """

    curvature: float
    direction: Tensor  # (n, C), unit
    push: dict[str, Tensor]


def top_mode(study: Study, model: nn.Module) -> Mode:
    """Return the top mode of the Gauss-Newton matrix at a model's weights, as seen in the residual.

    With S of `output_root` and w the top eigenvector of (1/n) S^T K S, eigenvalue L, the residual r of the
    linearised model obeys z . r_{t+1} = (1 - step L) z . r_t for z = K S w (for mse z = w).

    Cost: one factor pass and some 20 products.
    """
    settled = copy.deepcopy(model).eval()
    with torch.no_grad():
        z = study.evaluate(settled)
    cache = factors(settled, study.x, output=study.output)
    constants = measure_constants(cache, z, study.loss)
    root = output_root(z.to(cache.dtype), study.loss)
    w = torch.as_tensor(constants.top_vector, dtype=cache.dtype, device=z.device).reshape(z.shape)
    right = torch.einsum("icd,id->ic", root, w)
    change = cache @ right
    direction = change.double() / change.double().norm()
    if study.loss == "cross-entropy":
        change = torch.einsum("icd,ied,ie->ic", root, root, change)
    size = float((change.double() * direction).sum())
    push = {name: part[0] / size for name, part in cache.pull(right[None]).items()}
    return Mode(constants.smoothness, direction, push)


def displaced(model: nn.Module, mode: Mode, amount: float) -> nn.Module:
    """Return a copy whose residual is moved by `amount` along the mode, to first order."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name in mode.push:
                parameter += amount * mode.push[name]
    return moved


def descend(
    study: Study,
    step: float,
    steps: int,
    *,
    start: nn.Module | None = None,
    follow: int = 0,
    mode: Mode | None = None,
    keep: Collection[int] = (),
) -> Trial:
    """Return a full-batch run of a copy with a constant step, or one that follows the sharpness.

    Args:
        study: the study whose data and loss are used.
        step: the step size; with `follow` it is divided by how far the sharpness has risen over its start.
        steps: how many.
        start: the model to copy; the study's own where left out.
        follow: measure the sharpness about so many times on the way, more often at first; 0 leaves it out.
        mode: record the energy of the residual in this direction.
        keep: the steps at which a copy of the weights is kept.
    """
    model = study.fresh() if start is None else copy.deepcopy(start)
    wanted = [p for p in model.parameters() if p.requires_grad]
    trial = Trial(model)
    vector, looks = None, _looks(steps, follow)
    for t in track(range(steps + 1), "trial run"):
        z = study.evaluate(model)
        loss = study.loss_of(z)
        trial.losses.append(float(loss.detach()))
        if mode is not None:
            trial.energies.append(float((study.residual_of(z.detach()) * mode.direction).sum()) ** 2)
        if _blown(trial):
            break
        if t in keep:
            trial.states[t] = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if t in looks:
            value, vector = _sharpness(study, model, vector)
            trial.sharpness.append((t, value))
        if t == steps:
            break
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        trial.slopes.append(sum(float(g.double().square().sum()) for g in gradients if g is not None))
        trial.steps.append(step / trial.rise if trial.rise > RISE else step)
        with torch.no_grad():
            for parameter, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    parameter -= trial.steps[-1] * gradient
    return trial


def try_plan(study: Study, step: float, batch: int, steps: int) -> Trial:
    """Return a run of a fresh copy with the plan's own batches: full losses at the start and at the end only.

    Batches are drawn without replacement, in an order that follows from the study's seed.
    """
    model = study.fresh()
    wanted = [p for p in model.parameters() if p.requires_grad]
    trial, order = Trial(model), torch.zeros(0, dtype=torch.long)
    draws = generator(study.seed, "checkup", "plan")
    with torch.no_grad():
        trial.losses.append(float(study.loss_of(study.evaluate(model))))
    for _ in track(range(steps), "the plan's step"):
        if len(order) < batch:
            order = torch.randperm(study.samples, generator=draws)
        rows, order = order[:batch].to(study.device), order[batch:]
        loss = study.loss_of(study.evaluate(model, take(study.x, rows)), rows)
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    parameter -= step * gradient
        if not float(loss.detach()) <= _BLOWN * trial.losses[0]:
            break
    with torch.no_grad():
        trial.losses.append(float(study.loss_of(study.evaluate(model))))
    return trial


def _looks(steps: int, count: int) -> set[int]:
    """Return when to measure the sharpness: at both ends, after 1, 2, 4, ... steps, and evenly later."""
    if count < 3:
        return {0, steps} if count else set()
    even = {round(k * steps / (count // 2)) for k in range(count // 2 + 1)}
    return even | {2**k for k in range(steps.bit_length()) if 2**k < 2 * steps / count}


def _blown(trial: Trial) -> bool:
    return not all(loss <= _BLOWN * trial.losses[0] for loss in trial.losses)


def _sharpness(study: Study, model: nn.Module, start: object) -> tuple[float, object]:
    found = sharpness(
        model,
        study.loss,
        study.x,
        study.y,
        start=start,
        tolerance=0.05,
        strict=False,
        output=study.output,
        max_products=40,
        seed=study.seed,
    )
    return found.value, found.vector


def step_seconds(study: Study) -> float:
    """Return the seconds of one full-batch gradient: best of three."""
    model = study.fresh()
    wanted = [p for p in model.parameters() if p.requires_grad]
    best = math.inf
    for _ in range(3):
        begun = time.perf_counter()
        torch.autograd.grad(study.loss_of(study.evaluate(model)), wanted, allow_unused=True)
        best = min(best, time.perf_counter() - begun)
    return best
