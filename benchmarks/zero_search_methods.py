"""The methods of the zero-search benchmark: five with a grid of 20 settings each, four that need no tuning.

The grids were chosen once, before the recommended method was run: constant learning rates, evenly spaced in
the logarithm over ranges that hold the best of each task inside. SGD has one thing to tune and gets 20
learning rates; each other method gets ten for each of two values of its second parameter. Nesterov's rates are
ten times lower for momentum 0.99 than for 0.9, so that lr / (1 - momentum) has the same range: with the same
rates for both, the lowest had won a task. Nesterov's method and MaSS are read at their iterate w, as their papers
define it; schedule-free AdamW at its average. BatchNorm's statistics are those of the training iterate for all.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wideangle import optim

Setting = dict[str, float]
REMEASURED: tuple[float, ...] = ()  # passes at which the recommended method measures again


class NotAvailableError(RuntimeError):
    """A method that cannot run here; the text says why."""


@dataclass
class Trainer:
    """An optimiser as the loop uses it.

    evaluated: a context in which the parameters are what the method returns.
    training: called with True before steps and False before an evaluation.
    measured: passes over the data spent on measurements so far; measuring: seconds spent on them.
    remeasure: called after a step with the passes so far; may add to both.
    """

    optimizer: Optimizer
    evaluated: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    training: Callable[[bool], None] = lambda on: None
    measured: float = 0.0
    measuring: float = 0.0
    remeasure: Callable[[float], None] = lambda passes: None
    notes: dict[str, Any] = field(default_factory=dict)


Build = Callable[[nn.Module, Any, Setting, int], Trainer]


@dataclass(frozen=True)
class Method:
    """A method: its settings, and how its trainer is built from (model, problem, setting, seed)."""

    name: str
    title: str
    settings: tuple[Setting, ...]
    build: Build

    @property
    def tuned(self) -> bool:
        """Whether there is a grid to search."""
        return len(self.settings) > 1


def setting_name(setting: Setting) -> str:
    """Return a setting as text, such as "lr=0.1,momentum=0.9"; "default" for none."""
    return ",".join(f"{name}={value:g}" for name, value in setting.items()) or "default"


def spaced(low: float, high: float, count: int) -> list[float]:
    """Return `count` values from low to high, evenly spaced in the logarithm, to three digits."""
    return [float(f"{low * (high / low) ** (i / (count - 1)):.3g}") for i in range(count)]


def crossed(rates: list[float], *others: Setting) -> tuple[Setting, ...]:
    """Return every learning rate with each of the other settings."""
    return tuple({"lr": lr, **other} for other in others for lr in rates)


def _sgd(model: nn.Module, problem: Any, setting: Setting, seed: int) -> Trainer:
    return Trainer(torch.optim.SGD(model.parameters(), **setting))  # type: ignore[arg-type]


def _nesterov(model: nn.Module, problem: Any, setting: Setting, seed: int) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), nesterov=True, **setting)  # type: ignore[arg-type]
    return Trainer(optimizer, lambda: _nesterov_iterate(optimizer))


@contextlib.contextmanager
def _nesterov_iterate(optimizer: Optimizer) -> Iterator[None]:
    """Put Nesterov's iterate w = u + lr momentum b into the parameters, which else hold the look-ahead u.

    MaSS is evaluated at its iterate w, so Nesterov's method is too.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    kept.append((parameter, parameter.detach().clone()))
                    parameter.add_(buffer, alpha=group["lr"] * group["momentum"])
        try:
            yield
        finally:
            for parameter, value in kept:
                parameter.copy_(value)


def _adam(model: nn.Module, problem: Any, setting: Setting, seed: int) -> Trainer:
    options: dict[str, Any] = {"lr": setting.get("lr", 1e-3)}
    if "beta1" in setting:
        options["betas"] = (setting["beta1"], 0.999)
    return Trainer(torch.optim.Adam(model.parameters(), **options))


def _adamw(model: nn.Module, problem: Any, setting: Setting, seed: int) -> Trainer:
    return Trainer(torch.optim.AdamW(model.parameters(), **setting))  # type: ignore[arg-type]


