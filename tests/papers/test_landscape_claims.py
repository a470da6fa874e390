"""The fast claims of `landscape` and `aiming`, and what makes each of them fail."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from claims import has_verdict
from torch import nn

from wideangle import curvature
from wideangle.curvature.landscape import LandscapeRun
from wideangle.papers import _aiming_networks as networks
from wideangle.papers import _aiming_squares as squares
from wideangle.papers import _landscape_condition as condition
from wideangle.papers import _landscape_geometry as geometry
from wideangle.papers._descents import descent, slope_of, tanh_net, two_digits
from wideangle.papers._frame import Setting, SkippedError

CLAIMS = [
    (condition.identity, True),
    (condition.sgd_step_bound, True),
    (condition.relaxed, True),
    (condition.point_is_a_ball, False),
    (condition.certified_ball, True),
    (geometry.hessian_control, True),
    (geometry.under_parametrised, True),
    (geometry.random_jacobian, True),
    (geometry.codimension, True),
    (geometry.non_convex, True),
    (squares.two, True),
    (squares.one_step, True),
    (squares.complexity, True),
    (networks.lower_bound, True),
]


@pytest.mark.parametrize(("test", "holds"), CLAIMS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_fast_claims_have_the_verdict_known(setting: Setting, test, holds: bool):
    has_verdict(test(setting), holds)


def test_wrong_steps_and_bounds_are_noticed(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as wrong:
        true = condition.pl_sgd_step
        wrong.setattr(condition, "pl_sgd_step", lambda *a, **k: 60 * true(*a, **k))
        assert not condition.sgd_step_bound(Setting()).holds
    with monkeypatch.context() as wrong:
        bound = networks.aiming_bound
        wrong.setattr(networks, "aiming_bound", lambda *a, **k: 2.01 - 0.001 * (2 - bound(*a, **k)))
        assert not networks.lower_bound(Setting()).holds
    with monkeypatch.context() as wrong:
        wrong.setattr(squares, "batch_smoothness", lambda beta, top, batch: beta / batch)
        assert not squares.one_step(Setting()).holds
    with monkeypatch.context() as wrong:
        wrong.setattr(squares, "sgd_step", lambda theta, beta: theta / (2 * beta**1.5))
        assert not squares.complexity(Setting()).holds
    with monkeypatch.context() as wrong:
        measured = condition.pl_ratio
        wrong.setattr(condition, "pl_ratio", lambda *a, **k: measured(*a, **k, loss="half_mean"))
        assert not condition.identity(Setting()).holds


def test_other_draws_are_noticed(monkeypatch: pytest.MonkeyPatch):
    true = torch.randn
    with monkeypatch.context() as wrong:
        wrong.setattr(torch, "randn", lambda *shape, **k: true(*shape, **k) ** 3)
        assert not geometry.codimension(Setting()).holds
    with monkeypatch.context() as wrong:
        # nearly equal rows: a condition number the bound does not have
        wrong.setattr(torch, "randn", lambda *shape, **k: 1 + 1e-3 * true(*shape, **k))
        assert not geometry.random_jacobian(Setting()).holds


def test_times_from_the_operator_are_those_of_the_recursion():
    x = squares._problem(6, 3, 20.0, 0)
    assert torch.linalg.eigvalsh(x.T @ x / 6).tolist() == pytest.approx([0.05, 20**-0.5, 1.0])
    eta, start = 0.05, torch.eye(3, dtype=torch.float64)
    error, t = start.clone(), 0
    steps = torch.eye(3, dtype=torch.float64) - eta * x[:, :, None] * x[:, None, :]
    while float(error.trace()) > 1e-6 * 3:
        error, t = (steps @ error @ steps.mT).mean(0), t + 1
    assert squares._first_below(squares._operator(x, eta), start.reshape(-1), 1e-6) == t


def test_descents_stop_and_keep_their_states():
    x, y = two_digits(Setting(), 6, 0)
    assert x.norm(dim=1).tolist() == pytest.approx([8.0] * 6)
    assert set(y.flatten().tolist()) <= {-1.0, 1.0}
    net = tanh_net(64, 32, 0)
    run = descent(net, x, y, 0.05, 200, 5, until=0.1)
    assert run.losses[-1] <= 0.1 < run.losses[-2]
    assert run.times[0] == 0
    assert run.times[-1] == len(run.losses) - 1
    assert torch.equal(run.states[-1]["head.weight"], net.head.weight)
    wild = descent(tanh_net(64, 32, 0), x, y, 1e200, 50, 5)
    assert not math.isfinite(wild.losses[-1])
    assert slope_of([1.0, 10.0, 100.0], [3.0, 30.0, 300.0]) == pytest.approx(1.0)
    with pytest.raises(SkippedError, match="zeros and ones"):
        two_digits(Setting(), 10**6, 0)


def test_kernel_change_and_norm_share_one_table(monkeypatch: pytest.MonkeyPatch):
    """The verdicts follow the numbers of the table, made here."""

    def table(slope: float, change: float, kept: float):
        rows = [[m**slope, m**change, 1.0, kept if m > 20 else 0.2] for m in geometry.WIDTHS]
        return lambda setting: ([], np.array([rows] * 5), [])

    for slope, change, kept, norm, kernel in (
        (-0.5, -0.5, 1.0, True, True),
        (-0.4, -0.9, 1.0, True, False),
        (-0.1, -0.5, 1.0, False, True),
        (-0.5, -0.5, 0.8, False, True),
    ):
        monkeypatch.setattr(geometry, "_scaling", table(slope, change, kept))
        assert geometry.hessian_scaling(Setting()).holds is norm
        assert geometry.kernel_scaling(Setting()).holds is kernel


def test_one_width_measures_what_it_says():
    x, y = two_digits(Setting(), 8, 0)
    few = Setting()
    curvature_norm, change, first, least = geometry._one_width(few, x, y, 40, 0)
    net = tanh_net(64, 40, 0)
    assert curvature_norm == pytest.approx(curvature.hessian_norm(net, x).value, rel=0.02)
    assert first == pytest.approx(curvature.pl_ratio(net, x, y).lambda_min)
    assert least <= first
    assert change > 0


def test_lstm_reports_what_it_finds(monkeypatch: pytest.MonkeyPatch):
    text = "the aiming condition asks that the gradient points to the solutions; " * 4
    draws = torch.Generator().manual_seed(0)
    x, y, characters = networks.windows(text, 5, 7, draws)
    letters = sorted(set(text))
    assert characters == len(letters)
    for row, label in zip(x, y, strict=True):
        word = "".join(letters[k] for k in row.tolist())
        assert word + letters[int(label)] in text
    net = networks.CharacterLSTM(characters, 4, draws)
    assert net(x).shape == (5, characters)
    with pytest.raises(SkippedError):
        networks.lstm(Setting())
    monkeypatch.setattr(Setting, "pick", lambda self, smoke, cpu, paper: {64: 6, 300: 300}[smoke])
    has_verdict(networks.lstm_on(Setting(), text), True)
    monkeypatch.setattr(Setting, "pick", lambda self, smoke, cpu, paper: {64: 6, 300: 5}[smoke])
    with pytest.raises(SkippedError, match="no look counts for Adam, seed 0; momentum, seed 0"):
        networks.lstm_on(Setting(), text)


@pytest.mark.parametrize(("thetas", "holds"), [((0.5, 0.3), True), ((-0.2, 0.3), False), ((0.0, 0.3), False)])
def test_a_violation_along_the_lstm_is_reported(monkeypatch: pytest.MonkeyPatch, thetas, holds: bool):
    """The trajectory is given: two looks that count, a third one below the margin, the last one."""
    run = LandscapeRun(
        steps=[0, 10, 20, 30],
        losses=[1.0, 0.5, 0.01, 1e-3],
        pl_ratios=[1.0, 1.0, 1.0, 1.0],
        thetas=[*thetas, -5.0, None],
        smallest_theta=min(thetas),
        clear=2,
    )

    class Monitor:
        result = run
        __init__ = __exit__ = lambda self, *args, **options: None
        __enter__ = lambda self: self  # noqa: E731
        update = lambda self: None  # noqa: E731

    monkeypatch.setattr(networks, "LandscapeMonitor", Monitor)
    monkeypatch.setattr(Setting, "pick", lambda self, smoke, cpu, paper: {64: 6, 300: 1}[smoke])
    found = networks.lstm_on(Setting(), "some text of a few letters; " * 3)
    has_verdict(found, holds)
    assert [row[4] for row in found.tables[0].cells] == [0 if holds else 1] * 2
    assert found.tables[0].cells[0][6] == ("" if holds else "0 to 0")


def test_a_way_longer_than_the_radius_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Setting, "pick", lambda self, smoke, cpu, paper: {400: 100, 1500: 200}[smoke])
    assert condition.descent_rate(Setting()).holds
    radius = condition.solution_radius
    monkeypatch.setattr(condition, "solution_radius", lambda *a, **k: 1e-4 * radius(*a, **k))
    assert not condition.descent_rate(Setting()).holds


def test_the_relaxed_condition_gets_the_steps_of_its_bound(monkeypatch: pytest.MonkeyPatch):
    def few(self, smoke, cpu, paper):
        return {4000: 10, 100_000: limit}[smoke]

    monkeypatch.setattr(Setting, "pick", few)
    limit = 100_000
    assert condition.relaxed(Setting()).holds  # 10 steps are not enough, those of the bound are
    limit = 20
    with pytest.raises(SkippedError, match="seed 0: epsilon is not met in 10 steps"):
        condition.relaxed(Setting())
    limit, path = 100_000, condition.pl_along
    monkeypatch.setattr(
        condition, "pl_along", lambda *a, **k: replace(path(*a, **k), constant=20 * path(*a, **k).constant)
    )
    assert not condition.relaxed(Setting()).holds


def test_a_singular_control_is_noticed(monkeypatch: pytest.MonkeyPatch):
    true = geometry.two_digits

    def twins(*args):
        x, y = true(*args)
        return torch.cat([x[:20], x[:20]]), y

    monkeypatch.setattr(geometry, "two_digits", twins)
    assert not geometry.under_parametrised(Setting()).holds


def test_aiming_on_a_convex_loss_does_not_count(monkeypatch: pytest.MonkeyPatch):
    x, y = two_digits(Setting(), 6, 0)
    assert networks._lowest(nn.Linear(64, 1, bias=False).double(), x, y) > -1e-9
    net = tanh_net(64, 5, 0)
    named = {name: p.detach() for name, p in net.named_parameters()}
    flat = torch.cat([p.flatten() for p in named.values()])
    exact = float(torch.linalg.eigvalsh(geometry._loss_hessian(net, flat, x, y))[0])
    assert networks._lowest(net, x, y) == pytest.approx(exact, rel=1e-2)
    assert exact < 0

    for lowest, holds in ((-0.1, True), (0.0, False)):

        def made(net, x, y, steps, lowest=lowest):
            width = net.hidden[0].weight.shape[0]
            return [2.0, 2.1], [2.0, 2 + 10 / width], [lowest, -0.1]

        monkeypatch.setattr(networks, "_thetas", made)
        assert networks.against_width(Setting()).holds is holds


def test_runs_that_leave_the_tube_between_the_looks_are_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Setting, "pick", lambda self, smoke, cpu, paper: {400: 400, 12: 6, 600: 200}[smoke])
    has_verdict(networks.sgd_on_a_net(Setting()), True)
    true = networks._sgd

    def far(*args):
        states, most = true(*args)
        return states, 100 * most

    def near(*args):
        return true(*args)[0], 0.0

    for wrong in (far, near):  # every run leaves; a tube that nothing leaves
        monkeypatch.setattr(networks, "_sgd", wrong)
        assert not networks.sgd_on_a_net(Setting()).holds


def test_sgd_is_followed_at_every_step():
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(net.weight)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    home = {"weight": torch.zeros(1, 1, dtype=torch.float64)}
    draws = torch.Generator().manual_seed(0)
    states, far = networks._sgd(net, x, y, 2.5, [0, 3], draws, home)  # w <- -1.5 w
    assert [float(state["weight"]) for state in states] == pytest.approx([1.0, -(1.5**3)])
    assert far == pytest.approx(1.5**3)
    assert networks._sgd(net, x, y, 1e200, [0, 5], draws, home)[1] == math.inf


def test_sgd_far_slower_than_descent_is_noticed(monkeypatch: pytest.MonkeyPatch):
    step = squares.sgd_step
    monkeypatch.setattr(squares, "sgd_step", lambda theta, beta: 0.1 * step(theta, beta))
    monkeypatch.setattr(squares, "iterations", lambda *args, **named: math.inf)
    found = squares.complexity(Setting())  # slopes as before, but 20 to 70 times the steps
    assert not found.holds


def test_thetas_of_a_linear_model_are_two():
    x, y = two_digits(Setting(), 6, 0)
    net = nn.Linear(64, 1, bias=False).double()
    final, nearest, lowest = networks._thetas(net, x, y, 3000)
    assert min(lowest) > -1e-9  # convex
    assert nearest == pytest.approx([2.0] * len(nearest), abs=1e-6)
    assert all(1.8 <= theta <= 2.2 for theta in final)
    assert final


@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        condition.descent_rate,
        condition.output_transform,
        geometry.hessian_scaling,
        networks.against_width,
        networks.sgd_on_a_net,
        networks.solution_is_near,
    ],
)
def test_slow_claims_hold(setting: Setting, test):
    found = test(setting)
    assert found.holds, found.measured
