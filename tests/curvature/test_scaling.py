"""Width scaling: the slope, its interval and verdict, and the file that keeps finished cells."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from wideangle import nets
from wideangle.curvature import kernel_change, linearity_gap
from wideangle.curvature._sweep import descent
from wideangle.curvature.scaling import WidthScaling, _fitted, width_scaling
from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.kernel import tangent_kernel
from wideangle.seeds import generator

WIDTHS = [16, 64, 256]


class Sized(nn.Module):
    """A model that is nothing but a width and a seed."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        self.width, self.seed = width, seed


def power(exponent: float, noise: float = 0.0):
    def metric(model) -> float:
        drawn = torch.randn(1, generator=generator(model.seed, "noise", model.width), dtype=torch.float64)
        return 3.0 * model.width**exponent * math.exp(noise * float(drawn))

    return metric


@pytest.mark.parametrize(
    ("exponent", "verdict"),
    [
        (-0.5, "transitions"),
        (-1.0, "transitions"),
        (-0.26, "transitions"),
        (-0.24, "unclear"),
        (-0.21, "unclear"),
        (-0.19, "does not"),
        (0.0, "does not"),
        (0.6, "does not"),
    ],
)
@pytest.mark.parametrize("seeds", [2, 7])
def test_exact_power_laws(exponent: float, verdict: str, seeds: int):
    found = width_scaling(Sized, [64, 16, 256], power(exponent), seeds, jobs=1)
    assert found.slope == pytest.approx(exponent, abs=1e-12)
    assert found.interval == pytest.approx((exponent, exponent), abs=1e-7)
    assert found.constant == pytest.approx(3.0)
    assert found.verdict == verdict
    assert found.widths == WIDTHS
    assert found.values == pytest.approx(np.array([[3.0 * w**exponent for w in WIDTHS]] * seeds))


def test_the_slope_is_least_squares_and_the_interval_the_textbook_one():
    from scipy.stats import linregress, t

    found = width_scaling(Sized, WIDTHS, power(-0.4, 0.3), 4, jobs=1)
    logs = np.log(np.tile(WIDTHS, 4)), np.log(found.values.ravel())
    line = linregress(*logs)
    assert found.slope == pytest.approx(line.slope)
    assert found.constant == pytest.approx(math.exp(line.intercept))
    reach = t.ppf(0.975, 10) * line.stderr
    assert found.interval == pytest.approx((line.slope - reach, line.slope + reach))
    assert found.method == "t-interval of the regression"


@pytest.mark.parametrize("seeds", [2, 3, 6, 10])
def test_intervals_cover_the_true_slope(seeds: int):
    draws = np.random.default_rng(seeds)
    widths = [16, 32, 64, 128]
    inside = 0
    for _ in range(300):
        logs = -0.5 * np.log(widths) + 0.3 * draws.standard_normal((seeds, 4))
        low, high = _fitted(widths, list(range(seeds)), np.exp(logs), "noise", 0.0).interval
        inside += low < -0.5 < high
    assert 0.90 < inside / 300 < 0.99


def test_noise_without_a_slope_is_never_called_a_transition():
    found = width_scaling(Sized, WIDTHS, power(0.0, 0.1), 6, jobs=1)
    assert found.verdict == "does not"
    assert found.method == "bootstrap over seeds"
    low, high = found.interval
    assert -0.1 < low < found.slope < high < 0.1
    loud = width_scaling(Sized, WIDTHS, power(-0.5, 2.0), 2, jobs=1)
    assert loud.verdict == "unclear"


def test_two_points_have_no_interval():
    found = width_scaling(Sized, [16, 64], power(-0.5), 1, jobs=1)
    assert found.interval == (-math.inf, math.inf)
    assert found.verdict == "unclear"
    assert "-inf to inf" in str(found)


def two_layer_norm(model: nets.MLP, s: float = 1.0) -> float:
    """The exact Hessian norm of (1/sqrt(m)) sum v_i tanh(w_i . x / sqrt(d)) at x = (1, ..., 1)."""
    d = model.in_features
    w, v = model.hidden[0].weight.detach(), model.head.weight.detach()[0]
    z = w.sum(1) / math.sqrt(d)
    slope = 1 - z.tanh() ** 2
    a, b = -2 * v * z.tanh() * slope * s**2, slope * s
    root = (a**2 + 4 * b**2).sqrt()
    return float(torch.maximum((a + root).abs(), (a - root).abs()).max()) / 2 / math.sqrt(len(v))