def _mass(model: nn.Module, problem: Any, setting: Setting, seed: int) -> Trainer:
    if not hasattr(optim, "MaSS"):
        raise NotAvailableError("wideangle.optim has no MaSS")
    optimizer = optim.MaSS(model.parameters(), **setting)
    return Trainer(optimizer, optimizer.eval_params)


def _schedule_free(model: nn.Module, problem: Any, setting: Setting, seed: int) -> Trainer:
    optimizer = _peer("schedulefree").AdamWScheduleFree(model.parameters())
    optimizer.train()

    def training(on: bool) -> None:
        optimizer.train() if on else optimizer.eval()

    return Trainer(optimizer, training=training)


def _prodigy(model: nn.Module, problem: Any, setting: Setting, seed: int) -> Trainer:
    return Trainer(_peer("prodigyopt").Prodigy(model.parameters()))


def _peer(package: str) -> Any:
    """Return a package from the benchmark's own folder, which is installed on first use."""
    from environments import NotInstalledError, packages_of

    try:
        folder = str(packages_of("zero_search"))
    except NotInstalledError as error:
        raise NotAvailableError(f"{package} is not installed: {error}") from error
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(package)


def recommended(
    model: nn.Module, x: Tensor, y: Tensor, loss: str, batch_size: int, passes: float, seed: int
) -> Any:
    """Return what the library recommends for a model: lr, alpha, kappa_tilde and the passes it cost.

    Raises:
        NotAvailableError: this version recommends no MaSS.
    """
    if not hasattr(optim, "Recommendation"):
        raise NotAvailableError("wideangle.optim recommends no MaSS yet")
    return optim.recommend(model, x, y, loss, batch_size=batch_size, budget=passes, seed=seed)


def _recommended(model: nn.Module, problem: Any, setting: Setting, seed: int) -> Trainer:
    def measured(left: float) -> tuple[Setting, float, float]:
        start = time.perf_counter()
        found = recommended(
            model, problem.x, problem.y, problem.task.loss, problem.task.batch_size, left, seed
        )
        chosen = {name: float(getattr(found, name)) for name in ("lr", "alpha", "kappa_tilde")}
        return chosen, float(found.passes), time.perf_counter() - start

    chosen, cost, seconds = measured(problem.passes)
    trainer = _mass(model, problem, chosen, seed)
    trainer.measured, trainer.measuring, trainer.notes["chosen"] = cost, seconds, [chosen]
    due = list(REMEASURED)

    def again(passes: float) -> None:
        if not due or passes < due[0]:
            return
        due.pop(0)
        chosen, cost, seconds = measured(problem.passes - passes)
        trainer.optimizer.retune(optim.MassParameters(**chosen))  # type: ignore[attr-defined]
        trainer.measured += cost
        trainer.measuring += seconds
        trainer.notes["chosen"].append(chosen)

    trainer.remeasure = again
    return trainer


METHODS = (
    Method("sgd", "SGD", crossed(spaced(3e-3, 30, 20), {}), _sgd),
    Method(
        "nesterov",
        "SGD-Nesterov",
        crossed(spaced(5e-4, 5, 10), {"momentum": 0.9}) + crossed(spaced(5e-5, 0.5, 10), {"momentum": 0.99}),
        _nesterov,
    ),
    Method("adam", "Adam", crossed(spaced(1e-4, 0.1, 10), {"beta1": 0.9}, {"beta1": 0.5}), _adam),
    Method(
        "adamw",
        "AdamW",
        crossed(spaced(1e-4, 0.1, 10), {"weight_decay": 0.01}, {"weight_decay": 0.1}),
        _adamw,
    ),
    Method(
        "mass",
        "MaSS",
        crossed(
            spaced(5e-3, 10, 10), {"alpha": 0.05, "kappa_tilde": 2.0}, {"alpha": 0.01, "kappa_tilde": 10.0}
        ),
        _mass,
    ),
    Method("recommended", "MaSS, recommended", ({},), _recommended),
    Method("adam-default", "Adam, default", ({},), _adam),
    Method("schedule-free", "schedule-free AdamW", ({},), _schedule_free),
    Method("prodigy", "Prodigy", ({},), _prodigy),
)
BY_NAME = {method.name: method for method in METHODS}
TUNED = tuple(method.name for method in METHODS if method.tuned)
RIVALS = ("adam-default", "schedule-free", "prodigy")
