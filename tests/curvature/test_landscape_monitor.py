"""The monitor of PL* and aiming in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wideangle import nets
from wideangle.curvature import LandscapeMonitor, aiming_along, pl_along
from wideangle.errors import InputError
from wideangle.kernel import jacobian


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


def test_monitor_in_a_plain_loop(tmp_path):
    model, x, y = net(width=64).float(), draw(5, 3).float(), draw(5, 2, seed=1).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    monitor = LandscapeMonitor(model, x, y, every=4, spectrum=True, keep=4, folder=tmp_path, threshold=1e9)
    states = [{k: v.clone() for k, v in model.state_dict().items()}]
    for step in range(1, 41):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        monitor.update()
        if step % 4 == 0:
            states.append({k: v.clone() for k, v in model.state_dict().items()})
    assert 2 <= len(list(tmp_path.iterdir())) <= 4
    found = monitor.finish()
    assert monitor.finish() is found
    assert list(tmp_path.iterdir()) == []
    assert found.steps == list(range(0, 41, 4))
    path = pl_along(model, x, y, states, spectrum=True, loss="half_mean")
    assert found.losses == pytest.approx(path.losses, rel=1e-9)
    assert found.pl_ratios == pytest.approx(path.ratios, rel=1e-9)
    assert found.lambda_min == pytest.approx(path.lambda_min, rel=1e-9)
    assert found.distances == pytest.approx(path.distances, rel=1e-9)
    assert found.constant == pytest.approx(path.constant)
    thetas = aiming_along(model, x, y, states).thetas
    kept = [k for k, theta in enumerate(found.thetas) if theta is not None]
    assert kept == [0, 4, 8]
    assert [found.thetas[k] for k in kept] == pytest.approx([thetas[k] for k in kept], rel=1e-9)
    assert len([v for v in found.violations if "PL* ratio" in v]) == 11
    assert type(found).from_json(found.to_json()) == found


class Square(nn.Module):
    """f = w^2: with the target 1 there are two solutions, 1 and -1."""

    def __init__(self, w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

    def forward(self, x):
        return x * self.w**2


def test_monitor_reports_violations_and_a_run_that_diverges():
    one = torch.ones(1, 1, dtype=torch.float64)
    with LandscapeMonitor(Square(0.2), one, one, every=1) as monitor:
        for w, step in ((0.1, 7), (-1.0, 9)):  # the gradients pointed to the other solution
            monitor._model.w.data.fill_(w)
            monitor.update(step)
    found = monitor.result
    assert found.steps == [0, 7, 9]
    theta = [4 * w * (w + 1) / (w**2 - 1) for w in (0.2, 0.1)]  # 2 w r (w + 1) / (r^2 / 2)
    assert found.thetas == [pytest.approx(theta[0]), pytest.approx(theta[1]), None]
    assert found.smallest_theta == pytest.approx(theta[0])
    assert [v.split(":")[0] for v in found.violations] == ["step 0", "step 7"]
    assert found.clear == 2
    states = [Square(w) for w in (0.2, 0.1, -1.0)]
    assert aiming_along(Square(0.2), one, one, states).violations == [0, 1]
    # a target that is no solution decides nothing
    blind = aiming_along(Square(0.2), one, one, [*states[:2], Square(-0.7)])
    assert (blind.clear, blind.smallest, blind.violations) == (0, None, [])
    assert blind.thetas[0] < 0
    x, goal = torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    model = linear(2)
    monitor = LandscapeMonitor(model, x, goal, every=1)
    with torch.no_grad():
        model.weight.fill_(math.inf)
    monitor.update()
    monitor.update()
    stopped = monitor.finish()
    assert stopped.steps == [0]
    assert "step 1" in stopped.violations[0]
    assert len(stopped.violations) == 1


def test_monitor_sees_lambda_min_fall():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1)
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[2].weight.fill_(2.0)
    monitor = LandscapeMonitor(model, x, y, every=1, spectrum=True)
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[2].weight.fill_(0.1)
    monitor.update()
    found = monitor.finish()
    J = jacobian(model, x).reshape(-1)
    assert found.lambda_min[1] == pytest.approx(float(J @ J))
    assert any("lambda_min fell" in v for v in found.violations)


def test_refusals_of_the_monitor():
    x, y = draw(4, 3), draw(4, 1)
    with pytest.raises(InputError, match="every=0"):
        LandscapeMonitor(linear(3), x, y, every=0)
    with pytest.raises(InputError, match="train mode"):
        LandscapeMonitor(nn.Sequential(nn.BatchNorm1d(3), linear(3)), x, y)
    model = linear(3)
    model.weight.data.fill_(math.nan)
    with pytest.raises(InputError, match="non-finite"):
        LandscapeMonitor(model, x, y)
