"""The frame of the paper runs, the cheap claims, and (slow) the smoke runs whole."""

from __future__ import annotations

import math

import pytest

from wideangle import papers
from wideangle.errors import InputError
from wideangle.papers import alignment, conditioning
from wideangle.papers._frame import Finding, Paper, PaperRun, Setting, Statement, run_statements


def paper_of(*tests) -> Paper:
    statements = [Statement(t.__name__, "Group", "the paper says so", t) for t in tests]
    return Paper("toy", "Toy", "nobody", tuple(statements))


def test_verdicts_follow_the_numbers_and_the_run_round_trips():
    def right(setting: Setting) -> Finding:
        return Finding(True, "1.0", seeds=setting.seeds)

    def wrong(setting: Setting) -> Finding:
        return Finding(False, "2.0")

    def absent(setting: Setting) -> Finding:
        raise InputError("no such data")

    seen = []
    found = run_statements(paper_of(right, wrong, absent), Setting("cpu", 5), seen.append)
    assert [claim.verdict for claim in found.claims] == ["holds", "not reproduced", "skipped"]
    assert found.claims == seen
    assert found.claims[0].seeds == [5, 6, 7]
    assert found.claims[2].detail == "no such data"
    assert [claim.name for claim in found.surprises] == ["wrong"]
    assert found.section("Group").summary == "1 of 3 claims hold here"
    assert len(found.section("Group").tables[0].cells) == 3
    assert PaperRun.from_json(found.to_json()) == found


def test_an_interruption_keeps_the_claims_so_far_and_other_errors_pass():
    def right(setting: Setting) -> Finding:
        return Finding(True, "1.0")

    def stopped(setting: Setting) -> Finding:
        raise KeyboardInterrupt

    def broken(setting: Setting) -> Finding:
        raise ZeroDivisionError

    found = run_statements(paper_of(right, stopped, right), Setting())
    assert not found.complete
    assert len(found.claims) == 1
    with pytest.raises(ZeroDivisionError):
        run_statements(paper_of(broken), Setting())


def test_unknown_names_are_refused():
    assert set(papers.available()) == {"conditioning", "alignment"}
    with pytest.raises(InputError, match="did you mean 'alignment'"):
        papers.run("alignmnt")
    with pytest.raises(InputError, match="unknown size 'big'"):
        papers.run("alignment", size="big")  # type: ignore[arg-type]


def test_seeds_by_size():
    assert [len(Setting(size).seeds) for size in ("smoke", "cpu", "paper")] == [1, 3, 5]  # type: ignore[arg-type]


CHEAP = {
    "small angle": (conditioning.small_angle, True),
    "separation": (conditioning.separation, True),
    "other activations": (conditioning.other_activations, True),
    "gradient norm": (conditioning.gradient_norm, True),
    "gradient norm, printed": (conditioning.gradient_norm_printed, False),
    "always better": (conditioning.always_better, False),
    "first layer": (conditioning.first_layer, True),
    "faster": (conditioning.faster, True),
    "recursion": (alignment.recursion, True),
    "rigorous bound": (alignment.rigorous_bound, True),
    "fitted bound": (alignment.fitted_bound, False),
    "start energy": (alignment.start_energy, True),
    "power law": (alignment.power_law_rate, True),
    "printed rate": (alignment.printed_rate, False),
    "generalisation": (alignment.generalisation, True),
}


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_claims_have_the_verdict_known(name: str):
    test, holds = CHEAP[name]
    found = test(Setting())
    assert found.holds is holds, found.measured
    assert any(char.isdigit() for char in found.measured)


def test_a_wrong_constant_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """Were the closed form off by a little, the claims would say so."""
    from wideangle.kernel import infinite

    true = infinite.gradient_angle
    monkeypatch.setattr(infinite, "gradient_angle", lambda t, d, *rest: true(t, d, *rest) * 1.02)
    assert not conditioning.small_angle(Setting()).holds
    monkeypatch.setattr(infinite, "kappa_limit", lambda n: (n + 4) / 3)
    monkeypatch.setattr(conditioning, "_kappa_at_infinite_depth", lambda setting: (10, 13 / 3))
    assert not conditioning.kappa_limit(Setting()).holds
    assert conditioning.kappa_limit_printed(Setting()).holds is False


def test_missing_data_sets_are_named_not_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WIDEANGLE_DATA", raising=False)
    sets, missing = Setting().sets(30)
    assert [found.name for found in sets] == ["digits"]
    assert missing == ["mnist", "fashion-mnist"]


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["conditioning", "alignment"])
def test_smoke_runs_hold_where_expected(slug: str):
    found = papers.run(slug)
    assert found.surprises == []
    assert all(claim.verdict != "skipped" for claim in found.claims)
    assert found.provenance.seconds is not None
    assert math.isfinite(found.provenance.seconds)
