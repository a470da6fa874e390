"""What a group of MaSS's parameters must fulfil, and the warning where momentum gains nothing."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from wideangle.errors import InputError
from wideangle.optim._given import number, one_number, whole
from wideangle.optim._mass_parameters import MassParameters

__all__ = [
    "ScaleOfLoss",
    "check_group",
    "check_options",
    "check_step_size",
    "checked_parameters",
    "settle",
    "warn_without_momentum",
]

_HERE = str(Path(__file__).parent)

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
    elif batch_size is None and callable(getattr(source, "mass", None)):
        raise InputError("batch_size is missing; the best parameters for measured constants depend on it")
    elif not callable(getattr(source, "mass", None)):
        raise InputError(
            f"{type(source).__name__} is neither MassParameters nor measured constants with a method `mass`; "
            "from_etas makes parameters of (eta1, eta2, gamma)"
        )
    else:
        p = source.mass(whole(batch_size, "batch_size"))
    if p.alpha == 1 and p.kappa_tilde > 1:
        raise InputError(
            f"alpha is 1 (gamma = 0, no momentum) with kappa_tilde = {p.kappa_tilde}; alpha must lie in (0, 1), "
            "or kappa_tilde be 1, which is plain SGD"
        )
    return p


def check_group(group: dict[str, Any]) -> None:
    """Refuse a group whose values or tensors cannot be used; numbers become floats, a tensor lr its own."""
    group.update({key: number(group[key], key) for key in ("alpha", "kappa_tilde", "weight_decay")})
    lr = one_number(group["lr"], "lr")
    checked_parameters(MassParameters(lr, group["alpha"], group["kappa_tilde"]), None)
    decay = group["weight_decay"]
    if not (math.isfinite(decay) and decay >= 0):
        raise InputError(f"weight_decay is {decay}; it must be at least 0 and finite")
    check_options(group)
    for place, param in enumerate(group["params"]):
        _check_tensor(place, param)
    check_step_size(lr, group["smoothness"])
    if not isinstance(group["lr"], Tensor):
        group["lr"] = lr
    elif group["differentiable"]:
        group["lr"] = group["lr"] if group["lr"].dim() == 0 else group["lr"].reshape(())
    else:  # a copy: neither the caller nor another group is to see what `retune` or a schedule writes
        lr = group["lr"].detach().clone().reshape(())
        group["lr"] = lr if lr.is_floating_point() else lr.to(torch.get_default_dtype())
    settle(group)


def check_options(group: dict[str, Any]) -> None:
    """Refuse options that exclude each other, and a type of the state that is none."""
    for one, other, reason in _EXCLUSIVE:
        if group[one] and group[other]:
            raise InputError(f"{one}={group[one]} and {other}={group[other]} exclude each other: {reason}")
    precision = group["state_dtype"]
    if precision is not None and not (isinstance(precision, torch.dtype) and precision.is_floating_point):
        raise InputError(
            f"state_dtype is {precision!r}; it must be a floating-point type such as torch.float32"
        )


def settle(group: dict[str, Any]) -> None:
    """With `capturable`, make lr a tensor on the parameters' device, and move there what is kept of it."""
    if not group["capturable"]:
        return
    params, lr = group["params"], group["lr"]
    device = params[0].device if params else None
    if not isinstance(lr, Tensor):  # in single precision at least
        double = any(param.dtype == torch.float64 for param in params)
        group["lr"] = torch.tensor(lr, dtype=torch.float64 if double else torch.float32, device=device)
    for key in ("lr", "last_lr", "restart_below"):
        if isinstance(group.get(key), Tensor):
            group[key] = group[key].to(device)


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
    smoothness = number(smoothness, "smoothness")
    if not (math.isfinite(smoothness) and smoothness > 0):
        raise InputError(f"smoothness L is {smoothness}; it must be positive and finite")
    if lr > 2 / smoothness:
        raise InputError(
            f"lr is {lr:.6g}, above 2/L = {2 / smoothness:.6g} for the measured L = {smoothness:.6g}: even "
            f"gradient descent over all samples diverges there. Take lr up to 1/L = {1 / smoothness:.6g}"
        )


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
        stacklevel=_level_outside(),
    )


def _level_outside() -> int:
    """The stack level, for the function that asks, of its first caller outside of this folder."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    return level
