"""The solver on linear operators: residuals against the closed forms, every kind of operator, wrong L."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from wideangle.curvature import GaussNewton
from wideangle.errors import InputError, NumericsError
from wideangle.kernel import factors
from wideangle.optim import accelerated
from wideangle.seeds import generator

METHODS = ("nesterov", "heavy_ball", "chebyshev")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(0, "accelerated", *shape), dtype=torch.float64)


def problem(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors."""
    vectors = torch.linalg.qr(draw(len(values), len(values)))[0]
    return vectors @ torch.diag(values) @ vectors.T, vectors


VALUES = torch.tensor([2.0, 1.5, 0.3, 0.02, 1e-3, 1e-5], dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kappa_hat", [1.5, 100.0, 1e6])
def test_residuals_are_those_of_the_polynomials(method: str, kappa_hat: float):
    H, vectors = problem(VALUES)
    b, start, seen = draw(6, 3), draw(6, 3) + 1, []
    run = accelerated.solve_quadratic(
        H,
        b,
        2.5,
        kappa_hat,
        method,
        steps=60,
        start=start,
        watch=lambda t, r: seen.append((t, vectors.T @ r)),
    )
    assert [t for t, _ in seen] == list(range(61))
    first = vectors.T @ (b - H @ start)
    for t, residual in seen:
        left = accelerated.residual_polynomial(VALUES / 2.5, t, kappa_hat, method)
        assert residual.numpy() == pytest.approx(left[:, None] * first.numpy(), abs=1e-11)
    true = torch.linalg.vector_norm(b - H @ torch.as_tensor(run.solution), dim=0)
    assert run.residuals[-1] == pytest.approx(true.numpy(), abs=1e-11)
    assert run.residuals.shape == (61, 3)
    assert run.relative_residual == pytest.approx(float((true / torch.linalg.vector_norm(b, dim=0)).max()))
    assert run.reached is None


@pytest.mark.parametrize("method", METHODS)
def test_each_direction_falls_with_its_factor(method: str):
    values = torch.tensor([1.0, 0.3, 0.05, 2e-3, 2e-4], dtype=torch.float64)
    seen = []
    accelerated.solve_quadratic(
        torch.diag(values), torch.ones(5), 1.0, 100.0, method, steps=400, watch=lambda t, r: seen.append(r)
    )
    course = torch.stack(seen).abs().numpy()
    slow = accelerated.convergence_factor(values, 100.0, method)
    for i in range(5):
        if values[i] == 1 and method == "nesterov":
            assert (course[1:, i] < 1e-15).all()
            continue
        # the envelope of an oscillation: the largest of 40 steps, before rounding is met
        early, late = course[20:60, i], course[60:100, i]
        slope = math.log(late.max() / early.max()) / 40
        # oscillations are met at other phases, and at s = 1 the heavy ball has t in front of r^t
        slack = 0.15 if values[i] > 0.01 else 1e-2
        assert slope == pytest.approx(math.log(slow[i]), rel=slack), float(values[i])


def test_null_space_stays_where_it_was():
    values = torch.tensor([1.0, 0.2, 0.0, 0.0], dtype=torch.float64)
    H, vectors = problem(values)
    b, start = H @ draw(4), draw(4)
    for method in METHODS:
        for kappa_hat in (1.1, 50.0, 1e8):
            run = accelerated.solve_quadratic(H, b, 1.0, kappa_hat, method, steps=500, start=start)
            still = vectors.T @ torch.as_tensor(run.solution)
            assert still[2:].numpy() == pytest.approx((vectors.T @ start)[2:].numpy(), abs=1e-10)


def test_every_kind_of_operator_gives_the_same():
    H, _ = problem(VALUES)
    b = draw(6, 2)

    class Multiplies:
        def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
            return H @ v

    class Products:
        def product(self, v: torch.Tensor) -> torch.Tensor:
            assert v.dim() == 1
            return H @ v

    want = accelerated.solve_quadratic(H, b, 2.0, 50.0, steps=30).solution
    for kind in (H.numpy(), Multiplies(), Products(), lambda v: H @ v):
        found = accelerated.solve_quadratic(kind, b, 2.0, 50.0, steps=30).solution
        assert found == pytest.approx(want, abs=1e-13)
    for k in range(2):
        one = accelerated.solve_quadratic(H, b[:, k].numpy(), 2.0, 50.0, steps=30)
        assert one.solution == pytest.approx(want[:, k], abs=1e-13)
        assert one.residuals.shape == (31, 1)


def test_curvature_operators_and_factors_can_be_solved():
    model, x, y = nn.Linear(4, 2, bias=False).double(), draw(7, 4), draw(7, 2)
    operator = GaussNewton(model, nn.MSELoss(), x, y)
    dense = operator @ torch.eye(8, dtype=torch.float64)
    b = dense @ draw(8)
    top = float(torch.linalg.eigvalsh(dense)[-1])
    run = accelerated.solve_quadratic(operator, b, top, 100.0, steps=1000, tolerance=1e-9)
    assert run.reached
    cache = factors(nn.Linear(9, 2).double(), draw(5, 9))
    found = accelerated.kernel_regression(cache, draw(10), 1e3, steps=3000, tolerance=1e-8)
    K = cache.gram(dtype=torch.float64).reshape(10, 10)
    assert found.solution == pytest.approx(torch.linalg.solve(K, draw(10)).numpy(), rel=1e-5, abs=1e-6)
    block = accelerated.kernel_regression(cache, draw(10).reshape(5, 2), 1e3, steps=100)
    assert block.solution.shape == (5, 2)


def test_kernel_regression_solves_the_system():
    x = draw(30, 2)
    K, y = torch.exp(-torch.cdist(x, x)), draw(30, 3)
    want = torch.linalg.solve(K, y).numpy()
    for method in METHODS:
        run = accelerated.kernel_regression(K, y, 1e3, method, steps=2000, tolerance=1e-10)
        assert run.reached
        assert run.steps < 1000
        assert run.solution == pytest.approx(want, abs=1e-7)
        top = float(torch.linalg.eigvalsh(K)[-1])
        assert top < run.smoothness < 1.03 * top
    assert accelerated.kernel_regression(K.numpy(), y[:, 0].numpy(), 10.0, steps=1).solution.shape == (30,)


@pytest.mark.parametrize("method", ["heavy_ball", "chebyshev"])
def test_a_smoothness_too_small_is_an_error_with_the_eigenvalue_met(method: str):
    H, _ = problem(VALUES)
    with pytest.raises(
        NumericsError, match=r"residual grew by .* smoothness is 1.8, .* at least (1\.9|2\b)"
    ) as e:
        accelerated.solve_quadratic(H, draw(6), 1.8, 100.0, method, steps=3000)
    advised = float(str(e.value).rsplit(" ", 1)[1])
    assert accelerated.solve_quadratic(H, draw(6), advised, 100.0, method, steps=3000).relative_residual < 1
    # stable just below L (1 + 1/kappa_hat), not above
    stable = accelerated.solve_quadratic(torch.diag(VALUES), draw(6), 1.985, 100.0, method, steps=3000)
    assert stable.relative_residual < 1


def test_nesterov_bears_a_smoothness_a_quarter_too_small():
    H, _ = problem(VALUES)
    assert accelerated.solve_quadratic(H, draw(6), 1.6, 100.0, steps=3000).relative_residual < 1
    with pytest.raises(NumericsError, match=r"smoothness is 1\.4"):
        accelerated.solve_quadratic(H, draw(6), 1.4, 100.0, steps=3000)


def test_a_huge_step_is_explained_though_it_overflows():
    with pytest.raises(NumericsError, match=r"eigenvalue of at least 1\.[5-9]"):
        accelerated.solve_quadratic(torch.diag(VALUES.float()), torch.ones(6), 1e-30, 100.0, steps=50)


def test_heavy_ball_may_grow_for_a_while():
    run = accelerated.solve_quadratic(torch.eye(3), torch.ones(3), 1.0, 1e6, "heavy_ball", steps=1000)
    assert run.residuals.max() > 300 * run.residuals[0].max()


def test_other_faults_are_told_apart():
    with pytest.raises(NumericsError, match="positive semi-definite"):
        accelerated.solve_quadratic(
            torch.diag(torch.tensor([1.0, -0.5])), torch.ones(2), 1.0, 10.0, steps=500
        )
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(NumericsError, match="not symmetric, not linear"):
        accelerated.solve_quadratic(lambda v: turn @ v, draw(2), 1.0, 10.0, steps=500)
    with pytest.raises(NumericsError, match="first residual"):
        accelerated.solve_quadratic(lambda v: v * math.nan, draw(2), 1.0, 10.0, steps=5)


def test_steps_and_tolerance():
    H, b = torch.diag(VALUES), draw(6)
    none = accelerated.solve_quadratic(H, b, 2.0, 10.0, steps=0)
    assert (none.steps, none.solution.tolist()) == (0, [0.0] * 6)
    assert none.relative_residual == 1
    solution = b / VALUES
    there = accelerated.solve_quadratic(H, b, 2.0, 10.0, steps=9, start=solution, tolerance=1e-12)
    assert (there.reached, there.steps) == (True, 0)
    few = accelerated.solve_quadratic(H, b, 2.0, 10.0, steps=9, tolerance=1e-12)
    assert (few.reached, few.steps) == (False, 9)
    nothing = accelerated.solve_quadratic(H, torch.zeros(6), 2.0, 10.0, steps=9, tolerance=1e-3)
    assert (nothing.reached, nothing.steps, nothing.relative_residual) == (True, 0, 0.0)
    b = H @ torch.ones(6, dtype=torch.float64)
    for precision in (torch.float32, torch.float64):
        run = accelerated.solve_quadratic(H.to(precision), b.to(precision), 2.0, 1e4, steps=3000)
        assert run.solution.dtype == np.float64
        assert run.relative_residual < (1e-3 if precision == torch.float32 else 1e-4)
    # the record survives JSON
    assert accelerated.AcceleratedRun.from_json(few.to_json()).solution.tolist() == few.solution.tolist()


def test_chebyshev_is_ahead_and_gradient_descent_behind():
    H = torch.diag(torch.logspace(0, -4, 60, dtype=torch.float64))
    b = torch.ones(60, dtype=torch.float64)  # every direction counts the same
    left = {m: accelerated.solve_quadratic(H, b, 1.0, 1e4, m, steps=400).relative_residual for m in METHODS}
    descent = accelerated.solve_quadratic(H, b, 1.0, 1.0, steps=400).relative_residual
    assert left["chebyshev"] < left["nesterov"] < descent
    # a wrong guess in either direction still beats gradient descent
    for guess in (10.0, 1e7):
        assert accelerated.solve_quadratic(H, b, 1.0, guess, steps=400).relative_residual < descent


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"smoothness": 0.0}, "smoothness is 0.0"),
        ({"smoothness": math.nan}, "smoothness is nan"),
        ({"kappa_hat": 0.9}, "kappa_hat is 0.9"),
        ({"kappa_hat": 1.0, "method": "chebyshev"}, "has no length"),
        ({"method": "newton"}, "unknown method"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"b": torch.ones(3)}, "b has 3 rows"),
        ({"b": torch.ones(2, 2, 2)}, "give a real"),
        ({"b": torch.ones(2, dtype=torch.complex64)}, "give a real"),
        ({"b": torch.tensor([1.0, math.inf])}, "1 non-finite"),
        ({"start": torch.ones(3)}, "start has shape"),
        ({"start": torch.tensor([1.0, math.nan])}, "start has 1 non-finite"),
        ({"matvec": torch.tensor([[1.0, 0.0], [0.5, 1.0]])}, "not symmetric"),
        ({"matvec": torch.ones(2, 3)}, "a kernel is real"),
        ({"matvec": lambda v: v[:1]}, "gave"),
        ({"matvec": 3}, "matvec is a int"),
    ],
)
def test_bad_input_is_refused(change: dict, words: str):
    given = {
        "matvec": torch.eye(2),
        "b": torch.ones(2),
        "smoothness": 1.0,
        "kappa_hat": 4.0,
        "steps": 3,
    } | change
    with pytest.raises(InputError, match=words):
        accelerated.solve_quadratic(
            given.pop("matvec"), given.pop("b"), given.pop("smoothness"), given.pop("kappa_hat"), **given
        )
