"""The exact mean-square rate against every batch listed, against a dense operator, and published values."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch

from wideangle.errors import InputError
from wideangle.optim import (
    MassParameters,
    critical_momentum,
    decoupled_mean_square_rate,
    expected_error,
    gaussian_mean_square_rate,
    mean_square_rate,
    optimal_parameters,
)
from wideangle.seeds import generator

MASS, NESTEROV, SGD = (0.11, 0.07, 0.6), (0.11, 0.0, 0.6), (0.11, 0.0, 0.0)


def draws(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=generator(seed, "mean square", n, d))


def step_of(h: np.ndarray, parameters: tuple[float, float, float]) -> np.ndarray:
    eta1, eta2, gamma = parameters
    one = np.eye(len(h))
    return np.block(
        [[(1 + gamma) * one - ((1 + gamma) * eta1 - eta2) * h, -gamma * one], [one - eta1 * h, 0 * h]]
    )


def batches_of(n: int, m: int, replacement: bool) -> list[tuple[int, ...]]:
    return list(product(range(n), repeat=m)) if replacement else list(combinations(range(n), m))


def listed(x: np.ndarray, parameters, m: int, replacement: bool) -> np.ndarray:
    """E[M (x) M] over all batches, one by one."""
    every = batches_of(len(x), m, replacement)
    steps = [step_of(x[list(b)].T @ x[list(b)] / m, parameters) for b in every]
    return sum(np.kron(step, step) for step in steps) / len(every)


@pytest.mark.parametrize("parameters", [MASS, NESTEROV, SGD], ids=["mass", "nesterov", "sgd"])
@pytest.mark.parametrize(
    ("m", "replacement"), [(1, True), (2, True), (2, False), (3, True), (3, False), (4, False)]
)
def test_the_rate_is_that_of_all_batches_listed(parameters, m, replacement):
    x = draws(4, 2)
    exact = np.abs(np.linalg.eigvals(listed(x.numpy(), parameters, m, replacement))).max()
    assert mean_square_rate(x, parameters, m, replacement=replacement) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("replacement", [True, False])
def test_expected_errors_are_the_mean_over_all_sequences_of_batches(replacement):
    x, start, steps = draws(3, 2), draws(1, 2, 5)[0], 4
    every = batches_of(3, 2, replacement)
    maps = [step_of(x[list(b)].numpy().T @ x[list(b)].numpy() / 2, MASS) for b in every]
    states = [np.concatenate([start, start])]
    means = [float(start @ start)]
    for _ in range(steps):
        states = [step @ state for state in states for step in maps]
        means.append(float(np.mean([state[2:] @ state[2:] for state in states])))
    found = expected_error(x, start, MASS, steps, 2, replacement=replacement)
    assert found.tolist() == pytest.approx(means, rel=1e-10)


def test_the_error_shrinks_by_the_rate_in_the_long_run():
    x = draws(6, 4)
    errors = expected_error(x, torch.ones(4), MASS, 600, 2)
    assert errors[600] / errors[599] == pytest.approx(mean_square_rate(x, MASS, 2), rel=1e-6)


def test_only_the_range_counts_and_a_gram_matrix_will_do():
    x = draws(3, 5)
    off = torch.linalg.svd(x, full_matrices=True)[2][4]
    near = torch.linalg.qr(x.T)[0][:, 0]
    assert expected_error(x, 3 * off + near, MASS, 7)[[0, 7]].tolist() == pytest.approx(
        expected_error(x, near, MASS, 7)[[0, 7]].tolist()
    )
    rate = mean_square_rate(x, MASS, 2)
    assert rate < 1
    assert mean_square_rate(x @ x.T, MASS, 2, gram=True) == pytest.approx(rate, rel=1e-8)
    doubled = torch.cat([x, x])
    assert mean_square_rate(doubled @ doubled.T, MASS, 2, gram=True) == pytest.approx(rate, rel=1e-7)


def test_the_whole_batch_is_deterministic():
    x = draws(5, 3)
    h = (x.T @ x / 5).numpy()
    exact = np.abs(np.linalg.eigvals(step_of(h, MASS))).max() ** 2
    assert mean_square_rate(x, MASS, 5, replacement=False) == pytest.approx(exact, rel=1e-9)
    assert mean_square_rate(x[:1], MASS, 1, replacement=False) == mean_square_rate(x[:1], MASS, 1)


@pytest.mark.parametrize("m", [1, 3, 40])
@pytest.mark.parametrize("parameters", [MASS, NESTEROV, SGD], ids=["mass", "nesterov", "sgd"])
def test_the_gaussian_form_is_the_dense_diagonal_operator(parameters, m):
    values = np.array([1.0, 0.4, 0.05])
    eta1, eta2, gamma = parameters
    c = np.array([(1 + gamma) * eta1 - eta2, eta1])
    # slow twin: the map on whole moments, E[x x' S x x'] = 2 H S H + tr(H S) H, column by column
    mean, h = step_of(np.diag(values), parameters), np.diag(values)
    columns = []
    for unit in np.eye(36).reshape(36, 6, 6):
        upper = unit[:3, :3]
        noise = (h @ (upper + upper.T) @ h + np.trace(h @ upper) * h - h @ upper @ h) / m
        columns.append((mean @ unit @ mean.T + np.kron(np.outer(c, c), noise)).ravel())
    exact = np.abs(np.linalg.eigvals(np.array(columns).T)).max()
    assert gaussian_mean_square_rate(values, parameters, m) == pytest.approx(exact, rel=1e-9)


def test_the_gaussian_form_is_the_limit_of_many_samples():
    x = draws(200_000, 2) * torch.tensor([1.0, 0.5])
    assert gaussian_mean_square_rate(torch.tensor([1.0, 0.25]), MASS) == pytest.approx(
        mean_square_rate(x, MASS), abs=2e-3
    )


def test_axis_aligned_samples_are_the_decoupled_case():
    x = torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    second, fourth = (x**2).sum(0) / 3, (x**4).sum(0) / 3
    for parameters, m in ((MASS, 1), (NESTEROV, 2), (SGD, 1)):
        assert decoupled_mean_square_rate(second, fourth, parameters, m) == pytest.approx(
            mean_square_rate(x, parameters, m), rel=1e-10
        )


def test_published_values_of_nesterovs_method():
    for gamma, rate in ((0.5, 0.953), (0.6, 1.031), (0.9, 1.377), (0.999, 1.521)):
        found = decoupled_mean_square_rate([1.0], [6.0], (1 / 6, 0.0, gamma))
        assert found == pytest.approx(rate, abs=6e-4)
    g = critical_momentum(1.0, 6.0, 1 / 6)
    assert g == pytest.approx(0.564, abs=5e-4)
    # the determinant that vanishes at rate 1, worked out by hand for eta = 1 / (6 lambda)
    zero = (1 + 5 * g / 6) * (1 - 5 * (1 + g) ** 2 / 6 - 5 * g**2 / 6) + 25 / 18 * g * (1 + g) ** 2
    assert zero == pytest.approx(0, abs=1e-9)
    assert critical_momentum(2.0, 24.0, 1 / 12) == pytest.approx(g, rel=1e-9)  # the scale does not matter
    assert critical_momentum(1.0, 1.0, 0.5) == 1.0  # without noise nothing diverges


@pytest.mark.parametrize("step", [1e-9, 1e-5, 0.01 / 6, 0.05, 0.3])
@pytest.mark.parametrize(("fourth", "m"), [(6.0, 1), (40.0, 16), (3.1, 1), (30.0, 14)])
def test_the_critical_momentum_is_where_the_rate_passes_one(fourth, m, step):
    """Also close to 1, where it lies for small steps: the rate on both sides, and for all momenta before it."""

    def rate(gamma: float) -> float:
        return decoupled_mean_square_rate([1.0], [fourth], (step, 0.0, gamma), m)

    found = critical_momentum(1.0, fourth, step, m)
    away = 1 - found
    assert 0 < away < 1
    if step > 1e-6:  # below that the rate itself is rounded to 1
        assert rate(found - 0.01 * away) < 1 < rate(found + 0.01 * away)
        assert all(rate(gamma) < 1 for gamma in np.linspace(0, found, 40)[:-1])
    if step < 1e-4:
        assert away == pytest.approx(step * ((fourth - 1) / (2 * m) - 1), rel=1e-3)


@pytest.mark.parametrize("step", [1e-3, 0.1, 0.4])
def test_with_little_noise_no_momentum_diverges(step: float):
    most = 1 + (4 - 3 * step) / (2 + 3 * step)
    assert critical_momentum(1.0, 0.99 * most, step) == 1.0
    assert max(
        decoupled_mean_square_rate([1.0], [0.99 * most], (step, 0.0, gamma), 1)
        for gamma in 1 - np.geomspace(1, 1e-4, 60)
    ) < 1  # fmt: skip
    assert critical_momentum(1.0, 1.01 * most, step) < 1.0


def test_published_gains_over_batch_one():
    """d = 200, lambda_i = i^(-1/2): the gain over batch 1, and i^(-2), where SGD stops gaining at L1 / L."""

    def gains(power: float, sgd: bool, batches: list[int]) -> list[float]:
        values = np.arange(1, 201.0) ** -power
        rates = []
        for m in [1, *batches]:
            top = (2 * values[0] + values.sum() + (m - 1) * values[0]) / m
            best = optimal_parameters(top, top / values[-1], (202 + m - 1) / m)
            used = (best.lr, 0.0, 0.0) if sgd else best
            rates.append(1 - gaussian_mean_square_rate(values, used, m))
        return [rate / rates[0] for rate in rates[1:]]

    assert gains(0.5, False, [2, 8, 32, 128, 1024]) == pytest.approx([1.99, 7.6, 24.7, 56, 95], rel=0.01)
    assert gains(2.0, False, [10**7]) == pytest.approx([28.6], rel=0.01)
    assert gains(2.0, True, [10**7]) == pytest.approx([3.64], rel=0.01)


def test_the_bound_of_the_paper_on_a_small_set():
    x = draws(6, 6)
    h = x.T @ x / 6
    values, vectors = torch.linalg.eigh(h)
    whitened = x @ vectors / values.sqrt()
    hardest = float(torch.linalg.eigvalsh(x.T @ (x * x.square().sum(1, keepdim=True)) / 6)[-1])
    kappa_tilde = float(
        torch.linalg.eigvalsh(whitened.T @ (whitened * whitened.square().sum(1, keepdim=True)) / 6)[-1]
    )
    assert kappa_tilde == pytest.approx(6)  # independent samples
    best = optimal_parameters(hardest, hardest / float(values[0]), kappa_tilde)
    rate = mean_square_rate(x, best)
    assert rate <= 1 - best.alpha
    assert rate < mean_square_rate(x, (best.lr, 0.0, 0.0)) < 1
    errors = expected_error(x, draws(1, 6, 9)[0], best, 400)
    assert (errors <= 2 * errors[0] * (1 - best.alpha) ** np.arange(401)).all()


def test_parameters_in_either_form():
    x = draws(5, 3)
    both = MassParameters(0.1, 0.2, 2.0)
    assert mean_square_rate(x, both) == mean_square_rate(x, (both.eta1, both.eta2, both.gamma))
    assert mean_square_rate(x, MassParameters(0.1, 1.0, 1.0)) == mean_square_rate(x, (0.1, 0.0, 0.0))


def test_what_is_refused_is_named():
    with pytest.raises(InputError, match=r"rank 17.* up to rank 16"):
        mean_square_rate(draws(20, 17), MASS)
    assert mean_square_rate(draws(20, 16), (0.01, 0.0, 0.5)) < 1
    for bad, words in (
        (torch.full((2, 2), float("nan")), "not finite"),
        (torch.zeros(3, 2), "is zero"),
        (torch.zeros(3), r"\(n, d\)"),
    ):
        with pytest.raises(InputError, match=words):
            mean_square_rate(bad, MASS)
    with pytest.raises(InputError, match="symmetric"):
        mean_square_rate(draws(3, 3), MASS, gram=True)
    with pytest.raises(InputError, match="eigenvalue -"):
        mean_square_rate(torch.diag(torch.tensor([1.0, -1.0])), MASS, gram=True)
    with pytest.raises(InputError, match="gamma"):
        mean_square_rate(draws(3, 2), (0.1, 0.0, 1.0))
    with pytest.raises(InputError, match="batch size is 4"):
        mean_square_rate(draws(3, 2), MASS, 4, replacement=False)
    with pytest.raises(InputError, match="batch size is 0"):
        gaussian_mean_square_rate([1.0], MASS, 0)
    with pytest.raises(InputError, match="eigenvalues must"):
        gaussian_mean_square_rate([1.0, 0.0], MASS)
    with pytest.raises(InputError, match="fourth_moments"):
        decoupled_mean_square_rate([1.0], [0.5], MASS)
    with pytest.raises(InputError, match="without momentum"):
        critical_momentum(1.0, 6.0, 0.5)
    with pytest.raises(InputError, match="start must"):
        expected_error(draws(3, 2), torch.ones(3), MASS, 1)
