"""What one infinitely wide layer does to a pair of inputs, without losing the digits of a small angle.

A pair is carried as its angle theta, and every similarity as a deficit (1 - cosine): near parallel
inputs the cosine itself has no digits left for it. The formulas below add terms of one sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wideangle.errors import InputError
from wideangle.names import unknown_name
from wideangle.nets.activations import ACTIVATIONS, Activation

DEGREE = {"relu": 1, "identity": 1, "relu2": 2}  # positively homogeneous: s(a z) = a^degree s(z)
_REACH, _STEP = 14.0, 0.05  # trapezoidal rule on [-14, 14]: exact to rounding for analytic functions
_FIRST_TERMS, _MOST_TERMS = 128, 2048


class Layer(NamedTuple):
    """One layer's effect: variances, means of the squared derivative, deficits of values and derivatives."""

    q_i: Tensor
    q_j: Tensor
    chi_i: Tensor
    chi_j: Tensor
    theta: Tensor
    delta: Tensor  # 1 - E[s(u) s(v)], normalised: 1 - cos(theta)
    eta: Tensor  # 1 - E[s'(u) s'(v)], normalised


Dual = Callable[[Tensor, Tensor, Tensor], Layer]


def dual(activation: Activation) -> Dual:
    """Return the map (q_i, q_j, theta) -> Layer of an activation scaled to keep unit variance."""
    if isinstance(activation, str) and activation in DEGREE:
        return {"relu": _relu, "identity": _identity, "relu2": _relu2}[activation]
    if callable(activation):
        return _Series(activation)
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, [*ACTIVATIONS, "relu2"], "or pass a smooth function")
    return _Series(ACTIVATIONS[activation])


def deficit_of(theta: Tensor) -> Tensor:
    """Return 1 - cos(theta) to full relative accuracy."""
    return 2 * torch.sin(theta / 2) ** 2


def angle_of(deficit: Tensor) -> Tensor:
    """Return the angle theta with 1 - cos(theta) = deficit, as 2 asin(sqrt(deficit / 2))."""
    return 2 * torch.asin(torch.sqrt(torch.clamp(deficit / 2, 0, 1)))


def _x_minus_sin(x: Tensor) -> Tensor:
    """Return x - sin(x) for x >= 0 to full relative accuracy (a series below 1/4)."""
    y = x * x
    series = 1 - y / 110
    for divisor in (72.0, 42.0, 20.0):
        series = 1 - series * y / divisor
    return torch.where(x < 0.25, x * y * series / 6, x - torch.sin(x))


def _relu_deficit(theta: Tensor) -> Tensor:
    """Return 1 - ((pi - theta) cos(theta) + sin(theta)) / pi; sin - theta cos is O(theta^3)."""
    delta = deficit_of(theta)
    return delta - (theta * delta - _x_minus_sin(theta)) / math.pi


def _relu(q_i: Tensor, q_j: Tensor, theta: Tensor) -> Layer:
    one, delta = torch.ones_like(q_i), _relu_deficit(theta)
    return Layer(q_i, q_j, one, one, angle_of(delta), delta, theta / math.pi)


def _identity(q_i: Tensor, q_j: Tensor, theta: Tensor) -> Layer:
    one = torch.ones_like(q_i)
    return Layer(q_i, q_j, one, one, theta, deficit_of(theta), torch.zeros_like(theta))


def _relu2(q_i: Tensor, q_j: Tensor, theta: Tensor) -> Layer:
    chi = torch.full_like(q_i, 4 / 3)
    delta = (1.5 * _x_minus_sin(2 * theta) + 2 * (math.pi - theta) * torch.sin(theta) ** 2) / (3 * math.pi)
    return Layer(q_i, q_j, chi, chi, angle_of(delta), delta, _relu_deficit(theta))


