from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from wideangle.document import Figure, Mark, Series
from wideangle.report import _plot


def draw(figure: Figure, prefix: str = "p") -> ElementTree.Element:
    return ElementTree.fromstring(_plot.svg(figure, prefix, "alternative"))


def curves(root: ElementTree.Element) -> list[str]:
    paths = [
        node for node in root.iter("path") if "var(--c" in node.get("style", "") and node.get("clip-path")
    ]
    return [node.get("d", "") for node in paths]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]


def test_a_straight_line_is_drawn_straight_and_in_its_place():
    figure = Figure("t", "x", "y", [Series("a", [0.0, 1.0, 3.0], [0.0, 2.0, 6.0])])
    (path,) = curves(draw(figure))
    (x0, y0), *_, (x2, y2) = points(path)
    assert 0 < x0 < x2 < _plot.WIDTH
    assert 0 < y2 < y0 < _plot.HEIGHT


def test_logarithmic_axes_make_a_power_law_straight():
    xs = [1.0, 10.0, 100.0, 1000.0]
    figure = Figure("t", "x", "y", [Series("a", xs, [x**-2 for x in xs], "points")], x_log=True, y_log=True)
    places = [(float(node.get("x", "")), float(node.get("y", ""))) for node in draw(figure).iter("use")]
    widths = [b[0] - a[0] for a, b in itertools.pairwise(places[-4:])]
    heights = [b[1] - a[1] for a, b in itertools.pairwise(places[-4:])]
    assert max(widths) - min(widths) < 0.05
    assert max(heights) - min(heights) < 0.05
    assert min(heights) > 10


@pytest.mark.parametrize("gap", [None, math.nan, math.inf])
def test_a_missing_value_is_a_gap(gap):
    figure = Figure(series=[Series("a", [0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 4.0, gap, 2.0, 9.0])])
    (path,) = curves(draw(figure))
    assert path.count("M") == 2
    assert len(points(path)) == 4


def test_a_value_at_or_below_zero_is_a_gap_on_a_logarithmic_axis():
    series = [Series("a", [0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 4.0, -1.0, 2.0, 9.0])]
    (path,) = curves(draw(Figure(series=series, y_log=True)))
    assert path.count("M") == 2
    (whole,) = curves(draw(Figure(series=series)))
    assert whole.count("M") == 1


@pytest.mark.parametrize("ys", [[], [None, math.nan], [-1.0, 0.0]])
def test_nothing_to_draw_gives_no_drawing(ys):
    figure = Figure(series=[Series("a", [1.0, 2.0][: len(ys)], ys)], y_log=True)
    assert _plot.svg(figure, "p", "a") == ""


def test_series_differ_in_colour_and_in_dash_or_marker():
    styles = ["line", "line", "dashed", "dashed", "points", "points"]
    figure = Figure(series=[Series(str(k), [0.0], [1.0], style) for k, style in enumerate(styles)])  # pyright: ignore
    keys = _plot.keys(figure)
    assert len({key.variable for key in keys}) == 6
    assert len({(key.dash, key.marker, key.line) for key in keys}) == 6
    assert set(_plot.MARKERS) == set(_plot.SWATCHES)


def test_colours_are_variables_of_the_page_and_text_has_no_font_of_its_own():
    figure = Figure("t", "x", "y", [Series("a", [0.0, 1.0], [0.0, 1.0])], marks=[Mark(0.5, "here")])
    text = _plot.svg(figure, "p", "a")
    assert not re.search(r"#(?:[0-9a-f]{6})\b", text)
    assert "font-family" not in text
    assert "DejaVu" not in text
    assert {"var(--ink)", "var(--soft)", "var(--grid)", "var(--c0)"} <= set(re.findall(r"var\(--\w+\)", text))
    assert [node.text for node in ElementTree.fromstring(text).iter("text")].count("here") == 1


def test_every_variable_is_defined_for_light_and_dark():
    from importlib.resources import files

    style = (files("wideangle.report") / "templates" / "style.css").read_text()
    for name in set(_plot._VARIABLES.values()):
        assert style.count(f"--{name}:") == 2


def test_two_drawings_share_no_id():
    figure = Figure(series=[Series("a", [0.0, 1.0], [0.0, 1.0], "points")], marks=[Mark(0.5, "m")])
    one, two = (
        {node.get("id") for node in draw(figure, name).iter() if node.get("id")} for name in ("p", "q")
    )
    assert one
    assert not one & two


def test_user_text_in_labels_is_not_read_as_formula_or_reference():
    figure = Figure("t", "$x^2$ url(#p) #400001", "y", [Series("a", [0.0, 1.0], [0.0, 1.0])])
    texts = [node.text for node in draw(figure).iter("text")]
    assert "$x^2$ url(#p) #400001" in texts


def contrast(one: str, two: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_text_and_curves_on_both_backgrounds():
    from importlib.resources import files

    style = (files("wideangle.report") / "templates" / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.S)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for name in ("ink", "soft", "accent", "warn"):
            for ground in ("paper", "card", "tint"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        assert contrast(colours["warn"], colours["warn-tint"]) >= 4.5
        for name in ("c0", "c1", "c2", "c3", "c4", "c5"):
            assert contrast(colours[name], colours["paper"]) >= 3.0, name
