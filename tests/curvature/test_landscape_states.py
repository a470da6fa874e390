"""PL* and aiming where part of the model moves, in short types, and where Gauss-Newton lands far away."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from wideangle import nets
from wideangle.curvature import LandscapeMonitor, aiming, aiming_along, pl_along, pl_ratio
from wideangle.curvature import landscape as ls
from wideangle.errors import ConvergenceError, InputError


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(width: int = 8) -> nn.Module:
    gen = torch.Generator().manual_seed(0)
    return nets.MLP(3, 2, width=width, depth=2, activation="tanh", generator=gen).double()


class Shifted(nn.Module):
    """A linear model behind a buffer, with a layer that starts frozen."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_(draw(*p.shape, seed=k) / 2)
        self.first.requires_grad_(False)
        self.register_buffer("shift", torch.zeros(4, dtype=torch.float64), persistent=False)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x)) + self.shift)


def trained(model: Shifted, x, y, monitor=None) -> list[nn.Module]:
    """Take steps with the first layer unfrozen and the buffer moving; return the model after each."""
    models = [copy.deepcopy(model)]
    model.first.requires_grad_(True)
    for _ in range(4):
        loss = (model(x) - y).square().mean()
        params = list(model.parameters())
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            p.data -= 0.2 * g
        model.shift.add_(0.1)
        models.append(copy.deepcopy(model))
        if monitor is not None:
            monitor.update()
    return models


def by_hand(model: nn.Module, x, y) -> tuple[float, list[torch.Tensor]]:
    """Half the mean squared loss and its gradient by the head alone."""
    loss = (model(x) - y).square().sum() / (2 * len(x))
    head = [p.requires_grad_() for p in model.head.parameters()]
    return float(loss.detach()), [g.detach() for g in torch.autograd.grad(loss, head)]


def test_all_of_every_state_is_measured_and_the_named_parameters_move():
    x, y, model = draw(6, 3), draw(6, 1, seed=7), Shifted()
    outer = copy.deepcopy(model)
    monitor = LandscapeMonitor(model, x, y, every=1, spectrum=True, margin=0.0)
    models = trained(model, x, y, monitor)
    found = monitor.finish()
    path = pl_along(outer, x, y, models, loss="half_mean", spectrum=True)
    along = aiming_along(outer, x, y, models, margin=0.0)
    heads = [[p.detach() for p in m.head.parameters()] for m in models]
    for k, one in enumerate(models):
        loss, gradient = by_hand(one, x, y)
        square = sum(float(g.square().sum()) for g in gradient)
        way = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(heads[k], heads[0], strict=True)))
        for record in (found.losses, path.losses, along.losses):
            assert record[k] == pytest.approx(loss, rel=1e-10)
        for record in (found.pl_ratios, path.ratios):
            assert record[k] == pytest.approx(square / (2 * loss), rel=1e-9)
        for record in (found.distances, path.distances):
            assert record[k] == pytest.approx(way, rel=1e-10)
        # five numbers, six equations: rank deficient however the head moves
        assert found.lambda_min[k] == path.lambda_min[k] == 0.0
        if k == len(models) - 1:
            continue
        product = sum(
            float((g * (a - b)).sum()) for g, a, b in zip(gradient, heads[k], heads[-1], strict=True)
        )
        for record in (found.thetas, along.thetas):
            assert record[k] == pytest.approx(product / loss, rel=1e-9)
    assert along.target_loss == pytest.approx(by_hand(models[-1], x, y)[0], rel=1e-10)
    assert float(outer.shift.abs().max()) == 0.0


def test_params_is_a_subset_of_what_moves():
    x, y = draw(5, 3), draw(5, 2, seed=1)
    start, end = net(64), net(64)
    with torch.no_grad():
        for k, p in enumerate(end.parameters()):
            p += 0.1 * draw(*p.shape, seed=k + 1)
    path = pl_along(start, x, y, [start, end], params="head", loss="half_mean", spectrum=True)
    one = pl_ratio(end, x, y, params="head", loss="half_mean")
    assert path.losses[1] == pytest.approx(one.loss, rel=1e-12)
    assert path.ratios[1] == pytest.approx(one.ratio, rel=1e-10)
    assert path.lambda_min[1] == pytest.approx(one.lambda_min, rel=1e-8)
    found = aiming(start, x, y, "final", final=end, params="head")
    assert found.target_loss == pytest.approx(one.loss, rel=1e-12)
    nearest = aiming_along(start, x, y, [start, end], "gauss_newton", params="hidden")
    again = aiming(end, x, y, params="hidden")
    assert nearest.thetas[1] == pytest.approx(again.theta, rel=1e-8)


def test_what_a_state_lacks_is_as_in_the_model_whatever_came_before():
    x, y, model = draw(6, 3), draw(6, 1, seed=7), Shifted()
    head = {n: p for n, p in model.state_dict().items() if n.startswith("head")}
    other = copy.deepcopy(model)
    other.first.weight.data += 1.0
    other.shift += 1.0
    losses = pl_along(model, x, y, [head, other, head]).losses
    assert losses[0] == losses[2] != losses[1]
    with pytest.raises(InputError, match=r"'first\.weight'"):
        pl_along(model, x, y, [{**head, "first.weight": torch.zeros(1)}])


def test_live_models_are_copied_as_they_pass():
    x, y, model = draw(6, 3), draw(6, 2, seed=7), net()

    def training():
        for _ in range(3):
            yield model
            with torch.no_grad():
                model.head.weight += 0.1

    found = aiming_along(net(), x, y, training(), margin=0.0)
    assert len(set(found.losses)) == 3
    assert found.thetas[0] is not None


