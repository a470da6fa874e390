"""How a measurement scales with width: a sweep over widths and seeds, the slope, and a verdict."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from wideangle.curvature._sweep import Cells, cell_metric, fingerprint
from wideangle.document import Figure, Series
from wideangle.errors import InputError, NumericsError
from wideangle.parallel import as_finished
from wideangle.result import Provenance, Result

__all__ = ["WidthScaling", "width_scaling"]

Factory = Callable[[int, int], nn.Module]
Metric = str | Callable[[nn.Module], Any]
BOOTSTRAP, RESAMPLES = 6, 4000


@dataclass(frozen=True)
class WidthScaling(Result):
    """A measurement at several widths, value ~ constant x width^slope, with a 95 % interval of the slope.

    `values` holds one row per seed and one column per width. `verdict` is "transitions" (slope below -0.25
    and the interval below -0.2: the measurement vanishes with width), "does not" (slope above -0.2 and
    the interval above -0.25) or "unclear". `method` says how the interval was got.
    """

    metric: str = ""
    widths: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    slope: float = math.nan
    interval: tuple[float, float] = (-math.inf, math.inf)
    constant: float = math.nan
    method: str = ""
    verdict: str = "unclear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", tuple(self.interval))

    @property
    def means(self) -> list[float]:
        """Return the geometric mean over seeds at each width."""
        return [float(value) for value in np.exp(np.log(self.values).mean(0))]

    def rows(self) -> list[tuple[str, str]]:
        """Return one printed line a width, then slope, interval and verdict."""
        lines = [("metric", self.metric)]
        for width, mean, column in zip(self.widths, self.means, self.values.T, strict=True):
            spread = f" ({column.min():.4g} to {column.max():.4g})" if len(column) > 1 else ""
            lines.append((f"width {width}", f"{mean:.4g}{spread}"))
        low, high = self.interval
        lines.append(("slope", f"{self.slope:.3f}, 95 % interval {low:.3f} to {high:.3f} ({self.method})"))
        return [*lines, ("verdict", self.verdict)]

    def figure(self, title: str = "") -> Figure:
        """Return the plot of the values against width, with the fitted line and one of slope -1/2."""
        shown = [float(width) for width in self.widths]
        every = [(w, float(v)) for row in self.values for w, v in zip(shown, row, strict=True)]
        start = self.constant * shown[0] ** self.slope
        return Figure(
            title=title or f"{self.metric} against width",
            x_label="width",
            y_label=self.metric,
            x_log=True,
            y_log=True,
            series=[
                Series("every seed", [w for w, _ in every], [v for _, v in every], "points"),
                Series(f"slope {self.slope:.2f}", shown, [self.constant * w**self.slope for w in shown]),
                Series("slope -1/2", shown, [start * math.sqrt(shown[0] / w) for w in shown], "dashed"),
            ],
            caption=f"Slope {self.slope:.2f} (95 % interval {self.interval[0]:.2f} to {self.interval[1]:.2f}): "
            f"the verdict is {self.verdict!r}.",
        )


def width_scaling(
    factory: Factory,
    widths: Sequence[int],
    metric: Metric,
    seeds: int | Sequence[int] = 3,
    *,
    x: Any = None,
    y: Any = None,
    jobs: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    label: str = "",
) -> WidthScaling:
    """Return how a measurement scales with the width of a family of models, with an interval and a verdict.

        log value_sm = log constant + slope log m + noise,   least squares over all seeds s and widths m

    The 95 % interval, for fewer than 6 seeds: the t-interval of this regression (the spread around the
    line counts, and so does bending); resampling so few seeds cannot reach 95 %. From 6 seeds on:
    bootstrap over seeds, whole rows drawn again 4000 times, percentiles widened for a small sample.

    Cost: one model and one measurement for each width and seed, spread over processes, widest first.

    Args:
        factory: (width, seed) -> a fresh model. It must draw its weights from the seed it gets.
        widths: two or more different positive numbers.
        metric: a function of the model that returns a positive number, or a name, measured on `x`:
            "hessian_norm" (the largest over samples and outputs), "linearity_gap" (relative, at the
            distance where outputs change by 1), "kernel_change" (the largest relative change while
            gradient descent fits `y`).
        seeds: how many (0, 1, ...), or the seeds themselves.
        x: inputs of a named metric.
        y: targets of "kernel_change", one row of numbers a sample.
        jobs: processes at a time; None takes one a core. With 1 all runs in this process, which is
            quicker where a cell takes well under a second.
        resume: a JSON file that keeps each finished cell; an existing one is continued, with more widths
            or seeds where asked for.
        label: what the sweep is about. A file of another label, data, metric or factory is refused; functions
            are told apart by name, bytecode, default and bound arguments, and the numbers, strings, arrays, tensors,
            modules and functions they close over or name in their own module. What lies in other modules counts
            by name, other objects by type: use another label or file when you change those.

    Returns:
        A `WidthScaling`.

    Raises:
        InputError: fewer than two widths, repeated or not whole, no seed, an unknown metric, a file of
            another sweep.
        NumericsError: a value that is not positive and finite; width and seed are named.

    Example:
        >>> def factory(width, seed):
        ...     return nn.Linear(width, 1)
        >>> found = width_scaling(factory, [4, 16, 64], lambda m: m.in_features**-0.5, seeds=1, jobs=1)
        >>> round(found.slope, 6), found.verdict
        (-0.5, 'transitions')

    Reference: Liu, Zhu and Belkin 2020 (arXiv 2010.01092): the Hessian norm falls like 1/sqrt(m) where a
    net becomes linear with width. Interval and thresholds are ours.
    """
    begun = time.perf_counter()
    columns, rows = _widths(widths), _seeds(seeds)
    measure = cell_metric(metric, x, y)
    name = metric if isinstance(metric, str) else label or _plain_name(metric)
    cells = Cells.open(resume, columns, rows, fingerprint(factory, metric, label, x, y))
    left = [(w, s) for w in sorted(columns, reverse=True) for s in rows if (w, s) not in cells.values]

    def one(cell: tuple[int, int]) -> float:
        width, seed = cell
        return _positive(measure(factory(width, seed)))

    for index, value in as_finished(one, left, jobs=jobs, name=_cell_name, description="widths and seeds"):
        cells.keep(left[index], value)
    table = np.array([[cells.values[width, seed] for width in columns] for seed in rows])
    return _fitted(columns, rows, table, name, time.perf_counter() - begun)


def _cell_name(cell: tuple[int, int]) -> str:
    return f"width {cell[0]}, seed {cell[1]}"


def _plain_name(metric: Any) -> str:
    name = getattr(metric, "__name__", "metric")
    return "metric" if name == "<lambda>" else name


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _widths(widths: Sequence[int]) -> list[int]:
    given = list(widths)
    if not all(_whole(width) and width > 0 for width in given):
        raise InputError(f"widths must be positive whole numbers, got {given}")
    if len(set(given)) != len(given):
        raise InputError(f"widths name one twice: {given}")
    if len(given) < 2:
        raise InputError(f"a slope needs at least two widths, got {given}")
    return sorted(int(width) for width in given)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise InputError(f"seeds must be at least 1, got {seeds}")
        return list(range(seeds))
    given = list(seeds) if isinstance(seeds, (Sequence, range)) else []
    if not given or not all(_whole(seed) for seed in given) or len(set(given)) != len(given):
        raise InputError(
            f"seeds must be a number of seeds or a list of different whole numbers, got {seeds!r}"
        )
    return [int(seed) for seed in given]


def _positive(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the metric returned a {type(value).__name__}, {value!r}; return one number"
        ) from error
    if not (math.isfinite(number) and number > 0):
        raise NumericsError(
            f"the metric is {number:g}, and only positive finite values have a slope; look at the model there, "
            "or leave that width or seed out"
        )
    return number


def _fitted(
    widths: list[int], seeds: list[int], values: np.ndarray, metric: str, seconds: float
) -> WidthScaling:
    log_widths, logs = np.log(np.array(widths, dtype=float)), np.log(values)
    centred = log_widths - log_widths.mean()
    slopes = logs @ centred / (centred @ centred)  # one a seed; their mean is the slope of all values
    slope = float(slopes.mean())
    level = float(logs.mean() - slope * log_widths.mean())
    if len(seeds) >= BOOTSTRAP:
        interval, method = _bootstrap(slopes), "bootstrap over seeds"
    else:
        rest = logs - level - slope * log_widths
        interval, method = _regression(slope, rest, float(centred @ centred)), "t-interval of the regression"
    return WidthScaling(
        metric=metric,
        widths=widths,
        seeds=seeds,
        values=values,
        slope=slope,
        interval=interval,
        constant=math.exp(level),
        method=method,
        verdict=_verdict(slope, *interval),
        provenance=Provenance.here(seed=seeds[0], seconds=seconds),
    )


def _bootstrap(slopes: np.ndarray) -> tuple[float, float]:
    """Percentiles of the mean over resampled seeds, widened as a t-interval is wider than a normal one."""
    from scipy.stats import norm, t

    count = len(slopes)
    tail = float(norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1)))
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    low, high = np.quantile(slopes[draws].mean(1), [tail, 1 - tail])
    return float(low), float(high)


def _regression(slope: float, rest: np.ndarray, spread: float) -> tuple[float, float]:
    """Return slope -+ t_0.975(n - 2) s / sqrt(S sum (log m - mean)^2), s^2 = sum rest^2 / (n - 2)."""
    from scipy.stats import t

    free = rest.size - 2
    if free < 1:
        return -math.inf, math.inf
    error = math.sqrt(float((rest**2).sum()) / free / (len(rest) * spread))
    reach = float(t.ppf(0.975, free)) * error
    return slope - reach, slope + reach


def _verdict(slope: float, low: float, high: float) -> str:
    if slope < -0.25 and high < -0.2:
        return "transitions"
    if slope > -0.2 and low > -0.25:
        return "does not"
    return "unclear"
