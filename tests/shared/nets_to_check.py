"""Small models and data for the tests of the check-up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wideangle import data, nets, seeds


def digits(n: int = 60) -> tuple[Tensor, Tensor]:
    loaded = data.load("digits", n=n)
    return loaded.x, loaded.y


def small_mlp(width: int = 64, depth: int = 1) -> nn.Module:
    return nets.MLP(64, 10, width=width, depth=depth, generator=seeds.generator(0, "test net"))


def standard(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill the weights as PyTorch does by default, uniform within 1 / sqrt(fan-in), from a seed; zero biases."""
    draws = seeds.generator(seed, "standard")
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = module.weight[0].numel() ** -0.5
            with torch.no_grad():
                module.weight.copy_((torch.rand(module.weight.shape, generator=draws) * 2 - 1) * bound)
                if module.bias is not None:
                    module.bias.zero_()
    return model


def relu_mlp() -> nn.Module:
    return standard(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 100),
            nn.ReLU(),
            nn.Linear(100, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )
    )


def batch_norm_net() -> nn.Module:
    return standard(
        nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
    )
