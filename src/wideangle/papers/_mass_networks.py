"""The claims of `mass` about networks: an MLP on digits at several step sizes, the same for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wideangle import seeds
from wideangle.data import Dataset
from wideangle.document import Figure, Series, Table
from wideangle.optim import MaSS
from wideangle.papers._frame import Finding, Setting

BATCH = 32
METHODS = ("SGD", "Nesterov 0.9", "MaSS (0.05, 3)", "MaSS (0.05, 12)", "MaSS (0.05, 2)")
ADAM = "Adam, step 0.001"
LEAST = 0.01  # difference in test accuracy that says something
KEPT = {  # another implementation and start: step, method -> training loss after 60 epochs, median of 3 seeds
    (0.05, "SGD"): 5.4e-3,
    (0.05, "Nesterov 0.9"): 8.9e-5,
    (0.05, "MaSS (0.05, 3)"): 6.4e-4,
    (0.2, "SGD"): 5.6e-4,
    (0.2, "Nesterov 0.9"): math.log(10),
    (0.2, "MaSS (0.05, 3)"): 3.1e-5,
    (0.2, "MaSS (0.05, 2)"): 3.0e-5,
    (0.4, "SGD"): 2.1e-4,
    (0.4, "Nesterov 0.9"): math.log(10),
    (0.4, "MaSS (0.05, 3)"): math.log(10),
    (0.4, "MaSS (0.05, 12)"): 1.1e-4,
    (0.4, "MaSS (0.05, 2)"): math.log(10),
}
Maker = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Run:
    """The loss over all training samples after each epoch, and the test accuracy after the last."""

    losses: list[float]
    accuracy: float

    @property
    def last(self) -> float:
        """The last loss, infinite where it is not finite."""
        return self.losses[-1] if math.isfinite(self.losses[-1]) else math.inf


def maker(method: str, step: float) -> Maker:
    """Return what makes the optimiser of a method at a step size."""
    made: dict[str, Maker] = {
        "SGD": lambda params: torch.optim.SGD(params, step),
        "Nesterov 0.9": lambda params: torch.optim.SGD(params, step, momentum=0.9, nesterov=True),
        "MaSS (0.05, 3)": lambda params: MaSS(params, step, 0.05, 3.0),
        "MaSS (0.05, 12)": lambda params: MaSS(params, step, 0.05, 12.0),
        "MaSS (0.05, 2)": lambda params: MaSS(params, step, 0.05, 2.0),
        ADAM: lambda params: torch.optim.Adam(params, 0.001),
    }
    return made[method]


class Stack(nn.Module):
    """Networks 64-100-100-100-10 with ReLU, one a seed, weights N(0, 2 / inputs), biases 0, trained side by side.

    Optimisers that act on each weight alone treat them as separate runs.
    """

    def __init__(self, run_seeds: list[int]) -> None:
        super().__init__()
        draws = [seeds.generator(seed, "papers", "mass", "mlp") for seed in run_seeds]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in ((64, 100), (100, 100), (100, 100), (100, 10)):
            drawn = torch.stack([torch.randn(inputs, outputs, generator=g) for g in draws])
            self.weights.append(nn.Parameter(drawn * math.sqrt(2.0 / inputs)))
            self.biases.append(nn.Parameter(torch.zeros(len(draws), 1, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (seeds, n, 10) of inputs (seeds, n, 64)."""
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x if k == 0 else x.relu(), weight)
        return x


