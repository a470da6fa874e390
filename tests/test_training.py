from __future__ import annotations

import copy
import math
import os
import signal
import threading

import pytest
import torch
from torch import nn

from wideangle._loop import log_spaced
from wideangle._recipe import make_optimizer, make_recipe
from wideangle.errors import InputError, NumericsError
from wideangle.plan import Decision, Plan
from wideangle.training import Training, train


def _gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _data(n: int = 24, d: int = 5, classes: int = 3):
    gen = _gen(1)
    x = torch.randn(n, d, generator=gen)
    return x, torch.randint(0, classes, (n,), generator=gen)


def _net(seed: int = 0, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    parts: list[nn.Module] = [nn.Linear(5, 8)]
    parts += [nn.BatchNorm1d(8)] if norm else []
    parts += [nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)]
    model = nn.Sequential(*parts)
    gen = _gen(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=gen))
    return model


def _plan(step_size: float = 0.5, steps: int = 20, **extra) -> Plan:
    return Plan(
        step_size=Decision(step_size, "per step", "a test"), stop=Decision(steps, "steps", "a test"), **extra
    )


def _same(a: nn.Module, b: nn.Module) -> bool:
    there = b.state_dict()
    return all(torch.equal(value, there[key]) for key, value in a.state_dict().items())


# --- what a step is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_full_batch_training_is_gradient_descent_written_out(loss):
    x, y = _data()
    model, twin = _net().double(), _net().double()
    result = train(model, x, y, _plan(0.3, 15, loss=loss))
    target = nn.functional.one_hot(y, 3).double() if loss == "mse" else y
    losses = []
    for _ in range(15):
        value = nn.functional.mse_loss(twin(x.double()), target) if loss == "mse" else None
        value = nn.functional.cross_entropy(twin(x.double()), target) if value is None else value
        losses.append(float(value.detach()))
        gradients = torch.autograd.grad(value, list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), gradients, strict=True):
                p -= 0.3 * g
    assert all(
        torch.allclose(p, q, rtol=0, atol=1e-13)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )
    measured = dict(map(tuple, result.losses))
    assert measured[0] == pytest.approx(losses[0], rel=1e-13)
    assert measured[10] == pytest.approx(losses[10], rel=1e-12)
    assert sorted(measured) == [0, 1, 2, 3, 4, 6, 7, 10, 13, 15]
    right = float((twin(x.double()).argmax(1) == y).double().mean())
    assert result.accuracy == pytest.approx(right)
    assert result.complete
    assert result.steps == 15


def test_large_batches_are_cut_without_changing_the_step(monkeypatch):
    x, y = _data(50)
    whole, cut = _net().double(), _net().double()
    first = train(whole, x, y, _plan())
    monkeypatch.setattr("wideangle._loop.SLICE", 16)
    second = train(cut, x, y, _plan())
    for p, q in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-13)
    assert second.losses[-1][1] == pytest.approx(first.losses[-1][1], rel=1e-12)
    coupled, alone = _net(norm=True), _net(norm=True)
    train(coupled, x, y, _plan())
    monkeypatch.setattr("wideangle._loop.SLICE", 1024)
    train(alone, x, y, _plan())
    assert torch.equal(coupled[1].running_mean, alone[1].running_mean)
    assert _same(coupled, alone)


def test_warm_up_momentum_and_optimisers():
    plan = Plan(step_size=Decision(0.4), momentum=Decision(0.9), warmup_steps=Decision(4))
    recipe = make_recipe(plan, 10, {})
    assert [recipe.rate(t) for t in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert recipe.critical_factor() == pytest.approx(3.8)
    group = make_optimizer(recipe, _net()).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, False)
    nesterov = make_recipe(plan, 10, {"optimizer": "nesterov"})
    assert make_optimizer(nesterov, _net()).param_groups[0]["nesterov"]
    adam = make_optimizer(make_recipe(Plan(), 10, {"optimizer": "Adam", "step_size": 0.01}), _net())
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0]["betas"] == (0.9, 0.999)
    assert make_recipe(Plan(), 10, {"optimizer": "adamw", "step_size": 1e-3}).critical_factor() is None


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov"])
def test_the_critical_factor_is_where_a_quadratic_starts_to_diverge(momentum, optimizer):
    if optimizer == "nesterov" and momentum == 0:
        return
    plan = Plan(step_size=Decision(1.0), momentum=Decision(momentum), optimizer=Decision(optimizer))
    factor = make_recipe(plan, 1, {}).critical_factor()
    assert factor is not None
    sizes = {}
    for share in (0.98, 1.02):
        w = nn.Linear(1, 1, bias=False).double()
        with torch.no_grad():
            w.weight.fill_(1.0)
        recipe = make_recipe(plan, 1, {"step_size": share * factor})
        step = make_optimizer(recipe, w)
        for _ in range(2000):
            w.weight.grad = w.weight.detach().clone()
            step.step()
        sizes[share] = abs(w.weight.item())
    assert sizes[0.98] < 1e-3
    assert not sizes[1.02] < 1e3


