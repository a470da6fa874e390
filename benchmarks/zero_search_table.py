"""The table of the zero-search benchmark: passes to the target, ratios, and what they come to over all tasks."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from zero_search_methods import BY_NAME, METHODS, RIVALS, TUNED, setting_name
from zero_search_runs import Record, passes_to
from zero_search_tasks import PASSES

Row = dict[str, Any]
GOALS = {"median_ratio": 1.15, "worst_ratio": 2.0, "wins": 9, "share": 0.05}


@dataclass(frozen=True)
class Block:
    """A titled table of text cells."""

    title: str
    columns: list[str]
    cells: list[list[str]]


def ratio(passes: float, other: float) -> float:
    """Return passes / other; infinite where only the first is, 0 where only the second is, NaN where both are.

    Example:
        >>> ratio(3.0, 2.0), ratio(math.inf, 2.0), ratio(2.0, math.inf), ratio(math.inf, math.inf)
        (1.5, inf, 0.0, nan)
    """
    if math.isinf(other):
        return math.nan if math.isinf(passes) else 0.0
    return passes / other


def entry_of(records: list[Record], target: float) -> Row:
    """Return what the table says of one method on one task: medians over the seeds."""
    passes = [passes_to(record, target) for record in records]
    accuracies = [record["test_accuracy"] for record in records if not record["diverged"]]
    return {
        "setting": setting_name(records[0]["setting"]),
        "chosen": [record["chosen"] for record in records if "chosen" in record],
        "all_passes": passes,
        "passes": statistics.median(passes),
        "final_loss": statistics.median(record["final_loss"] for record in records),
        "test_accuracy": statistics.median(accuracies) if accuracies else math.nan,
        "diverged": sum(record["diverged"] for record in records),
        "share": max(share_of(record) for record in records),
        "seconds_share": max(record["measuring_seconds"] / record["seconds"] for record in records),
    }


def share_of(record: Record) -> float:
    """Return the measurements' share of the budget, in passes over the data."""
    return record["measured_passes"] / record.get("budget", PASSES)


def row_of(
    task: str, target: Record | None, records: dict[str, list[Record] | None], edges: list[str]
) -> Row:
    """Return the row of a task.

    Args:
        task: its name.
        target: its target, or None where SGD's grid is not complete.
        records: the runs of each method on the seeds of the comparison; None where they are not complete.
        edges: winners at the end of their grid.
    """
    methods = (
        {name: entry_of(found, target["loss"]) for name, found in records.items() if found} if target else {}
    )
    row: Row = {"task": task, "target": target and target["loss"], "methods": methods, "edges": edges}
    tuned = [name for name in TUNED if name in methods]
    complete = len(tuned) == len(TUNED)
    row["best"] = min(tuned, key=lambda name: methods[name]["passes"]) if complete else None
    ours = methods.get("recommended")
    row["ratio"] = ratio(ours["passes"], methods[row["best"]]["passes"]) if ours and complete else None
    return row


def compared_with(rows: list[Row], method: str, rival: str) -> Row:
    """Return how many tasks have both methods, the median ratio of passes, and how often `method` is ahead."""
    pairs = [
        (row["methods"][method]["passes"], row["methods"][rival]["passes"])
        for row in rows
        if method in row["methods"] and rival in row["methods"]
    ]
    ratios = [found for pair in pairs if not math.isnan(found := ratio(*pair))]
    return {
        "tasks": len(pairs),
        "wins": sum(first < second for first, second in pairs),
        "median_ratio": statistics.median(ratios) if ratios else None,
    }


