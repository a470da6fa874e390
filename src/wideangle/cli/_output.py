"""What a verb prints while it runs and the files it leaves behind."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from wideangle.errors import InputError

if TYPE_CHECKING:
    from wideangle.document import Document, Section
    from wideangle.plan import Plan

REPORTS = (".html", ".htm", ".md", ".markdown")


@dataclass(frozen=True)
class Outputs:
    """Where the report, the numbers and the plan go; `check` before the work, `write` after it."""

    out: Path | None = None
    json: Path | None = None
    plan: Path | None = None

    def check(self) -> Outputs:
        """Refuse a place that cannot be written before any time is spent."""
        if self.out is not None and self.out.suffix.lower() not in REPORTS:
            raise InputError(f"--out is {str(self.out)!r}; a report ends in .html or .md")
        for option, path in (("--out", self.out), ("--json", self.json), ("--plan", self.plan)):
            if path is None:
                continue
            if path.is_dir():
                raise InputError(f"{option} is {str(path)!r}, a folder; name a file")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{option} is {str(path)!r}: its folder cannot be made ({error})") from error
        return self

    def write(self, document: Document) -> list[tuple[str, Path]]:
        """Write what was asked for; return what is where. The plan is written for a complete run only."""
        written = []
        try:
            if self.json is not None:
                written.append(("numbers", document.save(self.json)))
            if self.plan is not None and document.plan is not None and document.complete:
                written.append(("plan", document.plan.save(self.plan)))
            if self.out is not None:
                from wideangle import report

                written.append(("report", report.write(document, self.out)))
        except OSError as error:
            raise InputError(
                f"cannot write {error.filename or 'a file'}: {error.strerror or error}"
            ) from error
        return written


def width() -> int:
    """How wide a line may be."""
    return max(50, min(shutil.get_terminal_size((96, 24)).columns, 110))


def paragraph(text: str, indent: str = "", first: str | None = None) -> None:
    """Print text, wrapped."""
    begin = indent if first is None else first
    filled = textwrap.fill(text, width(), initial_indent=begin, subsequent_indent=indent)
    typer.echo((filled or begin).rstrip())


def _column(text: str, room: int) -> str:
    return f"{text:<{room}}" if len(text) <= room - 2 else f"{text}  "


def heading(text: str) -> None:
    """Print a heading with air above it."""
    typer.echo()
    typer.secho(text, bold=True)


def pairs(rows: Iterable[tuple[str, str]], indent: str = "  ") -> None:
    """Print names and values in two columns."""
    listed = list(rows)
    room = min(max((len(name) for name, _ in listed), default=0), 46) + 2
    for name, value in listed:
        paragraph(value, indent + " " * room, indent + _column(name, room))


def section(part: Section) -> None:
    """Print one section: what it took, its sentence, its numbers."""
    from wideangle.report import _numbers

    took = _numbers.duration(part.seconds)
    within = "" if part.budget is None else f" of {_numbers.duration(part.budget)}"
    late = ", over its budget" if part.budget is not None and part.seconds > part.budget else ""
    state = "" if part.status == "done" else f"{part.status}, "
    heading(f"{part.title or part.name}  ({state}{took}{within}{late})")
    if part.summary:
        paragraph(part.summary, "  ")
    pairs([(_numbers.label(name), _numbers.show(value)) for name, value in part.values.items()], "    ")
    for note in part.notes:
        paragraph(note, "    ", "  ! ")


def verdict(document: Document) -> None:
    """Print the sentences of the verdict."""
    if not document.verdict:
        return
    heading("Verdict")
    for position, sentence in enumerate(document.verdict, 1):
        paragraph(sentence, "     ", f"  {position}. ")


def plan_table(plan: Plan) -> None:
    """Print the decisions with their evidence."""
    from wideangle.report import _tables

    heading("Plan")
    rows = _tables.plan_rows(plan)
    room = max(len(row.name) for row in rows) + 2
    values = [f"{row.value} {row.unit}".strip() for row in rows]
    space = min(max(len(value) for value in values), 28) + 2
    for row, value in zip(rows, values, strict=True):
        evidence = row.evidence if row.measured or row.evidence != row.value else ""
        paragraph(evidence, " " * (room + space + 2), f"  {_column(row.name, room)}{_column(value, space)}")


def files(written: Iterable[tuple[str, Path]]) -> None:
    """Print what was written where."""
    listed = [(name, str(path)) for name, path in written]
    if listed:
        heading("Files")
        pairs(listed)