def test_every_sample_is_drawn_once_an_epoch_and_orders_differ():
    x, y = _data(10)
    seen: list[list[float]] = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = _net()

        def forward(self, rows):
            if self.training:
                seen.append(rows[:, 0].tolist())
            return self.inner(rows)

    train(Spy(), x, y, _plan(0.1, 9), batch_size=4)
    everything = sorted(x[:, 0].tolist())
    epochs = [[value for batch in seen[i : i + 3] for value in batch] for i in (0, 3, 6)]
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1]
    first = list(seen)
    seen.clear()
    train(Spy(), x, y, _plan(0.1, 9), batch_size=4)
    assert seen == first
    seen.clear()
    train(Spy(), x, y, _plan(0.1, 9), batch_size=4, seed=1)
    assert seen != first
    seen.clear()
    train(Spy(), x, y, _plan(0.1, 4), batch_size=3)
    assert [len(batch) for batch in seen] == [3, 3, 4, 3]


def test_it_learns_real_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data[:400] / 16.0), torch.tensor(digits.target[:400])
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    gen = _gen(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=gen) / math.sqrt(p.shape[-1]))
    result = train(
        model, x, y, _plan(0.5, 300, loss="cross-entropy"), batch_size=100, name="mlp", data="digits"
    )
    assert result.accuracy is not None
    assert result.accuracy > 0.97
    assert "mlp on digits, 400 samples" in result.subject


# --- resume -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, optimizer, batch_size):
    x, y = _data()
    options = {"batch_size": batch_size, "optimizer": optimizer, "momentum": 0.9, "warmup_steps": 12}
    straight = _net(dropout=0.3, norm=True)
    whole = train(straight, x, y, _plan(0.05), **options)
    parts = _net(dropout=0.3, norm=True)
    file = tmp_path / "run.pt"
    train(parts, x, y, _plan(0.05, 9), checkpoint=file, **options)
    fresh = _net(seed=9, dropout=0.3, norm=True)
    resumed = train(fresh, x, y, _plan(0.05), checkpoint=file, resume=True, **options)
    assert _same(straight, fresh)
    assert resumed.losses == whole.losses
    assert resumed.accuracies == whole.accuracies
    assert resumed.steps == 20
    assert not _same(straight, parts)


def test_periodic_checkpoints_are_points_to_resume_from(tmp_path):
    x, y = _data()
    file = tmp_path / "run.pt"
    calls = [0]

    class StopError(RuntimeError):
        pass

    class Failing(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.inner, self.last = _net(), last

        def forward(self, rows):
            calls[0] += self.training
            if self.last is not None and calls[0] > self.last:
                raise StopError
            return self.inner(rows)

    with pytest.raises(StopError):
        train(Failing(9), x, y, _plan(), checkpoint=file, checkpoint_every=4, batch_size=7)
    assert torch.load(file, weights_only=True)["step"] == 8
    again, straight = Failing(None), Failing(None)
    train(again, x, y, _plan(), checkpoint=file, resume=True, batch_size=7)
    train(straight, x, y, _plan(), batch_size=7)
    assert _same(again, straight)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize("change", ["width", "step size", "inputs", "targets", "seed", "batch size", "loss"])
def test_resume_with_something_else_is_refused_and_says_what(tmp_path, change):
    x, y = _data()
    file = tmp_path / "run.pt"
    train(_net(), x, y, _plan(steps=5), checkpoint=file)
    model, plan, options = _net(), _plan(), {}
    words = change
    if change == "width":
        model, words = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Dropout(0.0), nn.Linear(9, 3)), "(9, 5)"
    elif change == "step size":
        plan = _plan(0.25)
    elif change == "inputs":
        x = x + 1e-3
    elif change == "targets":
        y = y.flip(0)
    elif change == "seed":
        options = {"seed": 3}
    elif change == "batch size":
        options = {"batch_size": 6}
    else:
        options = {"loss": "cross-entropy"}
    before = copy.deepcopy(model)
    with pytest.raises(InputError) as caught:
        train(model, x, y, plan, checkpoint=file, resume=True, **options)
    assert words in str(caught.value)
    assert _same(model, before)


