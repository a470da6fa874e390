"""The frame of the paper runs, and (slow) the smoke runs whole."""

from __future__ import annotations

import math

import pytest

from wideangle import papers
from wideangle.document import Table
from wideangle.errors import InputError
from wideangle.papers._frame import (
    Finding,
    Paper,
    PaperRun,
    Setting,
    SkippedError,
    Statement,
    run_statements,
)


def right(setting: Setting) -> Finding:
    return Finding(
        True, "1.0", seeds=setting.seeds, tables=[Table("T", ["a"], [[1.0]])], headline="One is 1.0."
    )


def wrong(setting: Setting) -> Finding:
    return Finding(False, "2.0")


def absent(setting: Setting) -> Finding:
    raise SkippedError("no such data")


def stopped(setting: Setting) -> Finding:
    raise KeyboardInterrupt


def paper_of(*tests, expected: bool | None = True) -> Paper:
    statements = [
        Statement(t.__name__, f"Group {k // 3}", "says so", t, expected) for k, t in enumerate(tests)
    ]
    return Paper("toy", "Toy", "nobody", tuple(statements))


SLUGS = sorted(papers.available())
LEAST = {"aiming": 7}
SKIPPED = {
    "test accuracy",
    "LSTM",
    "digits: kernel of ResNet",
    "kernel regression on MNIST",
    "official recipe",
}


def test_verdicts_follow_the_numbers_and_the_run_round_trips():
    seen = []
    found = run_statements(paper_of(right, wrong, absent), Setting("cpu", 5), seen.append)
    assert [claim.verdict for claim in found.claims] == ["holds", "not reproduced", "skipped"]
    assert found.claims == seen
    assert found.claims[0].seeds == [5, 6, 7]
    assert found.claims[2].detail == "no such data"
    assert [claim.name for claim in found.surprises] == ["wrong"]
    section = found.section("Group 0")
    assert section.summary == "1 of 3 claims hold here"
    assert [table.title for table in section.tables] == ["Claims", "T"]
    assert [row[3] for row in section.tables[0].cells] == ["holds", "not reproduced, unexpected", "skipped"]
    assert found.complete
    assert found.verdict == [
        "1 of 3 claims hold here.",
        "One is 1.0.",
        "Expected to hold and not reproduced: wrong.",
        "Skipped: absent.",
    ]
    assert PaperRun.from_json(found.to_json()) == found
    assert "wrong   not reproduced. 2.0" in str(found)


@pytest.mark.parametrize(
    ("test", "expected", "surprises", "shown"),
    [
        (wrong, False, 0, "not reproduced, as known"),
        (right, False, 1, "holds, unexpected"),
        (wrong, None, 0, "not reproduced"),
        (right, None, 0, "holds"),
        (absent, True, 0, "skipped"),
    ],
)
def test_surprises_are_what_was_not_expected(test, expected, surprises, shown):
    found = run_statements(paper_of(test, expected=expected), Setting())
    assert len(found.surprises) == surprises
    assert found.sections[0].tables[0].cells[0][3] == shown


def test_an_interruption_keeps_the_claims_so_far():
    found = run_statements(paper_of(right, stopped, right), Setting())
    assert not found.complete
    assert len(found.claims) == 1
    assert found.section("Group 0").status == "interrupted"
    assert found.verdict[0] == "1 of 1 claims hold here; stopped after 1 of 3."
    assert PaperRun.from_json(found.to_json()) == found
    between = run_statements(paper_of(right, right, right, stopped), Setting())
    assert [part.status for part in between.sections] == ["done", "interrupted"]


def test_only_absent_data_skip_a_claim_other_errors_pass():
    def bad(setting: Setting) -> Finding:
        raise InputError("a mistake in the claim")

    def broken(setting: Setting) -> Finding:
        raise ZeroDivisionError

    with pytest.raises(InputError, match="a mistake"):
        run_statements(paper_of(bad), Setting())
    with pytest.raises(ZeroDivisionError):
        run_statements(paper_of(broken), Setting())


def test_unknown_names_are_refused():
    known = {
        "linearity",
        "assembly",
        "dag",
        "conditioning",
        "alignment",
        "landscape",
        "aiming",
        "accelerated",
        "mass",
    }
    assert set(papers.available()) == known
    with pytest.raises(InputError, match="did you mean 'alignment'"):
        papers.run("alignmnt")
    with pytest.raises(InputError, match="unknown size 'big'"):
        papers.run("alignment", size="big")  # type: ignore[arg-type]


def test_seeds_by_size():
    assert [len(Setting(size).seeds) for size in ("smoke", "cpu", "paper")] == [1, 3, 5]  # type: ignore[arg-type]
    assert [len(Setting(size).at_least(3)) for size in ("smoke", "paper")] == [3, 5]  # type: ignore[arg-type]


def test_missing_data_sets_are_named_not_failed(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.delenv("WIDEANGLE_DATA", raising=False)
    sets, missing = Setting().sets(30)
    assert [found.name for found in sets] == ["digits"]
    assert missing == ["mnist", "fashion-mnist"]
    with pytest.raises(SkippedError, match="looked for"):
        Setting(data_root=str(tmp_path)).load("mnist", 30)
    with pytest.raises(InputError) as error:
        Setting().load("digits", 10**6)
    assert not isinstance(error.value, SkippedError)


def test_data_are_read_once_a_run(monkeypatch: pytest.MonkeyPatch):
    setting = Setting(seed=3)
    assert setting.load("digits", 20) is setting.load("digits", 20, seed=3)
    assert setting.load("digits", 20) is not setting.load("digits", 20, seed=4)


@pytest.mark.parametrize("slug", SLUGS)
def test_names_are_unique_and_say_what_is_expected(slug: str):
    from wideangle.papers._frame import _paper

    statements = _paper(slug).statements
    assert len({s.name for s in statements}) == len(statements) >= LEAST.get(slug, 12)
    assert any(s.expected is not True for s in statements)
    assert all(s.paper and s.group for s in statements)
    functions = [s.test for s in statements]
    assert len(set(functions)) == len(functions)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("slug", SLUGS)
def test_smoke_runs_hold_where_expected(slug: str):
    found = papers.run(slug)
    assert found.surprises == []
    assert found.complete
    assert {claim.name for claim in found.claims if claim.verdict == "skipped"} <= SKIPPED
    assert PaperRun.from_json(found.to_json()) == found
    assert found.provenance.seconds is not None
    assert math.isfinite(found.provenance.seconds)
