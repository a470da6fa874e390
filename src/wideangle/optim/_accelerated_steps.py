"""The two numbers of each step of an accelerated method, and the steps of many tensors with them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wideangle.optim._accelerated_factors import Method

__all__ = ["Coefficients", "extrapolated_step", "momentum_step"]

_torch: Any = torch  # its _foreach functions are not exported by name


class Coefficients:
    """The two numbers of w+ = w + a (w - w_before) + c (b - H w) / L, step by step.

    For nesterov a is the momentum of the point where the gradient is taken, and c = 1.
    """

    def __init__(self, kappa_hat: float, method: Method, rho: float | None = None):
        self.method = method
        self.kappa_hat = kappa_hat
        k = math.sqrt(kappa_hat)
        self.gamma = (kappa_hat - 1) / (k + 1) ** 2
        self.rho = rho  # of the last step; None before the first

    def next(self) -> tuple[float, float]:
        """Return (a, c) of the next step."""
        kappa = self.kappa_hat
        if self.method == "nesterov":
            return self.gamma, 1.0
        if self.method == "heavy_ball":
            return self.gamma**2, 4 * kappa / (math.sqrt(kappa) + 1) ** 2
        sigma = (kappa + 1) / (kappa - 1)
        if self.rho is None:
            self.rho = 1 / sigma
            return 0.0, 2 * kappa / (kappa + 1)
        before, self.rho = self.rho, 1 / (2 * sigma - self.rho)
        return self.rho * before, 4 * self.rho * kappa / (kappa - 1)


def extrapolated_step(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], gamma: float, lr: float
) -> None:
    """Nesterov, in place: b <- gamma (b + g), u <- u - lr g - lr b."""
    if len(params) == 1:
        buffers[0].add_(grads[0]).mul_(gamma)
        params[0].add_(grads[0], alpha=-lr).add_(buffers[0], alpha=-lr)
        return
    _torch._foreach_add_(buffers, grads)
    _torch._foreach_mul_(buffers, gamma)
    _torch._foreach_add_(params, grads, alpha=-lr)
    _torch._foreach_add_(params, buffers, alpha=-lr)


def momentum_step(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], a: float, c: float, lr: float
) -> None:
    """Heavy ball and Chebyshev, in place: b <- a b + c g, w <- w - lr b."""
    if len(params) == 1:
        buffers[0].mul_(a).add_(grads[0], alpha=c)
        params[0].add_(buffers[0], alpha=-lr)
        return
    _torch._foreach_mul_(buffers, a)
    _torch._foreach_add_(buffers, grads, alpha=c)
    _torch._foreach_add_(params, buffers, alpha=-lr)
