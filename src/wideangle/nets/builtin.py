"""The built-in models the command line knows by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from wideangle import seeds
from wideangle.errors import InputError
from wideangle.names import unknown_name
from wideangle.nets.conv import ConvNet
from wideangle.nets.mlp import MLP
from wideangle.nets.resnet import ResNet

__all__ = ["MODELS", "build"]


class _HasData(Protocol):
    """What `build` reads off a data set."""

    @property
    def x(self) -> torch.Tensor: ...
    @property
    def y(self) -> torch.Tensor: ...
    @property
    def classes(self) -> int: ...


MODELS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "mlp": (MLP, {"width": 512, "depth": 2}),
    "conv": (ConvNet, {"width": (16, 32, 32)}),
    "resnet": (ResNet, {"width": (16, 32, 32)}),
}


def build(name: str, data: _HasData | Sequence[int], outputs: int | None = None, seed: int = 0) -> nn.Module:
    """Return a built-in model, freshly drawn in the NTK parameterisation, that fits the data.

    "mlp" is `MLP` with two hidden layers of 512, "conv" is `ConvNet` with 16, 32, 32 channels, "resnet"
    is `ResNet` with blocks of 16, 32, 32 channels; all with ReLU, no bias and a linear output. Cost:
    drawing the weights (under 2 million for images up to 3 x 32 x 32).

    Args:
        name: "mlp", "conv" or "resnet".
        data: a `Dataset`, or the shape of one input without the sample axis, such as (1, 28, 28).
        outputs: C; from the data set's classes (or columns of targets) where not given.
        seed: the root the weights' stream is derived from.

    Returns:
        The model in training mode, on the CPU, float32.

    Raises:
        InputError: an unknown name (the nearest is offered), a shape the model cannot take, token
            ids, or no way to know the number of outputs.

    Example:
        >>> model = build("mlp", (1, 8, 8), outputs=10)
        >>> sum(p.numel() for p in model.parameters())
        300032
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS, "or your own as module.py:factory")
    shape, known = _shape_and_outputs(name, data)
    outputs = known if outputs is None else outputs
    if outputs is None:
        raise InputError(
            f"how many outputs shall {name!r} have? Pass outputs=, the shape {shape} does not tell"
        )
    if name != "mlp" and len(shape) != 3:
        raise InputError(f"{name!r} needs images (channels, height, width), the data is {shape}; use 'mlp'")
    make, options = MODELS[name]
    return make(shape, outputs, generator=seeds.generator(seed, "nets", name), **options)


def _shape_and_outputs(name: str, data: _HasData | Sequence[int]) -> tuple[tuple[int, ...], int | None]:
    if isinstance(data, Sequence):
        return tuple(int(size) for size in data), None
    if not data.x.is_floating_point():
        raise InputError(
            f"{name!r} takes numbers, but the data holds token ids ({data.x.dtype}); "
            "bring a model with an nn.Embedding as module.py:factory"
        )
    known = data.classes if data.classes else (data.y.shape[1] if data.y.ndim == 2 else 1)
    return tuple(data.x.shape[1:]), known
