"""The verb papers: listing, running, checking, with the real frame and a paper of a few statements."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from wideangle.cli import app
from wideangle.papers import PaperRun, conditioning
from wideangle.papers._frame import Finding, Paper, Setting, SkippedError, Statement

runner = CliRunner()


def _finds(name: str, holds: bool, detail: str = ""):
    def test(setting: Setting) -> Finding:
        return Finding(holds, f"{name} is 0.123456 at size {setting.size}", detail, setting.seeds)

    return test


def _skipped(setting: Setting) -> Finding:
    raise SkippedError("no such data set")


@pytest.fixture
def toy(monkeypatch):
    """A paper of a few statements in the place of `conditioning`; the frame is the real one."""
    statements = [
        Statement("one", "Group", "kappa falls", _finds("one", True)),
        Statement("two", "Group", "kappa is 2", _finds("two", False, "width too small"), False),
    ]
    monkeypatch.setattr(
        conditioning,
        "PAPER",
        Paper("conditioning", "Better conditioning", "nobody", tuple(statements)),
    )
    return lambda *more: monkeypatch.setattr(
        conditioning,
        "PAPER",
        Paper("conditioning", "Better conditioning", "nobody", (*statements, *more)),
    )


def test_list():
    result = runner.invoke(app, ["papers", "list"])
    assert result.exit_code == 0
    slugs = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert slugs == [
        "linearity",
        "assembly",
        "dag",
        "conditioning",
        "alignment",
        "landscape",
        "aiming",
        "accelerated",
        "mass",
    ]


def test_run_prints_each_claim_and_writes(toy, tmp_path):
    files = {name: tmp_path / name for name in ("r.md", "n.json", "r.html")}
    words = [
        "conditioning",
        "--size",
        "cpu",
        "--seed",
        "4",
        "--out",
        str(files["r.md"]),
        "--json",
        str(files["n.json"]),
    ]
    result = runner.invoke(app, ["papers", "run", *words])
    assert result.exit_code == 0, result.output
    for piece in (
        "one: holds",
        "two: not reproduced, as known",
        "kappa falls",
        "0.123456 at size cpu",
        "width too small",
        "4, 5, 6",
        "1 holds, 1 not reproduced, 0 skipped",
        "Not reproduced, as known",
    ):
        assert piece in result.stdout
    text = files["r.md"].read_text()
    assert text.startswith("# Better conditioning")
    assert "    wideangle papers run conditioning --size cpu --seed 4" in text
    stored = PaperRun.load(files["n.json"])
    assert [claim.verdict for claim in stored.claims] == ["holds", "not reproduced"]
    assert stored.provenance.command is not None
    assert stored.provenance.command.startswith("wideangle papers run conditioning --size cpu --seed 4")
    page = runner.invoke(app, ["papers", "run", "conditioning", "--out", str(files["r.html"])])
    assert page.exit_code == 0, page.output
    assert "kappa is 2" in files["r.html"].read_text()


def test_check_fails_only_where_a_claim_should_hold(toy):
    assert runner.invoke(app, ["papers", "check", "conditioning"]).exit_code == 0
    toy(
        Statement("three", "Group", "", _finds("three", False)),
        Statement("four", "Group", "", _skipped),
        Statement("five", "Group", "", _finds("five", False), None),
    )
    result = runner.invoke(app, ["papers", "check", "conditioning"])
    assert result.exit_code == 1
    assert "expected to hold and did not: three\n" in result.stderr
    assert "four: skipped" in result.stdout
    assert "no such data set" in result.stdout
    assert runner.invoke(app, ["papers", "run", "conditioning"]).exit_code == 0


def test_a_stopped_run_says_so_and_keeps_what_it_has(toy, tmp_path):
    def stop(setting: Setting) -> Finding:
        raise KeyboardInterrupt

    toy(Statement("three", "Group", "", stop))
    result = runner.invoke(app, ["papers", "check", "conditioning", "--json", str(tmp_path / "n.json")])
    assert result.exit_code == 130
    stored = PaperRun.load(tmp_path / "n.json")
    assert not stored.complete
    assert len(stored.claims) == 2


def test_unknown_names_are_exit_code_2():
    result = runner.invoke(app, ["papers", "check", "conditoning"])
    assert result.exit_code == 2
    assert "did you mean 'conditioning'" in result.stderr
    assert runner.invoke(app, ["papers", "run", "alignment", "--size", "huge"]).exit_code == 2
