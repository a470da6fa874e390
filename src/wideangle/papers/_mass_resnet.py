"""The network of the official CIFAR-10 recipe of `mass`: ResNet v1 as in the Keras example, 6n + 2 layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wideangle import seeds
from wideangle.errors import InputError

PARAMETERS = 467_946  # of 32 layers: what training moves


def _norm(channels: int) -> nn.BatchNorm2d:
    """Return batch normalisation with the constants of Keras."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    """relu(skip(h) + norm(conv(relu(norm(conv(h)))))); a 1x1 convolution on the skip where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm_first = nn.Conv2d(inputs, outputs, 3, stride, 1), _norm(outputs)
        self.second, self.norm_second = nn.Conv2d(outputs, outputs, 3, 1, 1), _norm(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """Return the block's activations."""
        inner = functional.relu(self.norm_first(self.first(h)))
        return functional.relu(self.skip(h) + self.norm_second(self.second(inner)))


class CifarResNet(nn.Module):
    """ResNet v1 for 32 x 32 colour images: a convolution, three stacks of n blocks (16, 32, 64 channels), mean, dense.

    Convolutions have biases, as in Keras; weights are drawn from a normal distribution cut at two of its
    deviations, with variance 2 / inputs, and biases are 0.
    """

    def __init__(self, blocks: int = 5, classes: int = 10, seed: int = 0) -> None:
        super().__init__()
        if blocks < 1:
            raise InputError(f"blocks is {blocks}; a stack needs at least one")
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 1, 1), _norm(16)
        widths = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        stacks = [
            [_Block(a if k == 0 else b, b, stride if k == 0 else 1) for k in range(blocks)]
            for a, b, stride in widths
        ]
        self.blocks = nn.Sequential(*(block for stack in stacks for block in stack))
        self.head = nn.Linear(64, classes)
        draws = seeds.generator(seed, "papers", "mass", "resnet")
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                # the cut takes away a part of the variance, 0.8796^2 of it is left
                deviation = math.sqrt(2.0 / module.weight[0].numel()) / 0.87962566103423978
                nn.init.trunc_normal_(
                    module.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=draws
                )
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (n, classes) of images (n, 3, 32, 32)."""
        h = functional.relu(self.norm(self.stem(x)))
        return self.head(self.blocks(h).mean((2, 3)))

    def groups(self, penalty: float) -> list[dict[str, object]]:
        """Return two parameter groups: kernels of convolutions with weight decay 2 penalty, the rest without.

        Keras adds penalty |w|^2 to the loss, whose gradient is 2 penalty w.
        """
        kernels = [m.weight for m in self.modules() if isinstance(m, nn.Conv2d)]
        chosen = {id(weight) for weight in kernels}
        rest = [p for p in self.parameters() if id(p) not in chosen]
        return [{"params": kernels, "weight_decay": 2 * penalty}, {"params": rest, "weight_decay": 0.0}]


def augmented(images: Tensor, draws: torch.Generator, shift: float = 0.1) -> Tensor:
    """Return images moved by up to `shift` of their size each way, the border repeated, half of them mirrored.

    The draws are made on the CPU, so that every device sees the same images.
    """
    n = len(images)
    moves = (torch.rand(n, 2, generator=draws) * 2 - 1) * shift * 2  # the width is 2 in the grid's units
    mirror = torch.where(torch.rand(n, generator=draws) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = mirror, 1.0, moves
    grid = functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
