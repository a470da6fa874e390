"""The fast claims of the run `linearity`, what they are measured with, and what makes each of them fail."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from claims import has_verdict
from torch import nn
from torch.func import functional_call, hessian

from wideangle.curvature.scaling import WidthScaling, width_scaling
from wideangle.papers import _linearity_gap as gap
from wideangle.papers import _linearity_hessian as norms
from wideangle.papers import _linearity_kernels as kernels
from wideangle.papers import _linearity_models as models
from wideangle.papers import _linearity_training as training
from wideangle.papers._descents import few_seeds
from wideangle.papers._frame import Setting, SkippedError
from wideangle.papers.linearity import PAPER
from wideangle.seeds import generator

TESTS = {statement.name: statement.test for statement in PAPER.statements}


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("linear output", True),
        ("tanh output", True),
        ("bottleneck of 8", True),
        ("gradient norm", True),
        ("gap, linear output", True),
        ("gap, tanh output", True),
        ("random direction", False),
        ("kernel bound", True),
        ("kernel change, linear output", True),
        ("rate attained", False),
    ],
)
def test_fast_claims_have_the_verdict_known(setting: Setting, name: str, holds: bool):
    found = TESTS[name](setting)
    has_verdict(found, holds)
    assert len(found.seeds) >= 1


def test_sets_that_are_not_there_are_skipped():
    for name in ("MNIST", "MNIST: linear output"):
        with pytest.raises(SkippedError, match="mnist"):
            TESTS[name](Setting())


def test_networks_of_a_table_share_their_weights():
    plain, bent = models.VECTORS["linear output"](16, 3), models.VECTORS["tanh output"](16, 3)
    x = models.vector_sample(Setting())
    torch.testing.assert_close(bent(x), torch.tanh(plain(x)))
    assert float(x.square().sum()) == pytest.approx(10)
    weights = [layer.weight for layer in (*plain.hidden, plain.head)]
    h = x
    for weight in weights[:2]:
        h = torch.tanh(h @ weight.T / math.sqrt(weight.shape[1]))
    torch.testing.assert_close(plain(x), h @ weights[2].T / 4)


@pytest.mark.parametrize("name", sorted(models.images((1, 8, 8))))
def test_image_networks_take_images(name: str):
    net = models.images((1, 8, 8))[name](16, 0)
    assert net(torch.ones(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 1)


@pytest.mark.parametrize("trained", [True, False])
def test_two_layer_norm_is_that_of_the_whole_hessian(trained: bool):
    x = models.vector_sample(Setting())
    for seed in range(4):
        net = models.dense(7, seed, depth=1)
        weights = {name: p.detach() for name, p in net.named_parameters()}
        free = weights if trained else {"hidden.0.weight": weights["hidden.0.weight"]}
        table = hessian(lambda w, net=net, rest=weights: functional_call(net, {**rest, **w}, (x,))[0, 0])(
            free
        )
        size = {name: p.numel() for name, p in free.items()}
        whole = torch.cat(
            [torch.cat([table[a][b].reshape(size[a], size[b]) for b in free], dim=1) for a in free]
        )
        exact = float(torch.linalg.eigvalsh(whole).abs().max())
        assert models.two_layer_norm(net, x, trained) == pytest.approx(exact, rel=1e-9)


def test_two_layer_supremum_is_over_every_norm_of_the_ball_and_not_far():
    x = models.vector_sample(Setting())
    net = models.dense(16, 0, depth=1)
    size, found = sum(p.numel() for p in net.parameters()), []
    for k in range(50):
        step = torch.randn(size, dtype=torch.float64, generator=generator(0, "ball", k))
        found.append(models.two_layer_norm(models.moved(net, 2 * step / step.norm()), x))
    assert max(found) <= models.two_layer_supremum(net, x, 2.0) < 10 * max(found)
    assert models.two_layer_norm(net, x) <= models.two_layer_supremum(net, x, 0.0)


def test_uphill_moves_a_copy_by_the_radius_along_the_gradient():
    net, x = models.dense(8, 0), models.vector_sample(Setting())
    before = copy.deepcopy(net.state_dict())
    there = models.uphill(net, x, 2.0)
    steps = [q.detach() - p.detach() for p, q in zip(net.parameters(), there.parameters(), strict=True)]
    step = torch.cat([piece.flatten() for piece in steps])
    assert float(step.norm()) == pytest.approx(2)
    assert float(step @ models.gradient(net, x)) == pytest.approx(2 * float(models.gradient(net, x).norm()))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_amplified_starts_at_zero_and_multiplies_the_gradient():
    net, x = models.dense(8, 0), models.vector_sample(Setting())
    scaled = models.Amplified(net, 3.0)
    assert float(scaled(x).detach()) == 0.0
    torch.testing.assert_close(models.gradient(scaled, x), 3 * models.gradient(net, x))


def test_descent_is_the_recursion_of_a_linear_model(monkeypatch: pytest.MonkeyPatch):
    x = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    y = torch.tensor([1.0, 1.0], dtype=torch.float64)
    net = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    start = copy.deepcopy(net)
    monkeypatch.setattr(training, "LIMIT", 5)
    losses, states = training.descend(net, x, y, 0.2)
    expected = [(0.2 ** (2 * t) + 0.8 ** (2 * t)) / 2 for t in range(6)]
    assert losses == pytest.approx(expected, rel=1e-12)
    assert len(states) == 4  # after 1, 2, 4 and 5 steps
    weights = [(1 - 0.2**t) / 2 for t in (1, 2, 4, 5)]
    assert [float(state["weight"][0, 0]) for state in states] == pytest.approx(weights, rel=1e-12)
    run = training.Trained(start, x, y)
    assert run.change < 1e-12
    assert not run.reached
    assert run.losses == pytest.approx([(0.0**t + 0.75 ** (2 * t)) / 2 for t in range(6)], rel=1e-9)
    monkeypatch.setattr(training, "LIMIT", 100)
    last = training.Trained(start, x, y)
    assert last.reached
    assert last.losses[-1] <= training.GOAL < last.losses[-2]
    assert last.distance == pytest.approx(math.hypot(0.5, 1.0), rel=0.02)


def sweep_of(slope: float, bend: float = 0.0) -> WidthScaling:
    return width_scaling(
        lambda width, seed: nn.Linear(width, 1),
        [8, 32, 128],
        lambda net: net.in_features**slope * math.exp(bend * (net.in_features == 32)),
        3,
        jobs=1,
    )


def test_tables_fail_on_an_opposite_verdict():
    good = {"linear output": sweep_of(-0.5), "tanh output": sweep_of(0.0)}
    assert norms.verdicts(Setting(), "T", "y", good).holds
    wrong = norms.verdicts(Setting(), "T", "y", {**good, "bottleneck of 1": sweep_of(-0.5)})
    assert not wrong.holds
    assert "opposite: bottleneck of 1" in wrong.measured
    unsure = sweep_of(-0.22, 2.0)
    assert unsure.verdict == "unclear"
    assert norms.verdicts(Setting(), "T", "y", {**good, "CNN": unsure}).holds
    two = {**good, "CNN": unsure, "ResNet": unsure}
    assert not norms.verdicts(Setting(), "T", "y", two).holds  # one may be unclear, two not
    assert not norms.verdicts(Setting(), "T", "y", {"CNN": unsure}).holds


def test_slopes_outside_the_limits_are_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(models.VECTORS, "linear output", models.VECTORS["bottleneck of 8"])
    assert not TESTS["linear output"](Setting()).holds
    monkeypatch.setitem(gap.NETS, "linear output", gap.NETS["tanh output"])
    assert not TESTS["gap, linear output"](Setting()).holds
    monkeypatch.setitem(gap.NETS, "tanh output", models.dense)
    assert not TESTS["gap, tanh output"](Setting()).holds


def test_wrong_norms_are_noticed(monkeypatch: pytest.MonkeyPatch):
    small = Setting()
    monkeypatch.setattr(norms, "sweep_seeds", lambda setting: [0, 1])
    assert norms.two_layers(small).holds
    assert norms.output_identity(small).holds
    exact, slope = models.two_layer_norm, norms.slope_size
    monkeypatch.setattr(models, "two_layer_norm", lambda *args: 1.02 * exact(*args))
    assert not norms.two_layers(small).holds
    monkeypatch.setattr(norms, "slope_size", lambda *args: 1.5 * slope(*args))
    assert not norms.output_identity(small).holds


def test_bounds_that_are_none_are_noticed(monkeypatch: pytest.MonkeyPatch):
    bound, gap_of = gap.kernel_change_bound, gap.linearity_gap
    monkeypatch.setattr(gap, "kernel_change_bound", lambda *args: 0.05 * bound(*args))
    assert not gap.kernel_bound(Setting()).holds

    def widened(*args):
        found = gap_of(*args)
        object.__setattr__(found, "gap", 3 * found.gap)
        return found

    monkeypatch.setattr(gap, "linearity_gap", widened)
    assert not gap.taylor_bound(Setting()).holds


def test_missed_losses_and_a_kernel_that_stays_are_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(norms, "sweep_seeds", lambda setting: [0])
    monkeypatch.setattr(training, "sweep_seeds", lambda setting: [0])
    true = training.networks
    fixed = {"tanh output": true(5)["linear output"], "linear output": true(5)["tanh output"]}
    monkeypatch.setattr(training, "networks", lambda inputs: {**true(inputs), **fixed})
    assert not TESTS["kernel change, tanh output"](Setting()).holds
    assert not TESTS["kernel change, linear output"](Setting()).holds
    monkeypatch.setattr(training, "LIMIT", 3)
    assert not TESTS["descent works without linearity"](Setting()).holds


def test_lazy_scaling_needs_its_alpha(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "_amplified", lambda alpha, seed, **options: training_net(seed))
    assert not training.not_lazy(Setting()).holds


def training_net(seed: int) -> nn.Module:
    return models.Amplified(models.dense(32, seed, inputs=5), 1.0)


def test_seeds_of_the_tables():
    assert norms.sweep_seeds(Setting(seed=4)) == [4, 5, 6, 7, 8, 9]
    assert len(norms.sweep_seeds(Setting("cpu"))) == 12
    assert np.diff(np.log2(norms.unit_widths(Setting("cpu")))).tolist() == [1.0] * 4


def test_the_law_of_a_narrow_layer_needs_its_slope(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(norms, "sweep_seeds", lambda setting: [0, 1])
    for slope, holds in ((-0.33, True), (-0.5, True), (-0.2, False), (-0.7, False)):
        monkeypatch.setattr(norms, "_narrow_at_256", lambda narrow, seed: narrow)
        monkeypatch.setattr(norms, "norm", lambda net, x, slope=slope: float(net) ** slope)
        assert norms.narrow_law(Setting()).holds is holds


class Made(nn.Module):
    """A run with the numbers a test gives it."""

    def __init__(self, change: float, reached: bool = True) -> None:
        super().__init__()
        self.change, self.reached, self.losses, self.distance = change, reached, [1.0, 1e-5], 2.0


def test_kernels_of_architectures_follow_their_runs(monkeypatch: pytest.MonkeyPatch):
    stays = ("tanh output", "bottleneck of 8")
    slopes = {name: 0.0 if name in stays else -0.8 for name in kernels.NETWORKS}
    late: set[str] = set()
    monkeypatch.setattr(
        kernels, "trained", lambda setting, name, m, seed: Made(m ** slopes[name], name not in late)
    )
    assert kernels.change("CNN")(Setting()).holds
    has_verdict(kernels.all_changes(Setting()), True)
    late.add("CNN")  # a run that misses the loss
    assert not kernels.change("CNN")(Setting()).holds
    assert "CNN 12" in kernels.all_changes(Setting()).measured
    assert not kernels.all_changes(Setting()).holds
    late.clear()
    slopes["CNN"] = -0.1
    assert not kernels.change("CNN")(Setting()).holds
    assert not kernels.all_changes(Setting()).holds


def test_a_kernel_of_a_small_run_on_images():
    setting = Setting()
    x, y = kernels.problem(setting)
    assert x.shape == (3, 1, 8, 8)
    for name in kernels.NETWORKS:
        assert kernels.factory(name, (1, 8, 8))(16, 0)(x).shape == (3, 1)
    run = kernels.trained(setting, "random DAG", 32, 0)
    assert run is kernels.trained(setting, "random DAG", 32, 0)
    assert run.reached
    residual = run.net(x)[:, 0].detach() - y
    assert float(residual.square().sum()) / 2 == pytest.approx(run.losses[-1])
    assert run.change > 0


def test_slopes_at_smoke_say_that_seeds_are_few():
    assert "size cpu decides" in TESTS["linear output"](Setting()).detail
    assert few_seeds(Setting("cpu")) == ""