def summary(rows: list[Row]) -> Row:
    """Return the median and worst ratio, comparisons with each rival, and which goals are met.

    A ratio of two infinities counts as infinite: the recommended method did not reach the target.
    """
    ratios = [
        math.inf if math.isnan(row["ratio"]) else row["ratio"] for row in rows if row["ratio"] is not None
    ]
    ours = [row["methods"]["recommended"] for row in rows if "recommended" in row["methods"]]
    found: Row = {
        "tasks": len(ratios),
        "median_ratio": statistics.median(ratios) if ratios else None,
        "worst_ratio": max(ratios) if ratios else None,
        "diverged": sum(entry["diverged"] for entry in ours),
        "share": max(entry["share"] for entry in ours) if ours else None,
        "seconds_share": max(entry["seconds_share"] for entry in ours) if ours else None,
        "rivals": {name: compared_with(rows, "recommended", name) for name in (*RIVALS, *TUNED)},
        "tuned_mass": {name: compared_with(rows, "mass", name) for name in TUNED if name != "mass"},
    }
    if ratios:
        found["met"] = {
            "median_ratio": found["median_ratio"] <= GOALS["median_ratio"],
            "worst_ratio": found["worst_ratio"] <= GOALS["worst_ratio"],
            "never diverged": found["diverged"] == 0,
            "share": found["share"] <= GOALS["share"],
            **{f"ahead of {name}": found["rivals"][name]["wins"] >= GOALS["wins"] for name in RIVALS},
        }
    return found


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text; a dash where there is none, "never" where it is infinite."""
    if value is None or math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else f"{value:.{digits}g}"


def run_text(name: str, record: Record) -> str:
    """Return one line on a run that ended."""
    end = (
        "failed"
        if "failed" in record
        else "diverged"
        if record["diverged"]
        else f"loss {record['final_loss']:.4g}"
    )
    return f"{name:75} {end:16} accuracy {record['test_accuracy']:.3f} {record['seconds']:5.1f} s"


def blocks(rows: list[Row]) -> list[Block]:
    """Return the tables: passes, ratios, last losses, accuracies, settings, and the summary."""
    names = [method.name for method in METHODS]
    titles = [method.title for method in METHODS]

    def of(key: str, digits: int = 3) -> list[list[str]]:
        return [
            [row["task"], *(number(row["methods"].get(name, {}).get(key), digits) for name in names)]
            for row in rows
        ]

    passes = [
        [task, number(row["target"]), *rest] for (task, *rest), row in zip(of("passes"), rows, strict=True)
    ]
    settings = [
        [
            row["task"],
            *(row["methods"].get(name, {}).get("setting", "-") for name in TUNED),
            "; ".join(row["edges"]),
        ]
        for row in rows
    ]
    return [
        Block("Passes over the data to the target, median of the seeds", ["task", "target", *titles], passes),
        Block("Recommended over others, passes", _ratio_columns(), [_ratios(row) for row in rows]),
        Block("Last training loss", ["task", *titles], of("final_loss")),
        Block("Test accuracy at the end", ["task", *titles], of("test_accuracy")),
        Block("Winners of the grids", ["task", *titles[: len(TUNED)], "at the grid's end"], settings),
        Block("Over all tasks", ["what", "value"], _summary_cells(summary(rows))),
    ]


def _ratio_columns() -> list[str]:
    rivals = [f"over {BY_NAME[name].title}" for name in RIVALS]
    return ["task", "best tuned", "over the best tuned", *rivals, "measurement, passes", "measurement, time"]


def _ratios(row: Row) -> list[str]:
    methods = row["methods"]
    best = BY_NAME[row["best"]].title if row["best"] else "-"
    ours = methods.get("recommended")
    if ours is None:
        return [row["task"], best, *["-"] * (3 + len(RIVALS))]
    against = [ratio(ours["passes"], methods[name]["passes"]) if name in methods else None for name in RIVALS]
    shares = [f"{100 * ours[key]:.1f} %" for key in ("share", "seconds_share")]
    return [row["task"], best, number(row["ratio"]), *(number(value) for value in against), *shares]


def _summary_cells(found: Row) -> list[list[str]]:
    met = {True: ", goal met", False: ", goal not met", None: ""}
    goals = found.get("met", {})

    def against(title: str, entry: Row, goal: bool | None = None) -> list[str]:
        value = f"ahead on {entry['wins']} of {entry['tasks']}, median ratio {number(entry['median_ratio'])}"
        return [title, value + met[goal]]

    cells = [
        ["tasks", str(found["tasks"])],
        ["recommended / best tuned, median", number(found["median_ratio"]) + met[goals.get("median_ratio")]],
        ["recommended / best tuned, worst", number(found["worst_ratio"]) + met[goals.get("worst_ratio")]],
        ["recommended runs that diverged", str(found["diverged"]) + met[goals.get("never diverged")]],
        ["largest measurement, share of passes", number(found["share"]) + met[goals.get("share")]],
        ["largest measurement, share of time", number(found["seconds_share"])],
    ]
    for name, entry in found["rivals"].items():
        title = f"recommended, {'tuned ' if name in TUNED else ''}{BY_NAME[name].title}"
        cells.append(against(title, entry, goals.get(f"ahead of {name}")))
    return cells + [
        against(f"tuned MaSS, tuned {BY_NAME[n].title}", e) for n, e in found["tuned_mass"].items()
    ]


def text(rows: list[Row]) -> str:
    """Return the tables as aligned text."""
    parts = []
    for block in blocks(rows):
        lines = [block.columns, *block.cells]
        widths = [max(len(line[i]) for line in lines) for i in range(len(block.columns))]
        body = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        parts.append("\n".join([block.title, *(f"  {line}".rstrip() for line in body)]))
    return "\n\n".join(parts)


def markdown(rows: list[Row]) -> str:
    """Return the tables as markdown."""
    parts = []
    for block in blocks(rows):
        head = [block.columns, ["---"] * len(block.columns)]
        lines = ["| " + " | ".join(line) + " |" for line in [*head, *block.cells]]
        parts.append("\n".join([f"### {block.title}", "", *lines]))
    return "\n\n".join(parts)
