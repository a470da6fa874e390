"""The cells of the benchmark: what is computed, on which model, for how many samples, and the goal."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One thing to compute.

    kind: "trace" (n x n), "full" (nC x nC), "product" (K v, set-up apart) or "eigen" (ten largest pairs).
    goal: by how many times we want to be faster than the fastest rival; None where nothing is promised.
    rival: "any", or the name of the peer that the goal is measured against.
    memory: extra peak memory in MB that we want to stay under.
    """

    model: str
    kind: str
    n: int
    goal: float | None = None
    rival: str = "any"
    memory: float | None = None

    @property
    def name(self) -> str:
        """Such as "mlp-trace-256"."""
        return f"{self.model}-{self.kind}-{self.n}"

    @property
    def title(self) -> str:
        """Such as "MLP, trace kernel, n=256"."""
        what = {
            "trace": "trace kernel",
            "full": "full kernel",
            "product": "one product K v",
            "eigen": "ten largest eigenpairs",
        }
        return f"{self.model.upper()}, {what[self.kind]}, n={self.n}"


CELLS = (
    Cell("mlp", "trace", 256, 2.5),
    Cell("mlp", "trace", 1024, 4.5, memory=150),
    Cell("mlp", "full", 256, 4),
    Cell("mlp", "full", 1024, 5, memory=1000),
    Cell("cnn", "trace", 128, 1.7, "torch_func", memory=250),
    Cell("cnn", "trace", 2048),
    Cell("cnn", "full", 128, 2),
    Cell("cnn", "product", 128, 1.5),
    Cell("mlp", "product", 1024, 1.5),
    Cell("mlp", "eigen", 1024, 3),
)

QUICK = tuple(
    Cell(model, kind, 32)
    for model, kind in (
        ("mlp", "trace"),
        ("mlp", "full"),
        ("cnn", "trace"),
        ("cnn", "full"),
        ("cnn", "product"),
        ("mlp", "product"),
        ("mlp", "eigen"),
    )
)

GROWTH = 1.5  # every method grows at least about like n^1.5; used to leave out what cannot end in time


def chosen(names: list[str] | None, quick: bool) -> list[Cell]:
    """Return the cells whose names hold one of `names`, or all.

    Raises:
        ValueError: a name fits no cell.
    """
    pool = QUICK if quick else CELLS
    if not names:
        return list(pool)
    missing = [name for name in names if not any(name in cell.name for cell in pool)]
    if missing:
        raise ValueError(f"no cell {missing[0]!r}; there are {', '.join(cell.name for cell in pool)}")
    return [cell for cell in pool if any(name in cell.name for name in names)]


def hopeless(cell: Cell, seen: dict[tuple[str, str, int], float], timeout: float) -> str | None:
    """Return why a method cannot end in time, from what it did on fewer samples; None where it may.

    Args:
        cell: what is asked.
        seen: seconds of one call of this method by (model, kind, n); infinite where time or memory ran out.
        timeout: seconds allowed.
    """
    for (model, kind, n), seconds in seen.items():
        if (model, kind) == (cell.model, cell.kind) and n < cell.n:
            if seconds == math.inf:
                return f"not tried: no result at n={n} either"
            guess = seconds * (cell.n / n) ** GROWTH
            if guess > timeout:
                return f"not tried: {seconds:.3g} s at n={n}, so over {timeout:.0f} s here"
    return None
