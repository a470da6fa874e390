"""Sums of exponentials: L(t) = (c/2) sum_i e_i f_i^(2t), evaluated and inverted for any t."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Array = np.ndarray
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
        return low if self.one(low) <= self.one(high) else high

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
