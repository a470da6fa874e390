"""The official recipe of `mass`: ResNet-32 on CIFAR-10 for 300 epochs, on a GPU; it stops and goes on at any epoch."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wideangle import seeds
from wideangle.data import Dataset
from wideangle.document import Figure, Series, Table
from wideangle.errors import InputError
from wideangle.files import digest, write_atomically
from wideangle.optim import MaSS
from wideangle.papers._frame import Finding, Setting, SkippedError
from wideangle.papers._mass_resnet import PARAMETERS, CifarResNet, augmented

FOLDER = "mass-cifar10-runs"
PUBLISHED = 92.8  # the authors' code: "on average"
METHODS = ("SGD", "Nesterov", "MaSS", "Adam")


@dataclass(frozen=True)
class Recipe:
    """The settings of one run; the defaults are the authors'.

    From each epoch of `drops` on (counted from 0) the step is a tenth, and the optimiser is made anew, its
    momentum with it.
    """

    method: str = "MaSS"
    step: float = 0.1
    epochs: int = 300
    drops: tuple[int, ...] = (150, 225)
    batch: int = 64
    alpha: float = 0.05
    kappa_tilde: float = 2.0
    momentum: float = 0.9
    penalty: float = 1e-4
    blocks: int = 5

    def step_at(self, epoch: int) -> float:
        """Return the step size in an epoch, counted from 0."""
        return self.step * 0.1 ** sum(epoch >= drop for drop in self.drops)

    def optimiser(self, net: CifarResNet, epoch: int) -> torch.optim.Optimizer:
        """Return a fresh optimiser for an epoch."""
        groups, step = net.groups(self.penalty), self.step_at(epoch)
        made: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "SGD": lambda: torch.optim.SGD(groups, step),
            "Nesterov": lambda: torch.optim.SGD(groups, step, momentum=self.momentum, nesterov=True),
            "MaSS": lambda: MaSS(groups, step, self.alpha, self.kappa_tilde),
            "Adam": lambda: torch.optim.Adam(groups, step),
        }
        if self.method not in made:
            raise InputError(f"unknown method {self.method!r}; known are {', '.join(made)}")
        return made[self.method]()


@dataclass(frozen=True)
class History:
    """After each epoch: mean training loss of its batches (without the penalty), and test accuracy in percent."""

    losses: list[float]
    accuracies: list[float]


def centred(train_set: Dataset, test_set: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return both sets on the device, the mean image of the training set subtracted."""
    mean = train_set.x.mean(0)
    return (train_set.x - mean).to(device), (test_set.x - mean).to(device)


def train(
    recipe: Recipe,
    train_set: Dataset,
    test_set: Dataset,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    stop_after: int | None = None,
) -> History:
    """Return the history of a run, going on from `checkpoint` where it holds the same run.

    Draws depend on the seed and the epoch alone, so a run that was stopped goes on as if it had not been.
    A loss that is not finite ends the run.

    Args:
        recipe: the settings.
        train_set: images (n, 3, 32, 32) in [0, 1] with labels.
        test_set: the same for testing.
        seed: for weights, order and augmentation.
        device: where to train.
        checkpoint: file written after each epoch.
        stop_after: stop after this many epochs in all.

    Raises:
        InputError: the checkpoint is damaged, or of another recipe, seed or data set.
    """
    net = CifarResNet(recipe.blocks, train_set.classes, seed).to(device)
    optimiser, epoch, history = recipe.optimiser(net, 0), 0, History([], [])
    facts = {name: str(value) for name, value in asdict(recipe).items()} | {"seed": str(seed)}
    facts |= {"images": digest(train_set.x), "labels": digest(train_set.y), "test images": digest(test_set.x)}
    if checkpoint is not None and checkpoint.exists():
        state = _read(checkpoint, facts)
        epoch, history = state["epoch"], History(state["losses"], state["accuracies"])
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
    x, z = centred(train_set, test_set, device)
    y, t = train_set.y.to(device), test_set.y.to(device)
    while epoch < min(recipe.epochs, stop_after or recipe.epochs) and all(map(math.isfinite, history.losses)):
        if epoch in recipe.drops:
            optimiser = recipe.optimiser(net, epoch)
        draws = seeds.generator(seed, "papers", "mass", "cifar10", epoch)
        history.losses.append(_epoch(net, optimiser, x, y, recipe.batch, draws))
        history.accuracies.append(_accuracy(net, z, t))
        epoch += 1
        if checkpoint is not None:
            _write(checkpoint, facts, net, optimiser, epoch, history)
    return history


