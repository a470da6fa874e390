"""One training run of the zero-search benchmark, and the folder that holds what has been run.

The training loss is read on the same 1,024 training rows, in evaluation mode, every quarter of a pass. What a
method spends on measurements counts as passes: the run ends where both together reach the budget.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from zero_search_methods import BY_NAME, Setting, Trainer, setting_name
from zero_search_tasks import PASSES, Problem, Task, initial_model, prepared

from wideangle.errors import WideangleError
from wideangle.files import write_atomically

RULES = "1"  # raised when a rule changes, so that no result of an older rule is used
READS_A_PASS = 4
GRID_SEED = 0
STUCK_AFTER, STUCK_ABOVE = 4, 0.97  # a grid run ends where four passes took the loss to no less than 97 %
TARGET_SHARE = 0.8  # of the budget, where tuned SGD sets the target

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What identifies a run: task, method, setting and seed, at a number of passes."""

    task: Task
    method: str
    setting: tuple[tuple[str, float], ...]
    seed: int
    passes: int = PASSES

    @property
    def name(self) -> str:
        """The name of the run's file, without its ending."""
        rules = RULES if self.passes == PASSES else f"{RULES}.{self.passes}-passes"
        return f"{self.task.name}/{self.method}__{setting_name(dict(self.setting))}__{self.seed}__{rules}"


def train(run: Run) -> Record:
    """Return the record of a run: its curve, last training loss, test accuracy, measurements and seconds.

    A batch loss or a reading that is not finite ends the run, which then counts as diverged; so does an error
    of the library, whose text is kept as "failed", and in a grid no progress in four passes, "stuck".
    """
    problem = prepared(run.task, run.passes)
    model = initial_model(problem, run.seed)
    setting: Setting = dict(run.setting)
    start = time.perf_counter()
    try:
        trainer = BY_NAME[run.method].build(model, problem, setting, run.seed)
        curve = [[trainer.measured, reading(model, problem, trainer)]]
        diverged = not follow(model, problem, trainer, run.seed, curve)
    except WideangleError as error:  # no measurement, no recommendation: a run that never gets there
        trainer = Trainer(torch.optim.SGD(model.parameters()), notes={"failed": str(error)})
        curve, diverged = [[0.0, reading(model, problem, trainer)]], True
    accuracy = math.nan if diverged else test_accuracy(model, problem, trainer)
    return {
        "task": run.task.name,
        "method": run.method,
        "setting": setting,
        "seed": run.seed,
        "rules": RULES,
        "budget": run.passes,
        "curve": curve,
        "final_loss": math.inf if diverged else curve[-1][1],
        "test_accuracy": accuracy,
        "diverged": diverged,
        "measured_passes": trainer.measured,
        "measuring_seconds": trainer.measuring,
        "seconds": time.perf_counter() - start,
        **trainer.notes,
    }


def follow(model: nn.Module, problem: Problem, trainer: Trainer, seed: int, curve: list[list[float]]) -> bool:
    """Train to the end of the budget and add to the curve; return False where it diverged or is stuck."""
    steps = problem.steps_a_pass
    parts = range(1, problem.passes * READS_A_PASS + 1)
    read_after = {round(part * steps / READS_A_PASS) for part in parts}
    done = 0

    def read() -> bool:
        curve.append([trainer.measured + done / steps, reading(model, problem, trainer)])
        return math.isfinite(curve[-1][1])

    model.train()
    for rows in problem.batches(seed):
        if trainer.measured + (done + 1) / steps > problem.passes + 1e-9:
            break
        loss = problem.loss(model(problem.x[rows]), problem.y[rows])
        if not math.isfinite(loss.item()):
            return False
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()
        done += 1
        if done in read_after:
            if not read():
                return False
            if seed == GRID_SEED and stuck(curve):
                trainer.notes["stuck"] = True
                return False
            trainer.remeasure(done / steps)
    return done in read_after or read()


def stuck(curve: list[list[float]]) -> bool:
    """Return whether no reading of the first four passes is below 97 % of the first: no winner starts so."""
    first = curve[0][1]
    return curve[-1][0] >= STUCK_AFTER and all(loss >= STUCK_ABOVE * first for _, loss in curve)


@torch.no_grad()
def reading(model: nn.Module, problem: Problem, trainer: Trainer) -> float:
    """Return the training loss on the watched rows, in evaluation mode, at what the method returns."""
    outputs = _outputs(model, problem.x[problem.watched], trainer)
    return float(problem.loss(outputs, problem.y[problem.watched]))


def test_accuracy(model: nn.Module, problem: Problem, trainer: Trainer) -> float:
    """Return the share of test rows classified as they should."""
    outputs = _outputs(model, problem.test_x, trainer)
    return float((outputs.argmax(1) == problem.test_labels).float().mean())


@torch.no_grad()
def _outputs(model: nn.Module, x: torch.Tensor, trainer: Trainer) -> torch.Tensor:
    model.eval()
    trainer.training(False)
    with trainer.evaluated():
        outputs = model(x)
    trainer.training(True)
    model.train()
    return outputs


def first_crossing(curve: list[list[float]], target: float) -> float:
    """Return the passes at which the loss first is at the target, between readings by the loss's logarithm.

    Infinite where it never is.

    Example:
        >>> first_crossing([[0, 1.0], [1, 0.1], [2, 0.001]], 0.01)
        1.5
    """
    before: list[float] | None = None
    for passes, loss in curve:
        if loss <= target:
            if before is None or loss <= 0:
                return passes
            share = math.log(before[1] / target) / math.log(before[1] / loss)
            return before[0] + share * (passes - before[0])
        before = [passes, loss]
    return math.inf


def passes_to(record: Record, target: float) -> float:
    """Return the passes of a run to the target; infinite where it later diverged or is stuck."""
    return math.inf if record["diverged"] else first_crossing(record["curve"], target)


def loss_at(curve: list[list[float]], passes: float) -> float:
    """Return the loss of the last reading at or before `passes`."""
    return [loss for at, loss in curve if at <= passes + 1e-9][-1]


class Store:
    """A folder with one JSON file for each run and each target, each written whole or not at all."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def read(self, name: str) -> Record | None:
        """Return what is stored under a name, or None."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, name: str, record: Record) -> Record:
        """Store a record and return it."""
        write_atomically(self.folder / f"{name}.json", json.dumps(record))
        return record

    def target(self, task: Task, sgd: list[Record], passes: int = PASSES) -> Record:
        """Return a task's target, which is set once: tuned SGD's training loss at 80 % of the budget.

        Args:
            task: the task.
            sgd: every run of SGD's grid; the one with the lowest last training loss is the tuned one.
            passes: the budget.
        """
        name = f"{task.name}/target__{RULES}" + ("" if passes == PASSES else f".{passes}-passes")
        if stored := self.read(name):
            return stored
        tuned = min(sgd, key=lambda record: record["final_loss"])
        found = {
            "task": task.name,
            "loss": loss_at(tuned["curve"], TARGET_SHARE * passes),
            "setting": tuned["setting"],
            "start": tuned["curve"][0][1],
        }
        return self.write(name, found)


def perform(run: Run, store: Store, again: bool = False) -> Record:
    """Return the record of a run, from the store where it lies there already."""
    if not again and (stored := store.read(run.name)):
        return stored
    return store.write(run.name, train(run))
