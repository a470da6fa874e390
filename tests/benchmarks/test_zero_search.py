"""The zero-search benchmark's own arithmetic, and one short race on digits."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from wideangle.errors import InputError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import bench_zero_search as bench
import zero_search_methods as methods
import zero_search_runs as runs
import zero_search_table as table
import zero_search_tasks as tasks

DIGITS = tasks.TASKS[0]


def short(method: str, seed: int = 0, **setting: float) -> runs.Run:
    return runs.Run(DIGITS, method, tuple(setting.items()), seed, passes=1)


def record(curve: list[list[float]], **other: object) -> dict:
    basis = {
        "setting": {},
        "final_loss": curve[-1][1],
        "test_accuracy": 0.9,
        "diverged": False,
        "seconds": 2.0,
    }
    return {"curve": curve, **basis, "measured_passes": 0.0, "measuring_seconds": 0.0, **other}


def line(slope: float) -> list[list[float]]:
    return [[p / 4, math.exp(-slope * p / 4)] for p in range(41)]


@pytest.mark.parametrize(
    ("target", "passes"), [(1.0, 0.0), (0.1, 1.0), (0.01, 1.5), (0.001, 2.0), (0.0005, math.inf)]
)
def test_the_first_crossing_is_read_off_the_logarithm(target, passes):
    curve = [[0.0, 1.0], [1.0, 0.1], [2.0, 0.001], [3.0, 5.0], [4.0, 0.002]]
    assert runs.first_crossing(curve, target) == pytest.approx(passes)


def test_the_first_crossing_of_an_exponential_is_exact():
    assert runs.first_crossing(line(0.7), math.exp(-0.7 * 3.33)) == pytest.approx(3.33)


def test_a_curve_that_starts_after_a_measurement_is_late_by_it():
    late = [[p + 0.4, loss] for p, loss in line(0.7)]
    assert runs.first_crossing(late, math.exp(-0.7)) == pytest.approx(1.4)


def test_a_run_that_diverges_after_the_target_did_not_reach_it():
    assert runs.passes_to(record(line(1.0)), math.exp(-2)) == pytest.approx(2.0)
    assert runs.passes_to(record(line(1.0), diverged=True), math.exp(-2)) == math.inf


def test_ratios_with_infinities():
    assert table.ratio(math.inf, 2.0) == math.inf
    assert table.ratio(2.0, math.inf) == 0.0
    assert math.isnan(table.ratio(math.inf, math.inf))


def some_row(name: str, **slopes: float | None) -> table.Row:
    """A row whose methods decay at the slopes given; None never gets there."""
    curves = {m: line(s) if s else [[0.0, 1.0], [10.0, 0.9]] for m, s in slopes.items()}
    found = {m: [record(c), record(c), record([[0.0, 1.0]])] for m, c in curves.items()}
    return table.row_of(name, {"loss": math.exp(-1)}, found, [])


def test_the_summary_counts_what_was_not_reached_against_the_recommended_method():
    tuned = {"sgd": 0.25, "nesterov": 0.5, "adam": 1.0, "adamw": 0.8, "mass": 0.5}
    rivals = {"adam-default": 0.2, "schedule-free": 1.0, "prodigy": None}
    rows = [
        some_row("first", **tuned, **rivals, recommended=0.5),
        some_row("second", **tuned, **rivals, recommended=None),
        some_row("third", **tuned, **rivals, recommended=1.0),
    ]
    assert [row["best"] for row in rows] == ["adam"] * 3
    found = table.summary(rows)
    assert found["median_ratio"] == pytest.approx(2.0)
    assert found["worst_ratio"] == math.inf
    assert [found["rivals"][name]["wins"] for name in table.RIVALS] == [2, 0, 2]
    assert found["tuned_mass"]["sgd"] == {"tasks": 3, "wins": 3, "median_ratio": pytest.approx(0.5)}
    assert found["tuned_mass"]["nesterov"]["wins"] == 0
    assert not found["met"]["worst_ratio"]
    for form in (table.text, table.markdown):
        assert "never" in form(rows)


def test_where_nobody_arrives_the_ratio_counts_as_infinite():
    nobody = dict.fromkeys(("sgd", "nesterov", "adam", "adamw", "mass", "recommended"))
    assert table.summary([some_row("hard", **nobody)])["worst_ratio"] == math.inf


def test_each_grid_has_twenty_different_settings():
    for method in methods.METHODS:
        names = {methods.setting_name(setting) for setting in method.settings}
        assert len(names) == len(method.settings) == (20 if method.name in methods.TUNED else 1)


def test_a_winner_at_the_end_of_its_rates_is_told():
    nesterov = methods.BY_NAME["nesterov"]
    assert bench.at_edge(nesterov, {"lr": 5e-4, "momentum": 0.9})
    assert bench.at_edge(nesterov, {"lr": 0.5, "momentum": 0.99})
    assert not bench.at_edge(nesterov, {"lr": nesterov.settings[3]["lr"], "momentum": 0.9})


def test_twelve_tasks_of_which_two_wait_for_the_frozen_rules(tmp_path, monkeypatch):
    assert len({task.name for task in tasks.TASKS}) == 12
    frozen = tmp_path / "frozen.json"
    held = [task.name for task in tasks.TASKS if task.held_out]
    assert len(held) == 2
    assert len(tasks.chosen(None, frozen)) == 10
    with pytest.raises(tasks.HeldOutError):
        tasks.chosen(held[:1], frozen)
    monkeypatch.setattr(tasks, "FROZEN", frozen)
    with pytest.raises(tasks.HeldOutError):
        tasks.prepared(tasks.TASKS[-1])
    frozen.write_text(json.dumps({"commit": ""}))
    with pytest.raises(tasks.HeldOutError):
        tasks.chosen(held[:1], frozen)
    frozen.write_text(json.dumps({"commit": "abc"}))
    assert len(tasks.chosen(None, frozen)) == 12
    with pytest.raises(ValueError, match="no task"):
        tasks.chosen(["digits-mlp"], frozen)


def test_the_weights_are_drawn_as_torch_draws_them():
    model = tasks.initial_model(tasks.prepared(DIGITS), seed=1)
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    bound = 1 / math.sqrt(first.in_features)
    assert 0.99 * bound < float(first.weight.detach().abs().max()) <= bound
    assert float(first.bias.detach().abs().max()) <= bound


def test_seeds_decide_weights_and_batches():
    problem = tasks.prepared(DIGITS)
    first, same, other = (list(problem.batches(seed)) for seed in (1, 1, 2))
    assert len(first) == 10 * problem.steps_a_pass
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])
    one_pass = torch.cat(first[: problem.steps_a_pass])
    assert len(set(one_pass.tolist())) == len(one_pass) == 8 * problem.steps_a_pass
    weights = [
        torch.cat([p.flatten() for p in tasks.initial_model(problem, s).parameters()]) for s in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_bags_of_words_are_rows_of_equal_norm():
    tokens = torch.tensor([[2, 2, 3, 0], [3, 4, 9999, 0]])
    rows, test_rows = tasks._bags(tokens, tokens[:1])
    assert rows.norm(dim=1).tolist() == pytest.approx([math.sqrt(tasks.WORDS)] * 2, rel=1e-6)
    assert rows[0, 1] == 0  # a word of every document says nothing
    assert (rows[1] != 0).sum() == 1  # unknown and padding are left out
    assert torch.equal(test_rows, rows[:1])


def test_mass_without_compensation_is_torch_nesterov_and_both_are_read_at_w():
    ours = runs.train(short("mass", lr=0.05, alpha=1 / 19, kappa_tilde=1.0))
    theirs = runs.train(short("nesterov", lr=0.05, momentum=0.9))
    for (passes, loss), (other_passes, other_loss) in zip(ours["curve"], theirs["curve"], strict=True):
        assert (passes, loss) == (other_passes, pytest.approx(other_loss, rel=1e-4))
    plain = runs.train(short("sgd", lr=0.05))
    assert plain["curve"][0] == theirs["curve"][0]
    assert plain["final_loss"] > 1.05 * theirs["final_loss"]


def test_reading_leaves_nesterov_at_the_look_ahead():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.5, nesterov=True)
    weight.grad = torch.tensor([1.0])
    optimizer.step()
    with methods._nesterov_iterate(optimizer):
        assert weight.item() == pytest.approx(0.9)
    assert weight.item() == pytest.approx(0.85)


def test_a_run_that_diverges_stops_and_is_infinite():
    found = runs.train(short("sgd", lr=1e4))
    assert found["diverged"]
    assert found["final_loss"] == math.inf
    assert len(found["curve"]) < 4
    assert all(math.isfinite(loss) for _, loss in found["curve"][:-1])


def test_the_recommended_method_pays_for_its_measurements(monkeypatch):
    run = dataclasses.replace(short("recommended", seed=1), passes=2)
    once = runs.train(run)
    assert 0 < table.share_of(once) <= 0.05
    assert once["curve"][0][0] == once["measured_passes"]
    assert len(once["chosen"]) == 1
    monkeypatch.setattr(methods, "REMEASURED", (0.5,))
    twice = runs.train(run)
    assert twice["chosen"][0] == once["chosen"][0]
    assert twice["chosen"][1] != once["chosen"][0]
    assert twice["measured_passes"] > once["measured_passes"]
    assert twice["curve"][-1][0] <= 2
    assert [p for p, _ in twice["curve"]] == sorted(p for p, _ in twice["curve"])


def test_only_a_grid_run_without_progress_ends_after_four_passes():
    flat = [[p / 4, 1.0] for p in range(17)]
    assert runs.stuck(flat)
    assert not runs.stuck(flat[:-1])
    assert not runs.stuck([[0.0, 1.0], [0.25, 0.96], *flat[2:]])
    slow = runs.Run(DIGITS, "sgd", (("lr", 1e-5),), 0, passes=5)
    found = runs.train(slow)
    assert found["stuck"]
    assert found["curve"][-1][0] == 4
    compared = runs.train(dataclasses.replace(slow, seed=1))
    assert not compared["diverged"]
    assert compared["curve"][-1][0] == 5


def test_a_measurement_shortens_the_run(monkeypatch):
    def build(model, problem, setting, seed):
        return methods.Trainer(torch.optim.SGD(model.parameters(), lr=0.1), measured=0.301)

    costly = methods.Method("sgd", "", ({},), build)
    monkeypatch.setitem(runs.BY_NAME, "sgd", costly)
    found = runs.train(short("sgd"))
    assert found["curve"][0][0] == 0.301
    assert found["curve"][-1][0] == pytest.approx(1.0, abs=1 / 180)
    assert found["curve"][-1][0] <= 1.0
    assert table.share_of(found) == pytest.approx(0.301)
    assert found["measured_passes"] == 0.301


def test_an_error_of_the_library_is_a_run_that_never_gets_there(monkeypatch):
    def build(model, problem, setting, seed):
        raise InputError("no curvature")

    monkeypatch.setitem(runs.BY_NAME, "recommended", methods.Method("recommended", "", ({},), build))
    found = runs.train(short("recommended"))
    assert found["failed"] == "no curvature"
    assert found["final_loss"] == math.inf
    assert "failed" in table.run_text("name", found)


def test_stored_runs_are_not_run_again(tmp_path, monkeypatch):
    store = runs.Store(tmp_path)
    run = short("sgd", lr=0.1)
    first = runs.perform(run, store)
    assert [p.suffix for p in tmp_path.rglob("*") if p.is_file()] == [".json"]

    def refuse(run):
        raise AssertionError("run again")

    monkeypatch.setattr(runs, "train", refuse)
    assert runs.perform(run, store) == json.loads(json.dumps(first))
    with pytest.raises(AssertionError):
        runs.perform(run, store, again=True)
    with pytest.raises(AssertionError):
        runs.perform(short("sgd", seed=1, lr=0.1), store)
    with pytest.raises(AssertionError):
        runs.perform(short("sgd", lr=0.2), store)


def test_the_target_is_tuned_sgd_at_80_percent_and_is_set_once(tmp_path):
    store = runs.Store(tmp_path)
    grid = [record(line(0.3), setting={"lr": 1}), record(line(0.5), setting={"lr": 2})]
    grid.append(record([[0.0, 1.0], [0.25, 1e-9]], setting={"lr": 3}, final_loss=math.inf))
    found = store.target(DIGITS, grid)
    assert found["setting"] == {"lr": 2}
    assert found["loss"] == pytest.approx(math.exp(-4))
    assert store.target(DIGITS, [record(line(2.0))]) == found


@pytest.mark.slow
def test_the_smoke_size_runs_from_start_to_end(tmp_path, capsys):
    where = tmp_path / "out.json"
    wanted = [
        "--size",
        "smoke",
        "--methods",
        "sgd",
        "nesterov",
        "adam-default",
        "--results",
        str(tmp_path / "runs"),
    ]
    bench.main([*wanted, "--json", str(where)])
    row = json.loads(where.read_text())["rows"][0]
    assert 0 < row["methods"]["sgd"]["passes"] <= 2
    assert set(row["methods"]) == {"sgd", "nesterov", "adam-default"}
    printed = capsys.readouterr().out
    assert "8 runs, 0 of them stored" in printed
    bench.main([*wanted, "--json", str(where), "--markdown"])
    printed = capsys.readouterr().out
    assert "8 runs, 8 of them stored" in printed
    assert "3 runs, 3 of them stored" in printed
    assert "| digits-mlp-mse-8 |" in printed
