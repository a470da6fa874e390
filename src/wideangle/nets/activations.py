"""Activation functions by name, and the factor that keeps the size of a signal through each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional

from wideangle.errors import InputError
from wideangle.names import unknown_name

__all__ = ["ACTIVATIONS", "Activation", "activation_function", "c_sigma"]

Activation = str | Callable[[torch.Tensor], torch.Tensor]


def _identity(z: torch.Tensor) -> torch.Tensor:
    return z


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "erf": torch.erf,
    "swish": functional.silu,
    "identity": _identity,
}


def activation_function(activation: Activation) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function behind a name; a callable is handed through.

    Args:
        activation: one of `ACTIVATIONS`, or any function from a tensor to a tensor of the same shape.

    Returns:
        The function, which leaves its argument as it was.

    Raises:
        InputError: an unknown name.

    Example:
        >>> activation_function("relu")(torch.tensor([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS, "or pass a function")
    return ACTIVATIONS[activation]


def c_sigma(activation: Activation) -> float:
    """Return the constant that makes the second moment of an activation one.

        c_sigma = 1 / E[activation(z)^2],  z ~ N(0, 1)

    ReLU, erf and the identity in closed form (2, pi / (2 asin(2/3)), 1), anything else by the
    trapezoidal rule with 2^15 steps on [-16, 16]: exact to rounding for analytic functions, to 1e-6
    for one with a kink. Cost: one call of the activation on 32,769 numbers, kept for each name.

    Args:
        activation: one of `ACTIVATIONS`, or any function from a tensor to a tensor of the same shape.

    Returns:
        c_sigma > 0. The square root multiplies the activation in the NTK parameterisation.

    Raises:
        InputError: an unknown name; a function that is zero or not finite on N(0, 1), or changes the shape.

    Example:
        >>> c_sigma("relu"), round(c_sigma("tanh"), 4)
        (2.0, 2.5362)

    Reference: Liu, Bi, Hui & Liu 2023 (arXiv 2305.08813), section 2, where c_sigma normalises the hidden
    vectors.
    """
    if isinstance(activation, str):
        return _named_c_sigma(activation)
    return _integrate(activation)


@cache
def _named_c_sigma(name: str) -> float:
    closed = {"relu": 2.0, "identity": 1.0, "erf": math.pi / (2 * math.asin(2 / 3))}
    return closed[name] if name in closed else _integrate(activation_function(name))


def _integrate(function: Callable[[torch.Tensor], torch.Tensor]) -> float:
    z = torch.linspace(-16, 16, 2**15 + 1, dtype=torch.float64)
    with torch.no_grad():
        values = function(z.clone())
    if not isinstance(values, torch.Tensor) or values.shape != z.shape:
        raise InputError(
            f"an activation must map a tensor to a tensor of the same shape, but {function!r} turned "
            f"{tuple(z.shape)} into {tuple(getattr(values, 'shape', ())) or type(values).__name__}"
        )
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    moment = float(torch.trapezoid(values.double() ** 2 * density, z))
    if not (math.isfinite(moment) and moment > 0):
        raise InputError(
            f"the activation {function!r} has the second moment {moment} on N(0, 1); it must be positive "
            "and finite to be normalised (pass gain=False to leave it as it is)"
        )
    return 1 / moment
