"""The same report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wideangle.document import Document, Figure, Section, Table
from wideangle.plan import Plan
from wideangle.report import _numbers, _tables

ROWS = 12
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def render(document: Document) -> str:
    """The whole report as text."""
    lines = [f"# {_plain(document.title) or 'Report'}", ""]
    if document.subject:
        lines += [_plain(document.subject), ""]
    if not document.complete:
        lines += ["**Incomplete.** The run was stopped before its end.", ""]
    lines += [f"{k}. {_plain(sentence)}" for k, sentence in enumerate(document.verdict, 1)] + [""]
    if document.plan is not None:
        lines += _plan(document.plan, document.provenance.command)
    for section in document.sections:
        lines += _section(section, document)
    return "\n".join([*lines, *_origin(document)]).rstrip() + "\n"


def _plain(text: object) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(_numbers.clean(text).split()))


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = [_plain(column) for column in columns]
    body = [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *body, ""]


def _code(command: str) -> list[str]:
    return [f"    {line}" for line in _numbers.clean(command).splitlines()] + [""]


def _plan(plan: Plan, command: str | None) -> list[str]:
    rows = [(row.name, row.value, row.unit, row.evidence) for row in _tables.plan_rows(plan)]
    after = _tables.next_command(plan, command)
    lines = ["## Plan", "", f"For {_plain(_tables.plan_scope(plan))}.", ""]
    lines += _table(("decision", "value", "unit", "evidence"), rows)
    return [*lines, *(["Act on it:", "", *_code(after)] if after else [])]


def _section(section: Section, document: Document) -> list[str]:
    took = _numbers.duration(section.seconds)
    within = "" if section.budget is None else f" of {_numbers.duration(section.budget)}"
    lines = [f"## {_plain(section.title or section.name)}", "", f"{section.status}, {took}{within}", ""]
    lines += [_plain(section.summary), ""] if section.summary else []
    for note in section.notes:
        lines += [f"> {_plain(note)}", ""]
    if section.values:
        rows = [(_numbers.label(name), _numbers.show(value)) for name, value in section.values.items()]
        lines += _table(("quantity", "value"), rows)
    for figure in section.figures:
        lines += _figure(figure, section, document)
    for table in section.tables:
        lines += _cells(table)
    return lines


def _figure(figure: Figure, section: Section, document: Document) -> list[str]:
    lines = [f"### {_plain(figure.title or figure.y_label or 'Figure')}", ""]
    lines += [_plain(figure.caption), ""] if figure.caption else []
    for mark in figure.marks:
        lines += [f"- {_plain(mark.label)}: {_numbers.number(mark.x)}"]
    lines += [""] if figure.marks else []
    for grid in _tables.grids(figure, ROWS):
        lines += _table(grid.columns, grid.rows)
        if len(grid.rows) < grid.total:
            lines += [f"{len(grid.rows)} of {grid.total} points, evenly chosen.", ""]
    command = _tables.command_of(figure, section, document)
    return [*lines, *(_code(command) if command and command != document.provenance.command else [])]


def _cells(table: Table) -> list[str]:
    lines = [f"### {_plain(table.title)}", ""] if table.title else []
    width = max([len(table.columns), *(len(row) for row in table.cells)], default=0)
    columns = [*table.columns, *[""] * (width - len(table.columns))]
    lines += _table(columns, [[_numbers.show(value) for value in row] for row in table.cells])
    return [*lines, *([_plain(table.caption), ""] if table.caption else [])]


def _origin(document: Document) -> list[str]:
    origin = document.provenance
    lines = ["## Where this comes from", ""]
    lines += _code(origin.command) if origin.command else []
    facts = [f"device {origin.device}"]
    facts += [f"seed {origin.seed}"] if origin.seed is not None else []
    facts += [f"time {_numbers.duration(origin.seconds)}"] if origin.seconds is not None else []
    facts += [f"{name} {version}" for name, version in origin.versions.items()]
    return [*lines, _plain(", ".join(facts)) + "."]
