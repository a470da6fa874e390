"""The small residual net."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

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

__all__ = ["ResNet"]

Norm = Literal["none", "group", "batch"]


def _norm_layer(norm: Norm, channels: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


class _Block(nn.Module):
    """skip + conv(act(norm(conv(act(norm(h)))))), both divided by sqrt(2) in the NTK parameterisation."""

    def __init__(self, recipe: Recipe, channels_in: int, channels_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.activation = recipe.activation
        self.norm1, self.norm2 = _norm_layer(norm, channels_in), _norm_layer(norm, channels_out)
        self.conv1 = recipe.conv(channels_in, channels_out, stride=stride)
        self.conv2 = recipe.conv(channels_out, channels_out)
        self.scale1 = recipe.scale(self.conv1, activated=True)
        self.scale2 = recipe.scale(self.conv2, activated=True)
        self.skip: nn.Conv2d | None = None
        self.skip_scale = 1.0
        if stride != 1 or channels_in != channels_out:
            self.skip = recipe.conv(channels_in, channels_out, kernel=1, stride=stride)
            self.skip_scale = recipe.scale(self.skip, activated=False)
        self.mix = 1 / math.sqrt(2) if recipe.ntk else 1.0

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        branch = self.conv1(self.activation(self.norm1(h)) * self.scale1)
        branch = self.conv2(self.activation(self.norm2(branch)) * self.scale2)
        skip = h if self.skip is None else self.skip(h * self.skip_scale)
        return (skip + branch) * self.mix


class ResNet(nn.Module):
    """A small residual net with pre-activation blocks, in the NTK or the PyTorch parameterisation.

        h_0 = conv(x),   h_b = mix * (skip(h_{b-1}) + conv(g act(norm(conv(g act(norm(h_{b-1})))))))
        f = V mean_pixels(g act(norm(h_B))) / sqrt(channels)

    conv is 3x3 with padding 1 and 1/sqrt(fan-in) on its input, g = gain, mix = 1/sqrt(2) for "ntk";
    mix = g = 1 and no factors for "standard". From the second block on the image is halved by stride 2
    while it is at least 4 pixels high and wide; skip is the identity, or a 1x1 convolution where the
    shape changes. Weights as in `MLP`. Forward cost: one multiply-add per weight and output pixel.

    Args:
        in_shape: (channels, height, width) of an image.
        outputs: C.
        width: channels of every block, or one number per block.
        depth: number of blocks B, 3 where not given (leave out where `width` is a sequence).
        activation: a name of `ACTIVATIONS` or a function.
        parameterization: "ntk" or "standard".
        norm: "none", "group" (8 groups, or as many as divide the channels) or "batch".
        output_activation: a name or function applied to f; None leaves the output linear.
        bottleneck: channels of the middle block, to make it the narrow one.
        bias: add a bias per channel, N(0, 1) for "ntk", uniform as the weights for "standard".
        gain: multiply each activation by sqrt(c_sigma); by default in the "ntk" parameterisation only.
        generator: where the weights are drawn from; by default a fresh one with a fixed seed.

    Raises:
        InputError: a size below one, an unknown name, or (in the forward pass) images of another shape.

    Example:
        >>> net = ResNet((1, 8, 8), outputs=10, width=8, depth=2)
        >>> net(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])

    Reference: He et al. 2016 (arXiv 1603.05027), Figure 1(b), pre-activation block; differs in that
    normalisation is off by default and both summands are divided by sqrt(2) in the NTK parameterisation.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        outputs: int,
        *,
        width: int | Sequence[int] = 16,
        depth: int | None = None,
        activation: Activation = "relu",
        parameterization: Parameterization = "ntk",
        norm: Norm = "none",
        output_activation: Activation | None = None,
        bottleneck: int | None = None,
        bias: bool = False,
        gain: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape)
        check_outputs(outputs)
        if norm not in ("none", "group", "batch"):
            raise InputError(f"unknown norm {norm!r}; choose 'none', 'group' or 'batch'")
        recipe = Recipe(
            activation, parameterization, bias, gain, generator or seeds.generator(0, "nets", "resnet")
        )
        widths = layer_widths(width, depth, bottleneck, default=3)
        if not widths:
            raise InputError("a residual net needs at least one block, got depth=0")
        self.activation = recipe.activation
        self.output_activation = None if output_activation is None else activation_function(output_activation)

        channels, *size = self.in_shape
        self.stem = recipe.conv(channels, widths[0])
        self.stem_scale = recipe.scale(self.stem, activated=False)
        channels = widths[0]
        self.blocks = nn.ModuleList()
        for i, width_out in enumerate(widths):
            stride = 2 if i > 0 and min(size) >= 4 else 1
            self.blocks.append(_Block(recipe, channels, width_out, stride, norm))
            size = [-(-side // stride) for side in size]
            channels = width_out
        self.norm = _norm_layer(norm, channels)
        self.head = recipe.linear(channels, outputs)
        self.head_scale = recipe.scale(self.head, activated=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, shape (n, C), of images (n, channels, height, width)."""
        check_images(x, self.in_shape)
        h = self.stem(x * self.stem_scale)
        for block in self.blocks:
            h = block(h)
        f = self.head(self.activation(self.norm(h)).mean((2, 3)) * self.head_scale)
        return f if self.output_activation is None else self.output_activation(f)
