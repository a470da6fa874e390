"""The frame of the paper runs: a paper is a list of statements, each with a test that can fail.

A statement says what the paper claims and has a function that measures it here; the finding says what was
measured and whether it holds. The verdict is computed from the numbers, never chosen. A statement known
not to hold (a misprint, a counter-example) stands beside its corrected form with `expected=False`; one
that theory and earlier measurements leave open has `expected=None`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from wideangle.document import Document, Figure, Section, Table
from wideangle.errors import InputError
from wideangle.names import unknown_name
from wideangle.progress import track
from wideangle.result import Provenance, Result

if TYPE_CHECKING:
    from wideangle.data import Dataset

__all__ = [
    "Claim",
    "Finding",
    "Paper",
    "PaperRun",
    "Setting",
    "SkippedError",
    "Statement",
    "available",
    "run",
]

T = TypeVar("T")
Size = Literal["smoke", "cpu", "paper"]
SIZES = ("smoke", "cpu", "paper")
_BUNDLED = ("digits", "breast-cancer")
_SEEDS = {"smoke": 1, "cpu": 3, "paper": 5}
_MODULES = {
    "linearity": "wideangle.papers.linearity",
    "assembly": "wideangle.papers.assembly",
    "dag": "wideangle.papers.dag",
    "conditioning": "wideangle.papers.conditioning",
    "alignment": "wideangle.papers.alignment",
    "landscape": "wideangle.papers.landscape",
    "aiming": "wideangle.papers.aiming",
    "accelerated": "wideangle.papers.accelerated",
    "mass": "wideangle.papers.mass",
}


class SkippedError(InputError):
    """A claim cannot be measured here: its data set is not there, or the size is too small for it."""


@dataclass(frozen=True)
class Setting:
    """How large to measure: the size, the root seed, and where the data sets lie."""

    size: Size = "smoke"
    seed: int = 0
    data_root: str | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def seeds(self) -> list[int]:
        """The seeds of a finding: one at size smoke, three at cpu, five at paper."""
        return [self.seed + k for k in range(_SEEDS[self.size])]

    def at_least(self, count: int) -> list[int]:
        """Return the seeds, at least so many of them, for cheap measurements that one draw leaves noisy."""
        return [self.seed + k for k in range(max(count, len(self.seeds)))]

    def pick(self, smoke: int, cpu: int, paper: int) -> int:
        """Return the number for this size."""
        return {"smoke": smoke, "cpu": cpu, "paper": paper}[self.size]

    def load(
        self, name: str, n: int | None, split: Literal["train", "test"] = "train", seed: int | None = None
    ) -> Dataset:
        """Return n samples of a data set, drawn with `seed` (the root seed where left out).

        Raises:
            SkippedError: the set is one of a data folder and its files are not there or not the published ones.
        """
        from wideangle import data

        drawn = self.seed if seed is None else seed

        def read() -> Dataset:
            return data.load(name, split=split, n=n, root=self.data_root, seed=drawn)

        if name in _BUNDLED:
            return self.once((name, n, split, drawn), read)
        try:
            return self.once((name, n, split, drawn), read)
        except InputError as error:
            raise SkippedError(str(error)) from error

    def sets(self, n: int, seed: int | None = None) -> tuple[list[Dataset], list[str]]:
        """Return digits, MNIST and Fashion-MNIST as far as they are there, and the names that are not."""
        found, missing = [], []
        for name in ("digits", "mnist", "fashion-mnist"):
            try:
                found.append(self.load(name, n, seed=seed))
            except SkippedError:
                missing.append(name)
        return found, missing

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """Return what `make` makes, kept for the whole run under `key`."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def absent(missing: list[str]) -> str:
    """Return the note on the data sets that are not there, empty where all are."""
    return f"skipped, not in the data folder: {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Finding:
    """What a test measured, whether the statement holds, and what to show for it.

    `headline` is a sentence for the top of the report, for the few numbers a reader comes for.
    """

    holds: bool
    measured: str
    detail: str = ""
    seeds: list[int] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    headline: str = ""


