"""The edges of common graphs, vertices numbered inputs first, then layer by layer, outputs last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from wideangle.errors import InputError

__all__ = ["InDegree", "dense_edges", "layered_edges", "random_edges"]

InDegree = int | tuple[float, float]


def _numbering(sizes: Sequence[int]) -> list[np.ndarray]:
    edges = np.concatenate([[0], np.cumsum(sizes)])
    return [np.arange(a, b) for a, b in pairwise(edges)]


def _complete(sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.stack([np.tile(sources, len(targets)), np.repeat(targets, len(sources))], 1)


def layered_edges(sizes: Sequence[int]) -> np.ndarray:
    """Return the edges of a fully connected net with these layer sizes, inputs and outputs included."""
    layers = _numbering(sizes)
    return np.concatenate([_complete(a, b) for a, b in pairwise(layers)])


def dense_edges(sizes: Sequence[int], with_inputs: bool) -> np.ndarray:
    """Return the edges of a net whose every layer sees all earlier hidden ones, and the inputs if asked."""
    layers = _numbering(sizes)
    found = []
    for i in range(1, len(layers)):
        first = 0 if with_inputs or i == 1 else 1
        found.append(_complete(np.concatenate(layers[first:i]), layers[i]))
    return np.concatenate(found)


def degree_range(in_degree: InDegree) -> tuple[int, int]:
    """Return the smallest and the largest in-degree, after a check."""
    pair: Any = (in_degree, in_degree) if isinstance(in_degree, Integral) else in_degree
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(_finite(end) for end in pair):
        raise InputError(
            f"in_degree must be a whole number, or a range (low, high) of two finite numbers, got {in_degree!r}"
        )
    low, high = (math.floor(end) for end in pair)
    if not 1 <= low <= high:
        raise InputError(f"in_degree must be at least 1, or a range (low, high) in order, got {in_degree!r}")
    return low, high


def _finite(number: Any) -> bool:
    return isinstance(number, Real) and math.isfinite(number)


def random_edges(
    sizes: Sequence[int],
    in_degree: InDegree,
    output_in_degree: InDegree,
    previous_only: bool,
    generator: torch.Generator,
) -> np.ndarray:
    """Return the edges of a random layered graph, without the neurons that reach no output.

    Every neuron draws its in-degree uniformly from the range, one predecessor from the layer before it
    (which keeps it in its layer) and the others from all earlier vertices, none twice.
    """
    layers = _numbering(sizes)
    found = []
    for i in range(1, len(layers)):
        low, high = degree_range(output_in_degree if i == len(layers) - 1 else in_degree)
        start = int(layers[i - 1][0]) if previous_only else 0
        candidates = np.arange(start, int(layers[i][0]))
        rows, columns = len(layers[i]), len(candidates)
        degrees = _integers(low, high, rows, generator).clip(max=columns)
        keys = torch.rand(rows, columns, generator=generator, device=generator.device).cpu().numpy()
        sure = _integers(0, len(layers[i - 1]) - 1, rows, generator) + columns - len(layers[i - 1])
        keys[np.arange(rows), sure] = -1.0
        ranked = np.argsort(keys, axis=1)
        taken = np.arange(columns)[None, :] < degrees[:, None]
        found.append(np.stack([candidates[ranked[taken]], np.repeat(layers[i], degrees)], 1))
    return _leading_to(np.concatenate(found), layers[-1], sum(sizes))


def _integers(low: int, high: int, count: int, generator: torch.Generator) -> np.ndarray:
    draws = torch.randint(low, high + 1, (count,), generator=generator, device=generator.device)
    return draws.cpu().numpy()


def _leading_to(edges: np.ndarray, outputs: np.ndarray, size: int) -> np.ndarray:
    """Return the edges whose target leads to an output; nothing the outputs compute depends on the others."""
    alive = np.zeros(size, dtype=bool)
    alive[outputs] = True
    while True:
        kept = alive[edges[:, 1]]
        count = int(alive.sum())
        alive[edges[kept, 0]] = True
        if int(alive.sum()) == count:
            return edges[kept]
