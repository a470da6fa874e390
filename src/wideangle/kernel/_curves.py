"""Sums of exponentials: L(t) = (c/2) sum_i e_i f_i^(2t), evaluated and inverted for any t."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from wideangle.errors import InputError
from wideangle.kernel.spectrum import Spectrum

Array = np.ndarray
Constant = Literal["rigorous", "fitted"]
_BLOCK = 2**22  # numbers held at once
_VANISHED = -1e300  # log of a factor that is zero: finite, so that 0 * log(0) = 0


class Curve(NamedTuple):
    """Modes that carry energy: e_i > 0 and log f_i, with the factor c of the loss."""

    energies: Array
    logs: Array
    c: float

    @classmethod
    def of(cls, energies: Array, logs: Array, c: float) -> Curve:
        """Return the curve of the modes with energy (0 * inf never arises)."""
        carry = energies > 0
        return cls(energies[carry], logs[carry], c)

    def at(self, times: Array) -> Array:
        """Return L at the times, of their shape; a value too large for a float is inf."""
        flat = times.reshape(-1)
        values = np.zeros(len(flat))
        width = max(1, _BLOCK // max(1, len(self.energies)))
        with np.errstate(over="ignore", under="ignore"):
            for start in range(0, len(flat), width):
                powers = np.exp(2 * np.outer(flat[start : start + width], self.logs))
                values[start : start + width] = self.c / 2 * (powers * self.energies).sum(1)
        return values.reshape(times.shape)

    def one(self, time: float) -> float:
        """Return L at one time."""
        return float(self.at(np.array([time]))[0])

    @property
    def floor(self) -> float:
        """The part that never changes."""
        return self.c / 2 * float(self.energies[self.logs == 0].sum())

    def turning_step(self) -> float:
        """Return the integer t with the smallest L, inf where L never rises (L is convex in t)."""
        if not (self.logs > 0).any():
            return math.inf
        high = 1.0
        while not self._rises(high):
            high *= 2
        low = 0.0
        while high - low > 1 and low < (middle := math.floor((low + high) / 2)) < high:
            low, high = (low, middle) if self._rises(middle) else (middle, high)
        return float(low if self.one(low) <= self.one(high) else high)

    def _rises(self, time: float) -> bool:
        """Compare the growing with the shrinking part of the derivative, in logarithms."""
        up, down = self.logs > 0, self.logs < 0
        if not down.any():
            return True
        return _log_sum(self, up, time) >= _log_sum(self, down, time)

    def first_below(self, target: float) -> float:
        """Return the smallest integer t with L(t) <= target, inf where there is none."""
        if self.one(0.0) <= target:
            return 0.0
        last = self.turning_step()
        if self.floor > target or (math.isfinite(last) and self.one(last) > target):
            return math.inf
        low, high = 0.0, 1.0
        while self.one(min(high, last)) > target:
            if high > 1e300:
                return math.inf
            low, high = high, high * 2
        high = min(high, last)
        while high - low > 1 and low < (middle := math.floor((low + high) / 2)) < high:
            low, high = (middle, high) if self.one(middle) > target else (low, middle)
        return float(high)


def _log_sum(curve: Curve, part: Array, time: float) -> float:
    terms = np.log(curve.energies[part]) + np.log(np.abs(curve.logs[part])) + 2 * time * curve.logs[part]
    return float(np.logaddexp.reduce(terms))


def log_factors(rates: Array) -> Array:
    """Return log |1 - rate|: by log1p below one, and without loss of digits near two."""
    logs = np.full(rates.shape, _VANISHED)
    low, high = rates < 1, rates > 1
    logs[low] = np.log1p(-rates[low])
    logs[high] = np.log1p(rates[high] - 2)
    return logs


def exact_curve(spectrum: Spectrum, energies: Array, step: float, c: float) -> Curve:
    return Curve.of(energies, _logs(spectrum, step, c), c)


def trace_curve(spectrum: Spectrum, energies: Array, step: float, c: float, constant: Constant) -> Curve:
    lam = spectrum.resolved
    bound = np.where(lam > 0, bound_constant(spectrum, energies, constant) * lam, energies)
    return Curve.of(bound, _logs(spectrum, step, c), c)


def slowest_curve(spectrum: Spectrum, energies: Array, step: float, c: float) -> Curve:
    return Curve.of(energies.sum(keepdims=True), _logs(spectrum, step, c).max(keepdims=True), c)


def bound_constant(spectrum: Spectrum, energies: Array, constant: Constant) -> float:
    lam = spectrum.resolved
    if constant not in ("rigorous", "fitted"):
        raise InputError(f"constant must be 'rigorous' or 'fitted', got {constant!r}")
    if not (lam > 0).any():
        return 0.0
    energies, lam = energies[lam > 0], lam[lam > 0]
    return float((energies / lam).max() if constant == "rigorous" else energies.sum() / lam.sum())


def _logs(spectrum: Spectrum, step: float, c: float) -> Array:
    check_positive(step=step, c=c)
    return log_factors(step * c * spectrum.resolved)


def check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} must be positive and finite, got {value}")


def as_times(steps: Any) -> Array:
    times = np.asarray(steps, dtype=float)
    if not (np.isfinite(times).all() and (times >= 0).all()):
        raise InputError("numbers of steps must be finite and zero or more")
    return times


def time_grid(steps: int, points: int = 400) -> Array:
    """Return numbers of steps from 0 to `steps`: all of them, or `points` evenly spaced in log t.

        t = 0, 1, ..., steps    or    t = 0 and round(steps^(k / points)), k = 0 ... points

    Args:
        steps: the last one, zero or more.
        points: at most about so many, two or more.

    Returns:
        Increasing whole numbers, float64.

    Raises:
        InputError: a negative `steps`, or fewer than two points.

    Example:
        >>> time_grid(3).tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    if steps < 0 or points < 2:
        raise InputError(f"steps must be zero or more and points two or more, got {steps} and {points}")
    if steps <= points:
        return np.arange(steps + 1, dtype=float)
    return np.unique(np.concatenate([[0.0], np.round(float(steps) ** np.linspace(0, 1, points + 1))]))
