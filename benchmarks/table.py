"""The benchmark's results as text: a block for each cell as it is measured, and a summary."""

from __future__ import annotations

from typing import Any

from cells import Cell

WIDTH = 110
ACCEPTED = 1e-4  # a rival with a larger error computed something else
HEAD = f"  {'method':40} {'s':>9} {'ratio':>8} {'set-up s':>9} {'peak MB':>8} {'error':>7}  note"


def seconds_text(value: float | None) -> str:
    """Return seconds with three digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def row_text(row: dict[str, Any], ours: float | None) -> str:
    """Return one line of a cell's block; a failure gets its reason in place of numbers."""
    name = f"{row['peer']} {row['method']}"[:40]
    if "failed" in row:
        return f"  {name:40} {'-':>9}  {row['failed']}"[:WIDTH]
    ratio = f"{row['seconds'] / ours:.2f}x" if ours and row["peer"] != "ours" else ""
    setup = (
        seconds_text(row["setup_seconds"]) if row["setup_seconds"] > 0.1 or row["kind"] == "product" else ""
    )
    notes = [] if row["runs"] else ["one run"]
    notes += [] if row["error"] is not None else ["not checked"]
    error = "-" if row["error"] is None else f"{row['error']:.0e}"
    notes += [row["note"]] if row.get("note") else []
    return (
        f"  {name:40} {seconds_text(row['seconds']):>9} {ratio:>8} {setup:>9} "
        f"{row['peak_mb']:8.0f} {error:>7}  {', '.join(notes)}"
    ).rstrip()[:WIDTH]


def judged(cell: Cell, rows: list[dict[str, Any]], rivals: int) -> dict[str, Any]:
    """Return ours, the fastest rival, the ratio, and whether the goals are met, from the rows of a cell.

    A rival counts where its result is right: error and norm agree. `rivals` is how many there could be.
    """
    timed = [row for row in rows if "seconds" in row]
    ours = next((row for row in timed if row["peer"] == "ours"), None)
    right = [
        r
        for r in timed
        if r["peer"] != "ours" and r["error"] is not None and r["error"] < ACCEPTED and not r.get("note")
    ]
    best = min(right, key=lambda row: row["seconds"], default=None)
    against = [row for row in right if cell.rival in ("any", row["peer"])]
    measure = min(against, key=lambda row: row["seconds"], default=None)
    verdict: dict[str, Any] = {"ours": ours and ours["seconds"], "best": None, "ratio": None, "met": None}
    verdict["rivals"] = [len(right), rivals]
    if ours and best:
        verdict["best"] = f"{best['peer']} {best['method']}"
        verdict["best_seconds"] = best["seconds"]
        verdict["ratio"] = best["seconds"] / ours["seconds"]
    if ours and measure and cell.goal:
        verdict["goal_ratio"] = measure["seconds"] / ours["seconds"]
        verdict["met"] = verdict["goal_ratio"] >= cell.goal
    if ours and cell.memory:
        verdict["memory_met"] = ours["peak_mb"] <= cell.memory
    return verdict


def goal_text(cell: Cell) -> str:
    """Return the goal, such as "4.5x any"."""
    return f"{cell.goal:g}x {cell.rival.replace('torch_func', 'recipe')}" if cell.goal else "-"


def heading(cell: Cell, floor: float | None) -> str:
    """Return the lines above a cell's rows."""
    parts = [cell.title]
    parts += [f"goal {goal_text(cell)}"] if cell.goal else []
    parts += [f"memory goal {cell.memory:.0f} MB"] if cell.memory else []
    parts += [f"floor {seconds_text(floor)} s"] if floor else []
    return "\n" + "; ".join(parts) + "\n" + HEAD


def verdict_text(cell: Cell, verdict: dict[str, Any]) -> str:
    """Return what the summary says of the goals."""
    words = {True: "met", False: "not met", None: "not judged"}
    text = words[verdict["met"]] if cell.goal else "no goal"
    if verdict["met"] is not None and cell.rival != "any":
        text += f" ({verdict['goal_ratio']:.2f}x)"
    if cell.goal and verdict["rivals"][0] < verdict["rivals"][1]:
        text += " (only {} of {} rivals gave a result)".format(*verdict["rivals"])
    if "memory_met" in verdict:
        text += f", memory {words[verdict['memory_met']]}"
    return text


def summary(entries: list[dict[str, Any]]) -> str:
    """Return the table of all cells; each entry holds its cell, verdict and floor."""
    head = (
        f"{'cell':16} {'ours s':>8} {'floor s':>8}  {'best rival':41} {'its s':>8} {'ratio':>7} {'goal':>11}"
    )
    lines = ["", head]
    for entry in entries:
        cell, verdict = entry["cell"], entry["verdict"]
        ratio = f"{verdict['ratio']:.2f}x" if verdict["ratio"] else "-"
        best = (verdict["best"] or "-")[:41]
        line = (
            f"{cell.name:16} {seconds_text(verdict['ours']):>8} {seconds_text(entry['floor']):>8}  {best:41} "
            f"{seconds_text(verdict.get('best_seconds')):>8} {ratio:>7} {goal_text(cell):>11}"
        )
        lines += [line, f"{'':35}goal {verdict_text(cell, verdict)}"] if cell.goal or cell.memory else [line]
    return "\n".join(lines)
