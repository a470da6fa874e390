"""The accelerated methods: the guard around w, arguments of the wrong kind, sizes at the ends of the range."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from wideangle.errors import InputError, NumericsError
from wideangle.optim import AcceleratedGradient, accelerated
from wideangle.seeds import generator


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(0, "kinds", *shape), dtype=torch.float64)


@pytest.mark.parametrize("method", ["nesterov", "heavy_ball"])
def test_within_eval_params_nothing_may_step_or_load(method: str):
    w = nn.Parameter(draw(3))
    optimiser = AcceleratedGradient([w], 0.1, 9.0, method)

    def closure() -> None:
        optimiser.zero_grad()
        (w @ w / 2).backward()

    for _ in range(3):
        optimiser.step(closure)
    before = w.detach().clone()
    with optimiser.eval_params():
        shown = w.detach().clone()
        with pytest.raises(InputError, match="eval_params within eval_params"), optimiser.eval_params():
            pass
        assert torch.equal(w, shown)
        with pytest.raises(InputError, match="step within eval_params"):
            optimiser.step(closure)
        with pytest.raises(InputError, match="load_state_dict within eval_params"):
            optimiser.load_state_dict(optimiser.state_dict())
    assert torch.equal(w, before)
    with optimiser.eval_params():  # and again
        assert torch.equal(w, shown)
    optimiser.step(closure)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kappa_hat": [1, 2]}, r"kappa_hat has shape \(2,\); give one number"),
        ({"lr": None}, "lr is None"),
        ({"lr": "a"}, "lr is 'a'"),
        ({"lr": torch.ones(2)}, r"lr is a tensor of shape \(2,\)"),
        ({"weight_decay": None}, "weight_decay is None"),
        ({"params": [torch.ones(2, dtype=torch.int64)]}, "torch.int64"),
    ],
)
def test_the_optimiser_names_arguments_of_the_wrong_kind(change: dict, words: str):
    given = {"params": [nn.Parameter(torch.ones(2))], "lr": 0.1, "kappa_hat": 4.0} | change
    with pytest.raises(InputError, match=words):
        AcceleratedGradient(**given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kappa_hat": [1.0, 2.0]}, r"kappa_hat has shape \(2,\)"),
        ({"smoothness": None}, "smoothness is None"),
        ({"smoothness": "a"}, "smoothness is 'a'"),
        ({"tolerance": "a"}, "tolerance is 'a'"),
        ({"b": "a"}, "b is 'a'"),
        ({"b": [None, 1.0]}, r"b is \[None, 1.0\]"),
        ({"start": "a"}, "start is 'a'"),
        ({"start": np.array([1j, 0])}, "start is torch.complex128"),
        ({"matvec": torch.eye(2).to_sparse()}, "H is a sparse matrix.*lambda v"),
        ({"matvec": scipy.sparse.eye(2, format="csr")}, "H is a sparse matrix"),
    ],
    ids=str,
)
def test_the_solver_names_arguments_of_the_wrong_kind(change: dict, words: str):
    given = {"matvec": torch.eye(2), "b": torch.ones(2), "smoothness": 1.0, "kappa_hat": 4.0, "steps": 3}
    with pytest.raises(InputError, match=words):
        accelerated.solve_quadratic(**given | change)


def test_the_functions_advised_for_sparse_matrices_work():
    dense = torch.diag(torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64))
    near, far = dense.to_sparse(), scipy.sparse.csr_matrix(dense.numpy())
    want = accelerated.solve_quadratic(dense, draw(3), 1.0, 9.0, steps=20).solution
    for product in (lambda v: near @ v, lambda v: torch.from_numpy(far @ v.numpy())):
        found = accelerated.solve_quadratic(product, draw(3), 1.0, 9.0, steps=20).solution
        assert found == pytest.approx(want, abs=1e-14)


def test_a_sparse_kernel_is_refused_too():
    for kernel in (torch.eye(2).to_sparse(), scipy.sparse.eye(2, format="csr")):
        with pytest.raises(InputError, match="H is a sparse matrix"):
            accelerated.kernel_regression(kernel, torch.ones(2), 4.0, steps=1)


def test_a_start_of_plain_numbers_keeps_its_digits():
    one = accelerated.solve_quadratic(torch.eye(2), draw(2), 1.0, 1.0, steps=0, start=[0.1, 0.7])
    assert one.solution.tolist() == [0.1, 0.7]


@pytest.mark.parametrize("method", ["nesterov", "heavy_ball", "chebyshev"])
def test_rounding_is_no_growth_where_nothing_is_to_be_found(method: str):
    """b = 0 and a start in the null space: the first residual is rounding, and so are all that follow."""
    vectors = torch.linalg.qr(draw(6, 6))[0]
    H = vectors @ torch.diag(torch.tensor([1.0, 0.5, 0.1, 0.01, 0.0, 0.0], dtype=torch.float64)) @ vectors.T
    for scale in (1.0, 1e8):
        start = scale * (vectors[:, 4] + 3 * vectors[:, 5])
        run = accelerated.solve_quadratic(H, torch.zeros(6), 1.0, 1e3, method, steps=500, start=start)
        assert run.solution == pytest.approx(start.numpy(), rel=1e-9)


@pytest.mark.parametrize("method", ["nesterov", "heavy_ball", "chebyshev"])
def test_growth_is_refused_as_soon_as_it_is_beyond_rounding(method: str):
    """Twice what an upper bound L allows, and no more: growth a little above 1 a step is caught at that size."""
    H, L = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64)), 0.95
    L = 0.7 if method == "nesterov" else L
    with pytest.raises(NumericsError) as error:
        accelerated.solve_quadratic(H, torch.tensor([1.0, 0.0]), L, 100.0, method, steps=5000)
    grown, steps = re.search(r"grew by ([\d.e+]+) in (\d+) steps", str(error.value)).groups()  # type: ignore
    allowed = 2 * int(steps) + 1 if method == "heavy_ball" else 1
    assert 2 < float(grown) / allowed < 4


def test_the_measured_smoothness_has_room():
    x = draw(30, 2)
    K = torch.exp(-torch.cdist(x, x))
    top = float(torch.linalg.eigvalsh(K)[-1])
    assert accelerated.kernel_regression(K, draw(30), 10.0, steps=1).smoothness >= 1.0099 * top


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: accelerated.predicted_loss([1.0], 1, [4.0, 5.0]), r"kappa_hat has shape \(2,\)"),
        (lambda: accelerated.predicted_loss([1.0], 1, 4.0, smoothness=[1.0]), r"smoothness is \[1\.0\]"),
        (lambda: accelerated.cut_off([1.0, 2.0], 4.0), r"smoothness is \[1\.0, 2\.0\]"),
        (lambda: accelerated.cut_off(1.0, [4.0, 5.0]), r"kappa_hat has shape \(2,\)"),
        (lambda: accelerated.best_kappa_hat([1.0, 0.5], 10**300), "at most 1e"),
        (lambda: accelerated.best_kappa_hat([1.0, 0.5], 3, smoothness="a"), "smoothness is 'a'"),
        (lambda: accelerated.best_kappa_hat([1.0, 0.5], True), "steps is True"),
    ],
)
def test_the_choice_of_kappa_hat_names_arguments_of_the_wrong_kind(call, words: str):
    with pytest.raises(InputError, match=words):
        call()


def test_losses_up_to_the_largest_number():
    assert accelerated.predicted_loss([1e308, 1e308], [0], 4.0).tolist() == [1e308]
    assert accelerated.predicted_loss([1.0, 1.0], 0, 4.0, coefficients=[1e308, 1e308]) == 1e308
    with pytest.raises(NumericsError, match="above the largest"):
        accelerated.predicted_loss([1e308] * 4, [0], 4.0)
    assert math.isfinite(accelerated.best_kappa_hat([1.0, 0.5], 10**15))


def test_the_best_kappa_hat_need_not_lie_by_the_best_point_of_the_grid():
    """Of several narrow minima the lowest is not that whose point on the grid is: here by a factor of 185."""
    spectrum = np.array([1.0, 0.5030938164448396, 0.41478558346494604, 0.16317668712288483])
    energies = np.array([0.28336499194924175, 0.05828294399026804, 0.09216387879966205, 0.5661881852608281])
    best = accelerated.best_kappa_hat(spectrum, 15, "nesterov", energies)
    grid = np.geomspace(1, 1e4, 400_000)[:, None]
    brute = (accelerated.residual_polynomial(spectrum, 15, grid) ** 2 @ energies).min() / 2
    assert accelerated.predicted_loss(spectrum, 15, best, "nesterov", energies) <= brute * (1 + 1e-6)
