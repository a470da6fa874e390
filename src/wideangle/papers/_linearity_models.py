"""What the claims of `linearity` are measured on: networks by width and seed, and their samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wideangle import nets, seeds
from wideangle.papers._frame import Setting
from wideangle.papers._samples import gaussian

Factory = Callable[[int, int], nn.Module]
RADIUS = 3.0
HEAD = 8  # numbers per attention head, where the heads grow with the width


def draws(width: int, seed: int) -> torch.Generator:
    """Return the stream of a network: the same for every architecture of that width and seed."""
    return seeds.generator(seed, "linearity", width)


def dense(width: int, seed: int, *, inputs: int = 10, **options: Any) -> nn.Module:
    """Return a fully connected network as the paper writes it: no factor but 1/sqrt(fan-in), one output."""
    options = {"activation": "tanh", "depth": 2, "gain": False, **options}
    return nets.MLP(inputs, 1, width=width, generator=draws(width, seed), **options).double()


def narrowed(width: int, seed: int, *, narrow: int, inputs: int = 10) -> nn.Module:
    """Return [width, narrow, width]: a fully connected network with a narrow layer in the middle."""
    return dense(width, seed, inputs=inputs, depth=3, bottleneck=narrow)


def densely_connected(width: int, seed: int, *, inputs: int = 10) -> nn.Module:
    """Return three hidden layers, each of which sees all hidden layers before it."""
    return nets.DAG.densenet(inputs, 1, width=width, activation="tanh", generator=draws(width, seed)).double()


def random_graph(width: int, seed: int, *, inputs: int = 10) -> nn.Module:
    """Return two layers of 512 neurons, each fed by `width` neurons of the layers before it."""
    return nets.DAG.random(
        inputs, 1, in_degree=width, activation="tanh", generator=draws(width, seed)
    ).double()


def convolutional(width: int, seed: int, *, shape: tuple[int, ...], **options: Any) -> nn.Module:
    """Return three swish convolutions of `width` channels, one output."""
    options = {"activation": "swish", "depth": 3, **options}
    return nets.ConvNet(shape, 1, width=width, generator=draws(width, seed), **options).double()


def residual(width: int, seed: int, *, shape: tuple[int, ...], **options: Any) -> nn.Module:
    """Return two residual swish blocks of `width` channels, one output."""
    options = {"activation": "swish", "depth": 2, **options}
    return nets.ResNet(shape, 1, width=width, generator=draws(width, seed), **options).double()


def attention(
    width: int, seed: int, *, shape: tuple[int, ...], heads: int | None = None, score_power: float = 0.5
) -> nn.Module:
    """Return one block of attention and a hidden layer on 4 x 4 patches; heads grow with the width by default."""
    return nets.Transformer(
        shape,
        1,
        width=width,
        heads=width // HEAD if heads is None else heads,
        patch=4,
        score_power=score_power,
        activation="gelu",
        generator=draws(width, seed),
    ).double()


VECTORS: dict[str, Factory] = {
    "linear output": dense,
    "three swish layers": partial(dense, depth=3, activation="swish"),
    "DenseNet": densely_connected,
    "random DAG": random_graph,
    "tanh output": partial(dense, output_activation="tanh"),
    "swish output": partial(dense, output_activation="swish"),
    "bottleneck of 1": partial(narrowed, narrow=1),
    "bottleneck of 8": partial(narrowed, narrow=8),
}


def images(shape: tuple[int, ...]) -> dict[str, Factory]:
    """Return the architectures measured on images of a shape, by name."""
    return {
        "FCN": partial(dense, inputs=math.prod(shape)),
        "CNN": partial(convolutional, shape=shape),
        "ResNet": partial(residual, shape=shape),
        "attention": partial(attention, shape=shape),
        "DenseNet": partial(densely_connected, inputs=math.prod(shape)),
        "tanh output": partial(dense, inputs=math.prod(shape), output_activation="tanh"),
        "swish output": partial(dense, inputs=math.prod(shape), output_activation="swish"),
        "CNN, swish output": partial(convolutional, shape=shape, output_activation="swish"),
        "bottleneck of 1": partial(narrowed, narrow=1, inputs=math.prod(shape)),
        "attention, 2 heads": partial(attention, shape=shape, heads=2),
        "attention, 2 heads, scores / d": partial(attention, shape=shape, heads=2, score_power=1.0),
    }


def vector_sample(setting: Setting) -> Tensor:
    """Return one sample of ten numbers with |x|^2 = 10."""
    return gaussian(1, 10, setting.seed) * math.sqrt(10)


def image_sample(setting: Setting, name: str) -> Tensor:
    """Return one image in float64, scaled so that the mean square of a pixel is one."""
    return scaled(setting.load(name, 1).x)


def scaled(x: Tensor) -> Tensor:
    """Return samples in float64, each scaled so that the mean square of its numbers is one."""
    x = x.double()
    sizes = x.flatten(1).square().mean(1).sqrt()
    return x / sizes.view(-1, *(1 for _ in x.shape[1:]))


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient of the sum of the outputs, flat."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(net(x).sum(), parameters)])


def moved(net: nn.Module, step: Tensor) -> nn.Module:
    """Return a copy of a network with `step`, flat, added to its trained weights."""
    other = copy.deepcopy(net)
    parameters = [p for p in other.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter, piece in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
            parameter += piece.view_as(parameter)
    return other


def uphill(net: nn.Module, x: Tensor, radius: float = RADIUS) -> nn.Module:
    """Return a copy of a network at w0 + radius grad f / |grad f|."""
    slope = gradient(net, x)
    return moved(net, radius * slope / slope.norm())


def two_layer_norm(net: nets.MLP, x: Tensor, trained_output: bool = True) -> float:
    """Return |H| of a two-layer tanh network in closed form: a 2 x 2 block for every neuron.

    (1/sqrt(m)) max_i |A_i / 2 -+ sqrt(A_i^2 / 4 + B_i^2)|, A_i = v_i s'' s^2, B_i = s' s, s^2 = |x|^2 / d
    """
    size2 = float(x.square().sum()) / x.numel()
    with torch.no_grad():
        first = next(net.hidden.parameters())
        output, t = net.head.weight[0], torch.tanh(first @ x.flatten() / math.sqrt(x.numel()))
        a = (2 * output * t * (1 - t**2) * size2).abs()
        b = (1 - t**2) * math.sqrt(size2) if trained_output else torch.zeros_like(t)
        return float((a / 2 + torch.sqrt(a**2 / 4 + b**2)).max()) / math.sqrt(len(output))


def two_layer_supremum(net: nets.MLP, x: Tensor, radius: float) -> float:
    """Return a bound of |H| of a two-layer tanh network that holds in the whole ball around its weights.

    |v_i| grows by the radius at most, |tanh''| is at most 4 / (3 sqrt(3)) and |tanh'| at most 1.
    """
    size2 = float(x.square().sum()) / x.numel()
    output = net.head.weight.detach()[0]
    a = (float(output.abs().max()) + radius) * 4 / (3 * math.sqrt(3)) * size2
    return (a / 2 + math.sqrt(a**2 / 4 + size2)) / math.sqrt(len(output))


class Amplified(nn.Module):
    """alpha (f(w) - f(w0)): the scaling that makes training lazy; the output starts at zero."""

    def __init__(self, net: nn.Module, alpha: float) -> None:
        super().__init__()
        self.alpha, self.net = alpha, net
        self.start = copy.deepcopy(net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * (self.net(x) - self.start(x))
