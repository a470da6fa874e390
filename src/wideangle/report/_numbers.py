"""How a value looks in a report: four significant digits, "not measured" for what is missing."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from wideangle.result import Result

MISSING = "not measured"
SHOWN = 8
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def clean(value: Any) -> str:
    """Text without control characters and lone surrogates, which no page can hold."""
    return _CONTROL.sub("", str(value))


def finite(value: Any) -> bool:
    """True for a number that can be drawn."""
    return value is not None and math.isfinite(value)


def number(value: float | None, group: bool = True) -> str:
    """A number with four significant digits; whole numbers in full; the exponent without padding."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    whole = float(value).is_integer() and abs(value) < 1e15
    if isinstance(value, int) or (whole and abs(value) < 1e7):
        return f"{int(value):,}" if group and abs(value) >= 10_000 else str(int(value))
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    if -4 <= int(exponent) < 6:
        if int(exponent) >= 4:
            return number(int(round(value, 3 - int(exponent))), group)
        text = f"{value:.{3 - int(exponent)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def power(exponent: int) -> str:
    """Ten to a whole power as it is written by hand."""
    if 0 <= exponent <= 1:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def listing(value: Any) -> list[Any] | None:
    """The items of a list-like value, None for anything else."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 else None
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else None


def show(value: Any, group: bool = True) -> str:
    """Any value of a result as short text; a long list shows its first items and its length."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, (int, float)):
        return number(value, group)
    if isinstance(value, Result):
        return "; ".join(f"{name} {text}" for name, text in value.rows())
    if isinstance(value, dict):
        return "; ".join(f"{label(key)}: {show(item)}" for key, item in value.items()) or "none"
    items = listing(value)
    if items is not None:
        shown = ", ".join(show(item) for item in items[:SHOWN])
        return (f"{shown}, … ({len(items):,} in all)" if len(items) > SHOWN else shown) or "none"
    if isinstance(value, np.ndarray):
        return "array of shape " + " × ".join(str(size) for size in value.shape)
    return clean(value)


def label(name: Any) -> str:
    """A field name as words."""
    return clean(name).replace("_", " ")


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if not finite(seconds) or seconds is None:
        return MISSING
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
