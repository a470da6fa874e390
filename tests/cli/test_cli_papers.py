"""The verb papers: listing, running, checking. The papers themselves are replaced here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from typer.testing import CliRunner

from wideangle import papers
from wideangle.cli import app
from wideangle.document import Document
from wideangle.errors import InputError

runner = CliRunner()


@dataclass(frozen=True)
class Claim:
    name: str
    verdict: str
    expected: bool = True
    paper: str = "kappa falls"
    measured: Any = 0.123456
    detail: str = ""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@dataclass(frozen=True)
class Outcome(Document):
    claims: list[Any] = field(default_factory=list)


@pytest.fixture
def paper(monkeypatch):
    claims = [Claim("one", "holds"), Claim("two", "not reproduced", expected=False, detail="width too small")]
    seen: dict[str, Any] = {}

    def run(slug: str, **options: Any) -> Outcome:
        if slug != "conditioning":
            raise InputError(f"unknown paper {slug!r}")
        seen.update(options)
        for claim in claims:
            options["on_claim"](claim)
        return Outcome(title="Conditioning", claims=list(claims))

    monkeypatch.setattr(
        papers, "available", lambda: {"conditioning": "Better NTK conditioning"}, raising=False
    )
    monkeypatch.setattr(papers, "run", run, raising=False)
    return claims, seen


def test_list(paper):
    result = runner.invoke(app, ["papers", "list"])
    assert result.exit_code == 0
    assert result.stdout.split() == ["conditioning", "Better", "NTK", "conditioning"]


def test_run_prints_each_claim_and_writes(paper, tmp_path):
    words = ["conditioning", "--size", "cpu", "--seed", "4", "--out", str(tmp_path / "r.md")]
    result = runner.invoke(app, ["papers", "run", *words])
    assert result.exit_code == 0, result.output
    assert (paper[1]["size"], paper[1]["seed"]) == ("cpu", 4)
    for piece in ("one: holds", "two: not reproduced", "kappa falls", "0.1235", "width too small", "0, 1, 2"):
        assert piece in result.stdout
    assert "1 holds, 1 not reproduced, 0 skipped" in result.stdout
    text = (tmp_path / "r.md").read_text()
    assert text.startswith("# Conditioning")
    assert "    wideangle papers run conditioning --size cpu --seed 4" in text


def test_check_fails_only_where_a_claim_should_hold(paper):
    assert runner.invoke(app, ["papers", "check", "conditioning"]).exit_code == 0
    paper[0].append(Claim("three", "not reproduced"))
    paper[0].append(Claim("four", "skipped"))
    result = runner.invoke(app, ["papers", "check", "conditioning"])
    assert result.exit_code == 1
    assert "expected to hold and did not: three\n" in result.stderr
    assert runner.invoke(app, ["papers", "run", "conditioning"]).exit_code == 0


def test_an_unknown_paper_is_exit_code_2(paper):
    result = runner.invoke(app, ["papers", "check", "nosuch"])
    assert result.exit_code == 2
    assert result.stderr == "error: unknown paper 'nosuch'\n"