def test_checkpoint_files_that_cannot_be_used(tmp_path):
    x, y = _data()
    with pytest.raises(InputError, match="no checkpoint at"):
        train(_net(), x, y, _plan(), checkpoint=tmp_path / "none.pt", resume=True)
    with pytest.raises(InputError, match="needs checkpoint"):
        train(_net(), x, y, _plan(), resume=True)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="no readable checkpoint"):
        train(_net(), x, y, _plan(), checkpoint=broken, resume=True)
    with pytest.raises(InputError, match="choose another file"):
        train(_net(), x, y, _plan(), checkpoint=broken)
    foreign = tmp_path / "foreign.pt"
    torch.save({"weights": torch.zeros(2)}, foreign)
    with pytest.raises(InputError, match="not a checkpoint written by"):
        train(_net(), x, y, _plan(), checkpoint=foreign, resume=True)
    evil = tmp_path / "evil.pt"
    torch.save({"model": os.system}, evil)
    with pytest.raises(InputError, match="no readable checkpoint"):
        train(_net(), x, y, _plan(), checkpoint=evil, resume=True)
    done = tmp_path / "done.pt"
    train(_net(), x, y, _plan(steps=3), checkpoint=done)
    assert train(_net(), x, y, _plan(steps=4), checkpoint=done).steps == 4


# --- Ctrl-C and divergence ----------------------------------------------------------------------------


class _PressesCtrlC(nn.Module):
    def __init__(self, at: int | None, times: int = 1):
        super().__init__()
        self.inner, self.at, self.times, self.calls = _net(), at, times, 0

    def forward(self, rows):
        self.calls += self.training
        if self.training and self.calls == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return self.inner(rows)


def test_ctrl_c_leaves_a_checkpoint_an_incomplete_result_and_a_way_on(tmp_path):
    x, y = _data()
    file = tmp_path / "run.pt"
    handler = signal.getsignal(signal.SIGINT)
    model = _PressesCtrlC(6)
    stopped = train(model, x, y, _plan(), checkpoint=file, batch_size=7)
    assert not stopped.complete
    assert stopped.steps == 6
    assert stopped.sections[0].status == "interrupted"
    assert "--resume" in stopped.verdict[-1]
    assert str(file) in stopped.verdict[-1]
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(InputError, match="step 6 of 20; pass resume=True"):
        train(_PressesCtrlC(None), x, y, _plan(), checkpoint=file, batch_size=7)
    resumed, straight = _PressesCtrlC(None), _PressesCtrlC(None)
    result = train(resumed, x, y, _plan(), checkpoint=file, resume=True, batch_size=7)
    whole = train(straight, x, y, _plan(), batch_size=7)
    assert _same(resumed, straight)
    assert result.losses == whole.losses
    unkept = train(_PressesCtrlC(2), x, y, _plan())
    assert "cannot be resumed" in unkept.verdict[-1]


def test_a_second_ctrl_c_stops_at_once():
    x, y = _data()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(_PressesCtrlC(3, times=2), x, y, _plan())
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_runs_in_a_thread():
    x, y = _data()
    results = []
    worker = threading.Thread(target=lambda: results.append(train(_net(), x, y, _plan(steps=3))))
    worker.start()
    worker.join()
    assert results[0].steps == 3


