"""The fast claims of `mass`, and what makes each of them fail."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from claims import has_verdict
from torch import nn

from wideangle import seeds
from wideangle.optim import MassParameters, constants_from_gram
from wideangle.papers import _mass_budget as budget
from wideangle.papers import _mass_forms as forms
from wideangle.papers import _mass_kernel as kernel
from wideangle.papers import _mass_nesterov as nesterov
from wideangle.papers import _mass_networks as networks
from wideangle.papers import _mass_rates as rates
from wideangle.papers import _mass_updates as updates
from wideangle.papers._frame import Finding, Setting, SkippedError

CLAIMS = [
    (forms.forms_agree, True),
    (forms.limits, True),
    (forms.others_are_sgd, True),
    (forms.bad_first_step, True),
    (rates.rate_bound, True),
    (rates.bound_in_front, True),
    (rates.full_batch_limit, True),
    (rates.regimes, True),
    (rates.saturation, True),
    (nesterov.divergence, True),
    (nesterov.explosions, True),
    (nesterov.single_runs, False),
    (nesterov.no_acceleration, True),
    (nesterov.simulation, True),
]


@pytest.mark.parametrize(("test", "holds"), CLAIMS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_fast_claims_have_the_verdict_known(setting: Setting, test, holds: bool):
    has_verdict(test(setting), holds)


def test_other_updates_are_noticed(monkeypatch: pytest.MonkeyPatch):
    wrong = [
        (forms.forms_agree, "three_points", updates.gradient_as_start),
        (forms.forms_agree, "agnes", updates.same_iterate),
        (forms.others_are_sgd, "without_memory", updates.two_points),
        (forms.others_are_sgd, "same_iterate", updates.without_memory),
        (forms.bad_first_step, "gradient_as_start", updates.three_points),
    ]
    monkeypatch.setattr(forms, "STEPS", 60)
    for claim, name, other in wrong:
        with monkeypatch.context() as changed:
            changed.setattr(updates, name, other)
            changed.setattr(forms, "FORMS", {**forms.FORMS, name: getattr(updates, name)})
            assert not claim(Setting()).holds, name
    with monkeypatch.context() as changed:  # a buffer that keeps another share of the gradient
        right = forms.MaSS
        changed.setattr(
            forms, "MaSS", lambda params, lr, alpha, kappa: right(params, lr, alpha, 1.001 * kappa)
        )
        assert not forms.limits(Setting()).holds


def test_the_two_points_are_the_recursion_on_one_number():
    p = MassParameters(0.1, 0.25, 2.0)
    points = updates.two_points(torch.ones(1), [lambda u: 2 * u] * 2, p)
    # gamma = 0.6, eta2 = 0.04: w = 1 - 0.2, u = 1.6 * 0.8 - 0.6 + 0.08 = 0.76; w = 0.608, u = ...
    assert [float(u) for u in points] == pytest.approx([1, 0.76, 1.6 * 0.608 - 0.6 * 0.8 + 0.04 * 1.52])


@pytest.mark.filterwarnings("ignore:invalid value encountered in log")  # 1 - rho below zero is meant
def test_wrong_rates_are_noticed(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as wrong:
        wrong.setattr(rates, "mean_square_rate", lambda *a, **k: 1 - 1e-9)
        assert not rates.rate_bound(Setting()).holds
        assert not rates.full_batch_limit(Setting()).holds
    with monkeypatch.context() as wrong:
        true = rates.expected_error
        wrong.setattr(rates, "expected_error", lambda *a: true(*a) * np.append(1.0, np.full(400, 3.0)))
        assert not rates.bound_in_front(Setting()).holds
    with monkeypatch.context() as wrong:  # Nesterov in the place of MaSS
        best = nesterov.best_mass
        wrong.setattr(nesterov, "best_mass", lambda kappa: replace(best(kappa), kappa_tilde=1.0))
        assert not nesterov.no_acceleration(Setting()).holds
        assert not nesterov.simulation(Setting()).holds
        assert not nesterov.explosions(Setting()).holds
    with monkeypatch.context() as wrong:
        wrong.setattr(nesterov, "critical_momentum", lambda *a: 0.57)
        assert not nesterov.divergence(Setting()).holds
    with monkeypatch.context() as wrong:
        wrong.setattr(nesterov, "lyapunov", lambda *a: 0.01)
        assert nesterov.single_runs(Setting()).holds
    with monkeypatch.context() as wrong:  # a kappa_tilde as small as L1 / L leaves no middle regime
        true_set = rates._gaussian

        def other(power: float, dimension: int):
            values, constants = true_set(power, dimension)
            return values, replace(constants, kappa_tilde=constants.critical_batch)

        wrong.setattr(rates, "_gaussian", other)
        assert not rates.regimes(Setting()).holds


def test_never_behind_sgd_counts_the_cases_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "mean_square_rate", lambda x, p, m: 0.9 if p.alpha < 1 else 0.95)
    assert rates.faster_than_sgd(Setting()).holds
    monkeypatch.setattr(rates, "mean_square_rate", lambda x, p, m: 0.95 if p.alpha < 1 else 0.9)
    assert not rates.faster_than_sgd(Setting()).holds


def test_a_run_grows_as_its_single_steps():
    draws = seeds.generator(0, "growth")
    # without momentum the growth is E log|(u, w)| of one factor: compare with a plain product of factors
    growth = nesterov.lyapunov(0.0, 2000, 200, draws)
    which, square = nesterov.draw_samples(seeds.generator(1, "growth"), 400_000)
    factors = (1 - square * (which == 0) / 6).abs().log().mean()
    assert growth == pytest.approx(float(factors), abs=0.01)


def tiny_kernel(n: int = 20) -> kernel.Problem:
    draws = seeds.generator(0, "tiny kernel")
    x = torch.rand(n + 5, 4, generator=draws, dtype=torch.float64)
    labels = torch.randint(0, 10, (n + 5,), generator=draws).numpy()
    gram = kernel._gaussian_kernel(x[:n], x[:n], 1.0)
    gram = (gram + gram.T) / 2
    np.fill_diagonal(gram, 1.0)
    cross = kernel._gaussian_kernel(x[n:], x[:n], 1.0)
    return kernel.Problem(
        "tiny", gram, cross, np.eye(10)[labels[:n]], labels[n:], constants_from_gram(gram, floor=1e-9)
    )


@pytest.mark.parametrize("m", [1, 3])
def test_a_race_in_coefficients_is_the_race_in_features(m: int):
    """The kernel's features by its square root, Algorithm 1 on their weights, the same batches."""
    data, n, passes = tiny_kernel(), 20, 2
    methods = {"MaSS": MassParameters(0.3, 0.2, 2.0), "SGD": MassParameters(0.5, 1.0, 1.0)}
    found = kernel.race(data, methods, m, passes, 0)
    values, vectors = np.linalg.eigh(data.gram)
    features = torch.from_numpy(vectors * np.sqrt(np.clip(values, 0, None)))
    targets = torch.from_numpy(data.targets)
    draws = seeds.generator(0, "papers", "mass", "kernel", m)
    batches = [kernel._batch(n, m, draws) for _ in range(passes * (n // m))]
    for name, p in methods.items():
        w = u = torch.zeros(n, 10, dtype=torch.float64)
        for batch in batches:
            rows = features[batch]
            gradient = rows.T @ (rows @ u - targets[batch]) / m
            nearer = u - p.eta1 * gradient
            u, w = (1 + p.gamma) * nearer - p.gamma * w + p.eta2 * gradient, nearer
        error = float((features @ w - targets).square().sum(1).mean())
        assert found.last(name) == pytest.approx(error, rel=1e-9)
    assert found.steps == len(batches)
    assert found.accuracy.shape == (2,)


def race_of(**last: float) -> kernel.Race:
    names = list(kernel.entrants(tiny_kernel().constants, 1))
    errors = [
        next((v for key, v in last.items() if name.replace("MaSS, ", "").startswith(key)), 1.0)
        for name in names
    ]
    methods = {name: MassParameters(0.1, 0.1, 2.0) for name in names}
    return kernel.Race(methods, np.array([errors] * kernel.PASSES), np.full(len(names), 0.9), 30)


def test_verdicts_on_kernels_follow_the_races(monkeypatch: pytest.MonkeyPatch):
    ahead = race_of(SGD=0.5, Nesterov=0.4, MaSS=0.3, theory=0.2)
    behind = race_of(SGD=0.5, Nesterov=0.1, MaSS=0.3, theory=0.2)
    exploded = race_of(SGD=0.5, Nesterov=0.4, MaSS=1e4, theory=0.45)
    claims = (kernel.digits_small_batches, kernel.every_batch, kernel.one_setting, kernel.no_search)
    for race, verdicts in (
        (ahead, (True, True, True, True)),
        (behind, (False, False, True, False)),
        (exploded, (False, False, False, False)),
    ):
        monkeypatch.setattr(
            kernel, "races", lambda setting, name, race=race: [dict.fromkeys(kernel.BATCHES, race)]
        )
        assert tuple(claim(Setting()).holds for claim in claims) == verdicts
        assert kernel.mnist_small_batches(Setting()).holds is verdicts[0]
    assert exploded.last("MaSS (0.05, 3)") == math.inf
    assert ahead.best("MaSS") == (0.2, "MaSS, theory")


def test_the_budget_s_setting_is_the_best_of_all_runs_on_the_full_batch():
    data, n, steps = tiny_kernel(), 20, 12
    chosen, expected = budget.for_budget(data, n, steps)
    tried = budget.settings(1 / data.constants.batch_smoothness(n))
    runs = kernel.race(data, {str(k): p for k, p in enumerate(tried)}, n, steps, 0)
    errors = [runs.last(str(k)) for k in range(len(tried))]
    assert expected == pytest.approx(min(errors), rel=1e-6)
    assert runs.last(str(tried.index(chosen))) == pytest.approx(min(errors), rel=1e-6)
    assert max(errors) > 1.1 * min(errors)
    small, _ = budget.for_budget(data, 1, 400)
    assert small.kappa_tilde > chosen.kappa_tilde  # a smaller batch needs a larger one


def test_verdict_on_the_budget_follows_the_races(monkeypatch: pytest.MonkeyPatch):
    data, rivals = tiny_kernel(80), race_of(SGD=0.5, Nesterov=0.4, MaSS=0.3, theory=0.2)
    monkeypatch.setattr(kernel, "races", lambda *a: [dict.fromkeys(kernel.BATCHES, rivals)])
    monkeypatch.setattr(kernel, "race_problem", lambda *a: data)
    for error, holds in ((0.1, True), (0.21, False)):
        ours = kernel.Race(
            {"budget": MassParameters(0.1, 0.1, 2.0)}, np.array([[error]]), np.array([0.9]), 30
        )
        monkeypatch.setattr(kernel, "race", lambda *a, ours=ours: ours)
        has_verdict(budget.without_a_run(Setting()), holds)


def test_mnist_is_skipped_where_it_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WIDEANGLE_DATA", raising=False)
    with pytest.raises(SkippedError, match="mnist"):
        kernel.mnist_small_batches(Setting())


def test_a_search_without_mnist_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WIDEANGLE_DATA", raising=False)
    race, races = race_of(SGD=0.5, Nesterov=0.4, MaSS=0.3, theory=0.2), kernel.races
    monkeypatch.setattr(
        kernel,
        "races",
        lambda setting, name: (
            [dict.fromkeys(kernel.BATCHES, race)] if name == "digits" else races(setting, name)
        ),
    )
    found = kernel.no_search(Setting(size="cpu"))
    assert "skipped, not in the data folder: mnist" in found.detail
    assert found.holds


def test_stacked_networks_are_trained_as_alone():
    """Two seeds side by side against plain networks with the same weights and batches, one by one."""
    whole, test_set = Setting().load("digits", 64), Setting().load("digits", 40, split="test")
    for method in networks.METHODS:
        make = networks.maker(method, 0.05)
        found = networks.train(make, whole, test_set, 2, [0, 1])
        for k, seed in enumerate((0, 1)):
            stack = networks.Stack([seed])
            layers: list[nn.Module] = []
            for weight, bias in zip(stack.weights, stack.biases, strict=True):
                layer = nn.Linear(weight.shape[1], weight.shape[2])
                layer.weight.data, layer.bias.data = weight.data[0].T.clone(), bias.data[0, 0].clone()
                layers += [layer, nn.ReLU()]
            net, order = nn.Sequential(*layers[:-1]), seeds.generator(seed, "papers", "mass", "order")
            optimiser, x = make(net.parameters()), whole.x.flatten(1)
            for _ in range(2):
                for batch in torch.randperm(64, generator=order).split(networks.BATCH):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(net(x[batch]), whole.y[batch]).backward()
                    optimiser.step()
            if isinstance(optimiser, networks.MaSS):
                with optimiser.eval_params(), torch.no_grad():
                    loss = float(nn.functional.cross_entropy(net(x), whole.y))
            else:
                loss = float(nn.functional.cross_entropy(net(x), whole.y).detach())
            assert found[k].last == pytest.approx(loss, rel=1e-4)
    assert networks.Run([1.0, math.nan], 0.1).last == math.inf


def runs_of(rows: dict[str, tuple[float, float]]) -> dict[tuple[float, str], list[networks.Run]]:
    found = {
        (step, method): [networks.Run([1.0, losses[k]], 1 - 100 * losses[k])] * 3
        for k, step in enumerate((0.05, 0.2))
        for method, losses in rows.items()
    }
    return found | {(0.001, networks.ADAM): [networks.Run([1.0, 0.5], 0.9)] * 3}


def test_verdicts_on_networks_follow_the_runs(monkeypatch: pytest.MonkeyPatch):
    def verdicts(sgd, nest, three, twelve) -> list[bool]:
        two = (1e-9, 1e-9)  # in the table, and in no verdict
        rows = dict(zip(networks.METHODS, (sgd, nest, three, twelve, two), strict=True))
        monkeypatch.setattr(networks, "runs", lambda setting: runs_of(rows))
        claims = (
            networks.stable_where_nesterov_is_not,
            networks.ahead_at_every_step,
            networks.tuned,
            networks.test_accuracy,
        )
        found: list[Finding] = [claim(Setting()) for claim in claims]
        return [bool(f.holds) for f in found]

    assert verdicts((5e-3, 1e-3), (3e-4, 2.3), (1e-4, 1e-5), (2e-3, 5e-4)) == [True, True, True, True]
    assert verdicts((5e-3, 1e-3), (1e-6, 2.3), (1e-4, 1e-5), (2e-3, 5e-4)) == [True, False, False, False]
    assert verdicts((5e-3, 1e-3), (3e-4, 2.3), (1e-4, 2.3), (2e-3, 5e-4)) == [True, False, True, True]
    # test accuracy ahead, by less than what 355 images can tell
    assert verdicts((5e-3, 1e-3), (1.8e-4, 2.3), (1e-4, 1e-5), (2e-3, 5e-4)) == [True, True, True, True]
    assert verdicts((5e-3, 1e-3), (1.0e-4, 2.3), (9e-5, 1e-5), (2e-3, 5e-4)) == [True, True, True, False]
    assert verdicts((5e-3, 1e-3), (3e-4, 0.5), (1e-4, 1e-5), (2e-3, 5e-4))[0] is False  # Nesterov trains
    assert verdicts((5e-3, 1e-3), (3e-4, 2.3), (1e-4, 2.3), (2e-3, 2e-3))[0] is False  # slower than SGD


@pytest.mark.slow
@pytest.mark.parametrize(
    "test", [kernel.digits_small_batches, budget.without_a_run, networks.stable_where_nesterov_is_not]
)
def test_slow_claims_hold(setting: Setting, test):
    found = test(setting)
    assert found.holds, found.measured
