"""What every finding of a paper run must be, beside its verdict."""

from __future__ import annotations

from wideangle.papers._frame import Finding


def has_verdict(found: Finding, holds: bool) -> None:
    """Assert the verdict known, that something was measured, and that tables and curves fit their heads."""
    assert bool(found.holds) is holds, found.measured
    assert any(char.isdigit() for char in found.measured) or "True" in found.measured
    assert all(len(row) == len(table.columns) for table in found.tables for row in table.cells)
    assert all(len(series.x) == len(series.y) for figure in found.figures for series in figure.series)
