"""The page: what the template shows, gathered from a document."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from wideangle.document import Document, Figure, Section, Table
from wideangle.plan import Plan
from wideangle.report import _numbers, _plot, _tables

ROWS = 1000
BESIDE = 5
_LOUD = re.compile(r"(?<![\w.])([-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?:\s?%)?)(?![\w])(?!\.\w)")
_STATUS = {"done": "done", "skipped": "skipped", "failed": "failed", "interrupted": "interrupted"}


def render(document: Document, plan: Plan | None) -> str:
    """The whole page as text."""
    import jinja2

    loader = jinja2.PackageLoader("wideangle.report", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["emphasise"] = emphasise
    sections = [_section(document, part, k + 1) for k, part in enumerate(document.sections)]
    return environment.get_template("report.html.j2").render(
        document=document,
        title=_numbers.clean(document.title) or "Report",
        subject=_numbers.clean(document.subject),
        verdict=[_numbers.clean(sentence) for sentence in document.verdict],
        plan=None if plan is None else _plan(document, plan),
        sections=sections,
        command=_numbers.clean(document.provenance.command or ""),
        facts=_facts(document),
        origin=_origin(document),
    )


def emphasise(text: str) -> Any:
    """Escaped text with its numbers in <b>."""
    from markupsafe import Markup, escape

    pieces = _LOUD.split(text)
    return Markup("").join(
        Markup("<b>{}</b>").format(piece) if k % 2 else escape(piece) for k, piece in enumerate(pieces)
    )


def _plan(document: Document, plan: Plan) -> dict[str, Any]:
    points = plan.predicted_loss
    curve = Figure(x_label="step", y_label="predicted loss")
    return {
        "rows": _tables.plan_rows(plan),
        "scope": _tables.plan_scope(plan),
        "command": _tables.next_command(plan, document.provenance.command),
        "grid": _tables.points(curve, points, ROWS) if points else None,
    }


def _section(document: Document, section: Section, position: int) -> dict[str, Any]:
    over = section.budget is not None and section.seconds > section.budget
    took = _numbers.duration(section.seconds)
    return {
        "id": f"section-{position}",
        "name": _numbers.clean(section.name),
        "title": _numbers.clean(section.title or _numbers.label(section.name)) or f"Section {position}",
        "summary": _numbers.clean(section.summary),
        "status": _STATUS.get(section.status, "done"),
        "time": took if section.budget is None else f"{took} of {_numbers.duration(section.budget)}",
        "over": over,
        "beside": len(section.figures) % 2 == 1 and len(section.values) >= BESIDE,
        "values": [(_numbers.label(name), _numbers.show(value)) for name, value in section.values.items()],
        "notes": [_numbers.clean(note) for note in section.notes],
        "figures": [
            _figure(document, section, figure, f"f{position}-{k + 1}")
            for k, figure in enumerate(section.figures)
        ],
        "tables": [_table(document, section, table) for table in section.tables],
    }


def _figure(document: Document, section: Section, figure: Figure, prefix: str) -> dict[str, Any]:
    from markupsafe import Markup

    title = _numbers.clean(figure.title) or _numbers.clean(figure.y_label) or "Figure"
    caption = _numbers.clean(figure.caption)
    names = ", ".join(_numbers.clean(series.name) for series in figure.series if series.name)
    alternative = ". ".join(part for part in (title, f"Curves: {names}" if names else "") if part)
    looks = _plot.keys(figure)
    return {
        "id": prefix,
        "title": title,
        "caption": caption,
        "svg": Markup(_plot.svg(figure, prefix, alternative)),
        "keys": [{**key._asdict(), "path": _plot.SWATCHES.get(key.marker, "")} for key in looks if key.name],
        "hidden": _tables.hidden_points(figure),
        "marks": [(_numbers.clean(mark.label), _numbers.number(mark.x)) for mark in figure.marks],
        "grids": _tables.grids(figure, ROWS),
        "command": _tables.command_of(figure, section, document),
    }


def _table(document: Document, section: Section, table: Table) -> dict[str, Any]:
    return {
        "title": _numbers.clean(table.title),
        "caption": _numbers.clean(table.caption),
        "columns": [_numbers.clean(name) for name in table.columns],
        "rows": [[_cell(value) for value in row] for row in table.cells],
        "command": _tables.command_of(table, section, document),
    }


def _cell(value: Any) -> tuple[str, bool]:
    text = _numbers.show(value)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return text, numeric or value is None


def _facts(document: Document) -> list[str]:
    origin = document.provenance
    done = sum(section.status == "done" for section in document.sections)
    facts = [f"{done} of {len(document.sections)} sections done"] if document.sections else []
    if origin.seconds is not None:
        facts.append(_numbers.duration(origin.seconds))
    facts.append(_numbers.clean(origin.device))
    if origin.seed is not None:
        facts.append(f"seed {origin.seed}")
    return facts


def _origin(document: Document) -> Iterable[tuple[str, str]]:
    origin = document.provenance
    seed = "not recorded" if origin.seed is None else str(origin.seed)
    yield "device", _numbers.clean(origin.device)
    yield "seed", seed
    yield "time", "not recorded" if origin.seconds is None else _numbers.duration(origin.seconds)
    for name, version in origin.versions.items():
        yield _numbers.clean(name), _numbers.clean(version)
