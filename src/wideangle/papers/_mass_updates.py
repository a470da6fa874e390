"""The update of MaSS in all its forms, and what others have published under its name, as plain loops.

Every function runs from w_0 on a sequence of gradient maps (one a step) and returns the points u_t at which
the gradients are taken, u_0 first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wideangle.optim import MassParameters

Gradient = Callable[[Tensor], Tensor]
Update = Callable[[Tensor, Sequence[Gradient], MassParameters], list[Tensor]]


def two_points(start: Tensor, gradients: Sequence[Gradient], p: MassParameters) -> list[Tensor]:
    """Algorithm 1: w+ = u - eta1 g;  u+ = (1 + gamma) w+ - gamma w + eta2 g."""
    u, w, seen = start, start, [start]
    for gradient in gradients:
        g = gradient(u)
        nearer = u - p.eta1 * g
        u, w = (1 + p.gamma) * nearer - p.gamma * w + p.eta2 * g, nearer
        seen.append(u)
    return seen


def three_points(start: Tensor, gradients: Sequence[Gradient], p: MassParameters) -> list[Tensor]:
    """The form of the authors' code: w+ = u - lr g;  v+ = (1 - alpha) v + alpha u - delta g;  u+ between them."""
    u, v, seen = start, start, [start]
    for gradient in gradients:
        g = gradient(u)
        w, v = u - p.lr * g, (1 - p.alpha) * v + p.alpha * u - p.delta * g
        u = (p.alpha * v + w) / (1 + p.alpha)
        seen.append(u)
    return seen


def one_buffer(start: Tensor, gradients: Sequence[Gradient], p: MassParameters) -> list[Tensor]:
    """One buffer in units of the weights: q <- gamma q - (gamma eta1 - eta2) g;  u <- u - eta1 g + q."""
    u, q, seen = start, torch.zeros_like(start), [start]
    for gradient in gradients:
        g = gradient(u)
        q = p.gamma * q - (p.gamma * p.eta1 - p.eta2) * g
        u = u - p.eta1 * g + q
        seen.append(u)
    return seen


def acc_sgd(start: Tensor, gradients: Sequence[Gradient], p: MassParameters) -> list[Tensor]:
    """AccSGD (Kidambi et al. 2018) with long step 1/(alpha^2 kappa_tilde) and advantage 1/(alpha kappa_tilde)."""
    long_step, advantage = 1 / (p.alpha**2 * p.kappa_tilde), 1 / (p.alpha * p.kappa_tilde)
    share = advantage / long_step
    u, slow, seen = start, start, [start]
    for gradient in gradients:
        g = gradient(u)
        slow = (1 - share) * slow + share * (u - p.lr * long_step * g)
        u = (u - p.lr * g + share * slow) / (1 + share)
        seen.append(u)
    return seen


def agnes(start: Tensor, gradients: Sequence[Gradient], p: MassParameters) -> list[Tensor]:
    """AGNES (Gupta et al. 2024) with correction eta1, momentum gamma and step eta1 - eta2 / gamma."""
    step = p.eta1 - p.eta2 / p.gamma
    point, velocity, seen = start, torch.zeros_like(start), [start]
    for gradient in gradients:
        ahead = point + step * velocity
        g = gradient(ahead)
        point, velocity = ahead - p.eta1 * g, p.gamma * (velocity - g)
        seen.append(point + step * velocity)
    return seen


def quasi_hyperbolic(start: Tensor, gradients: Sequence[Gradient], p: MassParameters) -> list[Tensor]:
    """Quasi-hyperbolic momentum (Ma, Yarats 2019): step (lr + delta)/2, share (delta - lr)/(delta + lr)."""
    step, share = p.effective_step, (p.delta - p.lr) / (p.delta + p.lr)
    u, average, seen = start, torch.zeros_like(start), [start]
    for gradient in gradients:
        g = gradient(u)
        average = p.gamma * average + (1 - p.gamma) * g
        u = u - step * ((1 - share) * g + share * average)
        seen.append(u)
    return seen


def sgd(start: Tensor, gradients: Sequence[Gradient], step: float) -> list[Tensor]:
    """Plain SGD with one step size."""
    u, seen = start, [start]
    for gradient in gradients:
        u = u - step * gradient(u)
        seen.append(u)
    return seen


def torch_optimiser(
    make: Callable[[list[Tensor]], torch.optim.Optimizer], start: Tensor, gradients: Sequence[Gradient]
) -> list[Tensor]:
    """Any optimiser of torch's kind, its parameter holding u."""
    u = start.clone().requires_grad_()
    optimiser, seen = make([u]), [start]
    for gradient in gradients:
        u.grad = gradient(u.detach())
        optimiser.step()
        seen.append(u.detach().clone())
    return seen


def without_memory(start: Tensor, gradients: Sequence[Gradient], p: MassParameters) -> list[Tensor]:
    """A student reproduction: w is overwritten by u each step, and the compensation is subtracted."""
    kept, seen = start, [start]
    for gradient in gradients:
        w = kept
        g = gradient(w)
        nearer = w - p.eta1 * g
        kept = (1 + p.gamma) * nearer - p.gamma * w - p.eta2 * g
        seen.append(kept)
    return seen


def same_iterate(start: Tensor, gradients: Sequence[Gradient], p: MassParameters) -> list[Tensor]:
    """A C++ library's version: both momentum terms use the new iterate, and the compensation is subtracted."""
    u, seen = start, [start]
    for gradient in gradients:
        g = gradient(u)
        w = u - p.eta1 * g
        u = (1 + p.gamma) * w - p.gamma * w - p.eta2 * g
        seen.append(u)
    return seen


def gradient_as_start(start: Tensor, gradients: Sequence[Gradient], p: MassParameters) -> list[Tensor]:
    """Another reproduction: the right recurrence, but v starts as the first gradient in place of w_0."""
    u, seen = start, [start]
    v: Tensor | None = None
    for gradient in gradients:
        g = gradient(u)
        w = u - p.lr * g
        v = g if v is None else (1 - p.alpha) * v + p.alpha * u - p.delta * g
        u = (p.alpha * v + w) / (1 + p.alpha)
        seen.append(u)
    return seen
