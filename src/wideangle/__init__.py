"""wideangle: measure how a network will train, plan from the measurement, act, verify."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wideangle.errors import (
    ConvergenceError,
    InputError,
    MissingExtraError,
    NumericsError,
    WideangleError,
)

if TYPE_CHECKING:
    from wideangle import checks, curvature, data, kernel, nets, optim, papers, report, taylor, testing
    from wideangle.checks import Checkup, checkup
    from wideangle.plan import Decision, Plan
    from wideangle.result import Provenance, Result
    from wideangle.training import Training, train

__version__ = "0.1.0"

_LAZY = {
    "Checkup": "wideangle.checks",
    "checkup": "wideangle.checks",
    "Decision": "wideangle.plan",
    "Plan": "wideangle.plan",
    "Provenance": "wideangle.result",
    "Result": "wideangle.result",
    "Training": "wideangle.training",
    "train": "wideangle.training",
}
_PACKAGES = (
    "checks",
    "curvature",
    "data",
    "kernel",
    "nets",
    "optim",
    "papers",
    "report",
    "taylor",
    "testing",
)

__all__ = [
    "Checkup",
    "ConvergenceError",
    "Decision",
    "InputError",
    "MissingExtraError",
    "NumericsError",
    "Plan",
    "Provenance",
    "Result",
    "Training",
    "WideangleError",
    "__version__",
    "checks",
    "checkup",
    "curvature",
    "data",
    "kernel",
    "nets",
    "optim",
    "papers",
    "report",
    "taylor",
    "testing",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
