"""What a group of MaSS's parameters must fulfil, and the warning where momentum gains nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from wideangle.errors import InputError
from wideangle.optim._mass_parameters import MassParameters

__all__ = ["ScaleOfLoss", "check_group", "check_step_size", "checked_parameters", "warn_without_momentum"]

_EXCLUSIVE = [
    ("foreach", "fused", "each names a different form of the step"),
    ("foreach", "differentiable", "autograd passes through the plain loop only"),
    ("fused", "differentiable", "autograd passes through the plain loop only"),
    ("state_dtype", "differentiable", "the rounding of the master weights has no derivative"),
    ("restart", "differentiable", "the buffers are zeroed in place"),
    ("capturable", "check_finite", "the check waits for the device, which a captured graph cannot"),
]


class ScaleOfLoss(Protocol):
    """Measured constants: anything that gives the parameters of MaSS for a batch size."""

    def mass(self, batch_size: int, /) -> MassParameters: ...


def checked_parameters(source: MassParameters | ScaleOfLoss, batch_size: int | None) -> MassParameters:
    """Return the parameters, taken from the constants for this batch size unless they are given."""
    if isinstance(source, MassParameters):
        if batch_size is not None:
            raise InputError(f"batch_size is {batch_size}, but the parameters are given; leave it out")
        p = source
    elif batch_size is None:
        raise InputError("batch_size is missing; the best parameters for measured constants depend on it")
    else:
        p = source.mass(batch_size)
    if p.alpha == 1 and p.kappa_tilde > 1:
        raise InputError(
            f"alpha is 1 (gamma = 0, no momentum) with kappa_tilde = {p.kappa_tilde}; alpha must lie in (0, 1), "
            "or kappa_tilde be 1, which is plain SGD"
        )
    return p


def check_group(group: dict[str, Any]) -> None:
    """Refuse a group whose values or tensors cannot be used; with `capturable`, make its lr a tensor."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise InputError(f"lr is a tensor of shape {tuple(lr.shape)}; it must have one element")
    p = checked_parameters(MassParameters(float(lr), group["alpha"], group["kappa_tilde"]), None)
    decay = group["weight_decay"]
    if not (math.isfinite(decay) and decay >= 0):
        raise InputError(f"weight_decay is {decay}; it must be at least 0 and finite")
    for one, other, reason in _EXCLUSIVE:
        if group[one] and group[other]:
            raise InputError(f"{one}={group[one]} and {other}={group[other]} exclude each other: {reason}")
    precision = group["state_dtype"]
    if precision is not None and not precision.is_floating_point:
        raise InputError(
            f"state_dtype is {precision}; it must be a floating-point type such as torch.float32"
        )
    for place, param in enumerate(group["params"]):
        _check_tensor(place, param)
    check_step_size(p.lr, group["smoothness"])
    if group["capturable"]:
        group["lr"] = _as_tensor(lr, group["params"])


def _check_tensor(place: int, param: Tensor) -> None:
    name = f"parameter {place} of the group, of shape {tuple(param.shape)},"
    if param.layout is not torch.strided:
        raise InputError(f"{name} is sparse ({param.layout}); MaSS moves every entry. Pass a dense one")
    if param.is_complex():
        raise InputError(
            f"{name} is complex; the method and its constants are for real weights. Train torch.view_as_real of it"
        )
    if not param.is_floating_point():
        raise InputError(f"{name} is of type {param.dtype}; it must be of a floating-point type")


def check_step_size(lr: float, smoothness: float | None) -> None:
    """Refuse an lr above 2/L for a measured L."""
    if smoothness is None:
        return
    if not (math.isfinite(smoothness) and smoothness > 0):
        raise InputError(f"smoothness L is {smoothness}; it must be positive and finite")
    if lr > 2 / smoothness:
        raise InputError(
            f"lr is {lr:.6g}, above 2/L = {2 / smoothness:.6g} for the measured L = {smoothness:.6g}: even "
            f"gradient descent over all samples diverges there. Take lr up to 1/L = {1 / smoothness:.6g}"
        )


def _as_tensor(lr: float | Tensor, params: Sequence[Tensor]) -> Tensor:
    """Lr as a tensor of no dimensions, on the device of the parameters, in single precision at least."""
    if isinstance(lr, Tensor):
        return lr.reshape(())
    double = any(param.dtype == torch.float64 for param in params)
    device = params[0].device if params else None
    return torch.tensor(lr, dtype=torch.float64 if double else torch.float32, device=device)


def warn_without_momentum(groups: Sequence[dict[str, Any]]) -> None:
    """Warn, once for all the groups, where alpha kappa_tilde >= 1."""
    worst = max(groups, key=lambda group: group["alpha"] * group["kappa_tilde"])
    alpha, kappa_tilde = worst["alpha"], worst["kappa_tilde"]
    product = alpha * kappa_tilde
    if product < 1 - 1e-9:
        return
    meaning = "momentum then works against the gradient, slower than plain SGD"
    if product <= 1 + 1e-9:
        meaning = "this is plain SGD, at the cost of a buffer"
    warnings.warn(
        f"alpha * kappa_tilde = {alpha:.4g} * {kappa_tilde:.4g} = {product:.4g}, not below 1: {meaning}. "
        f"Take alpha below {1 / kappa_tilde:.4g}, or torch.optim.SGD",
        stacklevel=3,
    )