def tanh_net(width: int, seed: int) -> nets.MLP:
    draws = generator(seed, "test", width)
    return nets.MLP(10, 1, width=width, depth=1, activation="tanh", gain=False, generator=draws).double()


def test_a_real_two_layer_net_becomes_linear():
    found = width_scaling(tanh_net, [32, 64, 128, 256, 512], two_layer_norm, 6, jobs=1)
    assert -0.5 < found.slope < -0.35  # max |v| adds sqrt(log m) to m^(-1/2)
    assert found.verdict == "transitions"
    assert found.metric == "two_layer_norm"


def test_workers_measure_the_same_with_closures_and_lambdas():
    root = 5
    factory = lambda width, seed: tanh_net(width, seed + root)  # noqa: E731
    here = width_scaling(factory, [8, 16], lambda m: two_layer_norm(m), 2, jobs=1)
    there = width_scaling(factory, [8, 16], lambda m: two_layer_norm(m), 2, jobs=2)
    assert np.array_equal(here.values, there.values)
    assert here.metric == "metric"


def test_named_metrics_measure_what_their_functions_do():
    x = torch.ones(2, 10, dtype=torch.float64)
    found = width_scaling(tanh_net, [16, 256], "linearity_gap", 2, x=x, jobs=1)
    assert found.values[1, 1] == linearity_gap(tanh_net(256, 1), x).relative
    assert found.slope < -0.5
    norms = width_scaling(tanh_net, [16, 64], "hessian_norm", 1, x=x[:1], jobs=1)
    assert norms.values[0] == pytest.approx([two_layer_norm(tanh_net(w, 0)) for w in (16, 64)], rel=1e-4)


def test_the_kernel_change_is_that_of_gradient_descent():
    x = torch.randn(4, 10, generator=generator(0, "x"), dtype=torch.float64)
    y = torch.tensor([[0.5], [-0.5], [0.5], [-0.5]], dtype=torch.float64)
    model = tanh_net(64, 0)
    before = copy.deepcopy(model.state_dict())
    states = descent(model, x, y)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    twin = tanh_net(64, 0)
    step = 1 / torch.linalg.eigvalsh(tangent_kernel(twin, x, outputs=0)).max()
    for number in range(1, 5):
        loss = 0.5 * (twin(x) - y).square().sum()
        twin.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in twin.parameters():
                weight -= step * weight.grad
        if number in (1, 2, 4):
            kept = states[number.bit_length() - 1]
            assert torch.allclose(kept["head.weight"], twin.head.weight, rtol=1e-10)
    model.load_state_dict(states[-1])
    start = 0.5 * float((tanh_net(64, 0)(x) - y).detach().square().sum())
    assert 0 < 0.5 * float((model(x) - y).detach().square().sum()) <= 1e-4 * start
    found = width_scaling(tanh_net, [16, 64, 256], "kernel_change", 2, x=x, y=y, jobs=1)
    assert found.values[0, 1] == kernel_change(tanh_net(64, 0), x, states).largest
    assert found.slope < -0.45  # at least as fast as the upper bound
    with pytest.raises(ConvergenceError, match="after 3 steps"):
        descent(model, x, -y, steps=3)
    with pytest.raises(InputError, match="width 256, seed 0: y has shape"):
        width_scaling(tanh_net, [16, 256], "kernel_change", 1, x=x, y=y[:3], jobs=1)


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "sweep.json"
    measured = []

    def metric(model: Sized, stop: int = 4) -> float:
        if len(measured) == stop:
            raise KeyboardInterrupt
        measured.append((model.width, model.seed))
        return model.width**-0.5

    with pytest.raises(KeyboardInterrupt):
        width_scaling(Sized, WIDTHS, metric, 2, jobs=1, resume=path)
    assert len(json.loads(path.read_text())["cells"]) == 4
    first = set(measured)
    measured.clear()
    found = width_scaling(Sized, WIDTHS, metric, 2, jobs=1, resume=path)
    assert len(measured) == 2
    assert first.isdisjoint(measured)
    assert found.slope == pytest.approx(-0.5)
    measured.clear()
    more = width_scaling(Sized, [*WIDTHS, 512], metric, 2, jobs=1, resume=path)
    assert sorted(measured) == [(512, 0), (512, 1)]
    measured.clear()
    most = width_scaling(Sized, [*WIDTHS, 512], metric, [0, 1, 7], jobs=1, resume=path)
    assert sorted(measured) == [(width, 7) for width in (*WIDTHS, 512)]
    assert most.seeds == [0, 1, 7]
    assert most.widths == more.widths