def _losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of each network, (seeds,)."""
    return functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="none").mean(1)


def train(make: Maker, train_set: Dataset, test_set: Dataset, epochs: int, run_seeds: list[int]) -> list[Run]:
    """Train on shuffled batches of 32, one run a seed; MaSS is judged at its iterate w."""
    net = Stack(run_seeds)
    optimiser = make(net.parameters())
    x, y, count = train_set.x.flatten(1), train_set.y, len(run_seeds)
    whole, z = (s.x.flatten(1).expand(count, -1, -1) for s in (train_set, test_set))
    orders = [seeds.generator(seed, "papers", "mass", "order") for seed in run_seeds]
    curves: list[list[float]] = []
    right = torch.zeros(count)
    for _ in range(epochs):
        shuffled = torch.stack([torch.randperm(len(x), generator=order) for order in orders])
        for batch in shuffled.split(BATCH, dim=1):
            optimiser.zero_grad()
            _losses(net(x[batch]), y[batch]).sum().backward()
            optimiser.step()
        with torch.no_grad(), optimiser.eval_params() if isinstance(optimiser, MaSS) else nullcontext():
            curves.append(_losses(net(whole), y.expand(count, -1)).tolist())
            right = (net(z).argmax(2) == test_set.y).double().mean(1)
    return [Run([row[k] for row in curves], float(right[k])) for k in range(count)]


def steps_of(setting: Setting) -> tuple[float, ...]:
    """Return the step sizes of the comparison."""
    return (0.05, 0.2) if setting.size == "smoke" else (0.05, 0.1, 0.2, 0.4)


def _seeds(setting: Setting) -> list[int]:
    return setting.at_least(3)


def runs(setting: Setting) -> dict[tuple[float, str], list[Run]]:
    """Return every run, by step size and method, one a seed."""

    def make() -> dict[tuple[float, str], list[Run]]:
        train_set, test_set = setting.load("digits", None), setting.load("digits", None, split="test")
        epochs, found = setting.pick(15, 60, 60), {}
        for step in steps_of(setting):
            for method in METHODS:
                found[step, method] = train(maker(method, step), train_set, test_set, epochs, _seeds(setting))
        found[0.001, ADAM] = train(maker(ADAM, 0.001), train_set, test_set, epochs, _seeds(setting))
        return found

    return setting.once("mass networks", make)


def loss_of(found: dict[tuple[float, str], list[Run]], step: float, method: str) -> float:
    """Return the median last loss over seeds."""
    return float(np.median([run.last for run in found[step, method]]))


def _table(found: dict[tuple[float, str], list[Run]]) -> Table:
    cells = []
    for (step, method), of_seeds in found.items():
        last = [run.last for run in of_seeds]
        stuck = sum(loss > 1 for loss in last)
        scores = float(np.median([run.accuracy for run in of_seeds]))
        cells.append(
            [
                step,
                method,
                float(np.median(last)),
                min(last),
                max(last),
                stuck,
                scores,
                KEPT.get((step, method)),
            ]
        )
    heads = [
        "step",
        "method",
        "median loss",
        "least",
        "most",
        "runs stuck above 1",
        "test accuracy",
        "kept loss",
    ]
    return Table(
        "Last training loss of an MLP on digits", heads, cells, "the loss after the last epoch, not the best"
    )


def _figure(found: dict[tuple[float, str], list[Run]], step: float) -> Figure:
    curves = {method: found[step, method][0].losses for method in METHODS}
    curves[ADAM] = found[0.001, ADAM][0].losses
    return Figure(
        title=f"MLP on digits, step {step:g}",
        x_label="epoch",
        y_label="training loss",
        y_log=True,
        series=[Series(name, [float(t + 1) for t in range(len(c))], list(c)) for name, c in curves.items()],
        caption="Nesterov's method is stuck at log 10, all outputs alike; one seed.",
    )


def stable_where_nesterov_is_not(setting: Setting) -> Finding:
    """At a step that suits SGD, Nesterov's method is stuck; MaSS trains, and faster than SGD."""
    found, step = runs(setting), 0.2
    loss = {method: loss_of(found, step, method) for method in METHODS}
    ours, best = min((loss[method], method) for method in METHODS[2:4])
    return Finding(
        loss["SGD"] < 0.1 and loss["Nesterov 0.9"] > 1 and ours < loss["SGD"],
        f"step {step:g}: " + ", ".join(f"{method} {value:.2g}" for method, value in loss.items()),
        "last training loss, median over seeds; holds where Nesterov stays above 1 and the better of MaSS with "
        "kappa_tilde 3 and 12 is below SGD",
        _seeds(setting),
        figures=[_figure(found, step)],
        tables=[_table(found)],
        headline=f"MLP on digits at step {step:g}: Nesterov's method stays at {loss['Nesterov 0.9']:.2g}, {best} "
        f"reaches {ours:.1e}, SGD {loss['SGD']:.1e}.",
    )


def ahead_at_every_step(setting: Setting) -> Finding:
    """MaSS is ahead of SGD and of Nesterov's method at every step size."""
    found, words, holds = runs(setting), [], True
    for step in steps_of(setting):
        plain, nesterov, ours = (loss_of(found, step, method) for method in METHODS[:3])
        holds &= ours < min(nesterov, plain)
        words.append(f"step {step:g}: MaSS(3) {ours:.2g}, Nesterov {nesterov:.2g}, SGD {plain:.2g}")
    return Finding(
        holds,
        "; ".join(words),
        "at a small step Nesterov's method is ahead: a steady gradient moves it 10 steps, MaSS(3) under 4",
        _seeds(setting),
    )


def tuned(setting: Setting) -> Finding:
    """Each at its best step: MaSS ahead of Nesterov's method, which is ahead of SGD."""
    found, best = runs(setting), {}
    for method in METHODS[:3]:
        best[method] = min((loss_of(found, step, method), step) for step in steps_of(setting))
    plain, nesterov, ours = (best[method][0] for method in METHODS[:3])
    adam = loss_of(found, 0.001, ADAM)
    return Finding(
        ours < nesterov < plain,
        ", ".join(f"{method} {loss:.2g} (step {step:g})" for method, (loss, step) in best.items())
        + f"; {ADAM} {adam:.2g}",
        f"steps {', '.join(f'{step:g}' for step in steps_of(setting))} for each, MaSS at kappa_tilde = 3 only",
        _seeds(setting),
    )


def test_accuracy(setting: Setting) -> Finding:
    """MaSS has the highest test accuracy, each at its best step."""
    found, best = runs(setting), {}
    for method in METHODS[:3]:
        step = min((loss_of(found, step, method), step) for step in steps_of(setting))[1]
        scores = [run.accuracy for run in found[step, method]]
        best[method] = (float(np.mean(scores)), float(np.std(scores, ddof=1)))
    rivals = max(best["SGD"][0], best["Nesterov 0.9"][0])
    ours = best["MaSS (0.05, 3)"]
    return Finding(
        ours[0] > rivals + LEAST,
        ", ".join(f"{method} {mean:.3f} +- {spread:.3f}" for method, (mean, spread) in best.items()),
        f"at the step of the least training loss; holds where MaSS is ahead by more than {LEAST:g}: with 355 test "
        "images a smaller difference says nothing",
        _seeds(setting),
    )