class _Series:
    """A smooth activation through Mehler's formula: E[s(u) s(v)] = sum_k a_k(q_i) a_k(q_j) cos^k(theta)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        if function(torch.linspace(-3, 3, 13, dtype=torch.float64)).unique().numel() == 1:
            raise InputError(f"the activation {function!r} is constant, or does not keep the shape")
        self.moment = float((self._coefficients(torch.ones((), dtype=torch.float64)) ** 2).sum())

    def __call__(self, q_i: Tensor, q_j: Tensor, theta: Tensor) -> Layer:
        """Return the layer's effect; a common variance is passed as one tensor without dimensions."""
        a_i = self._coefficients(q_i)
        a_j = a_i if q_j is q_i else self._coefficients(q_j)
        new_i, chi_i = self._moments(a_i, q_i)
        new_j, chi_j = (new_i, chi_i) if q_j is q_i else self._moments(a_j, q_j)
        delta = _deficit(a_i, a_j, theta)
        eta = _deficit(_derivative(a_i), _derivative(a_j), theta)
        return Layer(new_i, new_j, chi_i, chi_j, angle_of(delta), delta, eta)

    def _moments(self, a: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return c E[s^2] and c E[s'^2] at variance q; the fixed point q = 1 is kept exactly."""
        new = (a**2).sum(0) / self.moment
        return torch.where((q - 1).abs() < 1e-14, 1.0, new), (_derivative(a) ** 2).sum(0) / self.moment / q

    def _coefficients(self, q: Tensor) -> Tensor:
        """Return a_k(q) = E[s(sqrt(q) z) He_k(z)] / sqrt(k!), of shape (terms, *q.shape)."""
        nodes = torch.arange(-_REACH, _REACH + _STEP / 2, _STEP, dtype=torch.float64, device=q.device)
        values = self.function(q.reshape(-1, 1).sqrt() * nodes)
        if not (isinstance(values, Tensor) and values.shape == (q.numel(), len(nodes))):
            raise InputError(f"the activation {self.function!r} must keep the shape of its argument")
        terms = _FIRST_TERMS
        while terms <= _MOST_TERMS and bool(torch.isfinite(values).all()):
            a = _weighted_hermite(nodes, terms) @ values.double().T
            weight = _derivative(a) ** 2
            left = weight.flip(0).cumsum(0).flip(0)  # what the terms from k on add to E[s'^2]
            if bool((left[-terms // 8] <= 1e-13 * left[0]).all()):
                keep = 2 + int((left > 1e-17 * left[0]).any(1).sum())
                return a[:keep].reshape(-1, *q.shape)
            terms *= 2
        raise InputError(
            f"the Hermite series of the activation {self.function!r} does not converge within "
            f"{_MOST_TERMS} terms at pre-activation variance {float(q.max()):.4g}: scale the inputs to unit "
            "norm; a function with a kink has no fast series at all (relu and relu2 are known by name)"
        )


def _derivative(a: Tensor) -> Tensor:
    """Return the coefficients of sqrt(q) s'(sqrt(q) z) from those of s(sqrt(q) z)."""
    k = torch.arange(1, len(a), dtype=a.dtype, device=a.device).sqrt()
    return k.reshape(-1, *[1] * (a.dim() - 1)) * a[1:]


def _weighted_hermite(z: Tensor, terms: int) -> Tensor:
    """Return the normalised Hermite polynomials times density and step, shape (terms, nodes)."""
    rows = [torch.exp(-z * z / 2) * (_STEP / math.sqrt(2 * math.pi))]
    rows.append(z * rows[0])
    for k in range(1, terms - 1):
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return torch.stack(rows)


def _deficit(a: Tensor, b: Tensor, theta: Tensor) -> Tensor:
    """Return 1 - sum_k a_k b_k cos^k(theta) / (|a| |b|), using 1 - r^k = (1 - r)(1 + ... + r^(k-1))."""
    a, b = (side / torch.linalg.vector_norm(side, dim=0) for side in (a, b))
    rho, geometric = torch.cos(theta), torch.zeros_like(theta)
    terms = max(len(a), len(b))
    a, b = (torch.cat([side, side.new_zeros(terms - len(side), *side.shape[1:])]) for side in (a, b))
    mismatch, tail = (a[0] - b[0]) ** 2, a[0] * b[0] * 0
    for k in range(terms - 1, 0, -1):
        mismatch = mismatch + (a[k] - b[k]) ** 2
        tail = tail + a[k] * b[k]
        geometric.mul_(rho).add_(tail)
    return mismatch / 2 + deficit_of(theta) * geometric
