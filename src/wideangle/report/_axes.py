"""The axes of a drawing: scales, few and exact tick labels, quiet lines."""

from __future__ import annotations

import itertools
import math
import textwrap
from typing import Any

from wideangle.document import Figure, Series
from wideangle.report._numbers import clean, finite, power

LARGEST, SMALLEST = 1e250, 1e-250


def usable(figure: Figure, series: Series) -> tuple[list[float], list[float]]:
    """The points of a series for drawing, NaN (a gap) where a value is missing or not on its axis."""
    xs, ys = [], []
    for x, y in zip(series.x, series.y, strict=False):
        fine = finite(x) and y is not None and finite(y) and max(abs(x), abs(y)) < LARGEST
        fine = fine and (x > SMALLEST or not figure.x_log)
        fine = fine and (y is None or y > SMALLEST or not figure.y_log)
        xs.append(float(x) if fine else math.nan)
        ys.append(float(y) if fine and y is not None else math.nan)
    return xs, ys


def dress(axes: Any, figure: Figure, *, ink: str, soft: str, grid: str) -> None:
    """Set scales, ticks, labels and lines of the axes."""
    whole = all(float(x).is_integer() for series in figure.series for x in series.x if finite(x))
    if figure.x_log:
        axes.set_xscale("log")
    if figure.y_log:
        axes.set_yscale("log")
    _scale(axes.xaxis, figure.x_log, whole)
    _scale(axes.yaxis, figure.y_log, False)
    axes.grid(True, which="major", color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(soft)
    axes.tick_params(which="both", length=0, labelcolor=soft, pad=6)
    axes.tick_params(axis="x", which="major", length=4, color=soft, pad=4)
    axes.margins(x=0.02, y=0.06)
    axes.set_xlabel("\n".join(textwrap.wrap(clean(figure.x_label), 56)), color=ink, labelpad=6)
    wrapped = "\n".join(textwrap.wrap(clean(figure.y_label), 56))
    size = axes.xaxis.label.get_fontsize()
    axes.figure.suptitle(wrapped, x=0.004, ha="left", color=ink, fontsize=size)


def _scale(axis: Any, log: bool, whole: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if not log:
        axis.set_major_locator(MaxNLocator(nbins=5, integer=whole, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(_formatter())
        return
    low, high = axis.get_data_interval()
    decades = math.log10(high) - math.log10(low) if 0 < low < high else 0.0
    subs = (1.0,) if decades >= 2 else (1.0, 2.0, 5.0) if decades >= 1 else (1.0, 2.0, 3.0, 5.0)
    narrow = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=6) if decades >= 0.4 else narrow)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_formatter(log=True))


def _formatter(log: bool = False) -> Any:
    from matplotlib.ticker import Formatter

    class Labels(Formatter):
        """Tick labels with just enough digits to differ."""

        def __call__(self, value: float, position: int | None = None) -> str:
            return self.format_ticks([value])[0]

        def format_ticks(self, values: Any) -> list[str]:
            numbers = [float(value) for value in values]
            if log and all(value > 0 and math.log10(value).is_integer() for value in numbers):
                exponents = [round(math.log10(value)) for value in numbers]
                plain = all(-3 <= exponent <= 3 for exponent in exponents)
                return [f"{10.0**part:g}" if plain else power(part) for part in exponents]
            return tick_labels(numbers)

    return Labels()


def tick_labels(values: list[float]) -> list[str]:
    """Labels of ticks with the fewest significant digits that tell them apart and lose nothing visible."""
    largest = max((abs(value) for value in values), default=0.0)
    values = [0.0 if abs(value) < 1e-12 * largest else value for value in values]
    gaps = [high - low for low, high in itertools.pairwise(sorted(values)) if high > low]
    step = min(gaps, default=largest)
    for digits in range(1, 16):
        texts = [f"{value:.{digits}g}" for value in values]
        worst = max((abs(float(t) - v) for t, v in zip(texts, values, strict=True)), default=0.0)
        if worst <= 0.02 * step:
            return [_pretty(text) for text in texts]
    return [_pretty(f"{value:g}") for value in values]


def _pretty(text: str) -> str:
    value = float(text)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent <= 5:
        plain = f"{value:f}".rstrip("0").rstrip(".") if "e" in text else text
        return plain.replace("-", "−")
    mantissa, _, _ = f"{float(text):.6e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    return power(exponent) if mantissa == "1" else f"{mantissa}·{power(exponent)}"