def test_divergence_is_explained_and_leaves_the_last_good_state(tmp_path):
    x, y = _data()
    model = nn.Linear(5, 3)
    start = copy.deepcopy(model)
    file = tmp_path / "run.pt"
    design = torch.cat([x, torch.ones(24, 1)], 1).double()
    top = float(torch.linalg.eigvalsh(design.T @ design * 2 / (24 * 3))[-1])
    with pytest.raises(NumericsError) as caught:
        train(model, x, y, _plan(10 / top, 2000), checkpoint=file, checkpoint_every=10)
    text = str(caught.value)
    assert "5 times the critical one" in text
    assert f"step size of {1.8 / top:.4g}" in text
    assert "step 0" in text
    assert _same(model, start)
    stored = torch.load(file, weights_only=True)
    assert stored["step"] % 10 == 0
    assert f"of step {stored['step']}" in text
    assert all(bool(torch.isfinite(value).all()) for value in stored["model"].values())
    with pytest.raises(NumericsError, match="times the critical one"):
        train(_net(dropout=0.5, norm=True), x, y, _plan(1e20))
    with pytest.raises(NumericsError, match="smaller step size, such as"):
        train(nn.Linear(5, 3).half(), x, y, _plan(1e30), optimizer="adam")


def test_a_checkpoint_is_written_only_where_the_loss_is_finite(tmp_path):
    x, y = _data()
    file = tmp_path / "run.pt"
    with pytest.raises(NumericsError) as caught:
        train(nn.Linear(5, 3), x, y, _plan(1e30, 5), checkpoint=file, checkpoint_every=1)
    assert "step 1 of 5" in str(caught.value)
    assert "checkpoint" not in str(caught.value)
    assert not file.exists()


def test_a_model_that_is_infinite_only_after_the_last_step_is_caught():
    x, y = _data()
    model = nn.Linear(5, 3)
    start = copy.deepcopy(model)
    with pytest.raises(NumericsError, match="step 1 of 1"):
        train(model, x, y, _plan(1e38, 1))
    assert _same(model, start)


# --- what is left behind ------------------------------------------------------------------------------


def test_modes_gradients_and_random_generators_are_as_before():
    x, y = _data()
    model = _net(dropout=0.4, norm=True)
    model.eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[0].bias.requires_grad_(False)
    frozen = model[0].bias.detach().clone()
    before = torch.get_rng_state()
    train(model, x, y, _plan(steps=5))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(m.training for m in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert torch.equal(model[0].bias, frozen)
    assert int(model[1].num_batches_tracked) == 5
    other, third = _net(dropout=0.4), _net(dropout=0.4)
    train(other, x, y, _plan(steps=5))
    train(third, x, y, _plan(steps=5), seed=1)
    assert not _same(other, third)


def test_layers_set_to_eval_by_the_user_stay_so():
    x, y = _data()
    model = _net(norm=True).train()
    model[1].eval()
    train(model, x, y, _plan(steps=3))
    assert int(model[1].num_batches_tracked) == 0
    assert model.training
    assert not model[1].training


# --- the result ---------------------------------------------------------------------------------------


def test_predicted_against_measured_is_the_median_of_log_ratios():
    x, y = _data()
    free = dict(map(tuple, train(_net(), x, y, _plan(steps=20)).losses))
    factors = {0: 5.0, 1: 2.0, 2: 0.5, 10: 1.0, 20: 10.0}
    curve = [[step, free[step] * factor] for step, factor in factors.items()] + [[50, 1.0]]
    result = train(_net(), x, y, _plan(steps=20, predicted_loss=curve, samples=10))
    expected = (math.log10(2) + math.log10(2)) / 2
    assert result.agreement == pytest.approx(expected, rel=1e-9)
    section = result.section("prediction")
    names = [series.name for series in section.figures[0].series]
    assert names == ["predicted", "measured"]
    assert section.figures[0].series[0].x == [1, 2, 10, 20]
    assert [row[0] for row in section.tables[0].cells] == [0, 1, 2, 10, 20]
    assert "10 samples, the run has 24" in section.notes[0]
    assert "0.301" in section.summary
    for options in ({"step_size": 0.1}, {"loss": "cross-entropy"}, {"momentum": 0.5}, {"optimizer": "adam"}):
        other = train(_net(), x, y, _plan(steps=20, predicted_loss=curve), **options)
        assert other.agreement is None
        assert other.section("prediction").summary.startswith("Not compared")


def test_the_plan_section_says_what_became_of_each_decision():
    x, y = _data()
    plan = _plan(
        steps=4, suspect_labels=Decision([1, 2], "", "high loss"), momentum=Decision(0.5, "", "measured")
    )
    result = train(_net(), x, y, plan, momentum=0.0)
    rows = {row[0]: row[2] for row in result.section("plan").tables[0].cells}
    assert rows["step size"] == "used"
    assert rows["stop"] == "used"
    assert rows["momentum"] == "replaced by 0"
    assert rows["batch size"] == "not measured; 24 taken"
    assert rows["optimizer"] == "not measured; sgd taken"
    assert rows["suspect labels"] == "not acted on: all samples stay in"
    assert result.section("plan").summary == "2 of the 4 decisions the plan holds were used."


def test_the_result_round_trips_and_prints():
    x, y = _data()
    result = train(_net(), x, y, _plan(steps=4), command="wideangle train mlp", seed=5)
    again = Training.from_json(result.to_json())
    assert again.losses == result.losses
    assert again.provenance.command == "wideangle train mlp"
    assert again.provenance.seed == 5
    assert result.losses[-1][0] == 4
    assert "4 steps took the mse loss" in result.verdict[0]
    assert "Training" in str(result)


def test_regression_has_no_accuracy_and_a_dict_model_trains():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 1).double()

        def forward(self, left, right):
            return {"value": self.inner(left + right)}

    left = torch.randn(30, 2, generator=_gen(0))
    target = left.sum(1) * 3 + 1
    x = {"left": left, "right": torch.zeros(30, 2)}
    result = train(Named(), x, target, _plan(0.3, 200), output="value", batch_size=10)
    assert result.accuracy is None
    assert result.accuracies == []
    assert result.losses[-1][1] < 1e-6
    with pytest.raises(InputError, match="output="):
        train(Named(), x, target, _plan())


