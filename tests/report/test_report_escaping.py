from __future__ import annotations

import re

import pytest
from page_reader import Page

import wideangle.report as report
from wideangle.document import Document, Figure, Mark, Section, Series, Table
from wideangle.plan import Decision, Plan
from wideangle.result import Provenance

EVIL = (
    """<script>alert("1")</script><b onmouseover='x'>& {{ 7*7 }} """
    "$\\frac{1}{0}$ </style></title>\x00\x1b[31m"
)
SHOWN = " ".join(EVIL.replace("\x00", "").replace("\x1b", "").split())


def everywhere(text: str) -> Document:
    figure = Figure(
        title=text,
        x_label=text,
        y_label=text,
        series=[Series(text, [1.0, 2.0], [1.0, 2.0]), Series(text, [1.0], [1.0], "points")],
        marks=[Mark(1.5, text)],
        caption=text,
    )
    section = Section(
        name=text,
        title=text,
        summary=text,
        values={text: text, "list": [text], "map": {text: text}},
        notes=[text],
        figures=[figure],
        tables=[Table(text, [text], [[text]], text)],
    )
    plan = Plan(
        model=text,
        data=text,
        loss=text,
        step_size=Decision(0.1, text, text),
        optimizer=Decision(text, text, text),
        suspect_labels=Decision([text] * 20),
    )
    origin = Provenance(device=text, command=text, versions={text: text})
    return Document(text, text, [text], [section, section], plan, provenance=origin)


def shape(document: Document) -> list[str]:
    return [node.tag for node in Page(report.html(document)).root.walk()]


def structure(document: Document) -> set[str]:
    return set(shape(document))


def test_user_text_adds_no_element():
    assert structure(everywhere(EVIL)) == structure(everywhere("harmless 7"))


@pytest.mark.parametrize("tag", ["script", "style", "title", "b"])
def test_user_text_adds_no_script(tag):
    evil, harmless = shape(everywhere(EVIL)), shape(everywhere('harm( "1" ) 7*7 1 0 31'))
    if tag == "b":
        assert not re.search(r"<b onmouseover", report.html(everywhere(EVIL)))
    else:
        assert evil.count(tag) == harmless.count(tag) == 1


def test_user_text_is_shown_as_it_is():
    page = Page(report.html(everywhere(EVIL)))
    assert page.root.all("h1")[0].text() == SHOWN
    assert page.root.all("figcaption")[0].text() == SHOWN
    assert SHOWN in page.root.all("section", id="verdict")[0].all("li")[0].text()
    assert page.root.all("footer")[0].all("pre")[0].text() == SHOWN
    plot = page.root.all("svg", class_="plot")[0]
    assert "".join(SHOWN.split()) in "".join(plot.text().split())
    assert "49" not in page.root.all("h1")[0].text()


def test_no_control_character_survives():
    for text in (report.html(everywhere(EVIL)), report.markdown(everywhere(EVIL))):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)


def test_addresses_in_user_text_stay_plain_text():
    text = report.html(everywhere("see https://example.org/a"))
    assert "https://example.org" in text
    assert not re.search(r"""(href|src)\s*=\s*["']?\s*http""", text)


def test_markdown_cells_and_lines_cannot_be_broken_out_of():
    text = report.markdown(everywhere("a | b\n# c <i> `d` [e](f)"))
    prose = [line for line in text.splitlines() if not line.startswith("    ")]
    assert not any(re.search(r"(?<!\\)[<`\[]", line) for line in prose)
    assert not re.search(r"^# c", text, flags=re.M)
    row = next(line for line in text.splitlines() if line.startswith("| step size"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5


def test_lone_surrogates_can_be_written(tmp_path):
    assert report.write(everywhere("a\udc80b"), tmp_path / "r.html").stat().st_size > 1000
