"""What a training run does: the values of a plan, where an argument did not replace them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from wideangle.errors import InputError
from wideangle.names import unknown_name
from wideangle.optim.mass import MaSS
from wideangle.plan import Plan
from wideangle.targets import LOSSES

__all__ = ["OPTIMIZERS", "Recipe", "make_optimizer", "make_recipe"]

DEFAULT_STEPS = 1000
OPTIMIZERS: dict[str, str] = {
    "sgd": "gradient descent with heavy-ball momentum",
    "nesterov": "gradient descent with Nesterov momentum",
    "mass": "MaSS: momentum with a compensation for the noise of batches",
    "adam": "Adam",
    "adamw": "Adam with decoupled weight decay",
}


@dataclass(frozen=True)
class Recipe:
    """The settings of one run; `source` says of each whether it is from the plan, an argument or neither."""

    loss: str
    step_size: float
    batch_size: int
    optimizer: str
    momentum: float
    warmup_steps: int
    steps: int
    seed: int
    kappa_tilde: float = 1.0
    source: dict[str, str] = field(default_factory=dict)

    def rate(self, step: int) -> float:
        """Return the step size of step number `step` (from 0): rising linearly during the warm-up."""
        return self.step_size * min(1.0, (step + 1) / max(self.warmup_steps, 1))

    def critical_factor(self) -> float | None:
        """Return k, so that the method is stable for step < k / sharpness; None where no such k is known."""
        if self.optimizer == "sgd":
            return 2.0 * (1 + self.momentum)
        if self.optimizer == "nesterov" or (self.optimizer == "mass" and self.kappa_tilde == 1):
            return 2.0 * (1 + self.momentum) / (1 + 2 * self.momentum)
        return None


def make_recipe(plan: Plan, samples: int, given: dict[str, Any]) -> Recipe:
    """Return the checked settings for `samples` samples; an entry of `given` that is not None wins.

    Raises:
        InputError: no step size at all, or a value of the wrong kind or out of its range.
    """
    found: dict[str, Any] = {}
    source: dict[str, str] = {}
    planned = {
        "loss": plan.loss,
        "step_size": plan.step_size.value,
        "batch_size": plan.batch_size.value,
        "optimizer": plan.optimizer.value,
        "momentum": plan.momentum.value,
        "kappa_tilde": plan.kappa_tilde.value,
        "warmup_steps": plan.warmup_steps.value,
        "steps": plan.stop.value,
        "seed": plan.seed,
    }
    fallback = {
        "batch_size": samples,
        "optimizer": "sgd",
        "momentum": 0.0,
        "kappa_tilde": 1.0,
        "warmup_steps": 0,
        "steps": _last_predicted(plan) or DEFAULT_STEPS,
    }
    for name, value in planned.items():
        ranked = (("argument", given.get(name)), ("plan", value), ("default", fallback.get(name)))
        chosen = next(((origin, item) for origin, item in ranked if item is not None), None)
        if chosen is None:
            raise InputError(
                f"the plan has no {name} and none was given; pass {name}=..., or make a plan with "
                "`wideangle checkup`"
            )
        source[name], found[name] = chosen
    return Recipe(source=source, **_checked(found, samples))


def _last_predicted(plan: Plan) -> int | None:
    return int(max(point[0] for point in plan.predicted_loss)) if plan.predicted_loss else None


def _checked(found: dict[str, Any], samples: int) -> dict[str, Any]:
    if found["loss"] not in LOSSES:
        raise unknown_name("loss", found["loss"], LOSSES)
    name = str(found["optimizer"]).lower()
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", found["optimizer"], OPTIMIZERS)
    step_size = _number("step_size", found["step_size"])
    momentum = _number("momentum", found["momentum"])
    if step_size <= 0:
        raise InputError(f"step_size must be above 0, got {step_size:g}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must lie in [0, 1), got {momentum:g}")
    if name in ("nesterov", "mass") and momentum == 0:
        raise InputError(f"the optimizer {name!r} needs a momentum above 0; give momentum=0.9, or use 'sgd'")
    kappa_tilde = _number("kappa_tilde", found["kappa_tilde"])
    if kappa_tilde < 1:
        raise InputError(f"kappa_tilde must be at least 1 (Nesterov's method), got {kappa_tilde:g}")
    return {
        "loss": found["loss"],
        "step_size": step_size,
        "batch_size": min(_whole("batch_size", found["batch_size"], 1), samples),
        "optimizer": name,
        "momentum": momentum,
        "kappa_tilde": kappa_tilde if name == "mass" else 1.0,
        "warmup_steps": _whole("warmup_steps", found["warmup_steps"], 0),
        "steps": _whole("steps", found["steps"], 1),
        "seed": _whole("seed", found["seed"], None),
    }


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _whole(name: str, value: Any, least: int | None) -> int:
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not whole or value != int(value) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise InputError(f"{name} must be a whole number{bound}, got {value!r}")
    return int(value)


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the torch optimiser of a recipe over the parameters that require a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimizer in ("sgd", "nesterov"):
        nesterov = recipe.optimizer == "nesterov"
        return torch.optim.SGD(parameters, lr=recipe.step_size, momentum=recipe.momentum, nesterov=nesterov)
    if recipe.optimizer == "mass":
        alpha = (1 - recipe.momentum) / (1 + recipe.momentum)
        return MaSS(parameters, lr=recipe.step_size, alpha=alpha, kappa_tilde=recipe.kappa_tilde)
    betas = (recipe.momentum if recipe.source.get("momentum") != "default" else 0.9, 0.999)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=recipe.step_size, betas=betas)
