from __future__ import annotations

import copy
import math

import pytest
import torch
from small_runs import is_same, make_data, make_gen, make_net, make_plan
from torch import nn

from wideangle.errors import InputError
from wideangle.plan import Decision, Plan
from wideangle.training import Training, train
from wideangle.training._loop import log_spaced
from wideangle.training._recipe import make_recipe


def test_modes_gradients_and_random_generators_are_as_before():
    x, y = make_data()
    model = make_net(dropout=0.4, norm=True)
    model.eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[0].bias.requires_grad_(False)
    frozen = model[0].bias.detach().clone()
    before = torch.get_rng_state()
    train(model, x, y, make_plan(steps=5))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(m.training for m in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert torch.equal(model[0].bias, frozen)
    assert int(model[1].num_batches_tracked) == 5
    other, third = make_net(dropout=0.4), make_net(dropout=0.4)
    train(other, x, y, make_plan(steps=5))
    train(third, x, y, make_plan(steps=5), seed=1)
    assert not is_same(other, third)


def test_layers_set_to_eval_by_the_user_stay_so():
    x, y = make_data()
    model = make_net(norm=True).train()
    model[1].eval()
    train(model, x, y, make_plan(steps=3))
    assert int(model[1].num_batches_tracked) == 0
    assert model.training
    assert not model[1].training


def test_predicted_against_measured_is_the_median_of_log_ratios():
    x, y = make_data()
    free = dict(map(tuple, train(make_net(), x, y, make_plan(steps=20)).losses))
    factors = {0: 5.0, 1: 2.0, 2: 0.5, 10: 1.0, 20: 10.0}
    curve = [[step, free[step] * factor] for step, factor in factors.items()] + [[50, 1.0]]
    result = train(make_net(), x, y, make_plan(steps=20, predicted_loss=curve, samples=10))
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
        other = train(make_net(), x, y, make_plan(steps=20, predicted_loss=curve), **options)
        assert other.agreement is None
        assert other.section("prediction").summary.startswith("Not compared")


def test_the_plan_section_says_what_became_of_each_decision():
    x, y = make_data()
    plan = make_plan(
        steps=4, suspect_labels=Decision([1, 2], "", "high loss"), momentum=Decision(0.5, "", "measured")
    )
    result = train(make_net(), x, y, plan, momentum=0.0)
    rows = {row[0]: row[2] for row in result.section("plan").tables[0].cells}
    assert rows["step size"] == "used"
    assert rows["stop"] == "used"
    assert rows["momentum"] == "replaced by 0"
    assert rows["batch size"] == "not measured; 24 taken"
    assert rows["optimizer"] == "not measured; sgd taken"
    assert rows["suspect labels"] == "not acted on: all samples stay in"
    assert result.section("plan").summary == "2 of the 4 decisions the plan holds were used."


def test_the_result_round_trips_and_prints():
    x, y = make_data()
    result = train(make_net(), x, y, make_plan(steps=4), command="wideangle train mlp", seed=5)
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

    left = torch.randn(30, 2, generator=make_gen(0))
    target = left.sum(1) * 3 + 1
    x = {"left": left, "right": torch.zeros(30, 2)}
    result = train(Named(), x, target, make_plan(0.3, 200), output="value", batch_size=10)
    assert result.accuracy is None
    assert result.accuracies == []
    assert result.losses[-1][1] < 1e-6
    with pytest.raises(InputError, match="output="):
        train(Named(), x, target, make_plan())


def test_steps_come_from_the_argument_the_plan_the_prediction_in_this_order():
    plan = Plan(step_size=Decision(0.1), predicted_loss=[[0, 1.0], [70, 0.5]])
    assert make_recipe(plan, 5, {}).steps == 70
    assert make_recipe(Plan(step_size=Decision(0.1)), 5, {}).steps == 1000
    assert make_recipe(make_plan(steps=30, predicted_loss=[[70, 0.5]]), 5, {}).steps == 30
    assert make_recipe(make_plan(steps=30), 5, {"steps": 3}).steps == 3
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
    x, y = make_data()
    model = make_net()
    start = copy.deepcopy(model)
    arguments = {"x": x, "y": y, "plan": make_plan(), **change}
    with pytest.raises(InputError, match=words):
        train(model, arguments.pop("x"), arguments.pop("y"), arguments.pop("plan"), **arguments)
    assert is_same(model, start)


def test_bad_models_are_refused():
    x, y = make_data()
    broken = make_net()
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite before training"):
        train(broken, x, y, make_plan())
    with pytest.raises(InputError, match="no parameter"):
        train(nn.Flatten(), x, y, make_plan())
