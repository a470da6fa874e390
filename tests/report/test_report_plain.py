from __future__ import annotations

import dataclasses

import sample_document

import wideangle.report as report
from wideangle.document import Document


def test_the_markdown_follows_the_page(document):
    lines = report.markdown(document).splitlines()
    heads = [line[3:] for line in lines if line.startswith("## ")]
    assert heads == ["Plan", *[section.title for section in document.sections], "Where this comes from"]
    assert lines[0] == f"# {document.title}"
    assert next(line for line in lines if line.startswith("1. ")) == f"1. {document.verdict[0]}"


def test_values_plan_tables_and_origin_are_there(document):
    text = report.markdown(document)
    assert "| condition number of the full kernel | inf |" in text
    assert "| momentum | not measured |  | not measured |" in text
    assert "| step size | 0.08723 | per step |" in text
    assert "    wideangle train conv --data mnist --plan plan.json" in text
    assert f"    {sample_document.COMMAND}" in text
    assert "torch 2.13.0" in text
    assert "- turning point: 60" in text
    assert "12 of 512 points" in text
    assert "nan" not in text


def test_every_table_is_rectangular(document):
    block: list[int] = []
    for line in [*report.markdown(document).splitlines(), ""]:
        if line.startswith("|"):
            block.append(line.replace("\\|", "").count("|"))
        elif block:
            assert len(set(block)) == 1
            assert len(block) >= 2
            block = []


def test_an_incomplete_and_an_empty_document():
    assert "**Incomplete.**" in report.markdown(Document(title="a", complete=False))
    text = report.markdown(dataclasses.replace(Document()))
    assert text.startswith("# Report\n")
