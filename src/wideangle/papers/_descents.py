"""What the runs share: two digits, a tanh net, gradient descent with its states, a word on few seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wideangle import nets, seeds
from wideangle.papers._frame import Setting, SkippedError
from wideangle.papers._samples import unit

State = dict[str, Tensor]


def two_digits(setting: Setting, n: int, seed: int, name: str = "digits") -> tuple[Tensor, Tensor]:
    """Return n zeros and ones, |x| = sqrt(d) (so that W x / sqrt(d) is W times a unit vector), labels -1, 1.

    Raises:
        SkippedError: the data set is not there.
    """
    found = setting.load(name, None if name == "digits" else max(2000, 12 * n), seed=seed)
    rows = torch.nonzero(found.y < 2).flatten()
    draws = seeds.generator(seed, "papers", "two digits")
    rows = rows[torch.randperm(len(rows), generator=draws)[:n]]
    if len(rows) < n:
        raise SkippedError(f"{name} has {len(rows)} zeros and ones among those read, {n} are needed")
    x = unit(found.x[rows])
    return x * math.sqrt(x.shape[1]), found.y[rows].double()[:, None] * 2 - 1


def tanh_net(d: int, width: int, seed: int) -> nn.Module:
    """Return f = v . tanh(W x / sqrt(d)) / sqrt(width) with N(0, 1) weights, float64."""
    draws = seeds.generator(seed, "papers", "tanh net", width)
    return nets.MLP(d, 1, width=width, depth=1, activation="tanh", gain=False, generator=draws).double()


def state_of(model: nn.Module) -> State:
    """Return a copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@dataclass
class Descent:
    """A run of gradient descent on L = 1/2 |F - y|^2: its losses, and states at some of its steps."""

    losses: list[float]
    times: list[int]
    states: list[State]


def descent(
    model: nn.Module, x: Tensor, y: Tensor, step: float, steps: int, looks: int, until: float = 0.0
) -> Descent:
    """Run gradient descent in place, keeping about `looks` states, evenly in the logarithm of the step.

    It stops where the loss is at most `until` or not finite; the last state is kept.
    """
    wanted = {0, steps, *(int(t) for t in np.unique(np.geomspace(1, steps, max(looks - 1, 2)).round()))}
    run = Descent([], [], [])
    parameters = [p for p in model.parameters() if p.requires_grad]
    for t in range(steps + 1):
        loss = (model(x) - y).square().sum() / 2
        value = float(loss.detach())
        run.losses.append(value)
        ended = value <= until or not math.isfinite(value)
        if t in wanted or ended:
            run.times.append(t)
            run.states.append(state_of(model))
        if ended:
            break
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=step)
    return run


def few_seeds(setting: Setting) -> str:
    """Return what a slope at size smoke has to be read with, empty at the other sizes."""
    if setting.size != "smoke":
        return ""
    return (
        "; few seeds and widths at size smoke: near a limit the verdict depends on the draw, size cpu decides"
    )


def slope_of(x: list[float], y: list[float]) -> float:
    """Return the least-squares slope of log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
