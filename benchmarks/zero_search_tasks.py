"""The twelve tasks of the zero-search benchmark: data, model, loss and batch size; two are held out.

Models are the library's own nets in PyTorch's usual parameterisation, with biases. Inputs are standardised by
one mean and one deviation of the training rows (pixels), or are tf-idf rows scaled to mean square 1 (words).
Images of 28 x 28 are averaged to 14 x 14, so that a run takes seconds on one core.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wideangle import data, nets, seeds
from wideangle.targets import loss_function

PASSES = 10
TRAIN_ROWS = 5000  # or all there are
TEST_ROWS = 2000
WATCHED_ROWS = 1024  # training rows on which the loss is read
WORDS = 1000  # the most frequent words of the bag of words
TOKENS, VOCABULARY, WIDTH, HEADS = 16, 2000, 32, 2  # of the transformer on text
FROZEN = Path(__file__).resolve().parent / "zero_search_frozen.json"


class HeldOutError(RuntimeError):
    """A held-out task was asked for before the rules were frozen."""


@dataclass(frozen=True)
class Task:
    """One training problem; `batch_size` samples a step, each pass shuffled, the last partial batch dropped."""

    data: str
    net: str
    loss: str
    batch_size: int
    held_out: bool = False

    @property
    def name(self) -> str:
        """Such as "mnist-mlp-ce-64"."""
        source = {"fashion-mnist": "fashion", "reuters-r8": "r8"}.get(self.data, self.data)
        loss = {"cross-entropy": "ce"}.get(self.loss, self.loss)
        return f"{source}-{self.net}-{loss}-{self.batch_size}"


TASKS = (
    Task("digits", "mlp", "mse", 8),
    Task("digits", "resnet", "cross-entropy", 64),
    Task("mnist", "mlp", "cross-entropy", 64),
    Task("mnist", "cnn", "mse", 64),
    Task("mnist", "cnn", "cross-entropy", 512),
    Task("fashion-mnist", "mlp", "mse", 512),
    Task("fashion-mnist", "mlp", "cross-entropy", 8),
    Task("fashion-mnist", "cnn", "cross-entropy", 64),
    Task("reuters-r8", "mlp", "cross-entropy", 64),
    Task("reuters-r8", "transformer", "cross-entropy", 64),
    Task("fashion-mnist", "resnet", "mse", 64, held_out=True),
    Task("digits", "transformer", "cross-entropy", 8, held_out=True),
)


@dataclass(frozen=True, eq=False)
class Problem:
    """The data of a task: inputs, targets as the loss takes them, and labels of the test rows."""

    task: Task
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_labels: Tensor
    watched: Tensor
    classes: int
    passes: int = PASSES

    @property
    def steps_a_pass(self) -> int:
        """Whole batches in a pass."""
        return len(self.x) // self.task.batch_size

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return loss_function(self.task.loss)(outputs, targets)

    def batches(self, seed: int) -> Iterator[Tensor]:
        """Yield the rows of each batch, pass after pass, the same for every method."""
        for number in range(self.passes):
            stream = seeds.generator(seed, "zero search", "batches", number)
            rows = torch.randperm(len(self.x), generator=stream)
            whole = self.steps_a_pass * self.task.batch_size
            yield from rows[:whole].split(self.task.batch_size)


class TokenNet(nn.Module):
    """A word embedding, N(0, 1) and zero for padding, under the library's transformer."""

    def __init__(self, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight[1:].normal_(generator=generator)
        self.encoder = nets.Transformer(
            (TOKENS, WIDTH), outputs, width=WIDTH, heads=HEADS, **_usual("gelu"), generator=generator
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the outputs (n, classes) of token ids (n, tokens)."""
        return self.encoder(self.embedding(tokens))


def chosen(names: list[str] | None = None, frozen: Path | None = None) -> list[Task]:
    """Return the tasks named; where none is, those that may be run.

    Raises:
        ValueError: there is no such task.
        HeldOutError: a held-out task is named, and no file names the commit that froze the rules.
    """
    allowed = is_frozen(frozen)
    if not names:
        return [task for task in TASKS if allowed or not task.held_out]
    known = {task.name: task for task in TASKS}
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"no task {missing[0]!r}; there are {', '.join(known)}")
    tasks = [known[name] for name in names]
    if early := [task.name for task in tasks if task.held_out and not allowed]:
        raise HeldOutError(
            f"{early[0]} is held out until {FROZEN.name} names the commit that froze the rules"
        )
    return tasks


def is_frozen(frozen: Path | None = None) -> bool:
    """Return whether the file names the commit that froze the rules."""
    path = frozen or FROZEN
    return path.exists() and bool(json.loads(path.read_text()).get("commit"))


@functools.cache
def prepared(task: Task, passes: int = PASSES) -> Problem:
    """Return the data of a task, the same at every call."""
    if task.held_out and not is_frozen():
        raise HeldOutError(f"{task.name} is held out until {FROZEN.name} names a commit")
    train, test = (_subset(task.data, split) for split in ("train", "test"))
    words = task.data == "reuters-r8"
    form = (_bags if task.net == "mlp" else _tokens) if words else _standardised
    x, test_x = form(train.x, test.x)
    if task.net == "transformer" and not words:
        x, test_x = x.squeeze(1), test_x.squeeze(1)  # the rows of the image are the tokens
    y = nn.functional.one_hot(train.y, train.classes).float() if task.loss == "mse" else train.y
    watched = torch.randperm(len(x), generator=seeds.generator(0, "zero search", "watched"))[:WATCHED_ROWS]
    return Problem(task, x, y, test_x, test.y, watched, train.classes, passes)


def _subset(name: str, split: Any) -> data.Dataset:
    whole = data.load(name, split)
    rows = TRAIN_ROWS if split == "train" else TEST_ROWS
    return data.load(name, split, n=rows) if len(whole.x) > rows else whole


def _standardised(x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[-1] == 28:
        x, test_x = (nn.functional.avg_pool2d(images, 2) for images in (x, test_x))
    mean, deviation = x.mean(), x.std()
    return (x - mean) / deviation, (test_x - mean) / deviation


def _counts(tokens: Tensor) -> Tensor:
    counts = torch.zeros(len(tokens), WORDS + 2)
    kept = torch.where(tokens < WORDS + 2, tokens, 0)
    return counts.scatter_add_(1, kept, torch.ones(kept.shape))[:, 2:]


def _bags(x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    """Return tf-idf rows, (1 + log tf) log(n / df), each of norm sqrt(words)."""
    counts, test_counts = _counts(x), _counts(test_x)
    rarity = torch.log(len(x) / (counts > 0).sum(0).clamp(min=1))

    def rows(table: Tensor) -> Tensor:
        weighted = torch.where(table > 0, 1 + table.clamp(min=1).log(), 0.0) * rarity
        return nn.functional.normalize(weighted) * math.sqrt(WORDS)

    return rows(counts), rows(test_counts)


def _tokens(x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first tokens of each document; a word outside the vocabulary is the unknown one, 1."""
    return tuple(torch.where(rows < VOCABULARY, rows, 1)[:, :TOKENS] for rows in (x, test_x))  # type: ignore


def _usual(activation: str) -> dict[str, Any]:
    return {"parameterization": "standard", "bias": True, "activation": activation}


def initial_model(problem: Problem, seed: int) -> nn.Module:
    """Return the model of a task with the weights of a seed, the same for every method."""
    task, classes = problem.task, problem.classes
    shape = tuple(problem.x.shape[1:])
    generator = seeds.generator(seed, "zero search", "weights", task.name)
    if task.net == "mlp":
        return nets.MLP(math.prod(shape), classes, width=(128, 64), **_usual("relu"), generator=generator)
    if task.net == "cnn":
        return nets.ConvNet(
            shape, classes, width=(8, 16), downsample="stride", **_usual("relu"), generator=generator
        )
    if task.net == "resnet":
        width = (8, 16)
        return nets.ResNet(shape, classes, width=width, norm="batch", **_usual("relu"), generator=generator)
    if task.data == "reuters-r8":
        return TokenNet(classes, generator)
    return nets.Transformer(shape, classes, width=WIDTH, heads=HEADS, **_usual("gelu"), generator=generator)
