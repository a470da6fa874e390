"""The convolutional net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from wideangle import seeds
from wideangle.errors import InputError
from wideangle.nets._layers import (
    Parameterization,
    Recipe,
    check_images,
    check_outputs,
    image_shape,
    layer_widths,
)
from wideangle.nets.activations import Activation, activation_function

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """A plain convolutional net for images of any size, in the NTK or the PyTorch parameterisation.

        h_0 = x,   h_l = pool(gain * activation(W_l * h_{l-1} / sqrt(9 channels_{l-1})))
        f = V r / sqrt(dim r)

    W_l * is a 3x3 convolution with zero padding 1, r the flattened last h_L or its average over the
    pixels. Every layer but the last halves the image while it is at least 4 pixels high and wide.
    Weights and gain as in `MLP`; each factor multiplies the input of a plain nn.Conv2d or nn.Linear.
    Averaging (pooling, head="average") and the zero border make the signal smaller than the factors
    alone would. Forward cost: one multiply-add per weight and output pixel.

    Args:
        in_shape: (channels, height, width) of an image.
        outputs: C.
        width: channels of every convolution, or one number per convolution.
        depth: number of convolutions, 3 where not given (leave out where `width` is a sequence).
        activation: a name of `ACTIVATIONS` or a function.
        parameterization: "ntk" or "standard".
        downsample: how to halve: "average" (2x2 average pooling), "stride" (stride 2 in the next
            convolution) or "none".
        head: what the linear head sees: "flatten" (all pixels) or "average" (their mean).
        output_activation: a name or function applied to f; None leaves the output linear.
        bottleneck: channels of the middle convolution, to make it the narrow one.
        bias: add a bias per channel, N(0, 1) for "ntk", uniform as the weights for "standard".
        gain: multiply each activation by sqrt(c_sigma); by default in the "ntk" parameterisation only.
        generator: where the weights are drawn from; by default a fresh one with a fixed seed.

    Raises:
        InputError: a size below one, an unknown name, or (in the forward pass) images of another shape.

    Example:
        >>> net = ConvNet((1, 8, 8), outputs=10, width=8)
        >>> net(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])

    Reference: Arora et al. 2019 (arXiv 1904.11955), section 4, for the scaling of the convolutions.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outputs: int,
        *,
        width: int | Sequence[int] = 32,
        depth: int | None = None,
        activation: Activation = "relu",
        parameterization: Parameterization = "ntk",
        downsample: Literal["average", "stride", "none"] = "average",
        head: Literal["flatten", "average"] = "flatten",
        output_activation: Activation | None = None,
        bottleneck: int | None = None,
        bias: bool = False,
        gain: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape)
        check_outputs(outputs)
        if downsample not in ("average", "stride", "none"):
            raise InputError(f"unknown downsample {downsample!r}; choose 'average', 'stride' or 'none'")
        if head not in ("flatten", "average"):
            raise InputError(f"unknown head {head!r}; choose 'flatten' or 'average'")
        recipe = Recipe(
            activation, parameterization, bias, gain, generator or seeds.generator(0, "nets", "conv")
        )
        widths = layer_widths(width, depth, bottleneck, default=3)
        self.activation = recipe.activation
        self.output_activation = None if output_activation is None else activation_function(output_activation)
        self.average_head = head == "average"

        channels, *size = self.in_shape
        self.hidden = nn.ModuleList()
        self.pooled: list[bool] = []
        stride = 1
        for i, width_out in enumerate(widths):
            self.hidden.append(recipe.conv(channels, width_out, stride=stride))
            size = [-(-side // stride) for side in size]
            halve = i + 1 < len(widths) and min(size) >= 4 and downsample != "none"
            stride = 2 if halve and downsample == "stride" else 1
            self.pooled.append(halve and downsample == "average")
            if self.pooled[-1]:
                size = [side // 2 for side in size]
            channels = width_out
        self.head = recipe.linear(channels if self.average_head else channels * size[0] * size[1], outputs)
        layers = [*self.hidden, self.head]
        self.scales = [recipe.scale(layer, activated=i > 0) for i, layer in enumerate(layers)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, shape (n, C), of images (n, channels, height, width)."""
        check_images(x, self.in_shape)
        h = x
        for layer, scale, pooled in zip(self.hidden, self.scales, self.pooled, strict=False):
            h = self.activation(layer(h * scale))
            if pooled:
                h = functional.avg_pool2d(h, 2)
        r = h.mean((2, 3)) if self.average_head else h.flatten(1)
        f = self.head(r * self.scales[-1])
        return f if self.output_activation is None else self.output_activation(f)
