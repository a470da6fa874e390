"""The frame of the paper runs: a paper is a list of statements, each with a test that can fail.

A statement says what the paper claims and has a function that measures it here; the finding says what was
measured and whether it holds. The verdict is computed from the numbers, never chosen. A statement known
not to hold (a misprint, a counter-example) stands beside its corrected form with `expected=False`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from wideangle.document import Document, Figure, Section, Table
from wideangle.errors import InputError
from wideangle.names import unknown_name
from wideangle.result import Provenance, Result

if TYPE_CHECKING:
    from wideangle.data import Dataset

__all__ = ["Claim", "Finding", "Paper", "PaperRun", "Setting", "Statement", "available", "run"]

Size = Literal["smoke", "cpu", "paper"]
SIZES = ("smoke", "cpu", "paper")
_SEEDS = {"smoke": 1, "cpu": 3, "paper": 5}
_MODULES = {"conditioning": "wideangle.papers.conditioning", "alignment": "wideangle.papers.alignment"}


@dataclass(frozen=True)
class Setting:
    """How large to measure: the size, the root seed, and where the data sets lie."""

    size: Size = "smoke"
    seed: int = 0
    data_root: str | None = None

    @property
    def seeds(self) -> list[int]:
        """The seeds of a finding: one at size smoke, three at cpu, five at paper."""
        return [self.seed + k for k in range(_SEEDS[self.size])]

    def pick(self, smoke: int, cpu: int, paper: int) -> int:
        """Return the number for this size."""
        return {"smoke": smoke, "cpu": cpu, "paper": paper}[self.size]

    def load(self, name: str, n: int, split: Literal["train", "test"] = "train") -> Dataset:
        """Return n samples of a data set."""
        from wideangle import data

        return data.load(name, split=split, n=n, root=self.data_root, seed=self.seed)

    def sets(self, n: int) -> tuple[list[Dataset], list[str]]:
        """Return digits, MNIST and Fashion-MNIST as far as they are there, and the names that are not."""
        found, missing = [], []
        for name in ("digits", "mnist", "fashion-mnist"):
            try:
                found.append(self.load(name, n))
            except InputError:
                missing.append(name)
        return found, missing


@dataclass(frozen=True)
class Finding:
    """What a test measured, whether the statement holds, and what to show for it."""

    holds: bool
    measured: str
    detail: str = ""
    seeds: list[int] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Statement:
    """One claim of a paper and the function that measures it."""

    name: str
    group: str
    paper: str
    test: Callable[[Setting], Finding]
    expected: bool = True


@dataclass(frozen=True)
class Paper:
    """A paper: slug, title, source and its statements in order."""

    slug: str
    title: str
    source: str
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class Claim(Result):
    """One claim after its run: what the paper says, what was measured here, and the verdict.

    `verdict` is "holds", "not reproduced" or "skipped" (data that are not there; the detail says which).
    `expected` says whether it is known to hold; a claim with False is a misprint or has a counter-example.
    """

    name: str = ""
    paper: str = ""
    measured: str = ""
    verdict: Literal["holds", "not reproduced", "skipped"] = "skipped"
    expected: bool = True
    detail: str = ""
    seeds: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PaperRun(Document):
    """The run of one paper at one size: its claims, and the sections of a report."""

    slug: str = ""
    size: str = "smoke"
    claims: list[Claim] = field(default_factory=list)

    @property
    def surprises(self) -> list[Claim]:
        """The claims that should hold here and were not reproduced."""
        return [claim for claim in self.claims if claim.expected and claim.verdict == "not reproduced"]


def available() -> dict[str, str]:
    """Return the papers that can be run, slug -> title.

    Example:
        >>> sorted(available())
        ['alignment', 'conditioning']
    """
    return {slug: _paper(slug).title for slug in _MODULES}


def _paper(slug: str) -> Paper:
    if slug not in _MODULES:
        raise unknown_name("paper", slug, _MODULES)
    return importlib.import_module(_MODULES[slug]).PAPER


def run(
    slug: str,
    *,
    size: Size = "smoke",
    seed: int = 0,
    data_root: str | None = None,
    on_claim: Callable[[Claim], None] | None = None,
) -> PaperRun:
    """Return the claims of a paper, measured here.

    Cost: under a minute at size smoke, under 15 minutes at cpu, hours at paper (two cores).

    Args:
        slug: one of `available()`.
        size: "smoke", "cpu" (at least three seeds) or "paper" (the paper's own sizes).
        seed: the first seed; the others follow it.
        data_root: where the data sets lie; WIDEANGLE_DATA where left out.
        on_claim: called with each claim as it is finished.

    Returns:
        A `PaperRun`; Ctrl-C returns the claims finished by then with `complete=False`.

    Raises:
        InputError: an unknown slug or size.

    Example:
        >>> run("conditioning", size="huge")
        Traceback (most recent call last):
        wideangle.errors.InputError: unknown size 'huge'; known are smoke, cpu, paper
    """
    paper = _paper(slug)
    if size not in SIZES:
        raise unknown_name("size", size, SIZES)
    return run_statements(paper, Setting(size, seed, data_root), on_claim)


def run_statements(
    paper: Paper, setting: Setting, on_claim: Callable[[Claim], None] | None = None
) -> PaperRun:
    """Return the run of a paper's statements at a setting."""
    begun = time.perf_counter()
    claims: list[Claim] = []
    sections: dict[str, Section] = {}
    complete = True
    for statement in paper.statements:
        try:
            claim, finding, seconds = _measure(statement, setting)
        except KeyboardInterrupt:
            complete = False
            break
        claims.append(claim)
        sections[statement.group] = _add(
            sections.get(statement.group), statement.group, claim, finding, seconds
        )
        if on_claim is not None:
            on_claim(claim)
    command = f"wideangle papers run {paper.slug} --size {setting.size} --seed {setting.seed}"
    return PaperRun(
        title=f"{paper.title}: claims at size {setting.size}",
        subject=f"{paper.source}; seeds {', '.join(map(str, setting.seeds))}",
        verdict=[_line(claim) for claim in claims],
        sections=list(sections.values()),
        complete=complete,
        slug=paper.slug,
        size=setting.size,
        claims=claims,
        provenance=Provenance.here(seed=setting.seed, seconds=time.perf_counter() - begun, command=command),
    )


def _measure(statement: Statement, setting: Setting) -> tuple[Claim, Finding | None, float]:
    begun = time.perf_counter()
    base = Claim(name=statement.name, paper=statement.paper, expected=statement.expected)
    try:
        finding = statement.test(setting)
    except InputError as error:
        return replace(base, verdict="skipped", detail=str(error)), None, time.perf_counter() - begun
    claim = replace(
        base,
        measured=finding.measured,
        verdict="holds" if finding.holds else "not reproduced",
        detail=finding.detail,
        seeds=finding.seeds,
    )
    return claim, finding, time.perf_counter() - begun


def _line(claim: Claim) -> str:
    note = "" if claim.expected or claim.verdict != "not reproduced" else " (as known)"
    return f"{claim.name}: {claim.verdict}{note}. {claim.measured or claim.detail}"


def _add(
    section: Section | None, group: str, claim: Claim, finding: Finding | None, seconds: float
) -> Section:
    """Return the group's section with one claim more."""
    old = section or Section(name=group, title=group, tables=[Table("Claims", _COLUMNS, [])])
    table = old.tables[0]
    row = [claim.name, claim.paper, claim.measured or claim.detail, claim.verdict, claim.detail]
    cells = [*table.cells, row]
    held = sum(cell[3] == "holds" for cell in cells)
    return replace(
        old,
        summary=f"{held} of {len(cells)} claims hold here",
        tables=[replace(table, cells=cells), *old.tables[1:], *(finding.tables if finding else [])],
        figures=[*old.figures, *(finding.figures if finding else [])],
        seconds=old.seconds + seconds,
    )


_COLUMNS = ["claim", "the paper says", "measured here", "verdict", "note"]
