"""A short race on the model itself: copies trained by several optimisers with the same batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.checks._study import Study
from wideangle.kernel._model import take
from wideangle.optim import MaSS, Recommendation
from wideangle.progress import track
from wideangle.seeds import generator

__all__ = ["Entrant", "entrants", "race", "seconds_a_step"]

_BLOWN = 1e4
_LOOKS = 20  # at the loss of all samples
ADAM = 1e-3  # torch's default step


@dataclass
class Entrant:
    """One optimiser of the race: its name, its setting in words, how to make it, and the losses it went through."""

    name: str
    setting: str
    make: Callable[[Any], torch.optim.Optimizer]
    passes: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """True where the loss ended far above where it began."""
        return not self.losses[-1] <= 10 * self.losses[0]


def entrants(found: Recommendation) -> list[Entrant]:
    """Return SGD and Nesterov at their forecast best, Adam at its default, and MaSS as recommended."""
    sgd, nesterov, mass = (found.settings[name] for name in ("sgd", "nesterov", "mass"))
    gamma = (1 - nesterov[1]) / (1 + nesterov[1])
    momentum: dict[str, Any] = {"momentum": gamma, "nesterov": True} if gamma > 0 else {}
    lone = mass[1] * mass[2] >= 1 - 1e-9  # MaSS without momentum is SGD
    return [
        Entrant("SGD", f"lr {sgd[0]:.3g}", lambda p: torch.optim.SGD(p, lr=sgd[0])),
        Entrant(
            "Nesterov",
            f"lr {nesterov[0]:.3g}, momentum {gamma:.3g}",
            lambda p: torch.optim.SGD(p, lr=nesterov[0], **momentum),
        ),
        Entrant("Adam", f"lr {ADAM:g}, not measured", lambda p: torch.optim.Adam(p, lr=ADAM)),
        Entrant(
            "MaSS",
            f"lr {mass[0]:.3g}, alpha {mass[1]:.3g}, kappa_tilde {mass[2]:.3g}",
            lambda p: torch.optim.SGD(p, lr=mass[0]) if lone else MaSS(p, *mass),
        ),
    ]


def race(study: Study, runners: list[Entrant], batch: int, steps: int) -> None:
    """Train a fresh copy with each optimiser for so many steps on the same batches; losses are of all samples."""
    looks = {round(k * steps / _LOOKS) for k in range(_LOOKS + 1)}
    for runner in runners:
        model = study.fresh()
        wanted = [p for p in model.parameters() if p.requires_grad]
        optimiser = runner.make(wanted)
        for step, rows in enumerate(track(list(_batches(study, batch, steps)), f"race: {runner.name}")):
            if step in looks:
                _look(study, model, optimiser, runner, step * batch / study.samples)
                if not runner.losses[-1] <= _BLOWN * runner.losses[0]:
                    break
            _step(study, model, optimiser, rows)
        else:
            _look(study, model, optimiser, runner, steps * batch / study.samples)


def _step(study: Study, model: nn.Module, optimiser: torch.optim.Optimizer, rows: Tensor) -> None:
    optimiser.zero_grad()
    study.loss_of(study.evaluate(model, take(study.x, rows)), rows).backward()
    optimiser.step()


def _look(
    study: Study, model: nn.Module, optimiser: torch.optim.Optimizer, runner: Entrant, passes: float
) -> None:
    """Record the loss of all samples, of the iterate w where there is one, as the copy stands in training."""
    with torch.no_grad():
        if isinstance(optimiser, MaSS):
            with optimiser.eval_params():
                loss = float(study.loss_of(study.evaluate(model)))
        else:
            loss = float(study.loss_of(study.evaluate(model)))
    runner.passes.append(passes)
    runner.losses.append(loss if math.isfinite(loss) else math.inf)


def _batches(study: Study, batch: int, steps: int) -> Iterator[Tensor]:
    """Yield the rows of each step: every sample once a pass, in an order drawn from the study's seed."""
    draws = generator(study.seed, "checkup", "race")
    order = torch.zeros(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(study.samples, generator=draws)
        yield order[:batch].to(study.device)
        order = order[batch:]


def seconds_a_step(study: Study, batch: int) -> float:
    """Return the seconds of one training step with a batch: best of three after one to warm up."""
    model = study.fresh()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    rows = torch.arange(batch, device=study.device)
    best = math.inf
    for _ in range(4):
        begun = time.perf_counter()
        _step(study, model, optimiser, rows)
        if study.device.type == "cuda":
            torch.cuda.synchronize(study.device)
        best = min(best, time.perf_counter() - begun)
    return best
