"""The verb checkup: what it hands on, what it prints and writes. The measurement itself is replaced here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from wideangle import checks
from wideangle.cli import app
from wideangle.document import Document, Section
from wideangle.errors import NumericsError
from wideangle.plan import Decision, Plan

runner = CliRunner()


OWN = """
from torch import nn

def build(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
"""


class Measurement:
    """Stands in for `checks.checkup`: keeps what it was given, reports two sections, returns a document."""

    def __init__(self, complete: bool = True, error: Exception | None = None) -> None:
        self.complete, self.error = complete, error
        self.given: dict[str, Any] = {}

    def __call__(self, model: Any, x: Any, y: Any, **options: Any) -> Document:
        self.given = {"model": model, "x": x, "y": y, **options}
        if self.error:
            raise self.error
        values = {"lambda_max": 3.14159265, "condition number": float("inf"), "angle": None}
        first = Section("kernel", "Tangent kernel", "It is steep.", values=values, seconds=1.5, budget=10.0)
        late = Section("step", "Step size", "no", "failed", notes=["look here"], seconds=3.0, budget=2.0)
        for part in (first, late):
            options["on_section"](part)
        plan = Plan("mlp", "digits", 512, step_size=Decision(0.25, "per step", "measured"))
        return Document("Check-up", "", ["Train at 0.25."], [first, late], plan, self.complete)


@pytest.fixture
def measured(monkeypatch):
    fake = Measurement()
    monkeypatch.setattr(checks, "checkup", fake, raising=False)
    return fake


def test_the_defaults(measured):
    result = runner.invoke(app, ["checkup"])
    assert result.exit_code == 0, result.output
    given = measured.given
    assert tuple(given["x"].shape) == (512, 1, 8, 8)
    assert given["y"].dtype == torch.int64
    assert given["model"](given["x"]).shape == (512, 10)
    expected = {
        "loss": "mse",
        "steps": None,
        "seed": 0,
        "device": "cpu",
        "output": None,
        "name": "mlp",
        "data": "digits",
    }
    assert {key: given[key] for key in expected} == expected
    assert not given["only"]
    assert given["command"] == "wideangle checkup"


def test_what_is_asked_for_is_handed_on_and_the_command_is_quoted(measured, tmp_path):
    own = tmp_path / "my nets.py"
    own.write_text(OWN)
    words = [
        "checkup",
        f"{own}:build",
        "--n",
        "30",
        "--only",
        "kernel",
        "--only",
        "step",
        "--steps",
        "7",
        "--seed",
        "5",
    ]
    result = runner.invoke(app, [*words, "--loss", "cross-entropy"])
    assert result.exit_code == 0, result.output
    given = measured.given
    assert len(given["x"]) == 30
    assert list(given["only"]) == ["kernel", "step"]
    assert (given["steps"], given["seed"], given["loss"]) == (7, 5, "cross-entropy")
    assert given["name"] == f"{own}:build"
    assert given["command"].startswith(f"wideangle checkup '{own}:build' --n 30")


def test_it_prints_each_section_the_verdict_the_plan_and_the_next_step(measured, tmp_path):
    result = runner.invoke(
        app, ["checkup", "--plan", str(tmp_path / "p.json"), "--out", str(tmp_path / "r.html")]
    )
    lines = result.stdout.splitlines()
    at = [
        next(k for k, line in enumerate(lines) if line.startswith(piece))
        for piece in (
            "Check-up of mlp on digits: 512 samples",
            "Tangent kernel  (1.5 s of 10 s)",
            "Step size  (failed, 3 s of 2 s, over its budget)",
            "Verdict",
            "Plan",
            "Files",
            "Next",
        )
    ]
    assert at == sorted(at)
    text = result.stdout
    for piece in (
        "It is steep.",
        "lambda max",
        "3.142",
        "inf",
        "not measured",
        "! look here",
        "1. Train at 0.25.",
    ):
        assert piece in text
    assert any("0.25 per step" in line and "measured" in line for line in lines)
    assert lines[-1].strip() == f"wideangle train mlp --data digits --plan {tmp_path}/p.json"


def test_it_writes_report_numbers_and_plan(measured, tmp_path):
    words = ["--plan", "a/p.json", "--json", "a/n.json", "--out", "a/r.html"]
    words = [word if word.startswith("--") else str(tmp_path / word) for word in words]
    assert runner.invoke(app, ["checkup", *words]).exit_code == 0
    assert Plan.load(tmp_path / "a" / "p.json").step_size.value == 0.25
    assert Document.load(tmp_path / "a" / "n.json").verdict == ["Train at 0.25."]
    assert "Tangent kernel" in (tmp_path / "a" / "r.html").read_text()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["n.json", "p.json", "r.html"]


def test_stopped_by_ctrl_c_it_leaves_the_partial_numbers_and_ends_in_130(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "checkup", Measurement(complete=False), raising=False)
    words = [
        "--json",
        str(tmp_path / "n.json"),
        "--plan",
        str(tmp_path / "p.json"),
        "--out",
        str(tmp_path / "r.html"),
    ]
    result = runner.invoke(app, ["checkup", *words])
    assert result.exit_code == 130
    assert "stopped before the end" in result.stderr
    stored = Document.load(tmp_path / "n.json")
    assert not stored.complete
    assert len(stored.sections) == 2
    assert not (tmp_path / "p.json").exists()
    assert "Incomplete" in (tmp_path / "r.html").read_text()


def test_small_data_is_taken_whole_and_more_than_there_is_refused(measured):
    assert runner.invoke(app, ["checkup", "--data", "breast-cancer"]).exit_code == 0
    assert len(measured.given["x"]) < 512
    result = runner.invoke(app, ["checkup", "--data", "breast-cancer", "--n", "5000"])
    assert result.exit_code == 2
    assert "5000" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "0"], "--n is 0"),
        (["--device", "gpu7"], "unknown device 'gpu7'"),
        (["--device", "cuda:99"], "'cuda:99' is not available"),
        (["--out", "r.pdf"], "ends in .html or .md"),
        (["--data", "absent.npz"], "absent.npz"),
        (["nosuch"], "unknown model 'nosuch'"),
        (["conv", "--data", "breast-cancer"], "needs images"),
    ],
)
def test_bad_input_is_said_before_anything_is_measured(measured, words, message):
    result = runner.invoke(app, ["checkup", *words])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert not measured.given


def test_an_error_of_the_measurement_ends_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(
        checks, "checkup", Measurement(error=NumericsError("lambda_max is inf; scale x")), raising=False
    )
    result = runner.invoke(app, ["checkup", "--json", str(tmp_path / "n.json")])
    assert result.exit_code == 2
    assert result.stderr == "error: lambda_max is inf; scale x\n"
    assert not (tmp_path / "n.json").exists()


def test_a_file_that_cannot_be_written_is_said(measured, tmp_path):
    (tmp_path / "file").write_text("")
    result = runner.invoke(app, ["checkup", "--json", str(tmp_path / "file" / "n.json")])
    assert result.exit_code == 2
    assert "--json" in result.stderr


def test_a_check_up_that_decides_nothing_writes_no_plan(tmp_path):
    file = tmp_path / "plan.json"
    words = ["checkup", "mlp", "--n", "40", "--only", "kernel", "--plan", str(file)]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "warning: no plan is written" in result.stderr
    assert not file.exists()
    assert "Step size: not measured (left out)" in result.stdout


def test_explain_shows_the_layers_and_runs_nothing(measured):
    result = runner.invoke(app, ["checkup", "conv", "--data", "digits", "--n", "50", "--explain"])
    assert result.exit_code == 0, result.output
    for piece in ("hidden.0", "Conv2d", "per-sample", "multiply-adds", "full kernel of 50 samples"):
        assert piece in result.stdout
    assert measured.given == {}
