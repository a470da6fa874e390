"""From a user's own model and data to the report, and on to training, with nothing replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from typer.testing import CliRunner

from wideangle.checks import CHECKS, Checkup
from wideangle.cli import app
from wideangle.plan import Plan
from wideangle.training import Training

runner = CliRunner()


def test_own_model_own_data_check_up_plan_training(tmp_path, pytestconfig):
    folder = pytestconfig.rootpath / "examples"
    own = [f"{folder}/own_model.py:build", "--data", f"{folder}/own_data.npz"]
    files = {name: tmp_path / name for name in ("r.html", "n.json", "p.json", "t.json")}
    words = ["--out", files["r.html"], "--json", files["n.json"], "--plan", files["p.json"]]
    result = runner.invoke(app, ["checkup", *own, "--n", "20", "--steps", "8", *map(str, words)])
    assert result.exit_code == 0, result.output
    found = Checkup.load(files["n.json"])
    assert [part.name for part in found.sections] == [check.name for check in CHECKS]
    assert {part.status for part in found.sections} == {"done"}
    assert found.complete
    assert found.plan is not None
    assert found.plan.model == own[0]
    assert found.plan.samples == 20
    page = files["r.html"].read_text()
    assert "http" not in page
    for check in CHECKS:
        assert check.title in page
        assert check.title in result.stdout
    plan = Plan.load(files["p.json"])
    assert plan.step_size.measured

    following = result.stdout.splitlines()[-1].split()
    assert following[:2] == ["wideangle", "train"]
    again = runner.invoke(app, [*following[1:], "--steps", "4", "--json", str(files["t.json"])])
    assert again.exit_code == 0, again.output
    assert again.stderr == ""
    trained = Training.load(files["t.json"])
    assert trained.steps == 4
    start = found.section("trial").values
    assert abs(trained.losses[0][1] / start["loss at the start"] - 1) < 1e-4


def test_one_section_alone():
    result = runner.invoke(app, ["checkup", "--n", "20", "--only", "step-size"])
    assert result.exit_code == 0, result.output
    assert "Step size" in result.stdout
    assert "Trial run: predicted against measured  (" not in result.stdout
    wrong = runner.invoke(app, ["checkup", "--n", "20", "--only", "step_sizes"])
    assert wrong.exit_code == 2
    assert "step-size" in wrong.stderr


def test_ctrl_c_leaves_what_was_measured(tmp_path):
    """The signal a terminal sends, once the first section is on the screen of a run of minutes."""
    file = tmp_path / "n.json"
    code = "from wideangle.cli import app; app()"
    words = [
        "checkup",
        "--n",
        "40",
        "--steps",
        "1000000",
        "--only",
        "step-size",
        "--only",
        "trial",
        "--json",
        str(file),
    ]
    surroundings = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=surroundings,
    ) as process:
        assert process.stdout is not None
        assert any("Step size" in line for line in iter(process.stdout.readline, ""))
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint
    stored = Checkup.load(file)
    assert not stored.complete
    assert [part.status for part in stored.sections] == ["done", "interrupted"]