def _epoch(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    batch: int,
    draws: torch.Generator,
) -> float:
    net.train()
    total, count = torch.zeros((), device=x.device), 0
    for rows in torch.randperm(len(x), generator=draws).split(batch):
        rows = rows.to(x.device)
        loss = functional.cross_entropy(net(augmented(x[rows], draws)), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total, count = total + loss.detach(), count + 1
    return float(total) / count


def _accuracy(net: nn.Module, z: Tensor, t: Tensor) -> float:
    """Return the test accuracy in percent at the network's weights u, which its batch statistics belong to."""
    net.eval()
    with torch.no_grad():
        right = sum(
            int((net(a).argmax(1) == b).sum()) for a, b in zip(z.split(500), t.split(500), strict=True)
        )
    return 100.0 * right / len(z)


def _write(
    path: Path,
    facts: dict[str, str],
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    epoch: int,
    history: History,
) -> None:
    state = {
        "facts": facts,
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "epoch": epoch,
        **asdict(history),
    }
    write_atomically(path, lambda file: torch.save(state, file))


def _read(path: Path, facts: dict[str, str]) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        there = state["facts"]
        missing = [key for key in ("net", "optimiser", "epoch", "losses", "accuracies") if key not in state]
        if missing:
            raise KeyError(missing[0])
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        OSError,
        pickle.UnpicklingError,
    ) as error:
        raise InputError(f"{path} is no readable checkpoint of this run; remove it to start anew") from error
    differ = [name for name in facts if there.get(name) != facts[name]]
    if differ:
        shown = "; ".join(f"{name}: {there.get(name)} there, {facts[name]} here" for name in differ)
        raise InputError(f"{path} is of another run ({shown}); move it away, or run in another folder")
    return state


def _device() -> torch.device:
    """Return the GPU.

    Raises:
        SkippedError: there is none; one epoch takes minutes on a processor.
    """
    if not torch.cuda.is_available():
        raise SkippedError(
            "needs a CUDA device: 300 epochs of ResNet-32 take an hour or two there, days on a processor"
        )
    return torch.device("cuda")


def recipes() -> list[Recipe]:
    """Return the runs of the comparison: four methods, Adam at its usual step."""
    return [Recipe(method=method, step=0.001 if method == "Adam" else 0.1) for method in METHODS]


def official_recipe(setting: Setting) -> Finding:
    """ResNet-32 on CIFAR-10 by the authors' recipe: MaSS reaches 92.8 % and is ahead of SGD and Nesterov."""
    if setting.size != "paper":
        raise SkippedError(
            "needs 300 epochs of ResNet-32 on CIFAR-10 for four methods and three seeds (some 15 GPU hours): run "
            "it at size paper"
        )
    train_set, test_set = setting.load("cifar10", None), setting.load("cifar10", None, split="test")
    device = _device()
    folder = Path(os.environ.get("WIDEANGLE_RUNS", FOLDER))
    cells, series, means = [], [], {}
    for recipe in recipes():
        histories = []
        for seed in setting.seeds[:3]:
            file = folder / f"{recipe.method}-{recipe.step:g}-seed{seed}.pt"
            histories.append(train(recipe, train_set, test_set, seed, device, file))
        last = [h.accuracies[-1] for h in histories]
        means[recipe.method] = float(np.mean(last))
        spread = float(np.std(last, ddof=1)) if len(last) > 1 else None
        cells.append(
            [recipe.method, recipe.step, means[recipe.method], spread, *(h.losses[-1] for h in histories)]
        )
        first = histories[0]
        epochs = [float(e + 1) for e in range(len(first.losses))]
        series.append(Series(recipe.method, epochs, list(first.losses)))
    heads = ["method", "step", "test accuracy [%]", "spread"]
    heads += [f"last loss, seed {seed}" for seed in setting.seeds[:3]]
    return Finding(
        abs(means["MaSS"] - PUBLISHED) < 0.5 and means["MaSS"] > max(means["SGD"], means["Nesterov"]),
        ", ".join(f"{method} {mean:.2f} %" for method, mean in means.items()) + f"; published {PUBLISHED} %",
        f"accuracy after the last epoch, {PARAMETERS:,} parameters; checkpoints in {folder} (WIDEANGLE_RUNS); holds "
        "within half a point of the published mean, MaSS ahead",
        setting.seeds[:3],
        figures=[
            Figure("ResNet-32 on CIFAR-10", "epoch", "training loss", series, y_log=True, caption="One seed.")
        ],
        tables=[Table("ResNet-32 on CIFAR-10, the authors' recipe", heads, cells)],
    )
