"""The fast claims of the paper run `dag`, what they measure against closed forms, and what makes them fail."""

from __future__ import annotations

import math

import pytest
import torch
from claims import has_verdict

from wideangle.curvature.scaling import width_scaling
from wideangle.nets import DAG
from wideangle.papers import _dag_architectures as architectures
from wideangle.papers import _dag_nets as nets
from wideangle.papers import _dag_theory as theory
from wideangle.papers._frame import Setting

CLAIMS = [
    (architectures.narrow_layer, True),
    (architectures.narrow_first, True),
    (architectures.narrow_output, True),
    (architectures.random_graph, True),
    (architectures.width_as_printed, False),
    (architectures.small_width_forbids, False),
    (theory.first_layer, True),
    (theory.gap_falls, True),
    (theory.pl_with_nonlinear_output, True),
]


@pytest.mark.parametrize(("test", "holds"), CLAIMS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_fast_claims_have_the_verdict_known(setting: Setting, test, holds: bool):
    has_verdict(test(setting), holds)


def test_the_nets_have_the_in_degrees_of_their_names():
    assert {name: make(32, 0).width() for name, (make, _) in nets.ROWS.items()} == {
        "[m, m]": 32,
        "[m, m, m], dense": 32,
        "[m, 4, m]": 4,
        "[m, 4, m], dense skips": 32,
        "random, in-degree m": 32,
        "random, in-degree m to m^1.5": pytest.approx(32, abs=12),
        "[4, m]": 4,
        "[m, 4]": 4,
        "[m, m], one neuron of in-degree 2": 2,
    }
    assert nets.one_thin(32, 0).thin_neurons(32) == {42: 2}
    everywhere = nets.thin_everywhere(32, 0).in_degrees()
    assert sorted(set(everywhere.values())) == [4, 74]


def test_the_gradient_bound_by_hand():
    assert theory.gradient_bound(1, 0.5, 3) == pytest.approx(math.sqrt(1 / 8))
    assert theory.gradient_bound(1, 1.0, 5) == 1
    assert theory.gradient_bound(2, 1.5, 3) == 1
    assert theory.gradient_bound(2, 0.5, 2) == pytest.approx(math.sqrt(1 / 8))  # exponents 1 and 1 + 2


def test_the_remainder_of_a_quadratic_net_is_known():
    """f = v w x / (sqrt(1) sqrt(1)): the Hessian norm is |x|, the gap along the gradient R^2 |x| u_v u_w."""
    net = DAG([("x", "a"), ("a", "y")], activation="identity").double()
    with torch.no_grad():
        for stage in net.stages:
            stage.weight.fill_(1.0)
    x = torch.full((1, 1), 2.0, dtype=torch.float64)
    gap, bound = theory._remainder(net, x, 3.0, 3)
    assert gap == pytest.approx(9 * 2 * 0.5)
    assert bound == pytest.approx(9 / 2 * 2, rel=1e-6)
    assert theory._gap(net, x) == pytest.approx(9)


def test_a_bound_that_is_none_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(theory, "kernel_change_bound", lambda *args: torch.full((2, 2), 1e-6).numpy())
    assert not theory.kernel_on_ball(Setting()).holds
    monkeypatch.setattr(nets, "norm", lambda *args: 1e-3)
    assert not theory.remainder_bound(Setting()).holds


def test_constants_that_do_not_fall_and_steps_too_long_are_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nets, "norm", lambda net, x, *rest: 1.0)
    assert not architectures.random_graph(Setting()).holds
    assert not architectures.narrow_layer(Setting()).holds  # its control stays too
    true = theory._kernel
    monkeypatch.setattr(theory, "_kernel", lambda net, x: 3 * true(net, x))
    assert not theory.pl_with_nonlinear_output(Setting()).holds


def test_controls_that_do_not_stay_are_noticed(monkeypatch: pytest.MonkeyPatch):
    """The net with a narrow layer shall not fall and not grow either."""
    falling, steps = {"[m, m]": -0.5, "random, in-degree m": -0.5}, {0.0: True, 0.5: False, -0.22: False}
    for control, holds in steps.items():
        slopes = {**falling, "[m, 4, m]": control}

        def made(setting, name, factory, columns, metric, drawn=None, slopes=slopes):
            slope = slopes[name.split(", R")[0].removesuffix(", gap")]
            return width_scaling(lambda m, s: Fixed(m**slope), columns, lambda net: net.value, 6, jobs=1)

        monkeypatch.setattr(nets, "scaling", made)
        assert theory.ball(Setting()).holds is holds
        assert theory.gap_falls(Setting()).holds is holds


class Fixed(torch.nn.Module):
    """A net of a known value."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value


def test_a_kernel_that_stays_is_no_descent_without_linearity(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(theory, "_bent", nets.fcn)
    assert not theory.pl_with_nonlinear_output(Setting()).holds
