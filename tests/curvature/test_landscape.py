"""PL*, aiming and what they promise, against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from wideangle import nets
from wideangle.curvature import aiming, aiming_along, pl_along, pl_ratio
from wideangle.curvature import landscape as ls
from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.kernel import factors, jacobian_kernel


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(d: int = 3, outputs: int = 2, width: int = 16, depth: int = 2, seed: int = 0) -> nn.Module:
    gen = torch.Generator().manual_seed(seed)
    return nets.MLP(d, outputs, width=width, depth=depth, activation="tanh", generator=gen).double()


def linear(d: int, outputs: int = 1, seed: int = 3) -> nn.Linear:
    model = nn.Linear(d, outputs, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(draw(outputs, d, seed=seed))
    return model


def test_identity_and_range_of_the_ratio():
    model, x, y = net(), draw(5, 3), draw(5, 2, seed=1)
    found = pl_ratio(model, x, y)
    K = jacobian_kernel(model, x).reshape(10, 10)
    r = (model(x) - y).detach().reshape(-1)
    values = torch.linalg.eigvalsh(K)
    assert found.ratio == pytest.approx(float(r @ K @ r / (r @ r)), rel=1e-10)
    assert found.loss == pytest.approx(float(r @ r) / 2, rel=1e-12)
    assert found.gradient_norm**2 == pytest.approx(float(r @ K @ r), rel=1e-10)
    assert found.identity_error < 1e-10
    assert found.lambda_min == pytest.approx(float(values[0]), rel=1e-8)
    assert found.lambda_max == pytest.approx(float(values[-1]), rel=1e-10)
    assert found.lambda_min <= found.ratio <= found.lambda_max
    assert found.rank_deficient is False
    assert type(found).from_json(found.to_json()) == found


@pytest.mark.parametrize(("loss", "c"), [("half_mean", 1 / 5), ("mean", 2 / 5), ("mse", 2 / 10)])
def test_other_losses_scale_mu(loss: str, c: float):
    model, x, y = net(), draw(5, 3), draw(5, 2, seed=1)
    base, found = pl_ratio(model, x, y), pl_ratio(model, x, y, loss=loss)
    assert found.ratio == pytest.approx(c * base.ratio, rel=1e-12)
    assert found.loss == pytest.approx(c * base.loss, rel=1e-12)
    assert found.factor == pytest.approx(c)
    assert found.lambda_min == base.lambda_min
    if loss == "mse":
        assert found.loss == pytest.approx(float(nn.functional.mse_loss(model(x).detach(), y)), rel=1e-12)


def test_float32_models_are_measured_in_float64_and_left_alone():
    model = net().float().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = draw(5, 3).float(), draw(5, 2, seed=1)
    found = pl_ratio(model, x, y)
    twin = pl_ratio(model.double(), x.double(), y)
    assert found.lambda_min == pytest.approx(twin.lambda_min, rel=1e-12)
    assert all(torch.equal(v, before[k].double()) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_singular_kernels_have_lambda_min_zero():
    x, y = draw(6, 3), draw(6, 1, seed=1)
    few = pl_ratio(linear(3), x, y)  # 3 parameters, 6 equations
    assert (few.lambda_min, few.rank_deficient) == (0.0, True)
    assert "3 parameters for 6 equations" in few.verdict
    assert float(torch.linalg.eigvalsh(x @ x.T)[0]) < 1e-10
    x[5] = x[0]
    twice = pl_ratio(net(3, 1, width=64), x, y)
    assert twice.lambda_min == 0.0
    assert "rank 5 of 6" in twice.verdict
    x[5] = x[0] + 1e-8 * draw(3, seed=9)  # nearly equal is not equal
    near = pl_ratio(net(3, 1, width=64), x, y)
    assert 0 < near.lambda_min < 1e-14
    assert not near.rank_deficient


def test_extremes_by_all_three_ways(monkeypatch: pytest.MonkeyPatch):
    model, x = net(3, 1, width=64), draw(8, 3)
    cache = factors(model, x)
    size = sum(p.numel() for p in model.parameters())
    by_values = ls.kernel_extremes(cache, size)
    monkeypatch.setattr("wideangle.curvature._pl._ROWS", 0)
    dense = ls.kernel_extremes(cache, size)
    bound = ls.kernel_extremes(cache, size, dense_limit=4)
    assert (by_values.method, dense.method, bound.method) == ("singular values", "dense", "Lanczos bound")
    assert dense.smallest <= by_values.smallest * (1 + 1e-9)
    assert dense.smallest == pytest.approx(by_values.smallest, rel=1e-6)
    assert bound.smallest is None
    assert bound.smallest_high >= by_values.smallest * (1 - 1e-9)
    assert "no lower bound" in bound.verdict
    assert ls.kernel_extremes(cache, 5, dense_limit=4).smallest == 0.0


def test_relaxed_condition_along_a_path():
    model = linear(2)
    x = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    states = [{"weight": torch.tensor([[a, b]])} for a, b in ((3.0, 0.0), (0.0, 0.1), (0.0, 0.0))]
    path = pl_along(model, x, torch.zeros(2, 1), states, spectrum=True)
    assert path.ratios == [pytest.approx(4.0), pytest.approx(1.0), None]
    assert path.constant == pytest.approx(1.0)
    assert path.lambda_min == pytest.approx([1.0] * 3)
    assert path.distances[1] == pytest.approx(math.hypot(3.0, 0.1), rel=1e-6)
    assert pl_along(model, x, torch.zeros(2, 1), states, epsilon=0.1).constant == pytest.approx(4.0)
    assert pl_along(model, x, torch.zeros(2, 1), states, epsilon=1e3).constant is None
    assert pl_ratio(model, x, torch.ones(2, 1), epsilon=1e9).required is False


def test_a_transform_keeps_the_slope_squared():
    model, x, y = net(3, 1, width=64), draw(6, 3), draw(6, 1, seed=1)

    class Through(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            f = self.inner(x)
            return f + 0.5 * torch.sin(f)

    rho = float((1 + 0.5 * torch.cos(model(x).detach())).abs().min())
    low = ls.transformed_pl(pl_ratio(model, x, y).lambda_min, rho)
    assert pl_ratio(Through(), x, y).lambda_min >= low * (1 - 1e-9)
    assert rho < 1


def test_least_squares_aim_with_two():
    x, y = draw(4, 7), draw(4, 1, seed=1)
    for seed in range(3):
        model = linear(7, seed=seed)
        found = aiming(model, x, y)
        w = model.weight.detach()
        way = (x.T @ torch.linalg.solve(x @ x.T, x @ w.T - y)).T
        assert found.theta == pytest.approx(2.0, abs=1e-10)
        assert found.distance == pytest.approx(float(way.norm()), rel=1e-10)
        assert found.loss == pytest.approx(float((x @ w.T - y).square().sum()) / 8, rel=1e-12)
        assert found.growth == pytest.approx(2 * found.loss / float(way.norm()) ** 2, rel=1e-9)
        assert "Gauss-Newton" in found.surrogate


def test_aiming_at_a_given_state_is_its_definition():
    model, other, x, y = net(), net(seed=5), draw(5, 3), draw(5, 2, seed=1)
    found = aiming(model, x, y, other)
    loss = (model(x) - y).square().sum() / 10
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    pairs = zip(slopes, model.parameters(), other.parameters(), strict=True)
    product = sum(float((g * (p - q)).detach().sum()) for g, p, q in pairs)
    assert found.inner == pytest.approx(product, rel=1e-10)
    assert found.theta == pytest.approx(product / float(loss), rel=1e-10)
    final = aiming(model, x, y, "final", final=other.state_dict(), loss="half_sum")
    assert final.theta == pytest.approx(found.theta, rel=1e-12)
    assert final.inner == pytest.approx(5 * found.inner, rel=1e-12)
    assert final.surrogate.startswith("final iterate")
    away = {k: 2 * p.detach() - other.state_dict()[k] for k, p in model.named_parameters()}
    assert aiming(model, x, y, away).theta == pytest.approx(-found.theta, rel=1e-9)
    assert aiming(model, x, y, away).violated is (found.theta > 0)


def test_gauss_newton_reaches_a_solution_of_a_net():
    model, x, y = net(width=64), draw(5, 3), draw(5, 2, seed=1)
    solution = ls.gauss_newton_solution(model, x, y)
    raw = torch.func.functional_call(model, solution.weights, (x,))
    assert float((raw - y).square().sum()) < 1e-18
    assert solution.steps < 15
    theta = aiming(model, x, y).theta
    assert 1.0 < theta < 3.5
    wide = net(width=2048)
    assert abs(aiming(wide, x, y).theta - 2) < abs(theta - 2)


def test_aiming_refuses_what_has_no_solution():
    x, y = draw(6, 3), draw(6, 1, seed=1)
    with pytest.raises(ConvergenceError, match="3 parameters, 6 equations"):
        aiming(linear(3), x, y)
    with pytest.raises(InputError, match="infinity"):
        aiming(net(), draw(5, 3), torch.zeros(5, dtype=torch.long), loss="cross-entropy")
    with pytest.raises(InputError, match="train mode"):
        aiming(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), x, draw(6, 4))
    with pytest.raises(InputError, match="drops units"):
        pl_ratio(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), x, draw(6, 4))
    with pytest.raises(NumericsError, match="0/0"):
        aiming(linear(3), x, linear(3)(x).detach())
    with pytest.raises(NumericsError, match="0/0"):
        pl_ratio(linear(3), x, linear(3)(x).detach())
    with pytest.raises(InputError, match="unknown target"):
        aiming(linear(3), x, y, "nearest")
    with pytest.raises(InputError, match="final="):
        aiming(linear(3), x, y, "final")
    with pytest.raises(InputError, match="target's own"):
        aiming(linear(3), x, y, linear(3))
    with pytest.raises(InputError, match="no such entry"):
        aiming(linear(3), x, y, {"other": torch.zeros(1)})
    with pytest.raises(InputError, match="6 samples and y has 5"):
        pl_ratio(linear(3), x, y[:5])
    with pytest.raises(InputError, match="empty"):
        aiming_along(linear(3), x, y, [])
    with pytest.raises(InputError, match="empty"):
        pl_along(linear(3), x, y, [])
    assert ls.pl_ratio(linear(3), x, y, dtype=None).ratio > 0


def test_aiming_along_a_descent():
    model, x, y = net(width=64), draw(5, 3), draw(5, 2, seed=1)
    states, eta = [], 0.5 / pl_ratio(model, x, y).lambda_max
    for t in range(61):
        if t % 20 == 0:
            states.append({k: v.clone() for k, v in model.state_dict().items()})
        loss = (model(x) - y).square().sum() / 2
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p.data -= eta * g
    one = aiming_along(model, x, y, iter(states), "gauss_newton")
    model.load_state_dict(states[0])
    assert one.thetas[0] == pytest.approx(aiming(model, x, y).theta, rel=1e-9)
    assert one.smallest == min(one.thetas)
    last = aiming_along(model, x, y, states)
    assert last.thetas[-1] is None
    assert last.target_loss == pytest.approx(last.losses[-1], rel=1e-12)
    assert last.thetas[0] == pytest.approx(aiming(model, x, y, states[-1]).theta, rel=1e-12)
    assert last.clear == sum(v >= 100 * last.target_loss for v in last.losses[:-1])


def test_one_step_of_sgd_obeys_the_aiming_rate():
    x = draw(6, 4) * torch.tensor([1.0, 0.5, 0.3, 0.1], dtype=torch.float64)
    H = x.T @ x / 6
    values = torch.linalg.eigvalsh(H)
    alpha, beta = float(values[0]), float(x.square().sum(1).max())
    eye = torch.eye(4, dtype=torch.float64)
    for batch in (1, 3):
        smooth = ls.batch_smoothness(beta, float(values[-1]), batch)
        eta = ls.sgd_step(2.0, smooth)
        fourth = (x.square().sum(1)[:, None, None] * x[:, :, None] * x[:, None, :]).mean(0)
        mean = eye - 2 * eta * H + eta**2 * (fourth / batch + (batch - 1) / batch * H @ H)
        assert float(torch.linalg.eigvalsh(mean)[-1]) <= 1 - eta * alpha * (2 - smooth * eta) + 1e-12
    # equal samples: a batch is no smoother than one of them
    assert ls.batch_smoothness(3.0, 3.0, 7) == pytest.approx(3.0)
    steps = ls.iterations(1e-6, 1.0, growth=alpha, beta=beta)
    assert steps == math.ceil(math.log(1e6) * beta / alpha)
    assert ls.iterations(1.0, 0.5, growth=1, beta=1) == 0


def test_rates_refuse_bad_numbers():
    assert ls.exit_probability(5.0, 1.0) == 1.0
    for bad in (
        lambda: ls.exit_probability(1.0, 0.0),
        lambda: ls.sgd_step(-1.0, 1.0),
        lambda: ls.iterations(1e-3, 1.0, growth=1.0, beta=1.0, step=2.0),
        lambda: ls.quadratic_growth(1.0, 0.0),
        lambda: ls.uniform_pl(1.0, lipschitz=1.0, hessian=1.0, equations=1, radius=0.0),
        lambda: ls.pl_sgd_step(math.nan, 1.0, samples=1, batch=1),
    ):
        with pytest.raises(InputError):
            bad()


def test_one_step_of_sgd_obeys_the_pl_rate():
    """Worst case over residuals of the exact expectation: a generalised eigenvalue of the kernel's size."""
    x = draw(5, 8)
    for K, s in itertools.product((x @ x.T, torch.eye(5, dtype=torch.float64)), (1, 2, 8, 32)):
        beta, mu = float(K.diagonal().max()), float(torch.linalg.eigvalsh(K)[0])
        eta = ls.pl_sgd_step(mu, beta, samples=5, batch=s)
        # r+ = (I - eta K E) r, E the diagonal of counts: E[E] = s/n I, E[e_i e_j] as of a multinomial
        pairs = (K @ K) * (s * (s - 1) / 25 + torch.diag(torch.full((5,), s / 5)))
        mean = torch.eye(5, dtype=torch.float64) - 2 * eta * s / 5 * K + eta**2 * pairs
        rate = ls.pl_sgd_rate(mu, eta, samples=5, batch=s)
        assert float(torch.linalg.eigvalsh(mean)[-1]) <= rate + 1e-12
        assert rate < 1


