"""What the page and the Markdown both show: plan rows, the points of a figure, the command behind it."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from wideangle.document import Document, Figure, Section, Series, Table
from wideangle.plan import Decision, Plan
from wideangle.report._numbers import SHOWN, clean, finite, label, listing, number, show

PRINTED = 20


class PlanRow(NamedTuple):
    """One line of the plan table; `rest` lists all items of a value too long to show."""

    name: str
    value: str
    unit: str
    evidence: str
    measured: bool
    rest: str


class Grid(NamedTuple):
    """The points of the series that share one x: a header, rows, how many there were, which go on paper."""

    columns: list[str]
    rows: list[list[str]]
    total: int
    printed: frozenset[int]


def plan_rows(plan: Plan) -> list[PlanRow]:
    """The decisions of a plan, in its own order; a plan with further entries shows those too."""
    rows = []
    for item in dataclasses.fields(plan):
        entry = getattr(plan, item.name)
        if not isinstance(entry, Decision):
            continue
        items = listing(entry.value)
        rest = ", ".join(show(part) for part in items) if items and len(items) > SHOWN else ""
        rows.append(
            PlanRow(
                label(item.name),
                show(entry.value),
                clean(entry.unit) if entry.measured else "",
                clean(entry.evidence),
                entry.measured,
                rest,
            )
        )
    return rows


def plan_scope(plan: Plan) -> str:
    """What the plan was made for, in one line."""
    parts = [f"model {clean(plan.model)}"] if plan.model else []
    parts += [f"data {clean(plan.data)}"] if plan.data else []
    parts += [f"{number(plan.samples)} samples"] if plan.samples else []
    return ", ".join([*parts, f"loss {clean(plan.loss)}", f"seed {plan.seed}"])


def next_command(plan: Plan, command: str | None) -> str | None:
    """The command that acts on the plan, where its model, data and file are known."""
    if not plan.model or not plan.data or not plan.step_size.measured:
        return None
    try:
        words = shlex.split(command or "")
    except ValueError:
        words = []
    name = _option(words, "--plan") or "plan.json"
    picked = _option(words, "--output")
    rest = [] if picked is None else ["--output", picked]
    return shlex.join(
        ["wideangle", "train", clean(plan.model), "--data", clean(plan.data), "--plan", name, *rest]
    )


def _option(words: Sequence[str], option: str) -> str | None:
    """The last value typed for an option, as `--option value` or `--option=value`."""
    given = [after for before, after in itertools.pairwise(words) if before == option]
    given += [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return given[-1] if given else None


def command_of(figure: Figure | Table, section: Section, document: Document) -> str | None:
    """The command that made a figure: its own, else its section's, else the document's."""
    for owner in (figure, section, document):
        if owner.provenance.command:
            return clean(owner.provenance.command)
    return None


def _thin(count: int, limit: int) -> Sequence[int]:
    if count <= limit:
        return range(count)
    return sorted({round(k * (count - 1) / (limit - 1)) for k in range(limit)})


def _cell(value: Any) -> str:
    return number(None if value is None else float(value), group=False)


def grids(figure: Figure, limit: int) -> list[Grid]:
    """The points of a figure as tables, one for each distinct x, at most `limit` rows each."""
    groups: list[tuple[list[float], list[Series]]] = []
    for series in figure.series:
        xs = [float(value) for value in series.x]
        home = next((members for shared, members in groups if shared == xs), None)
        if home is None:
            groups.append((xs, [series]))
        else:
            home.append(series)
    found = []
    for xs, members in groups:
        names = [clean(series.name) or clean(figure.y_label) or "y" for series in members]
        rows = [
            [_cell(xs[k]), *(_cell(series.y[k]) if k < len(series.y) else "" for series in members)]
            for k in _thin(len(xs), limit)
        ]
        printed = frozenset(_thin(len(rows), PRINTED))
        found.append(Grid([clean(figure.x_label) or "x", *names], rows, len(xs), printed))
    return found


def points(curve: Figure, pairs: list[list[float]], limit: int) -> Grid:
    """A list of (x, y) pairs as the table of a one-curve figure."""
    series = Series(x=[pair[0] for pair in pairs], y=[pair[1] for pair in pairs])
    return grids(dataclasses.replace(curve, series=[series]), limit)[0]


def hidden_points(figure: Figure) -> int:
    """How many finite points a logarithmic axis cannot show."""
    pairs = [pair for series in figure.series for pair in zip(series.x, series.y, strict=False)]
    points = [(x, y) for x, y in pairs if finite(x) and y is not None and finite(y)]
    return sum((figure.x_log and x <= 0) or (figure.y_log and y <= 0) for x, y in points)
