"""The verb train, on a small real run: what it takes from the plan, what it writes, how it goes on."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from wideangle.cli import app
from wideangle.plan import Decision, Plan
from wideangle.training import Training

runner = CliRunner()


@pytest.fixture
def plan(tmp_path):
    scheme = Plan(
        model="mlp",
        data="digits",
        samples=40,
        seed=3,
        step_size=Decision(0.05, "per step", "by hand"),
        stop=Decision(6, "steps", "by hand"),
        predicted_loss=[[0.0, 1.0], [2.0, 0.9], [4.0, 0.8]],
    )
    return scheme.save(tmp_path / "plan.json")


def run(*words: object):
    return runner.invoke(app, ["train", *map(str, words)])


def test_everything_is_taken_from_the_plan(plan, tmp_path):
    result = run("--plan", plan, "--json", tmp_path / "t.json", "--out", tmp_path / "t.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Training of mlp on digits: 40 samples, loss mse, seed 3, cpu\n")
    assert result.stderr == ""
    stored = Training.load(tmp_path / "t.json")
    assert stored.steps == 6
    assert stored.provenance.seed == 3
    assert (
        stored.provenance.command
        == f"wideangle train --plan {plan} --json {tmp_path}/t.json --out {tmp_path}/t.html"
    )
    assert stored.losses[-1][1] < stored.losses[0][1]
    assert "40 samples" in (tmp_path / "t.html").read_text()
    for piece in ("Verdict", "Files", str(tmp_path / "t.html")):
        assert piece in result.stdout


def test_the_same_plan_trains_the_same_weights_and_arguments_win(plan, tmp_path):
    for name, words in (("a", []), ("b", []), ("c", ["--seed", 4]), ("d", ["--steps", 2, "--n", 30])):
        assert (
            run("mlp", "--data", "digits", "--plan", plan, "--json", tmp_path / name, *words).exit_code == 0
        )
    a, b, c, d = (Training.load(tmp_path / name) for name in "abcd")
    assert a.losses == b.losses
    assert a.losses != c.losses
    assert d.steps == 2
    assert "30 samples" in d.subject


def test_it_goes_on_from_a_checkpoint(plan, tmp_path):
    file = tmp_path / "run.pt"
    assert run("--plan", plan, "--json", tmp_path / "whole").exit_code == 0
    assert run("--plan", plan, "--checkpoint", file, "--steps", 3).exit_code == 0
    result = run("--plan", plan, "--checkpoint", file, "--resume", "--json", tmp_path / "rest")
    assert result.exit_code == 0, result.output
    whole, rest = Training.load(tmp_path / "whole"), Training.load(tmp_path / "rest")
    assert rest.steps == 6
    assert rest.losses[-1] == whole.losses[-1]


def test_another_model_or_data_than_the_plans_is_warned_of(plan):
    result = run("conv", "--data", "digits", "--plan", plan, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("warning: the plan was made for the model 'mlp', not 'conv'")
    result = run("mlp", "--data", "breast-cancer", "--plan", plan, "--steps", 1)
    assert "warning: the plan was made for the data 'digits', not 'breast-cancer'" in result.stderr


def test_another_seed_than_the_plans_is_warned_of(plan):
    assert "the plan was made with seed 3, this is seed 4" in run("--plan", plan, "--seed", 4).stderr


def test_the_part_with_the_logits_is_named(plan, tmp_path):
    (tmp_path / "two.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.flat, self.layer = nn.Flatten(), nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        z = self.layer(self.flat(x))\n"
        "        return {'hidden': x, 'logits': z}\n"
    )
    words = (f"{tmp_path}/two.py:Two", "--data", "digits", "--plan", plan)
    refused = run(*words)
    assert refused.exit_code == 2
    assert "--output" in refused.stderr
    assert run(*words, "--output", "logits").exit_code == 0
    found = runner.invoke(
        app, ["checkup", words[0], "--n", "40", "--steps", "20", "--output", "logits", "--plan", str(plan)]
    )
    assert found.exit_code == 0, found.output
    assert "--output logits" in found.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "wideangle checkup TARGET"),
        (["--plan", "absent.json"], "no file at absent.json"),
        (["--resume"], "--resume needs --checkpoint"),
        (["--out", "r.txt"], "ends in .html or .md"),
    ],
)
def test_bad_input(words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_a_plan_without_model_or_step_size_is_refused(tmp_path):
    bare = Plan(data="digits", samples=20).save(tmp_path / "bare.json")
    result = run("--plan", bare)
    assert (result.exit_code, "which model" in result.stderr) == (2, True)
    result = run("mlp", "--plan", bare)
    assert (result.exit_code, "step" in result.stderr) == (2, True)
