"""What a reader hands over: arrays as stored, before a subset is taken and they become tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from wideangle import seeds
from wideangle.data.dataset import Dataset
from wideangle.errors import InputError

TEST_EVERY = 5  # in one-table data sets every fifth sample of each class, in file order, is a test sample


@dataclass(frozen=True)
class Raw:
    """Arrays as stored. uint8 inputs stand for value/255, other integers for token ids."""

    x: np.ndarray
    y: np.ndarray
    classes: int
    vocabulary: int = 0
    label_names: tuple[str, ...] = ()

    def take(self, rows: np.ndarray) -> Raw:
        """Return the same data with the given rows only."""
        return Raw(self.x[rows], self.y[rows], self.classes, self.vocabulary, self.label_names)

    def finish(self, name: str) -> Dataset:
        """Return the checked tensors."""
        x = torch.from_numpy(np.require(self.x, requirements=["C", "W"]))
        if x.dtype == torch.uint8:
            x = x.float() / 255
        elif x.is_floating_point() or x.dtype == torch.bool:
            x = x.float()
        y = torch.from_numpy(np.require(self.y, requirements=["C", "W"]))
        y = y.long() if self.classes else y.float()
        x = x if x.is_floating_point() else x.long()
        return Dataset(x, y, self.classes, name, self.vocabulary, self.label_names)


def every_fifth(y: np.ndarray, split: str) -> np.ndarray:
    """Return the rows of a split: every fifth row of each class, in file order, is test; the rest train."""
    place = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        place[rows] = np.arange(len(rows))
    test = place % TEST_EVERY == TEST_EVERY - 1
    return np.flatnonzero(test if split == "test" else ~test)


def standardised(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return x - mean(train) over std(train), column by column; a constant column becomes zero."""
    mean, deviation = train.mean(0), train.std(0)
    constant = deviation <= 1e-12 * np.maximum(1.0, np.abs(mean))
    return np.where(constant, 0.0, (x - mean) / np.where(constant, 1.0, deviation))


def stratified_rows(y: np.ndarray, classes: int, n: int, name: str, seed: int) -> np.ndarray:
    """Return n random rows, in random order, each class in its share of the whole (largest remainders)."""
    total = len(y)
    if not 1 <= n <= total:
        raise InputError(f"n={n} samples were asked of {name}, which has {total}; choose n in 1..{total}")
    draw = seeds.generator(seed, "data", name, "subset")
    order = torch.randperm(total, generator=draw).numpy()
    if not classes:
        return order[:n]
    counts = np.bincount(y, minlength=classes)
    share = counts * n / total
    quota = np.floor(share).astype(np.int64)
    leftover = np.argsort(-(share - quota), kind="stable")[: n - int(quota.sum())]
    quota[leftover] += 1
    shuffled = y[order]
    kept = [np.flatnonzero(shuffled == label)[: quota[label]] for label in range(classes)]
    return order[np.sort(np.concatenate(kept))]
