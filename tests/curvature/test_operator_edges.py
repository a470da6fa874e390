"""Curvature operators at the edges: losses that are no mean, models that change, arrays, multiple eigenvalues."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from zoo import fresh, normal

from wideangle.curvature import (
    GaussNewton,
    LossHessian,
    OutputHessian,
    eigenpairs,
    hessian_norm,
    kernel_change,
    linearity_gap,
    sharpness,
    spectral_norm,
)
from wideangle.errors import ConvergenceError, InputError
from wideangle.kernel import jacobian_kernel


def small(outputs: int = 2) -> nn.Module:
    return fresh(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs)))


def test_a_loss_that_is_no_mean_is_taken_at_once():
    model, x, y = small(), normal(20, 3), torch.arange(20) // 10
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0]).double())
    whole = LossHessian(model, weighted, x, y)
    short = LossHessian(model, weighted, x, y, max_memory=1)
    assert short.chunks == 1
    v = torch.ones(whole.size, dtype=torch.float64)
    assert torch.equal(whole @ v, short @ v)
    assert LossHessian(model, nn.CrossEntropyLoss(), x, y, max_memory=1).chunks == 20
    with pytest.raises(InputError, match="no mean over samples"):
        LossHessian(model, weighted, x, y, chunk=5)
    with pytest.raises(InputError, match="no sum over samples"):
        LossHessian(model, nn.CrossEntropyLoss(), x, y, chunk=5, reduction="sum")
    ignored = torch.cat([torch.full((8,), -100), torch.arange(12) % 2])
    assert np.isfinite(LossHessian(model, nn.CrossEntropyLoss(), x, ignored).loss())


def test_a_loss_that_holds_its_targets_itself():
    model, x, y = small(1), normal(20, 3), normal(20, 1, seed=4)
    own = LossHessian(model, lambda z, _: ((z - y) ** 2).mean(), x, None)
    v = torch.ones(own.size, dtype=torch.float64)
    assert torch.allclose(own @ v, LossHessian(model, "mse", x, y) @ v, rtol=1e-12)
    with pytest.raises(InputError, match="takes its targets as y"):
        LossHessian(model, lambda z, _: ((z - y) ** 2).mean(), x, None, chunk=5)
    free = LossHessian(model, lambda z, _: z.square().mean(), x, None, chunk=6)
    assert torch.allclose(free @ v, LossHessian(model, "mse", x, torch.zeros(20, 1)) @ v, rtol=1e-12)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(torch.tanh(self.inner(x)), 0.5, self.training))


def test_a_model_that_changes_from_call_to_call_and_the_random_state():
    model, x = fresh(Dropping()), normal(4, 3)
    before = torch.get_rng_state()
    assert spectral_norm(LossHessian(model, "mse", x, torch.zeros(4, 1))).value > 0
    model.train()
    with pytest.raises(InputError, match="other outputs at each call"):
        LossHessian(model, "mse", x, torch.zeros(4, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_later_changes_of_the_model_do_not_reach_the_operator():
    model = fresh(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)))
    model[0].requires_grad_(False)
    x, y = normal(9, 3), torch.arange(9) % 2
    operator = LossHessian(model, "mse", x, y, chunk=4)
    before = operator.loss()
    with torch.no_grad():
        model[0].weight.mul_(5)
        model[1].running_var.mul_(9)
        model[3].weight.mul_(2)
    assert operator.loss() == before


def test_moved_weights_are_those_of_a_moved_model():
    model, x = small(1), normal(5, 3)
    operator, step = OutputHessian(model, x), normal(41, seed=8) / 10
    v = normal(41, seed=9)
    before = operator @ v
    operator.move(step)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, piece in operator.unflatten(step).items():
            other.get_parameter(name).add_(piece)
    assert torch.allclose(operator @ v, OutputHessian(other, x) @ v, rtol=1e-12)
    assert not torch.allclose(operator @ v, before, rtol=1e-3)
    assert torch.allclose(OutputHessian(model, x) @ v, before, rtol=1e-12)


def test_arrays_and_inputs_that_do_not_fit():
    model, x = small(1), normal(4, 3)
    assert hessian_norm(model, x.numpy()).value == pytest.approx(hessian_norm(model, x).value)
    assert linearity_gap(model, x.numpy(), 1.0).relative == pytest.approx(
        linearity_gap(model, x, 1.0).relative
    )
    assert LossHessian(model, "mse", x.numpy(), torch.zeros(4, 1)).loss() > 0
    for wrong in (x.float(), normal(4, 5)):
        with pytest.raises(InputError, match="cannot take this data"):
            LossHessian(model, "mse", wrong, torch.zeros(4, 1)).loss()
        with pytest.raises(InputError, match="cannot take this data"):
            linearity_gap(model, wrong, 1.0)
    with torch.inference_mode():
        assert sharpness(model, "mse", x, torch.zeros(4, 1)).value > 0


def test_the_top_hessian_direction_of_many_samples():
    model, x = small(1), normal(20, 3)
    found = linearity_gap(model, x, 1.0, "top_hessian")
    matrix = OutputHessian(model, x, torch.full((20, 1), 0.05).double()) @ torch.eye(41, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(matrix)
    top = vectors[:, values.abs().argmax()]
    assert found.gap == pytest.approx(linearity_gap(model, x, 1.0, top).gap, rel=0.05) or found.gap == (
        pytest.approx(linearity_gap(model, x, 1.0, -top).gap, rel=0.05)
    )


def test_what_rounding_makes_of_a_gap():
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.Linear(8, 1, bias=False))
    found = linearity_gap(model, torch.ones(2, 3), 1e-5)
    assert found.relative < 20 * found.rounding
    assert linearity_gap(model, torch.ones(2, 3), 1.0).rounding < 1e-4


def test_multiple_eigenvalues_are_all_found():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(30, 20, generator=draws, dtype=torch.float64)
    model = nn.Linear(20, 10, bias=False).double()
    hessian = LossHessian(model, "mse", x, torch.zeros(30, 10))
    exact = torch.linalg.eigvalsh(hessian @ torch.eye(200, dtype=torch.float64)).numpy()
    assert eigenpairs(hessian, 4).values == pytest.approx(exact[::-1][:4], rel=1e-6)
    assert exact[-1] == pytest.approx(exact[-4], rel=1e-9)
    assert eigenpairs(hessian, 3, "smallest", tolerance=1e-6).values == pytest.approx(exact[2::-1], rel=1e-4)


def test_semi_definite_and_zero_operators():
    model = fresh(nn.Sequential(nn.Linear(3, 30), nn.Tanh(), nn.Linear(30, 1)))
    operator = GaussNewton(model, "mse", normal(5, 3), torch.zeros(5, 1))
    assert eigenpairs(operator, 2, "smallest").values == pytest.approx([0, 0], abs=1e-3)
    assert (eigenpairs(operator, 7).values[5:] < 1e-3).all()
    zero = OutputHessian(nn.Linear(100, 1).double(), normal(1, 100))
    for which in ("largest", "smallest", "both", "magnitude"):
        found = eigenpairs(zero, 2, which)
        assert found.values.tolist() == [0, 0]
        assert found.vectors.shape == (101, 2)


def test_too_few_products_for_the_confidence_are_said():
    operator = LossHessian(
        fresh(nn.Sequential(nn.Linear(3, 60), nn.Tanh(), nn.Linear(60, 2))),
        "mse",
        normal(9, 3),
        torch.arange(9) % 2,
    )
    with pytest.raises(ConvergenceError, match="below confidence"):
        spectral_norm(operator, max_products=12, tolerance=0.5)
    assert spectral_norm(operator, max_products=12, tolerance=0.5, strict=False).probability < 0.99
    for options in ({"max_products": -1}, {"tolerance": float("nan")}):
        with pytest.raises(InputError):
            spectral_norm(operator, **options)
        with pytest.raises(InputError):
            sharpness(small(), "mse", normal(4, 3), torch.zeros(4, 2), **options)


def test_the_kernel_along_a_training_that_yields_the_same_module():
    model, x = small(1), normal(6, 3)

    def training():
        net = copy.deepcopy(model)
        for _ in range(3):
            gradients = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
            yield net

    copies = [copy.deepcopy(net) for net in training()]
    live = kernel_change(model, x, training()).changes
    assert live == pytest.approx(kernel_change(model, x, copies).changes, rel=1e-12)
    assert len(set(live)) == 3
    first = jacobian_kernel(model, x).reshape(6, 6)
    last = jacobian_kernel(copies[-1], x).reshape(6, 6)
    assert live[-1] == pytest.approx(float((last - first).norm() / first.norm()), rel=1e-10)


def test_nothing_over_nothing_is_no_change():
    dead = nn.Linear(3, 1, bias=False).double()
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    assert kernel_change(dead, zeros, [dead]).changes == [0.0]
    assert hessian_norm(dead, zeros[:1]).ratio == 0.0
