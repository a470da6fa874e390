from __future__ import annotations

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import sample_document
from page_reader import Page

import wideangle.report as report
from wideangle.document import Document, Figure, Mark, Section, Series, Table
from wideangle.errors import InputError
from wideangle.plan import Decision, Plan
from wideangle.result import Provenance

STEP_EVIDENCE = "1 / (c lambda_max), c = 2/(nC), lambda_max = 5.87e4 of the full kernel"


def headings(page):
    return [(node.tag, node.text()) for node in page.root.walk() if re.fullmatch("h[1-6]", node.tag)]


def test_the_order_is_verdict_plan_sections_origin(page, document):
    found = [name for tag, name in headings(page) if tag == "h2"]
    assert found[:3] == ["Verdict", "Plan", "Sections"]
    assert found[3:-1] == [section.title for section in document.sections]
    assert found[-1] == "Where this comes from"


def test_one_h1_and_no_level_skipped(page, document):
    levels = [int(tag[1]) for tag, _ in headings(page)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.root.all("html")[0].attributes["lang"] == "en"
    assert page.root.all("title")[0].text() == f"{document.title}: {document.subject}"


def test_every_verdict_sentence_with_its_number_in_bold(page, document):
    items = page.root.all("section", id="verdict")[0].all("li")
    assert [item.text() for item in items] == document.verdict
    assert [node.text() for node in items[0].all("b")] == ["0.0872", "0.1745"]
    assert [node.text() for node in items[2].all("b")] == ["0.41 %"]


def test_the_plan_shows_value_unit_evidence_and_what_is_missing(page):
    rows = {row[0]: row[1:] for row in page.root.all("table", class_="plan")[0].rows()}
    assert rows["step size"] == ["0.08723", "per step", STEP_EVIDENCE]
    assert rows["momentum"][0] == "not measured"
    assert rows["warmup steps"][0] == "not measured"
    assert "no warm-up" in rows["warmup steps"][2]
    assert "388, 401, 477" in rows["suspect labels"][0]
    assert "(11 in all)" in rows["suspect labels"][0]


def test_an_entry_added_to_the_plan_later_is_shown():
    @dataclasses.dataclass(frozen=True)
    class Larger(Plan):
        weight_decay: Decision = dataclasses.field(default_factory=Decision)

    text = report.html(Document(), Larger(weight_decay=Decision(0.25, "per step", "curvature")))
    rows = {row[0]: row[1:] for row in Page(text).root.all("table", class_="plan")[0].rows()}
    assert rows["weight decay"] == ["0.25", "per step", "curvature"]


def test_the_next_command_repeats_model_data_and_plan_file(page, document):
    commands = [node.text() for node in page.root.all("section", id="plan")[0].all("pre")]
    assert commands == ["wideangle train conv --data mnist --plan plan.json"]
    assert document.plan is not None
    own = dataclasses.replace(document.plan, model="my nets/a.py:build", data="x.npz")
    origin = Provenance(command="wideangle checkup 'my nets/a.py:build' --plan=p/q.json")
    other = Page(report.html(Document(plan=own, provenance=origin)))
    assert [node.text() for node in other.root.all("section", id="plan")[0].all("pre")] == [
        "wideangle train 'my nets/a.py:build' --data x.npz --plan p/q.json"
    ]


def test_a_plan_given_apart_replaces_the_documents_own(document):
    text = report.html(document, Plan(step_size=Decision(0.5, "per step", "by hand")))
    assert "by hand" in text
    assert "0.08723</td>" not in text


def test_sections_show_status_time_and_budget(page):
    parts = {node.all("h2")[0].text(): node for node in page.root.all("section", class_="part")}
    meta = {name: node.all("p", class_="meta")[0].text() for name, node in parts.items()}
    assert "1.3 s of 5 s" in meta["Regime"]
    assert "over its budget" in meta["Trial run"]
    assert "over" not in meta["Regime"]
    assert meta["Curvature"].startswith("skipped")
    assert meta["Optimiser"].startswith("failed")


def test_values_are_a_definition_table(page):
    parts = page.root.all("section", class_="part")
    tables = [table for node in parts for table in node.all("dl", class_="values")]
    pairs = {row.all("dt")[0].text(): row.all("dd")[0].text() for table in tables for row in table.children}
    assert pairs["parameters"] == "1,482,250"
    assert pairs["bottleneck"] == "not measured"
    assert pairs["linearity gap"] == "0.0041"
    assert pairs["batch coupled"] == "no"
    assert pairs["condition number of the full kernel"] == "inf"
    assert pairs["per layer"] == "conv1: 0.12; conv2: 0.51; head: 0.37"
    assert pairs["top eigenvalues"].endswith("(20 in all)")


def test_tables_show_non_finite_numbers_in_words(page):
    rows = page.root.all("div", class_="tablebox")[0].rows()
    assert rows[0][0] == "layer"
    assert rows[3][3] == "inf"
    assert rows[4][2:4] == ["not measured", "not measured"]
    assert "nan" not in [cell for row in rows for cell in row]


def figures_of(page, document):
    nodes = page.root.all("figure")
    figures = [figure for section in document.sections for figure in section.figures]
    assert len(nodes) == len(figures) == 8
    return list(zip(nodes, figures, strict=True))


def test_every_figure_has_drawing_caption_command_and_alternative_text(page, document):
    for node, figure in figures_of(page, document):
        assert node.all("h3")[0].text() == figure.title
        assert node.all("figcaption")[0].text().startswith(figure.caption)
        assert [part.text() for part in node.all("details")[0].all("pre")] == [sample_document.COMMAND]
        plots = node.all("svg", class_="plot")
        drawable = any(y is not None and math.isfinite(y) for series in figure.series for y in series.y)
        assert len(plots) == drawable
        for plot in plots:
            assert plot.attributes["role"] == "img"
            assert plot.attributes["aria-label"].startswith(figure.title)
        names = [item.text() for item in node.all("ul", class_="legend")[0].all("li")]
        assert names == [series.name for series in figure.series]
        if not drawable:
            assert "No point" in node.text()


def test_data_tables_hold_the_figures_numbers(page, document):
    for node, figure in figures_of(page, document):
        found = {}
        for table in node.all("table", class_="points"):
            head, *rows = table.rows()
            for column, name in enumerate(head[1:], 1):
                found[name] = [(row[0], row[column]) for row in rows]
        for series in figure.series:
            assert len(found[series.name]) == len(series.x)
            for (x_text, y_text), x, y in zip(found[series.name], series.x, series.y, strict=True):
                assert float(x_text) == pytest.approx(x, rel=1e-3)
                if y is None or math.isnan(y):
                    assert y_text == "not measured"
                else:
                    assert float(y_text) == pytest.approx(y, rel=1e-3)


def test_marks_are_listed_with_their_place(page, document):
    node = next(
        node for node, figure in figures_of(page, document) if figure.title == "Around the critical rate"
    )
    listed = node.all("dl", class_="marks")[0].text()
    assert "turning point" in listed
    assert "60" in listed
    assert "turning point" in node.all("svg", class_="plot")[0].text()


def test_a_long_series_is_thinned_to_a_thousand_rows_with_both_ends():
    xs = [float(k) for k in range(2500)]
    document = Document(sections=[Section(figures=[Figure(series=[Series("a", xs, list(xs))])])])
    figure = Page(report.html(document)).root.all("figure")[0]
    rows = figure.all("table")[0].rows()[1:]
    assert len(rows) == 1000
    assert rows[0] == ["0", "0"]
    assert rows[-1] == ["2499", "2499"]
    assert "1000 of 2500 points" in figure.text()


def test_numpy_and_singular_input_is_drawn():
    series = [
        Series("array", np.arange(1.0, 4.0), np.array([1.0, np.inf, 2.0])),  # pyright: ignore
        Series("huge", [1.0, 2.0], [1e307, 1e300]),
        Series("one point", [1.0], [1e-320]),
        Series("constant", [1.0, 2.0], [5.0, 5.0]),
        Series("no width", [2.0, 2.0], [1.0, 5.0]),
    ]
    for one in [[part] for part in series] + [series]:
        for x_log in (False, True):
            for y_log in (False, True):
                figure = Figure(
                    "t",
                    series=one,
                    x_log=x_log,
                    y_log=y_log,
                    marks=[Mark(-1.0, "left"), Mark(math.nan, "no")],
                )
                page = Page(report.html(Document(sections=[Section(figures=[figure])])))
                assert len(page.root.all("figure")) == 1


def test_no_outside_address_and_nothing_loaded(text, page):
    assert "http" not in text
    assert "//" not in re.sub(r"<pre.*?</pre>|<td.*?</td>", "", text, flags=re.S)
    assert not re.search(r"@import|url\((?!#)", text)
    for node in page.root.walk():
        assert node.tag not in ("img", "iframe", "object", "embed")
        for name in ("src", "srcset", "xmlns", "xlink:href", "action"):
            assert name not in node.attributes
        assert (node.attributes.get("href") or "#").startswith(("#", "data:,"))


def test_ids_are_unique_and_every_reference_resolves(text, page):
    ids = [node.attributes["id"] for node in page.root.walk() if node.attributes.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    used |= set(re.findall(r'aria-labelledby="([^"]+)"', text))
    assert used
    assert used <= set(ids)


def test_the_templates_hold_no_address():
    from importlib.resources import files

    templates = list((files("wideangle.report") / "templates").iterdir())
    assert {item.name for item in templates} == {"report.html.j2", "parts.html.j2", "style.css"}
    for item in templates:
        content = item.read_text()
        assert "http" not in content
        assert "@import" not in content


def test_origin_names_seed_device_time_and_versions(page):
    footer = page.root.all("footer")[0].text()
    for piece in ("cpu", "23 s", "torch", "2.13.0", "seed", sample_document.COMMAND):
        assert piece in footer


def test_an_incomplete_document_says_so(document):
    assert "Incomplete" not in report.html(document)
    assert "Incomplete" in report.html(dataclasses.replace(document, complete=False))


def test_an_empty_document_is_still_a_page():
    page = Page(report.html(Document()))
    assert "No verdict" in page.root.text()
    assert [name for tag, name in headings(page) if tag == "h2"] == ["Verdict", "Where this comes from"]


def test_the_same_document_gives_the_same_bytes(document, text):
    assert report.html(document) == text


def test_write_chooses_the_form_by_the_ending_and_leaves_no_rest(tmp_path, document, text):
    assert report.write(document, tmp_path / "new" / "r.HTML").read_text() == text
    assert report.write(document, str(tmp_path / "r.md")).read_text() == report.markdown(document)
    with pytest.raises(InputError, match=r"\.html or \.md, got .*r\.pdf"):
        report.write(document, tmp_path / "r.pdf")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "r.HTML", "r.md"]


def test_a_broken_table_row_does_not_break_the_page():
    table = Table(columns=["a"], cells=[[1, 2, 3], []])
    assert Page(report.html(Document(sections=[Section(tables=[table])]))).root.all("td")
