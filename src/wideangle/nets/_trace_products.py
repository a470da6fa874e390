"""How many predecessors a neuron of a product has: convolutions, contractions, products that are summed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from torch import Tensor, fx

from wideangle.nets._trace_values import VALUE

__all__ = ["call_name", "contracted", "conv_in_degrees", "occurrences", "reduced_axes", "varying"]


def call_name(node: fx.Node) -> str:
    """Return the plain name of what a node calls, such as add for operator.add and for x.add."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.strip("_") if name.startswith("__") else name


def occurrences(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among the arguments of a call, each as often as it stands there."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda entry: found.append(entry) or entry)
    return found


def contracted(node: fx.Node, signal: fx.Node, weight: fx.Node) -> int:
    """Return the in-degree of an einsum or tensordot of a signal and a weight: the size of what both sum over.

    Zero where nothing is summed over, or where the call is written in another way than the usual ones.
    """
    sizes = weight.meta[VALUE].shape
    if call_name(node) == "tensordot":
        if len(node.args) < 2:
            return 0
        axes = (node.args[2:] or (node.kwargs.get("dims", 2),))[0]
        place = 0 if node.args[0] is weight else 1
        if isinstance(axes, int):
            shared = sizes[len(sizes) - axes :] if place == 0 else sizes[:axes]
            return math.prod(shared) if axes else 0
        if not isinstance(axes, Sequence):
            return 0
        mine: Any = axes[place]
        return math.prod(sizes[i] for i in ([mine] if isinstance(mine, int) else mine))
    equation = node.args[0] if node.args else node.kwargs.get("equation")
    operands = occurrences(node)
    if not isinstance(equation, str) or len(operands) != 2 or "." in equation:
        return 0
    left, arrow, kept = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        kept = "".join(letter for letter in left if letter != "," and left.count(letter) == 1)
    of_weight, of_signal = terms if operands[0] is weight else terms[::-1]
    shared = [sizes[i] for i, letter in enumerate(of_weight) if letter in of_signal and letter not in kept]
    return math.prod(shared) if shared else 0


def reduced_axes(node: fx.Node) -> list[int]:
    """Return the axes a sum or mean runs over, as numbers from 0."""
    source = occurrences(node)[0].meta[VALUE]
    axes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis"))
    if axes is None:
        return list(range(source.dim()))
    return [axis % source.dim() for axis in ([axes] if isinstance(axes, int) else axes)]


def varying(weight: Tensor, shape: Sequence[int], axes: Sequence[int]) -> int:
    """Return the number of positions along some axes of `shape` that a broadcast weight tells apart."""
    missing = len(shape) - weight.dim()
    sizes = [shape[axis] for axis in axes if axis >= missing and weight.shape[axis - missing] == shape[axis]]
    return math.prod(sizes) if sizes else 0


def conv_in_degrees(
    spatial: Sequence[int], weight: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> list[int]:
    """Return the in-degree at each output position of a convolution: taps inside the image times channels.

    Args:
        spatial: height and width (any number of axes) of the input.
        weight: shape of the weight, (units, channels a unit sees, kernel...).
        stride: one number or one an axis.
        padding: zeros on each side, one number or one an axis, "same" or "valid".
        dilation: one number or one an axis.
    """
    axes, kernel = len(spatial), weight[2:]
    counts = []
    for axis in range(axes):
        size, taps = int(spatial[axis]), int(kernel[axis])
        step, gap = _entry(stride, axis), _entry(dilation, axis)
        reach = gap * (taps - 1)
        total = {"same": reach, "valid": 0}.get(padding) if isinstance(padding, str) else None
        before = total // 2 if total is not None else _entry(padding, axis)
        around = total if total is not None else 2 * before
        starts = np.arange(0, size + around - reach, step) - before
        places = starts[:, None] + gap * np.arange(taps)
        counts.append(((places >= 0) & (places < size)).sum(1))
    return (int(weight[1]) * reduce(np.multiply.outer, counts)).ravel().tolist()


def _entry(value: Any, axis: int) -> int:
    return int(value) if isinstance(value, int) else int(value[axis if len(value) > 1 else 0])