def test_a_file_of_another_sweep_is_refused(tmp_path):
    path = tmp_path / "sweep.json"
    metric = power(-0.5)
    width_scaling(Sized, WIDTHS, metric, 2, jobs=1, resume=path, label="tanh")
    with pytest.raises(InputError, match="label was 'tanh' and is 'relu'"):
        width_scaling(Sized, WIDTHS, metric, 2, jobs=1, resume=path, label="relu")
    with pytest.raises(InputError, match=r"factory was '.*Sized, .*' and is '.*tanh_net, "):
        width_scaling(tanh_net, WIDTHS, metric, 2, jobs=1, resume=path, label="tanh")
    with pytest.raises(InputError, match=r"metric was '.*power.*' and is '.*two_layer_norm, "):
        width_scaling(Sized, WIDTHS, two_layer_norm, 2, jobs=1, resume=path, label="tanh")
    with pytest.raises(InputError, match=r"it has the widths \[256\], which are not asked for"):
        width_scaling(Sized, [16, 64, 128], metric, 2, jobs=1, resume=path, label="tanh")
    with pytest.raises(InputError, match=r"it has the seeds \[0\]"):
        width_scaling(Sized, WIDTHS, metric, [1, 2], jobs=1, resume=path, label="tanh")
    path.write_text("{}")
    with pytest.raises(InputError, match="is not a file of width_scaling"):
        width_scaling(Sized, WIDTHS, metric, 2, jobs=1, resume=path, label="tanh")


def test_a_file_for_other_data_is_refused(tmp_path):
    path, x = tmp_path / "sweep.json", torch.ones(2, 10, dtype=torch.float64)
    width_scaling(tanh_net, [8, 16], "linearity_gap", 1, x=x, jobs=1, resume=path)
    with pytest.raises(InputError, match=r"x was .* and is"):
        width_scaling(tanh_net, [8, 16], "linearity_gap", 1, x=2 * x, jobs=1, resume=path)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_values_without_a_logarithm_name_their_cell(value: float):
    def metric(model: Sized) -> float:
        return value if (model.width, model.seed) == (64, 1) else 1.0

    with pytest.raises(NumericsError, match="width 64, seed 1: the metric is"):
        width_scaling(Sized, WIDTHS, metric, 2, jobs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [16]}, "at least two widths"),
        ({"widths": [16, 16]}, "name one twice"),
        ({"widths": [16, 32.5]}, "positive whole numbers"),
        ({"widths": [16, 0]}, "positive whole numbers"),
        ({"widths": [True, 2]}, "positive whole numbers"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": []}, "list of different whole numbers"),
        ({"seeds": [1, 1]}, "list of different whole numbers"),
        ({"seeds": 2.5}, "list of different whole numbers"),
        ({"metric": "hesian_norm"}, "unknown metric 'hesian_norm'"),
        ({"metric": "linearity_gap"}, "give x="),
        ({"metric": "kernel_change", "x": torch.ones(1, 1)}, "give y="),
        ({"x": torch.ones(1)}, "a function holds its own data"),
        ({"metric": lambda model: "much"}, "width 256, seed 0: the metric returned a str"),
    ],
)
def test_what_is_refused(change: dict, message: str):
    settings = {"widths": WIDTHS, "metric": power(-0.5), "seeds": 2, "jobs": 1} | change
    with pytest.raises(InputError, match=message):
        width_scaling(Sized, **settings)


def test_it_prints_draws_and_round_trips(tmp_path):
    found = width_scaling(Sized, WIDTHS, power(-0.5, 0.1), 2, jobs=1, label="toy")
    text = str(found)
    assert "width 64" in text
    assert "transitions" in text
    assert "95 % interval" in text
    again = WidthScaling.load(found.save(tmp_path / "found.json"))
    assert np.array_equal(again.values, found.values)
    assert (again.slope, again.interval, again.verdict) == (found.slope, found.interval, found.verdict)
    figure = found.figure()
    assert figure.x_log
    assert figure.y_log
    assert len(figure.series[0].y) == 6
    line = figure.series[1].y
    assert line[0] == pytest.approx(found.constant * 16**found.slope)
    assert figure.title == "toy against width"