@pytest.mark.parametrize("offset", [1.0, 1e-3])
def test_float32_models_reach_solutions_in_their_own_type(offset):
    model = net(64).float()
    x = draw(5, 3).float()
    # targets near the outputs leave a loss that float32 cannot take down by 1e-10
    y = model(x).detach() + offset * draw(5, 2, seed=1).float()
    solution = ls.gauss_newton_solution(model, x, y, dtype=None)
    exact = ls.gauss_newton_solution(model, x, y)
    assert solution.distance == pytest.approx(exact.distance, rel=1e-2)
    if offset == 1.0:
        short, long = aiming(model, x, y, dtype=None), aiming(model, x, y)
        assert short.theta == pytest.approx(long.theta, rel=1e-3)
        along = aiming_along(model, x, y, [model], "gauss_newton", dtype=None)
        assert along.thetas == [pytest.approx(short.theta)]
    with pytest.raises(ConvergenceError, match="float64"):
        ls.gauss_newton_solution(model, x, y, dtype=None, tolerance=1e-20, max_steps=8)


def narrow(seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A net of 50 parameters and 10 equations."""
    gen = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    with torch.no_grad():
        for layer, bound in ((model[0], 3**-0.5), (model[2], 8**-0.5)):
            layer.weight.uniform_(-bound, bound, generator=gen)
            layer.bias.uniform_(-bound, bound, generator=gen)
    x, y = (torch.randn(5, k, generator=gen, dtype=torch.float64) for k in (3, 2))
    return model.double(), x, y


def test_a_solution_far_away_is_named():
    model, x, y = narrow(30)
    found = aiming(model, x, y)
    # one step of the linear expansion, written out
    rows = []
    for f in model(x).reshape(-1):
        rows.append(
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(f, list(model.parameters()), retain_graph=True)]
            )
        )
    move = torch.linalg.pinv(torch.stack(rows)) @ (model(x) - y).detach().reshape(-1)
    assert found.first_step == pytest.approx(float(move.norm()), rel=1e-8)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, m in zip(moved.parameters(), move.split([p.numel() for p in moved.parameters()]), strict=True):
            p -= m.view(p.shape)
    left = float(((moved(x) - y).square().sum() / (model(x) - y).square().sum()).detach())
    assert found.first_loss == pytest.approx(left, rel=1e-6)
    assert found.theta == pytest.approx(0.8005, abs=1e-3)
    assert found.distance > 7
    assert found.far
    along = aiming_along(model, x, y, [model], "gauss_newton")
    assert (along.far, along.clear, along.smallest) == ([0], 0, None)
    assert along.first_steps == [pytest.approx(found.first_step)]
    assert along.first_losses == [pytest.approx(left, rel=1e-6)]
    # the linear expansion holds in a wide net: near
    wide = aiming(net(1024), draw(5, 3), draw(5, 2, seed=1))
    assert not wide.far
    assert wide.first_loss < 0.05
    assert wide.distance == pytest.approx(wide.first_step, rel=0.1)
    final = aiming(model, x, y, moved)
    assert (final.first_step, final.first_loss, final.far) == (None, None, False)


class Rise(nn.Module):
    """f = a w + w^3 - 4 w^2: from w = 0 the first step for y = -1 is 1/a long."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope, self.w = slope, nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return x * (self.slope * self.w + self.w**3 - 4 * self.w**2)


def test_far_solutions_are_no_violations():
    one = torch.ones(1, 1, dtype=torch.float64)
    seen = 0
    for slope in torch.linspace(-6, 6, 49, dtype=torch.float64).tolist():
        try:
            found = aiming(Rise(slope), one, one * 1.5)
        except ConvergenceError:
            continue
        assert found.far == (found.distance > 2 * found.first_step or found.first_loss > 0.25)
        if found.theta <= 0:
            seen += 1
            assert found.violated is not found.far
            along = aiming_along(Rise(slope), one, one * 1.5, [Rise(slope)], "gauss_newton")
            assert along.violations == ([] if found.far else [0])
    assert seen >= 3
    # a given target is still judged
    model = Rise(1.0)
    assert aiming(model, one, -one, {"w": torch.tensor([1.0])}).violated


@pytest.mark.parametrize("margin", [-1.0, math.nan, math.inf])
def test_margins_that_mean_nothing_are_refused(margin):
    x, y = draw(5, 3), draw(5, 2, seed=1)
    with pytest.raises(InputError, match="margin="):
        aiming_along(net(), x, y, [net()], margin=margin)
    with pytest.raises(InputError, match="margin="):
        LandscapeMonitor(net(), x, y, margin=margin)
    for call in (aiming, ls.gauss_newton_solution):
        with pytest.raises(InputError, match="tolerance="):
            call(net(), x, y, tolerance=-1.0)


def test_sgd_takes_up_to_n_times_the_steps_of_descent():
    """n equal directions: beta / beta_L = n, and the bound of SGD is that much longer."""
    x = torch.eye(8, dtype=torch.float64)
    mean = x.T @ x / 8
    alpha, largest = 1 / 8, float(torch.linalg.eigvalsh(mean)[-1])
    beta = float(x.square().sum(1).max())
    many = ls.iterations(1e-6, 1.0, growth=alpha, beta=beta)
    few = ls.iterations(1e-6, 1.0, growth=alpha, beta=largest)
    assert beta / largest == pytest.approx(8)
    assert many / few == pytest.approx(8, rel=0.1)
    for text in (ls.aiming.__doc__, ls.iterations.__doc__):
        assert "beta / beta_L times the steps" in " ".join(text.split())
