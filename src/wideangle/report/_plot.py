"""A figure as inline SVG: drawn by matplotlib, then freed of everything a page does not need.

Colours become CSS variables, so that one drawing serves light, dark and print; text stays text in the
font of the page; every id carries the figure's own prefix.
"""

from __future__ import annotations

import io
import re
import textwrap
from typing import Any, NamedTuple
from xml.etree import ElementTree

from wideangle.document import Figure, Mark, Series
from wideangle.report._axes import dress, usable
from wideangle.report._numbers import clean, finite

WIDTH, HEIGHT, FONT = 480, 310, 14.5
INK, SOFT, GRID = "#101010", "#202020", "#303030"
COLOURS = ["#400001", "#400002", "#400003", "#400004", "#400005", "#400006"]
_VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid"} | {c: f"c{k}" for k, c in enumerate(COLOURS)}
DASHES = [(6.0, 3.0), (2.0, 2.5), (9.0, 3.0, 2.0, 3.0), (4.0, 1.5), (1.0, 3.0), (12.0, 4.0)]
MARKERS = ["o", "s", "^", "D", "v", "P"]
SWATCHES = {
    "o": "M10 5a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "s": "M10.5 1.5h7v7h-7z",
    "^": "M14 1l4.2 7.6h-8.4z",
    "D": "M14 .5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
    "v": "M14 9l4.2 -7.6h-8.4z",
    "P": "M12.4 1h3.2v2.4h2.4v3.2h-2.4v2.4h-3.2v-2.4h-2.4v-3.2h2.4z",
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],
    "font.size": FONT,
    "lines.scale_dashes": False,
    "path.simplify": True,
    "axes.unicode_minus": True,
}


class Key(NamedTuple):
    """How one series is drawn: for the drawing and for the legend beside it."""

    name: str
    variable: str
    dash: str
    marker: str
    line: bool


def keys(figure: Figure) -> list[Key]:
    """The look of every series: colours in order, dashes and markers distinct within a style."""
    seen = {"line": 0, "dashed": 0, "points": 0}
    lines = sum(series.style == "line" for series in figure.series)
    found = []
    for position, series in enumerate(figure.series):
        rank = seen[series.style]
        seen[series.style] += 1
        pattern = DASHES[rank % len(DASHES)] if series.style == "dashed" else ()
        dash = " ".join(f"{part:g}" for part in pattern)
        marked = series.style == "points" or (series.style == "line" and lines > 1)
        marker = MARKERS[rank % len(MARKERS)] if marked else ""
        variable = f"c{position % len(COLOURS)}"
        found.append(Key(clean(series.name), variable, dash, marker, series.style != "points"))
    return found


def svg(figure: Figure, prefix: str, alternative: str) -> str:
    """The drawing as an <svg> element; an empty text where there is no point to draw."""
    if not any(finite(y) for series in figure.series for y in usable(figure, series)[1]):
        return ""
    import matplotlib

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": "wideangle"}):
        drawing = _draw(figure)
        buffer = io.BytesIO()
        drawing.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), prefix, alternative)


def _draw(figure: Figure) -> Any:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(drawing)
    axes = drawing.add_subplot()
    for series, key in zip(figure.series, keys(figure), strict=True):
        _curve(axes, figure, series, key)
    dress(axes, figure, ink=INK, soft=SOFT, grid=GRID)
    marks = [mark for mark in figure.marks if finite(mark.x) and (mark.x > 0 or not figure.x_log)]
    for mark in marks:
        axes.axvline(mark.x, color=SOFT, linewidth=1.1, dashes=(1.5, 2.5), zorder=1)
    axes.autoscale_view()
    for rank, mark in enumerate(marks):
        _name(axes, mark, rank)
    return drawing


def _curve(axes: Any, figure: Figure, series: Series, key: Key) -> None:
    xs, ys = usable(figure, series)
    drawn = sum(finite(y) for y in ys)
    line = axes.plot(xs, ys, color=COLOURS[int(key.variable[1:])], linewidth=2.0)[0]
    line.set_solid_joinstyle("round")
    if key.dash:
        line.set_dashes([float(part) for part in key.dash.split()])
    if not key.line:
        line.set_linestyle("none")
        line.set_marker(key.marker)
        line.set_markersize(5.0 if drawn <= 60 else 3.2)
        line.set_markeredgewidth(0.0)
    elif key.marker or drawn == 1:
        line.set_marker(key.marker or "o")
        line.set_markersize(5.0)
        line.set_markeredgewidth(0.0)
        line.set_markevery(max(len(xs) // 8, 1))


def _name(axes: Any, mark: Mark, rank: int) -> None:
    place = axes.transAxes.inverted().transform(axes.transData.transform([(mark.x, axes.get_ylim()[0])]))
    low = float(place[0][0])
    right = low < 0.55
    text = "\n".join(textwrap.wrap(clean(mark.label), 22))
    axes.annotate(
        text,
        (mark.x, 0.98 - 0.13 * (rank % 5)),
        xycoords=axes.get_xaxis_transform(),
        xytext=(5 if right else -5, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="top",
        fontsize=FONT - 1.5,
        color=SOFT,
        gid="halo",
    ).set_in_layout(False)


_ADDRESS = re.compile(r"url\(#([^)]*)\)")
_NUMBER = re.compile(r"-?\d+\.\d+")


def _inline(text: bytes, prefix: str, alternative: str) -> str:
    source = ElementTree.fromstring(text)
    root = ElementTree.Element("svg")
    root.set("viewBox", source.get("viewBox", f"0 0 {WIDTH} {HEIGHT}"))
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-label", alternative)
    kept: set[str] = set()
    for child in source:
        _copy(child, root, prefix, kept)
    for element in root.iter():
        if element.get("id") not in kept:
            element.attrib.pop("id", None)
    return ElementTree.tostring(root, encoding="unicode")


def _copy(source: ElementTree.Element, parent: ElementTree.Element, prefix: str, kept: set[str]) -> None:
    tag = source.tag.rpartition("}")[2]
    if tag in ("metadata", "style"):
        return
    element = ElementTree.SubElement(parent, tag)
    for name, value in source.attrib.items():
        name = name.rpartition("}")[2]
        if name == "id":
            if value == "halo":
                element.set("class", "halo")
            value = f"{prefix}-{value}"
        elif name == "href":
            value = f"#{prefix}-{value.removeprefix('#')}"
            kept.add(value[1:])
        elif name == "style":
            value = _style(value)
        elif name in ("d", "x", "y", "transform", "points"):
            value = _shorten(value)
        found = _ADDRESS.search(value)
        if found:
            kept.add(f"{prefix}-{found[1]}")
            value = _ADDRESS.sub(f"url(#{prefix}-{found[1]})", value)
        if value and not (name == "transform" and value.startswith("rotate(0 ")):
            element.set(name, value)
    element.text = source.text if tag == "text" else None
    for child in source:
        _copy(child, element, prefix, kept)


def _style(value: str) -> str:
    parts = []
    for part in value.split(";"):
        name, _, setting = (piece.strip() for piece in part.partition(":"))
        if not name or name == "font-family":
            continue
        parts.append(f"{name}:{f'var(--{_VARIABLES[setting]})' if setting in _VARIABLES else setting}")
    return ";".join(parts)


def _shorten(value: str) -> str:
    short = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
    return " ".join(short.split()).replace("-0 ", "0 ")
