from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_runs import is_same, make_data, make_gen, make_net, make_plan
from torch import nn

from wideangle.errors import InputError
from wideangle.plan import Decision, Plan
from wideangle.training import train
from wideangle.training._loop import Run
from wideangle.training._recipe import make_optimizer, make_recipe


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_full_batch_training_is_gradient_descent_written_out(loss):
    x, y = make_data()
    model, twin = make_net().double(), make_net().double()
    result = train(model, x, y, make_plan(0.3, 15, loss=loss))
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
    x, y = make_data(50)
    whole, cut = make_net().double(), make_net().double()
    first = train(whole, x, y, make_plan())
    monkeypatch.setattr("wideangle.training._loop.SLICE", 16)
    second = train(cut, x, y, make_plan())
    for p, q in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-13)
    assert second.losses[-1][1] == pytest.approx(first.losses[-1][1], rel=1e-12)
    coupled, alone = make_net(norm=True), make_net(norm=True)
    train(coupled, x, y, make_plan())
    monkeypatch.setattr("wideangle.training._loop.SLICE", 1024)
    train(alone, x, y, make_plan())
    assert torch.equal(coupled[1].running_mean, alone[1].running_mean)
    assert is_same(coupled, alone)


def test_warm_up_momentum_and_optimisers():
    plan = Plan(step_size=Decision(0.4), momentum=Decision(0.9), warmup_steps=Decision(4))
    recipe = make_recipe(plan, 10, {})
    assert [recipe.rate(t) for t in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert recipe.critical_factor() == pytest.approx(3.8)
    group = make_optimizer(recipe, make_net()).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, False)
    nesterov = make_recipe(plan, 10, {"optimizer": "nesterov"})
    assert make_optimizer(nesterov, make_net()).param_groups[0]["nesterov"]
    adam = make_optimizer(make_recipe(Plan(), 10, {"optimizer": "Adam", "step_size": 0.01}), make_net())
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
    x, y = make_data(10)
    seen: list[list[float]] = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_net()

        def forward(self, rows):
            if self.training:
                seen.append(rows[:, 0].tolist())
            return self.inner(rows)

    train(Spy(), x, y, make_plan(0.1, 9), batch_size=4)
    everything = sorted(x[:, 0].tolist())
    epochs = [[value for batch in seen[i : i + 3] for value in batch] for i in (0, 3, 6)]
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1]
    first = list(seen)
    seen.clear()
    train(Spy(), x, y, make_plan(0.1, 9), batch_size=4)
    assert seen == first
    seen.clear()
    train(Spy(), x, y, make_plan(0.1, 9), batch_size=4, seed=1)
    assert seen != first
    seen.clear()
    train(Spy(), x, y, make_plan(0.1, 4), batch_size=3)
    assert [len(batch) for batch in seen] == [3, 3, 4, 3]


def test_it_learns_real_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data[:400] / 16.0), torch.tensor(digits.target[:400])
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    gen = make_gen(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=gen) / math.sqrt(p.shape[-1]))
    result = train(
        model, x, y, make_plan(0.5, 300, loss="cross-entropy"), batch_size=100, name="mlp", data="digits"
    )
    assert result.accuracy is not None
    assert result.accuracy > 0.97
    assert "mlp on digits, 400 samples" in result.subject


def test_batches_of_one_take_every_sample_once_an_epoch():
    model, x, y = nn.Linear(2, 1), torch.randn(5, 2), torch.randn(5, 1)
    recipe = make_recipe(Plan(), 5, {"step_size": 0.1, "batch_size": 1, "steps": 5})
    run = Run(model, x, y, recipe, None, {})
    assert sorted(int(run.rows(step)[0]) for step in range(5)) == [0, 1, 2, 3, 4]


def test_batch_norm_refuses_batches_of_one():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(InputError, match=r"batch_size=1, but layer '1' is a BatchNorm"):
        train(model, torch.randn(6, 2), torch.randn(6, 1), Plan(), step_size=0.1, steps=2, batch_size=1)


def test_arrays_are_inputs_too():
    x = np.random.default_rng(0).normal(size=(6, 2))
    model = nn.Linear(2, 1)
    assert train(model, x, x[:, :1], Plan(), step_size=0.1, steps=3).complete


def test_no_steps_is_an_error():
    with pytest.raises(InputError, match="steps must be a whole number of at least 1, got 0"):
        train(nn.Linear(2, 1), torch.ones(2, 2), torch.ones(2, 1), Plan(), step_size=0.1, steps=0)


@pytest.mark.parametrize("kappa_tilde", [1.0, 3.0])
def test_mass_takes_the_steps_of_its_two_variable_form(kappa_tilde):
    x, y = make_data()
    model, twin = make_net().double(), make_net().double()
    train(model, x, y, make_plan(0.2, 12), optimizer="mass", momentum=0.8, kappa_tilde=kappa_tilde)
    target = nn.functional.one_hot(y, 3).double()
    alpha = 0.2 / 1.8
    eta2 = 0.2 * (1 - 1 / kappa_tilde) / (1 + alpha)
    old = [p.detach().clone() for p in twin.parameters()]
    for _ in range(12):
        value = nn.functional.mse_loss(twin(x.double()), target)
        gradients = torch.autograd.grad(value, list(twin.parameters()))
        with torch.no_grad():
            for k, (p, g) in enumerate(zip(twin.parameters(), gradients, strict=True)):
                new = p - 0.2 * g
                p.copy_(new + 0.8 * (new - old[k]) + eta2 * g)
                old[k] = new
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


def test_mass_from_a_plan_and_its_limits():
    x, y = make_data()
    plan = make_plan(0.1, 5)
    plan = Plan(
        step_size=plan.step_size,
        loss=plan.loss,
        optimizer=Decision("mass"),
        momentum=Decision(0.9),
        kappa_tilde=Decision(4.0),
        stop=Decision(5),
    )
    recipe = make_recipe(plan, len(x), {})
    optimiser = make_optimizer(recipe, make_net())
    group = optimiser.param_groups[0]
    assert (group["lr"], group["kappa_tilde"]) == (0.1, 4.0)
    assert (1 - group["alpha"]) / (1 + group["alpha"]) == pytest.approx(0.9)
    result = train(make_net(), x, y, plan)
    assert result.section("run").values["kappa tilde"] == 4.0
    with pytest.raises(InputError, match="kappa_tilde must be at least 1"):
        make_recipe(plan, len(x), {"kappa_tilde": 0.5})
    with pytest.raises(InputError, match="'mass' needs a momentum"):
        make_recipe(plan, len(x), {"momentum": 0.0})


@pytest.mark.parametrize("optimizer", ["nesterov", "mass"])
def test_no_batch_is_smaller_than_the_one_the_step_was_made_for(optimizer):
    x, y = make_data(33)
    plan = make_plan(0.01, 4)
    recipe = make_recipe(plan, 33, {"optimizer": optimizer, "momentum": 0.5, "batch_size": 8})
    run = Run(make_net(), x, y, recipe, None, {})
    sizes = [len(run.rows(step)) for step in range(4)]
    assert sorted(sizes) == [8, 8, 8, 9]
    assert len({int(row) for step in range(4) for row in run.rows(step)}) == 33
