"""Constants of linear data: the definitions as matrix inequalities, by an obvious twin in weight space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wideangle.errors import InputError, NumericsError
from wideangle.optim import Constants, constants_from_data, constants_from_gram, measure_constants
from wideangle.seeds import generator


def draw(n: int, d: int, seed: int = 0) -> np.ndarray:
    x = torch.randn(n, d, generator=generator(seed, "linear constants", n, d), dtype=torch.float64)
    return (x * torch.logspace(0, -1, d, dtype=torch.float64)).numpy()


def twin(x: np.ndarray) -> tuple[float, float, float, float]:
    """L, mu, L1 and kappa_tilde by the definitions, d x d matrices and an explicit inverse root on the range."""
    n = len(x)
    h = x.T @ x / n
    values, vectors = np.linalg.eigh(h)
    keep = values > 1e-12 * values[-1]
    root = vectors[:, keep] / np.sqrt(values[keep])
    first = sum((row @ row) * np.outer(row, row) for row in x) / n
    inverse = root @ root.T
    second = sum((row @ inverse @ row) * np.outer(row, row) for row in x) / n
    worst = [np.linalg.eigvalsh(root.T @ matrix @ root)[-1] for matrix in (first, second)]
    return values[-1], values[keep][0], worst[0], worst[1]


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5), (20, 3), (6, 6), (1, 3)])
def test_the_definitions(n, d):
    x = draw(n, d)
    found = constants_from_data(x)
    assert np.allclose(
        [found.smoothness, found.mu, found.sample_smoothness, found.kappa_tilde], twin(x), rtol=1e-9
    )
    assert found.rank == min(n, d)
    assert found.mu_kind == "exact"
    assert found.rank - 1e-9 <= found.kappa_tilde <= n
    assert found.kappa_tilde <= found.sample_smoothness / found.mu * (1 + 1e-9)
    same = constants_from_gram(x @ x.T)
    for name in ("smoothness", "mu", "sample_smoothness", "kappa_tilde"):
        assert np.isclose(getattr(found, name), getattr(same, name), rtol=1e-6)


def test_independent_samples_give_kappa_tilde_n():
    assert constants_from_data(draw(7, 12)).kappa_tilde == pytest.approx(7, abs=1e-9)
    lonely = np.vstack([np.pad(draw(30, 2), ((0, 0), (0, 1))), [[0.0, 0.0, 1e-3]]])
    assert constants_from_data(lonely).kappa_tilde == pytest.approx(31, rel=1e-9)


def test_gaussian_data_approach_their_closed_forms():
    """L1 = 2 L + tr H and kappa_tilde = d + 2 for x ~ N(0, H)."""
    x = draw(200_000, 3, seed=4)
    found = constants_from_data(x)
    trace = (x**2).mean(0)
    assert found.sample_smoothness == pytest.approx(2 * trace[0] + trace.sum(), rel=0.03)
    assert found.kappa_tilde == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("m", [1, 2, 5])
def test_batch_constants_bound_the_batch_matrices(m, replacement):
    """E[H_m^2] <= L_m H and E[H_m H^-1 H_m] <= kappa_tilde_m H, over all batches of 5 samples in 3 dimensions."""
    import itertools

    x = draw(5, 3, seed=m)
    found = constants_from_data(x)
    h = x.T @ x / 5
    pick = itertools.product if replacement else itertools.combinations
    batches = list(pick(range(5), repeat=m) if replacement else pick(range(5), m))
    parts = [x[list(b)].T @ x[list(b)] / m for b in batches]
    square = sum(p @ p for p in parts) / len(parts)
    weighted = sum(p @ np.linalg.inv(h) @ p for p in parts) / len(parts)
    low = np.linalg.eigvalsh(found.batch_smoothness(m, replacement) * h - square)[0]
    assert low > -1e-12
    assert np.linalg.eigvalsh(found.batch_kappa_tilde(m, replacement) * h - weighted)[0] > -1e-12
    if m == 1:  # the smallest such constants: the bound is attained
        assert abs(low) < 1e-12
        assert abs(np.linalg.eigvalsh(found.batch_kappa_tilde(m, replacement) * h - weighted)[0]) < 1e-12


@pytest.mark.parametrize(
    ("loss", "scale"), [("half_mean", 1.0), ("mean", 2.0), ("mse", 2.0), ("half_sum", 8.0)]
)
def test_the_scale_of_the_loss(loss, scale):
    x = draw(8, 3)
    plain, found = constants_from_data(x), constants_from_data(x, loss=loss)
    for name in ("smoothness", "mu", "sample_smoothness"):
        assert getattr(found, name) == pytest.approx(scale * getattr(plain, name), rel=1e-12)
    assert found.kappa_tilde == pytest.approx(plain.kappa_tilde, rel=1e-12)


def test_parameters_for_a_batch():
    found = constants_from_data(draw(6, 6))
    p = found.mass(6)  # the full batch: Nesterov's method
    assert p.kappa_tilde == pytest.approx(1.0)
    assert p.lr == pytest.approx(1 / found.smoothness)
    assert p.alpha == pytest.approx((found.mu / found.smoothness) ** 0.5)
    q = found.mass(1, replacement=True)
    assert q.lr == pytest.approx(1 / found.sample_smoothness)
    assert q.alpha == pytest.approx((found.mu / found.sample_smoothness / 6) ** 0.5)
    assert found.speed_up(1) == pytest.approx((found.sample_smoothness / found.mu / 6) ** 0.5)
    assert found.critical_batches == tuple(sorted((found.critical_batch, 6.0)))


def test_a_subsample_says_how_sure_it_is():
    model = torch.nn.Linear(4, 1, bias=False).double()
    x = torch.as_tensor(draw(400, 4, seed=9))
    from wideangle.kernel import factors

    whole = measure_constants(factors(model, x), model(x))
    exact = constants_from_data(x, loss="mse")
    assert whole.smoothness == pytest.approx(exact.smoothness, rel=1e-3)
    hits = 0
    for k in range(10):
        rows = torch.randperm(400, generator=generator(k, "rows"))[:100]
        part = measure_constants(factors(model, x[rows]), model(x[rows]), samples=400)
        low, high = part.smoothness_interval
        hits += low <= whole.smoothness <= high
        assert part.looked_at == 100
        assert part.kappa_tilde == 400
        assert high - low < whole.smoothness
    assert hits >= 8


def test_bad_input():
    for bad in ([1.0, 2.0], [[]], [[float("nan")]], [["a"]]):
        with pytest.raises(InputError):
            constants_from_data(bad)
    with pytest.raises(NumericsError, match="every sample is zero"):
        constants_from_data(np.zeros((3, 2)))
    with pytest.raises(InputError, match="not symmetric"):
        constants_from_gram([[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(InputError, match="positive semi-definite"):
        constants_from_gram([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(InputError, match="square"):
        constants_from_gram(np.ones((2, 3)))
    with pytest.raises(InputError, match="floor"):
        constants_from_data(np.ones((2, 3)), floor=1.5)
    with pytest.raises(InputError, match="mu was not measured"):
        Constants("mse", 10, 1, smoothness=1.0, sample_smoothness=2.0).mass(2)
    with pytest.raises(InputError, match="batch size 11 of 10"):
        Constants("mse", 10, 1, smoothness=1.0, sample_smoothness=2.0).batch_smoothness(11)
