"""Numbers as a user gives them: as floats and ints, or an InputError that names the argument."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from torch import Tensor

from wideangle.errors import InputError

__all__ = ["number", "one_number", "whole"]


def number(value: Any, name: str) -> float:
    """Return a real number as a float; a tensor is none."""
    if not isinstance(value, Real):
        raise InputError(f"{name} is {value!r:.80}, of type {type(value).__name__}; it must be a real number")
    return float(value)


def one_number(value: Any, name: str) -> float:
    """Return a real number, or what a real tensor of one element holds, as a float; the host waits for it."""
    if not isinstance(value, Tensor):
        return number(value, name)
    if value.numel() != 1 or value.is_complex():
        kind = f"shape {tuple(value.shape)} and type {value.dtype}"
        raise InputError(f"{name} is a tensor of {kind}; it must have one element, and a real one")
    return float(value.detach())


def whole(value: Any, name: str) -> int:
    """Return a whole number of at least 1 as an int."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} is {value!r:.80}; it must be a whole number, at least 1")
    return int(value)
