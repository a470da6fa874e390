"""The training loop: plain PyTorch, one step readable at a glance, resumable to the bit."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.errors import NumericsError
from wideangle.kernel._model import Batch, OutputPick, batch_size, take
from wideangle.kernel._push import pick_tensor
from wideangle.progress import track
from wideangle.seeds import generator
from wideangle.targets import accuracy, loss_function
from wideangle.training import _checkpoint
from wideangle.training._recipe import Recipe, make_optimizer

__all__ = ["DivergedError", "Interrupt", "Run", "log_spaced", "private_randomness"]

SLICE = 1024


class DivergedError(NumericsError):
    """The loss of a batch was not finite; carries the step and the value."""

    def __init__(self, step: int, value: float):
        super().__init__(f"the loss became {value} at step {step}")
        self.step, self.value = step, value


class Interrupt:
    """Turns the first Ctrl-C into a flag read between steps; a second one interrupts at once."""

    pressed = False

    def __enter__(self) -> Interrupt:
        self._before: Any = None
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: object) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


def log_spaced(steps: int, extra: list[int]) -> list[int]:
    """Return the steps at which to evaluate: 0, about eight a decade, the last, and those of `extra`."""
    decades = math.log10(max(steps, 1))
    grid = {0, steps, *(round(10 ** (k / 8)) for k in range(math.ceil(8 * decades)))}
    stride = max(1, math.ceil(len(extra) / 60))
    return sorted(step for step in grid | set(extra[::stride]) if 0 <= step <= steps)


class Run:
    """The state of a training run: model, optimiser, step number and what was measured on the way."""

    def __init__(
        self, model: nn.Module, x: Batch, y: Tensor, recipe: Recipe, output: OutputPick, facts: dict[str, str]
    ):
        self.model, self.x, self.y, self.recipe, self.output = model, x, y, recipe, output
        self.facts = facts
        self.samples = batch_size(x)
        self.loss = loss_function(recipe.loss)
        self.optimizer = make_optimizer(recipe, model)
        self.step = 0
        self.saved: int | None = None
        self.losses: dict[int, float] = {}
        self.accuracies: dict[int, float] = {}
        self.device = y.device
        self._starts = self._batch_starts()
        self._order: tuple[int, Tensor] | None = None

    def _batch_starts(self) -> list[int]:
        size = self.recipe.batch_size
        if self.recipe.optimizer in ("mass", "nesterov"):
            # no small last batch: its curvature is not the one the step was made for
            whole = self.samples // size
            return [part * self.samples // whole for part in range(whole)]
        starts = list(range(0, self.samples, size))
        if self.recipe.batch_size > 1 and len(starts) > 1 and self.samples - starts[-1] == 1:
            starts.pop()  # BatchNorm cannot take a batch of one
        return starts

    def rows(self, step: int) -> Tensor | slice:
        """Return the samples of a step: every sample once an epoch, in an order drawn from the seed."""
        if len(self._starts) == 1:
            return slice(0, self.samples)
        epoch, place = divmod(step, len(self._starts))
        if self._order is None or self._order[0] != epoch:
            draw = generator(self.recipe.seed, "train", "epoch", epoch)
            self._order = (epoch, torch.randperm(self.samples, generator=draw).to(self.device))
        ends = [*self._starts[1:], self.samples]
        return self._order[1][self._starts[place] : ends[place]]

    def advance(self) -> None:
        """Do one step of the optimiser.

        Raises:
            DivergedError: the loss of the batch is not finite; the parameters are not moved.
        """
        rows = self.rows(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for part, target, weight in self._slices(take(self.x, rows), self.y[rows]):
            loss = weight * self.loss(self._outputs(part), target)
            loss.backward()
            value += float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(self.step, value)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        self.optimizer.step()
        self.step += 1

    def measure(self) -> tuple[float, float | None]:
        """Return loss and accuracy on all samples at the present weights, in eval mode."""
        with torch.no_grad(), _mode(self.model, training=False):
            parts = [self._outputs(part) for part, _, _ in self._slices(self.x, self.y)]
            outputs = torch.cat(parts)
            return float(self.loss(outputs, self.y)), accuracy(outputs, self.y)

    def evaluate(self) -> None:
        """Record what `measure` returns."""
        self.losses[self.step], share = self.measure()
        if share is not None:
            self.accuracies[self.step] = share

    def _outputs(self, part: Batch) -> Tensor:
        raw = self.model(**part) if isinstance(part, dict) else self.model(part)
        return pick_tensor(raw, self.output)

    def _slices(self, x: Batch, y: Tensor) -> Iterator[tuple[Batch, Tensor, float]]:
        """Cut a large batch: the weighted sum of the slices' losses is its loss, in less memory."""
        count = len(y)
        if count <= SLICE or _coupled(self.model):
            yield x, y, 1.0
            return
        for begin in range(0, count, SLICE):
            rows = slice(begin, begin + SLICE)
            yield take(x, rows), y[rows], len(y[rows]) / count

    def save(self, path: Path) -> None:
        """Write a checkpoint; the caller has seen that the loss is finite."""
        state = {
            "fingerprint": self.facts,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "steps": self.recipe.steps,
            "losses": [[step, value] for step, value in self.losses.items()],
            "accuracies": [[step, value] for step, value in self.accuracies.items()],
            "random": _random_state(self.device),
        }
        _checkpoint.write(path, state)
        self.saved = self.step

    def load(self, path: Path, wanted: list[int]) -> None:
        """Take up the run stored at `path`; of its measurements those at the steps `wanted` are kept."""
        state = _checkpoint.read(path, self.facts)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = self.saved = state["step"]
        self.losses = {step: value for step, value in state["losses"] if step in wanted}
        self.accuracies = {step: value for step, value in state["accuracies"] if step in wanted}
        _set_random_state(state["random"], self.device)

    def go(self, wanted: list[int], checkpoint: Path | None, every: int, interrupt: Interrupt) -> None:
        """Train to the end, or to the first Ctrl-C; evaluate at the steps `wanted`."""
        points = set(wanted)
        with _mode(self.model, training=True):
            for _ in track(range(self.step, self.recipe.steps), "training"):
                if interrupt.pressed:
                    break
                if self.step in points and self.step not in self.losses:
                    self.evaluate()
                self.advance()
                due = self.step % every == 0 and self.step < self.recipe.steps
                if checkpoint is not None and due and math.isfinite(self.measure()[0]):
                    self.save(checkpoint)
        self.evaluate()
        if not math.isfinite(self.losses[self.step]):
            raise DivergedError(self.step, self.losses.pop(self.step))
        if checkpoint is not None:
            self.save(checkpoint)


def _coupled(model: nn.Module) -> bool:
    return any(m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Switch the mode and give every layer its own back; a model already in train mode stays as it is."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        if not training or not model.training:
            model.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def private_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Let dropout draw from the run's own stream; torch's generators are afterwards as they were before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        states = [generator(seed, "train", "layers").get_state()]
        if device.type == "cuda":
            states.append(generator(seed, "train", "layers", device=str(device)).get_state())
        _set_random_state(states, device)
        yield


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