@dataclass(frozen=True)
class Statement:
    """One claim of a paper and the function that measures it."""

    name: str
    group: str
    paper: str
    test: Callable[[Setting], Finding]
    expected: bool | None = True


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
    `expected` says whether it is known to hold; a claim with False is a misprint or has a counter-example,
    one with None is open.
    """

    name: str = ""
    paper: str = ""
    measured: str = ""
    verdict: Literal["holds", "not reproduced", "skipped"] = "skipped"
    expected: bool | None = True
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
        """The claims that should hold here and were not reproduced, or should not and hold."""
        wrong = {True: "not reproduced", False: "holds"}
        return [c for c in self.claims if c.expected is not None and c.verdict == wrong[c.expected]]

    def rows(self) -> list[tuple[str, str]]:
        """Return one printed line a claim: its verdict and what was measured."""
        return [(claim.name, f"{claim.verdict}. {claim.measured or claim.detail}") for claim in self.claims]


def available() -> dict[str, str]:
    """Return the papers that can be run, slug -> title.

    Example:
        >>> sorted(available())
        ['accelerated', 'aiming', 'alignment', 'assembly', 'conditioning', 'dag', 'landscape', 'linearity', 'mass']
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
    headlines: list[str] = []
    complete = True
    for statement in track(paper.statements, paper.slug):
        group = statement.group
        try:
            claim, finding, seconds = _measure(statement, setting)
        except KeyboardInterrupt:
            complete = False
            stopped = sections.get(group, Section(name=group, title=group, summary="no claim finished"))
            sections[group] = replace(stopped, status="interrupted")
            break
        claims.append(claim)
        sections[group] = _add(sections.get(group), group, claim, finding, seconds)
        if finding is not None and finding.headline:
            headlines.append(finding.headline)
        if on_claim is not None:
            on_claim(claim)
    command = f"wideangle papers run {paper.slug} --size {setting.size} --seed {setting.seed}"
    run = PaperRun(
        title=f"{paper.title}: claims at size {setting.size}",
        subject=f"{paper.source}; seeds {', '.join(map(str, setting.seeds))}",
        sections=list(sections.values()),
        complete=complete,
        slug=paper.slug,
        size=setting.size,
        claims=claims,
        provenance=Provenance.here(seed=setting.seed, seconds=time.perf_counter() - begun, command=command),
    )
    return replace(run, verdict=_verdict(run, len(paper.statements), headlines))


def _measure(statement: Statement, setting: Setting) -> tuple[Claim, Finding | None, float]:
    begun = time.perf_counter()
    base = Claim(name=statement.name, paper=statement.paper, expected=statement.expected)
    try:
        finding = statement.test(setting)
    except SkippedError as reason:
        return replace(base, verdict="skipped", detail=str(reason)), None, time.perf_counter() - begun
    claim = replace(
        base,
        measured=finding.measured,
        verdict="holds" if finding.holds else "not reproduced",
        detail=finding.detail,
        seeds=finding.seeds,
    )
    return claim, finding, time.perf_counter() - begun


def _verdict(run: PaperRun, statements: int, headlines: list[str]) -> list[str]:
    """Return the few sentences at the top: the count, the headlines, what did not hold, what was skipped."""

    def names(verdict: str, expected: bool | None) -> str:
        return ", ".join(c.name for c in run.claims if c.verdict == verdict and c.expected is expected)

    held = sum(claim.verdict == "holds" for claim in run.claims)
    stopped = "" if run.complete else f"; stopped after {len(run.claims)} of {statements}"
    sentences = [f"{held} of {len(run.claims)} claims hold here{stopped}.", *headlines]
    for text, found in (
        ("Expected to hold and not reproduced", names("not reproduced", True)),
        ("Not reproduced, as known (misprints and counter-examples)", names("not reproduced", False)),
        ("Open, and not reproduced here", names("not reproduced", None)),
        ("Known not to hold, yet holds here", names("holds", False)),
        ("Skipped", ", ".join(c.name for c in run.claims if c.verdict == "skipped")),
    ):
        if found:
            sentences.append(f"{text}: {found}.")
    return sentences


def _add(
    section: Section | None, group: str, claim: Claim, finding: Finding | None, seconds: float
) -> Section:
    """Return the group's section with one claim more."""
    old = section or Section(name=group, title=group, tables=[Table("Claims", _COLUMNS, [])])
    table = old.tables[0]
    row = [claim.name, claim.paper, claim.measured, _shown(claim), claim.detail]
    cells = [*table.cells, row]
    held = sum(cell[3].startswith("holds") for cell in cells)
    return replace(
        old,
        summary=f"{held} of {len(cells)} claims hold here",
        tables=[replace(table, cells=cells), *old.tables[1:], *(finding.tables if finding else [])],
        figures=[*old.figures, *(finding.figures if finding else [])],
        seconds=old.seconds + seconds,
    )


def _shown(claim: Claim) -> str:
    remark = {("not reproduced", False): ", as known", ("holds", False): ", unexpected"}
    remark |= {("not reproduced", True): ", unexpected"}
    return claim.verdict + remark.get((claim.verdict, claim.expected), "")  # type: ignore[arg-type]


_COLUMNS = ["claim", "the paper says", "measured here", "verdict", "note"]
