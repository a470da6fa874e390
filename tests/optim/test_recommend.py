"""The recommendation: what it measures, that its parameters are the forecast's best, and that they train."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from wideangle import data
from wideangle.errors import InputError, NumericsError
from wideangle.kernel import jacobian
from wideangle.nets import MLP
from wideangle.optim import MaSS, Recommendation, mean_square_rate, recommend
from wideangle.optim._measured import measure
from wideangle.plan import Plan
from wideangle.seeds import generator


def problem(outputs: int = 3, n: int = 12) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    draws = generator(5, "recommend")
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    x = torch.randn(n, 4, generator=draws, dtype=torch.float64)
    return model, x, torch.randint(outputs, (n,), generator=draws)


def look(model, x, y, loss, samples=None):
    return measure(model, x, y, loss, samples=samples, budget=math.inf, output=None, seed=0)


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_the_quadratic_against_the_jacobian_in_weight_space(loss):
    model, x, y = problem()
    n, c = len(x), 3
    j = jacobian(model, x).reshape(n * c, -1)
    z = model(x).detach()
    hot = nn.functional.one_hot(y, c).double()
    if loss == "mse":
        bend, slope = 2 / c * torch.eye(c).double(), 2 / c * (z - hot)
    else:
        bend, slope = (torch.eye(c).double() - 1 / c) / 2, torch.softmax(z, 1) - hot
    hessian = j.T @ torch.block_diag(*[bend] * n) @ j / n
    gradient = j.T @ slope.reshape(-1) / n
    found = look(model, x, y, loss)
    values, vectors = torch.linalg.eigh(hessian)
    assert found.constants.smoothness == pytest.approx(float(values[-1]), rel=1e-6)
    assert float(found.problem.curvatures.sum()) == pytest.approx(float(torch.trace(hessian)), rel=1e-6)
    # energies: half of g^2 / lambda in each direction; compared as the decrease that steps of descent bring
    curvatures = torch.as_tensor(found.problem.curvatures)
    energies = torch.as_tensor(found.problem.energies)
    keep = values > 1e-9 * values[-1]
    slopes = (vectors.T @ gradient)[keep].square()
    for power in (1, 2, 3):
        mine = float((2 * energies * curvatures**power).sum())
        theirs = float((slopes * values[keep] ** (power - 1)).sum())
        assert mine == pytest.approx(theirs, rel=1e-6)
    blocks = [j[i * c : (i + 1) * c].T @ bend @ j[i * c : (i + 1) * c] for i in range(n)]
    hardest = max(float(torch.linalg.eigvalsh(block)[-1]) for block in blocks)
    assert found.constants.sample_smoothness == pytest.approx(hardest, rel=1e-6)


def test_boehning_bounds_cross_entropy_at_any_outputs():
    for seed in range(5):
        z = 4 * torch.randn(6, generator=generator(seed, "z"), dtype=torch.float64)
        p = torch.softmax(z, 0)
        gap = (torch.eye(6).double() - 1 / 6) / 2 - (torch.diag(p) - torch.outer(p, p))
        assert float(torch.linalg.eigvalsh(gap)[0]) > -1e-12


def test_the_squared_loss_of_the_quadratic_is_the_loss_where_every_label_can_be_fitted():
    model, x, y = problem()
    found = look(model, x, y, "mse")
    hot = nn.functional.one_hot(y, 3).double()
    assert found.problem.loss == pytest.approx(float((model(x).detach() - hot).square().mean()), rel=1e-6)


def test_the_price_is_counted_and_limited():
    model, x, y = problem(n=400)
    whole = look(model, x, y, "mse", samples=400)
    assert whole.passes == pytest.approx((2 + 2 * 3) / 3)
    assert whole.constants.looked_at == 0
    cheap = recommend(model, x, y, batch_size=8, budget=10)
    assert cheap.passes <= 0.05 * 10
    assert cheap.constants.looked_at == 75  # 0.5 passes x 3 x 400 / 8
    assert recommend(model, x, y, batch_size=8, budget=10, samples=20).constants.looked_at == 20


def test_the_model_is_left_as_it_is():
    model, x, y = problem()
    model.train()
    before = copy.deepcopy(model.state_dict())
    recommend(model, x, y, batch_size=4)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_batches_change_the_recommendation_as_the_theory_says():
    digits = data.load("digits", n=512)
    model = MLP(64, 10, width=(64,), parameterization="standard", bias=True, generator=generator(0, "w"))
    found = {m: recommend(model, digits.x, digits.y, batch_size=m, budget=10) for m in (4, 64, 512)}
    assert found[4].smoothness_m > found[64].smoothness_m > found[512].smoothness_m
    assert found[512].smoothness_m == pytest.approx(found[512].constants.smoothness)
    assert found[512].kappa_tilde_m == 1.0
    assert found[512].method == "nesterov"  # full batches have no noise to compensate
    assert "saturated" in found[512].regime
    assert found[4].kappa_tilde > found[64].kappa_tilde
    for r in found.values():
        assert r.forecast_loss <= min(r.sgd_loss, r.nesterov_loss) * 1.05
        assert r.lr <= 1 / r.smoothness_m * (1 + 1e-9)
        assert 1 / (r.alpha * r.kappa_tilde) <= 50 * (1 + 1e-9)


def test_plain_descent_where_every_direction_is_alike():
    """Orthogonal inputs of one length: kappa is 1 for full batches and n for single samples, as kappa_tilde."""
    x = torch.eye(16, dtype=torch.float64)
    y = torch.ones(16, 1, dtype=torch.float64)
    model = nn.Linear(16, 1, bias=False).double()
    for m in (1, 4, 16):
        found = recommend(model, x, y, batch_size=m, budget=20)
        assert found.method == "sgd"
        assert "plain SGD is as good here" in found.verdict
        assert found.decisions()["momentum"].value == 0.0
        assert not found.decisions()["kappa_tilde"].measured


def test_it_trains_and_beats_the_plain_step():
    digits = data.load("digits", n=512)
    y = nn.functional.one_hot(digits.y, 10).float()
    start = MLP(64, 10, width=(64,), parameterization="standard", bias=True, generator=generator(1, "w"))
    found = recommend(start, digits.x, digits.y, batch_size=32, budget=10)
    assert found.method != "sgd"
    ends = {}
    for name in ("sgd", found.method):
        model = copy.deepcopy(start)
        lr, alpha, kappa_tilde = found.settings[name]
        optimiser = (
            torch.optim.SGD(model.parameters(), lr=lr)
            if name == "sgd"
            else MaSS(model.parameters(), lr, alpha, kappa_tilde)
        )
        order = generator(2, "order")
        for _ in range(10):
            for rows in torch.randperm(512, generator=order).split(32):
                optimiser.zero_grad()
                (model(digits.x[rows]) - y[rows]).square().mean().backward()
                optimiser.step()
        ends[name] = float((model(digits.x) - y).square().mean().detach())
    assert ends[found.method] < 0.5 * ends["sgd"]


def test_plan_json_and_optimiser():
    model, x, y = problem(n=64)
    found = recommend(model, x, y, "cross-entropy", batch_size=8, budget=30)
    assert Recommendation.from_json(found.to_json()).to_json() == found.to_json()
    plan = found.into(Plan(model="m"))
    assert plan.step_size.value == found.lr
    assert plan.optimizer.value == found.method
    assert plan.stop.value == found.steps == 240
    optimiser = MaSS.from_constants(model.parameters(), found, 8)
    assert optimiser.param_groups[0]["lr"] == found.lr
    optimiser.retune(recommend(model, x, y, "cross-entropy", batch_size=8, budget=3, seed=1), 8)
    with pytest.raises(InputError, match="for batches of 8, not 16"):
        MaSS.from_constants(model.parameters(), found, 16)


def test_batch_norm_dropout_and_tokens():
    x = torch.randint(20, (40, 6), generator=generator(0, "tokens"))
    y = torch.arange(40) % 2
    model = nn.Sequential(
        nn.Embedding(20, 8),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, 2),
    )
    found = recommend(model, x, y, "cross-entropy", batch_size=8)
    assert any("BatchNorm" in note for note in found.notes)
    assert any("Dropout" in note for note in found.notes)
    assert int(model[3].num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "unknown loss"),
        ({"batch_size": 0}, "batch size 0 of 12"),
        ({"batch_size": 13}, "batch size 13 of 12"),
        ({"batch_size": 2.5}, "whole number"),
        ({"budget": 0}, "budget is 0"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"samples": 1}, "at least 2"),
        ({"y": torch.zeros(3).long()}, "x has 12 samples and y has 3"),
        ({"x": "rows"}, "x is a str"),
        ({"model": 3}, "torch.nn.Module"),
        ({"model": nn.ReLU()}, "no parameters"),
        ({"x": torch.full((12, 4), float("nan")), "model": None}, "finite|nan"),
    ],
)
def test_bad_input(change, message):
    model, x, y = problem()
    given = {"model": model, "x": x, "y": y, **{k: v for k, v in change.items() if v is not None}}
    with pytest.raises((InputError, NumericsError), match=message):
        recommend(**given)


def test_dead_outputs():
    model, x, y = problem()
    nn.init.zeros_(model[2].weight)
    with torch.no_grad():
        model[0].weight.fill_(float("0"))
        model[0].bias.fill_(0.0)
    model[2].bias.requires_grad_(False)
    with pytest.raises(NumericsError, match="do not react"):
        recommend(model, x, y)


def test_numpy_inputs_work():
    model, x, y = problem()
    a = recommend(model.float(), x.float(), y, batch_size=4)
    b = recommend(model, x.float().numpy(), np.asarray(y), batch_size=4)
    assert (a.lr, a.alpha) == (b.lr, b.alpha)


def decoupled(n: int = 100, d: int = 6) -> torch.Tensor:
    """Rows along the axes, each axis with a few large rows: residuals and features go together."""
    draws = generator(0, "decoupled")
    rows = torch.zeros(n, d, dtype=torch.float64)
    sizes = torch.randn(n, generator=draws, dtype=torch.float64).pow(2)
    rows[torch.arange(n), torch.arange(n) % d] = (
        sizes * torch.logspace(0, -1.5, d, dtype=torch.float64)[torch.arange(n) % d]
    )
    return rows


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("kind", ["decoupled", "one large row", "gaussian"])
def test_what_is_recommended_for_linear_data_is_stable_in_mean_square(kind, m):
    """The exact operator as oracle, on data where noise lives in the direction that makes it."""
    x = decoupled()
    if kind != "decoupled":
        x = torch.randn(100, 6, generator=generator(1, "rows"), dtype=torch.float64)
    if kind == "one large row":
        x[0] *= 30
    y = x @ torch.ones(6, 1, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    found = recommend(model, x, y, batch_size=m, budget=30, samples=100)
    rho = mean_square_rate(x * 2**0.5, found.parameters, m, replacement=False)
    assert rho < 1
    assert found.forecast_loss < 1


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_many_classes_keep_their_verdict_in_bounds(loss):
    draws = generator(2, "classes")
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 100))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / 64**0.5)
    x = torch.randn(600, 20, generator=draws)
    y = torch.randint(100, (600,), generator=draws)
    found = recommend(model, x, y, loss, batch_size=16, budget=10)
    assert 0 < found.forecast_loss < 1
    assert found.speed_up < 20
    assert found.parameters.alpha * found.kappa_tilde < 1 or found.method == "sgd"
    assert any("more than" in note for note in found.notes) == (found.passes > 0.505)


def test_ties_go_to_the_plain_method():
    x = torch.ones(64, 4, dtype=torch.float64)
    found = recommend(nn.Linear(4, 1).double(), x, torch.zeros(64, 1), batch_size=64, budget=5000)
    assert found.method == "sgd"
    assert found.lr == pytest.approx(1 / found.smoothness_m)
    assert found.steps == 5000


def test_a_plan_takes_the_loss_with_it_and_no_course_of_another_method():
    model, x, y = problem(n=64)
    stale = Plan(loss="mse", predicted_loss=[[0.0, 1.0], [1.0, 0.5]])
    plan = recommend(model, x, y, "cross-entropy", batch_size=8).into(stale)
    assert (plan.loss, plan.samples, plan.predicted_loss) == ("cross-entropy", 64, [])
    assert plan.warmup_steps.value == 0


def test_all_samples_are_looked_at_for_numbers_that_are_none():
    model, x, y = problem(n=64)
    x[60, 0] = float("nan")
    with pytest.raises(InputError, match=r"finite|nan"):
        recommend(model, x, y, batch_size=8, samples=4)
    model, x, y = problem(n=64)
    y[60] = 7
    with pytest.raises(InputError):
        recommend(model, x, y, batch_size=8, samples=4)


def test_a_model_that_is_done_has_nothing_to_train():
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.eye(2, dtype=torch.float64)
    with pytest.raises(InputError, match="loss is 0"):
        recommend(model, x, model(x).detach())


def test_batch_statistics_set_the_scale_of_the_curvature():
    """The top curvature of a BatchNorm net in train mode, by an explicit Jacobian of the whole batch."""
    draws = generator(4, "norm")
    x = torch.randn(24, 5, generator=draws)
    y = torch.arange(24) % 3
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in [*model[0].parameters(), *model[3].parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / 2)
    found = look(model, x, y, "mse", samples=24)
    assert any("batch statistics" in note for note in found.notes)
    twin = copy.deepcopy(model).double().train()
    names = [name for name, _ in twin.named_parameters()]

    def outputs(*weights):
        buffers = {name: value.clone() for name, value in twin.named_buffers()}
        return torch.func.functional_call(
            twin, {**dict(zip(names, weights, strict=True)), **buffers}, (x.double(),)
        )

    parts = torch.autograd.functional.jacobian(outputs, tuple(twin.parameters()))
    j = torch.cat([part.reshape(72, -1) for part in parts], 1)
    top = float(torch.linalg.eigvalsh(j @ j.T * 2 / 72)[-1])
    assert found.constants.smoothness == pytest.approx(top, rel=0.15)  # Lanczos to 10 %, twice
