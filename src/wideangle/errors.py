"""The errors wideangle raises on purpose; each message says what is wrong and what to do."""

from __future__ import annotations

__all__ = [
    "ConvergenceError",
    "InputError",
    "MissingExtraError",
    "NumericsError",
    "RankError",
    "WideangleError",
]


class WideangleError(Exception):
    """Base class of every error that wideangle raises on purpose."""


class InputError(WideangleError, ValueError):
    """An argument, file or model cannot be used; the message names it, its value and the remedy."""


class NumericsError(WideangleError, ArithmeticError):
    """A computation produced a non-finite number; the message says which and what to try."""


class ConvergenceError(WideangleError, RuntimeError):
    """An iterative method stopped before its residual passed the tolerance asked for."""


class MissingExtraError(WideangleError, ImportError):
    """A feature needs a package of an extra that is not installed; the message names the extra."""


class RankError(WideangleError, RuntimeError):
    """Another process of a distributed run stopped answering; the message says what is kept."""
