"""Samples the paper runs measure on: unit vectors, pairs at an angle, Gaussian clouds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wideangle import seeds

DEGREES = 180.0 / math.pi


def unit(x: Tensor) -> Tensor:
    """Return samples as float64 vectors of norm one, blank ones left out."""
    flat = x.flatten(1).double()
    norms = flat.norm(dim=1, keepdim=True)
    return (flat / norms.clamp_min(1e-300))[norms[:, 0] > 0]


def pair(theta: float, dimension: int = 10) -> Tensor:
    """Return two unit vectors `theta` radians apart."""
    x = torch.zeros(2, dimension, dtype=torch.float64)
    x[0, 0], x[1, 0], x[1, 1] = 1.0, math.cos(theta), math.sin(theta)
    return x


def gaussian(n: int, dimension: int, seed: int, normalised: bool = True) -> Tensor:
    """Return n draws of N(0, I), scaled to norm one unless told otherwise."""
    draws = seeds.generator(seed, "papers", "gaussian", n, dimension)
    x = torch.randn(n, dimension, generator=draws, dtype=torch.float64)
    return unit(x) if normalised else x


def signs(labels: Tensor) -> Tensor:
    """Return parity labels: +1 for odd classes, -1 for even ones."""
    return (labels % 2).double() * 2 - 1
