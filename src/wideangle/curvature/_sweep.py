"""What a width sweep measures under a name, and the file in which it keeps finished cells."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.curvature._gap import linearity_gap
from wideangle.curvature._hessian_norm import hessian_norm
from wideangle.curvature._identity import identity, name_of
from wideangle.curvature._kernel_change import kernel_change
from wideangle.errors import ConvergenceError, InputError
from wideangle.files import digest, write_atomically
from wideangle.kernel import tangent_kernel
from wideangle.names import unknown_name

__all__ = ["Cells", "cell_metric", "descent", "fingerprint"]

Cell = tuple[int, int]
FORMAT = "wideangle width sweep 2"


def cell_metric(metric: Any, x: Any, y: Any) -> Callable[[nn.Module], Any]:
    """Return the function of a model that is measured in every cell, checked."""
    if callable(metric):
        if x is not None or y is not None:
            raise InputError("x and y belong to a metric given by name; a function holds its own data")
        return metric
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS, "or pass a function of the model")
    if x is None:
        raise InputError(f"the metric {metric!r} is measured on inputs; give x=")
    return METRICS[metric](x, y)


def _gap(x: Any, y: Any) -> Callable[[nn.Module], float]:
    del y
    return lambda model: linearity_gap(model, x).relative


def _norm(x: Any, y: Any) -> Callable[[nn.Module], float]:
    del y
    return lambda model: hessian_norm(model, x).value


def _change(x: Any, y: Any) -> Callable[[nn.Module], float]:
    if y is None:
        raise InputError("the metric 'kernel_change' is measured while the model fits targets; give y=")
    return lambda model: kernel_change(model, x, descent(model, x, y)).largest


METRICS: dict[str, Callable[[Any, Any], Callable[[nn.Module], float]]] = {
    "hessian_norm": _norm,
    "linearity_gap": _gap,
    "kernel_change": _change,
}


def descent(
    model: nn.Module, x: Any, y: Any, *, target: float = 1e-4, steps: int = 10_000
) -> list[dict[str, Tensor]]:
    """Return weights along full-batch gradient descent, after 1, 2, 4, ... steps and at the end.

        L(w) = 1/2 |f(w) - y|^2,   step = 1 / lambda_max(K_0),   until L <= target L_0

    Raises:
        InputError: y does not fit the outputs.
        ConvergenceError: the target was not reached in so many steps.
    """
    kernel = tangent_kernel(model, x)
    step = 1 / float(torch.linalg.matrix_norm(kernel.reshape(kernel.shape[0] * kernel.shape[1], -1), ord=2))
    moved = copy.deepcopy(model)
    weights = [parameter for parameter in moved.parameters() if parameter.requires_grad]
    states, first, level = [], math.inf, math.inf
    for number in range(steps + 1):
        outputs = moved(x)
        if outputs.shape != y.shape and outputs.numel() != y.numel():
            raise InputError(f"y has shape {tuple(y.shape)}, the outputs {tuple(outputs.shape)}")
        loss = 0.5 * (outputs - y.reshape(outputs.shape)).square().sum()
        level = float(loss.detach())
        first = level if number == 0 else first
        done = level <= target * first
        if number and (done or number & (number - 1) == 0):
            states.append(copy.deepcopy(moved.state_dict()))
        if done and number:
            return states
        with torch.no_grad():
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= step * slope
    raise ConvergenceError(
        f"after {steps} steps of gradient descent the loss is {level / first:.3g} of its start, above "
        f"{target:g}; the model does not fit y: use fewer samples, or a wider model"
    )


def fingerprint(factory: Any, metric: Any, label: str, x: Any, y: Any) -> dict[str, str]:
    """Return what tells one sweep from another: label, functions by name and content, and the data's digests.

    What counts as the content of a function is said in `wideangle.curvature._identity`.
    """
    parts = {"label": label, "factory": _told(factory), "metric": _told(metric)}
    for key, value in (("x", x), ("y", y)):
        items = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, item in items:
            if item is not None:
                text = digest(item) if isinstance(item, Tensor) else f"content {identity(item)}"
                parts[f"{key}.{name}" if name else key] = text
    return parts


def _told(function: Any) -> str:
    return function if isinstance(function, str) else f"{name_of(function)}, content {identity(function)}"


@dataclass
class Cells:
    """The finished cells of a sweep, (width, seed) -> value, written to a file after each one."""

    values: dict[Cell, float]
    key: dict[str, str]
    path: Path | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None,
        widths: list[int],
        seeds: list[int],
        key: dict[str, str],
    ) -> Cells:
        """Return the cells kept at `path`, none where there is no file yet.

        Raises:
            InputError: the file is no sweep, or one with another key, or has widths or seeds not asked for.
        """
        if path is None or not Path(path).exists():
            return cls({}, key, None if path is None else Path(path))
        values, kept = _read(Path(path))
        differences = [
            f"{part} was {kept.get(part)!r} and is {key.get(part)!r}"
            for part in sorted(key | kept)
            if key.get(part) != kept.get(part)
        ]
        for kind, have, asked in (
            ("widths", {w for w, _ in values}, set(widths)),
            ("seeds", {s for _, s in values}, set(seeds)),
        ):
            if have - asked:
                differences.append(f"it has the {kind} {sorted(have - asked)}, which are not asked for")
        if differences:
            raise InputError(
                f"{path} belongs to another sweep: {'; '.join(differences)}. Take another file, or remove it"
            )
        return cls(values, key, Path(path))

    def keep(self, cell: Cell, value: float) -> None:
        """Add one finished cell and write the file."""
        self.values[cell] = value
        if self.path is None:
            return
        cells = [[width, seed, kept] for (width, seed), kept in sorted(self.values.items())]
        text = json.dumps({"format": FORMAT, "key": self.key, "cells": cells}, indent=1)
        write_atomically(self.path, text + "\n")


def _read(path: Path) -> tuple[dict[Cell, float], dict[str, str]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return {(int(w), int(s)): float(v) for w, s, v in data["cells"]}, dict(data["key"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"{path} is not a file of width_scaling ({type(error).__name__}: {error}); take another name, "
            "or remove it"
        ) from error