def test_the_aiming_bound_holds_for_a_quadratic_model():
    class Bent(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(draw(3, seed=2) * 0.3)

        def forward(self, x):
            f = x @ self.w + 0.05 * (self.w**2).sum()
            return f[:, None]

    x, model = draw(2, 3), Bent()
    found = aiming(model, x, torch.zeros(2, 1))
    low = ls.aiming_bound(0.1, found.distance, found.growth)  # |H| = 0.1 exactly
    assert low <= found.theta <= 2 + (2 - low)
    assert low > 1


def test_parameters_can_be_chosen():
    model, x, y = net(), draw(5, 3), draw(5, 2, seed=1)
    found = pl_ratio(model, x, y, params="head")
    K = jacobian_kernel(model, x, params="head").reshape(10, 10)
    assert found.lambda_max == pytest.approx(float(torch.linalg.eigvalsh(K)[-1]), rel=1e-10)
    batches = [x[:2], x[2:]]
    assert pl_ratio(model, batches, y).ratio == pytest.approx(pl_ratio(model, x, y).ratio, rel=1e-12)
    labels = torch.tensor([0, 1, 1, 0, 0])
    one_hot = np.eye(2)[labels.numpy()]
    assert pl_ratio(model, x, labels).ratio == pl_ratio(model, x, one_hot).ratio


def test_float32_gradients_of_a_large_model_do_not_look_singular():
    net = nets.MLP(64, 5, width=256, depth=2, generator=torch.Generator().manual_seed(5))
    x = torch.rand(12, 64, generator=torch.Generator().manual_seed(6))
    parameters = sum(p.numel() for p in net.parameters())
    small = ls.kernel_extremes(factors(net, x), parameters)
    exact = ls.kernel_extremes(factors(net.double(), x.double()), parameters)
    assert small.rank == exact.rank == 60
    assert small.smallest == pytest.approx(exact.smallest, rel=1e-3)
    twice = ls.kernel_extremes(factors(net.float(), torch.cat([x, x[:1]])), parameters)
    assert (twice.rank, twice.smallest) == (60, 0.0)
