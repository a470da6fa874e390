"""The form every longer result shares: sections with sentences, values, figures and tables.

A measurement fills these records and `wideangle.report` draws them; neither knows the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from wideangle.plan import Plan
from wideangle.result import Result

__all__ = ["Document", "Figure", "Mark", "Section", "Series", "Table"]


@dataclass(frozen=True)
class Series(Result):
    """One curve of a figure: points (x, y) drawn as a line, a dashed line or separate points.

    A None in `y` (or a non-finite number) is a gap.
    """

    name: str = ""
    x: list[float] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    style: Literal["line", "dashed", "points"] = "line"


@dataclass(frozen=True)
class Mark(Result):
    """A vertical line at `x` with a label: a critical step, a turning point."""

    x: float = 0.0
    label: str = ""


@dataclass(frozen=True)
class Figure(Result):
    """A plot described by its data; its caption says in one sentence what to see in it."""

    title: str = ""
    x_label: str = ""
    y_label: str = ""
    series: list[Series] = field(default_factory=list)
    x_log: bool = False
    y_log: bool = False
    marks: list[Mark] = field(default_factory=list)
    caption: str = ""


@dataclass(frozen=True)
class Table(Result):
    """A table: column names and rows of numbers or text."""

    title: str = ""
    columns: list[str] = field(default_factory=list)
    cells: list[list[Any]] = field(default_factory=list)
    caption: str = ""


@dataclass(frozen=True)
class Section(Result):
    """One part of a document: what was asked, the answer in a sentence, the numbers behind it.

    `status` is "done", "skipped" (with the reason as summary), "failed" (with the error as summary)
    or "interrupted". `seconds` is what it took, `budget` what it promised to stay under.
    """

    name: str = ""
    title: str = ""
    summary: str = ""
    status: Literal["done", "skipped", "failed", "interrupted"] = "done"
    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    seconds: float = 0.0
    budget: float | None = None


@dataclass(frozen=True)
class Document(Result):
    """A titled sequence of sections with a verdict in plain sentences and, where made, a plan."""

    title: str = ""
    subject: str = ""
    verdict: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    plan: Plan | None = None
    complete: bool = True

    def section(self, name: str) -> Section:
        """Return the section called `name`; a KeyError names those there are."""
        for part in self.sections:
            if part.name == name:
                return part
        raise KeyError(f"no section {name!r}; there are {', '.join(part.name for part in self.sections)}")