def test_steps_come_from_the_argument_the_plan_the_prediction_in_this_order():
    plan = Plan(step_size=Decision(0.1), predicted_loss=[[0, 1.0], [70, 0.5]])
    assert make_recipe(plan, 5, {}).steps == 70
    assert make_recipe(Plan(step_size=Decision(0.1)), 5, {}).steps == 1000
    assert make_recipe(_plan(steps=30, predicted_loss=[[70, 0.5]]), 5, {}).steps == 30
    assert make_recipe(_plan(steps=30), 5, {"steps": 3}).steps == 3
    assert log_spaced(100, [50])[:6] == [0, 1, 2, 3, 4, 6]
    assert {50, 100} <= set(log_spaced(100, [50, 200]))
    assert 200 not in log_spaced(100, [50, 200])
    assert log_spaced(0, []) == [0]
    assert len(log_spaced(100_000, list(range(100_000)))) < 110


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plan": Plan()}, "step_size"),
        ({"step_size": -1.0}, "above 0"),
        ({"step_size": float("nan")}, "finite"),
        ({"momentum": 1.0}, r"\[0, 1\)"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"optimizer": "nesterov"}, "momentum above 0"),
        ({"loss": "hinge"}, "hinge"),
        ({"batch_size": 0}, "at least 1"),
        ({"steps": 2.5}, "whole number"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "24 samples and y has 3"),
        ({"y": torch.full((24,), 7)}, "0..2"),
        ({"x": torch.full((24, 5), float("inf"))}, "non-finite"),
        ({"x": torch.zeros(0, 5), "y": torch.zeros(0)}, "no samples"),
        ({"x": [1, 2]}, "tensor"),
        ({"plan": Plan(step_size=Decision(0.1), stop=Decision({"loss": 0.1}))}, "whole number"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(change, words):
    x, y = _data()
    model = _net()
    start = copy.deepcopy(model)
    arguments = {"x": x, "y": y, "plan": _plan(), **change}
    with pytest.raises(InputError, match=words):
        train(model, arguments.pop("x"), arguments.pop("y"), arguments.pop("plan"), **arguments)
    assert _same(model, start)


def test_bad_models_are_refused():
    x, y = _data()
    broken = _net()
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite before training"):
        train(broken, x, y, _plan())
    with pytest.raises(InputError, match="no parameter"):
        train(nn.Flatten(), x, y, _plan())
