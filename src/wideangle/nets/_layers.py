"""Plain nn.Linear and nn.Conv2d layers, drawn from a given generator, and the factor their input gets."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from wideangle.errors import InputError
from wideangle.nets.activations import Activation, activation_function, c_sigma

Parameterization = Literal["ntk", "standard"]
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Recipe:
    """How every layer of one net is drawn and scaled: parameterisation, bias, activation, generator."""

    def __init__(
        self,
        activation: Activation,
        parameterization: str,
        bias: bool,
        gain: bool | None,
        generator: torch.Generator,
    ) -> None:
        if parameterization not in ("ntk", "standard"):
            raise InputError(f"unknown parameterization {parameterization!r}; choose 'ntk' or 'standard'")
        self.ntk = parameterization == "ntk"
        self.bias = bias
        self.activation: Callable[[torch.Tensor], torch.Tensor] = activation_function(activation)
        self.generator = generator
        wanted = self.ntk if gain is None else gain
        self.gain = math.sqrt(c_sigma(activation)) if wanted else 1.0

    def linear(self, fan_in: int, fan_out: int) -> nn.Linear:
        """Return a drawn nn.Linear; building it leaves torch's global random state alone."""
        layer = nn.Linear(fan_in, fan_out, bias=self.bias, device="meta").to_empty(
            device=self.generator.device
        )
        return self._drawn(layer)

    def conv(self, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
        """Return a drawn nn.Conv2d that keeps the height and width (divided by the stride, rounded up)."""
        padding = kernel // 2
        layer = nn.Conv2d(
            channels_in, channels_out, kernel, stride, padding, bias=self.bias, device="meta"
        ).to_empty(device=self.generator.device)
        return self._drawn(layer)

    def scale(self, layer: nn.Linear | nn.Conv2d, activated: bool) -> float:
        """Return the factor on the layer's input: gain (behind an activation) times 1/sqrt(fan-in) (NTK)."""
        factor = self.gain if activated else 1.0
        return factor / math.sqrt(layer.weight[0].numel()) if self.ntk else factor

    def _drawn(self, layer: Layer) -> Layer:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        with torch.no_grad():
            for parameter in layer.parameters():
                if self.ntk:
                    parameter.normal_(generator=self.generator)
                else:
                    parameter.uniform_(-bound, bound, generator=self.generator)
        return layer


def layer_widths(
    width: int | Sequence[int], depth: int | None, bottleneck: int | None, default: int
) -> list[int]:
    """Return the width of each hidden layer, the middle one narrowed to `bottleneck`."""
    if isinstance(width, Integral):
        widths = [int(width)] * (default if depth is None else depth)
    elif not isinstance(width, Iterable):
        raise InputError(f"width must be a whole number, or one for every layer, got {width!r}")
    else:
        widths = [int(entry) for entry in width]
        if depth is not None and depth != len(widths):
            raise InputError(f"width names {len(widths)} layers but depth is {depth}; leave depth out")
    if depth is not None and depth < 0:
        raise InputError(f"depth must be zero or more, got {depth}")
    if bottleneck is not None:
        if not widths:
            raise InputError(f"bottleneck={bottleneck} needs a hidden layer, but depth is 0")
        widths[len(widths) // 2] = bottleneck
    if min(widths, default=1) < 1:
        raise InputError(f"every layer needs at least one unit, got widths {widths}")
    return widths


def feature_count(in_features: int | Sequence[int]) -> int:
    """Return the inputs per sample, a shape counting as its product, after a check."""
    sizes = whole_numbers([in_features] if isinstance(in_features, Integral) else in_features)
    if sizes is None:
        raise InputError(f"in_features must be a whole number or a shape, got {in_features!r}")
    if math.prod(sizes) < 1:
        raise InputError(f"in_features must be at least 1, got {in_features}")
    return math.prod(sizes)


def image_shape(in_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (channels, height, width) after a check."""
    shape = whole_numbers(in_shape)
    if shape is None or len(shape) != 3 or min(shape) < 1:
        raise InputError(f"a convolutional net needs in_shape=(channels, height, width), got {in_shape!r}")
    return shape[0], shape[1], shape[2]


def whole_numbers(values: Any) -> tuple[int, ...] | None:
    """Return a sequence of whole numbers as a tuple of int; None where it is something else."""
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        return None


def check_images(x: torch.Tensor, in_shape: tuple[int, int, int]) -> None:
    """Raise where `x` is not a batch of images of the shape the net was built for."""
    if tuple(x.shape[1:]) != in_shape:
        raise InputError(
            f"the net was built for inputs (n, {', '.join(map(str, in_shape))}), got {tuple(x.shape)}"
        )


def check_outputs(outputs: int) -> None:
    """Raise where a net would have no output."""
    if outputs < 1:
        raise InputError(f"outputs must be at least 1, got {outputs}")
