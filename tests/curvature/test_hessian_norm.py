"""Hessian norms of outputs, and the change of the kernel, against dense matrices and closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wideangle import nets
from wideangle.curvature import hessian_norm, kernel_change, kernel_change_bound
from wideangle.errors import InputError
from wideangle.kernel import jacobian_kernel
from wideangle.seeds import generator


def two_layers(width: int, seed: int = 0, outputs: int = 1) -> nn.Module:
    draws = generator(seed, "two layers")
    return nets.MLP(5, outputs, width=width, depth=1, activation="tanh", gain=False, generator=draws).double()


def samples(n: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(n, 5, generator=generator(seed, "x"), dtype=torch.float64)


def exact_norm(model: nn.Module, x: Tensor) -> float:
    """The two-layer formula: H is block diagonal over neurons, each block [[a, b], [b, 0]]."""
    weight, v = model.hidden[0].weight.detach(), model.head.weight.detach()[0]
    h = torch.tanh(weight @ x / math.sqrt(len(x)))
    size = float(x.square().sum()) / len(x)
    a, b = v * -2 * h * (1 - h**2) * size, (1 - h**2) * math.sqrt(size)
    return float(((a.abs() + (a**2 + 4 * b**2).sqrt()) / 2).max()) / math.sqrt(len(v))


def dense(model: nn.Module, x: Tensor, output: int) -> Tensor:
    weights = dict(model.named_parameters())
    sizes = [w.numel() for w in weights.values()]

    def of(flat: Tensor) -> Tensor:
        pieces = flat.split(sizes)
        state = {n: p.view_as(w) for (n, w), p in zip(weights.items(), pieces, strict=True)}
        return torch.func.functional_call(model, state, (x[None],))[0, output]

    flat = torch.cat([w.detach().reshape(-1) for w in weights.values()])
    return torch.autograd.functional.hessian(of, flat)


@pytest.mark.parametrize("width", [16, 200])
def test_the_two_layer_formula(width):
    model, x = two_layers(width), samples(3)
    found = hessian_norm(model, x, tolerance=1e-6)
    expected = [exact_norm(model, row) for row in x]
    assert found.values[:, 0] == pytest.approx(expected, rel=1e-8)
    assert found.value == pytest.approx(max(expected), rel=1e-8)
    assert found.probability >= 0.99
    assert not found.certified


def test_every_sample_and_output_on_its_own():
    model, x = two_layers(6, outputs=3), samples(2)
    found = hessian_norm(model, x, tolerance=1e-8)
    assert found.values.shape == (2, 3)
    for i in range(2):
        for c in range(3):
            matrix = dense(model, x[i], c)
            assert found.values[i, c] == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-7)
    slopes = found.gradient_norms
    diagonal = jacobian_kernel(model, x).reshape(6, 6).diagonal().sqrt().reshape(2, 3)
    assert slopes == pytest.approx(diagonal.numpy(), rel=1e-10)
    assert found.ratio == pytest.approx((found.values / slopes**2).max(), rel=1e-12)
    one = hessian_norm(model, x, outputs=1, tolerance=1e-8)
    assert one.values == pytest.approx(found.values[:, 1:2])
    assert hessian_norm(model, x, outputs=[2, 0]).values == pytest.approx(found.values[:, [2, 0]], rel=1e-3)


def shifted(model: nn.Module, x: Tensor, distance: float) -> nn.Module:
    """The model moved along the gradient of its output."""
    moved = copy.deepcopy(model)
    gradients = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    with torch.no_grad():
        for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
            parameter += distance * gradient / length
    return moved


def test_on_a_ball_it_is_the_largest_of_the_points_and_starts_with_the_gradient_s():
    larger = 0
    for seed in range(8):
        model, x = two_layers(20, seed), samples(seed=seed)
        center, uphill, downhill = (exact_norm(shifted(model, x, r), x[0]) for r in (0.0, 2.0, -2.0))
        found = hessian_norm(model, x, 2.0, points=1, tolerance=1e-8)
        assert found.center[0, 0] == pytest.approx(center, rel=1e-7)
        assert found.value == pytest.approx(max(center, uphill), rel=1e-7)
        larger += uphill > 1.01 * max(center, downhill)
        both = hessian_norm(model, x, 2.0, points=2, tolerance=1e-8)
        assert both.value == pytest.approx(max(center, uphill, downhill), rel=1e-7)
    assert larger > 0  # otherwise the points would not matter above
    more = hessian_norm(model, x, 2.0, points=6, tolerance=1e-8)
    assert more.value >= both.value * (1 - 1e-7)
    assert (more.points, found.points) == (7, 2)
    assert hessian_norm(model, x, 2.0, points=6).values == pytest.approx(more.values, rel=1e-3)


def test_the_gradient_turns_as_fast_as_the_norm_says_along_the_top_eigenvector():
    """|grad f(w + t h) - grad f(w)| / t tends to |H| for the top eigenvector h, and to less for any other step."""
    model, x = two_layers(30), samples()
    norm = hessian_norm(model, x, tolerance=1e-8).value
    values, vectors = torch.linalg.eigh(dense(model, x[0], 0))
    top = vectors[:, values.abs().argmax()]
    start = torch.cat([g.reshape(-1) for g in torch.autograd.grad(model(x).sum(), list(model.parameters()))])

    def turn(step: Tensor) -> float:
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, part in zip(other.parameters(), step.split([150, 30]), strict=True):
                parameter += part.view_as(parameter)
        end = torch.autograd.grad(other(x).sum(), list(other.parameters()))
        return float((torch.cat([g.reshape(-1) for g in end]) - start).norm() / step.norm())

    assert turn(1e-5 * top) == pytest.approx(norm, rel=1e-4)
    other = torch.randn(180, generator=generator(0, "differences"), dtype=torch.float64)
    assert turn(1e-5 * other / other.norm()) < 0.9 * norm


def test_a_linear_model_has_none_and_a_scaled_one_the_same_ratio():
    assert hessian_norm(nn.Linear(5, 2).double(), samples(2)).value == 0.0

    class Scaled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 10 * self.inner(x)

    model, x = two_layers(10), samples(2)
    plain, scaled = hessian_norm(model, x), hessian_norm(Scaled(model), x)
    assert scaled.value == pytest.approx(10 * plain.value, rel=1e-4)
    assert scaled.ratio == pytest.approx(plain.ratio / 10, rel=1e-4)


def test_what_the_norm_refuses():
    x = samples(2)
    relu = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with pytest.raises(InputError, match=r"relu has kinks.*linearity_gap"):
        hessian_norm(relu, x)
    assert hessian_norm(relu, x, allow_kinks=True).value > 0
    with pytest.raises(InputError, match="radius must be zero or positive"):
        hessian_norm(two_layers(4), x, -1.0)
    with pytest.raises(InputError, match="points=0"):
        hessian_norm(two_layers(4), x, 1.0, points=0)
    with pytest.raises(InputError, match="numbered from 0"):
        hessian_norm(two_layers(4), x, outputs=1)
    with pytest.raises(InputError, match="train mode"):
        hessian_norm(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1)).double(), x)
    with pytest.raises(InputError, match="no samples"):
        hessian_norm(two_layers(4), x[:0])


def test_the_model_is_left_as_found():
    model, x = two_layers(6), samples()
    state = copy.deepcopy(model.state_dict())
    hessian_norm(model, x, 1.0)
    kernel_change(model, x, [two_layers(6, seed=1)])
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_kernel_change_is_that_of_the_matrices():
    model, other, x = two_layers(8, outputs=2), two_layers(8, seed=1, outputs=2), samples(4)
    first, second = (jacobian_kernel(m, x).reshape(8, 8) for m in (model, other))
    found = kernel_change(model, x, [model, other.state_dict()])
    assert found.changes == pytest.approx([0.0, float((second - first).norm() / first.norm())], rel=1e-10)
    assert found.absolute[1] == pytest.approx(float((second - first).norm()), rel=1e-10)
    assert found.largest == max(found.changes)
    steps = [(a - b).norm() for a, b in zip(model.parameters(), other.parameters(), strict=True)]
    assert found.distances == pytest.approx([0.0, math.hypot(*[float(s.detach()) for s in steps])], rel=1e-12)
    spectral = kernel_change(model, x, [other], norm="spectral")
    norms = [float(torch.linalg.matrix_norm(m, 2)) for m in (second - first, first)]
    assert spectral.changes == pytest.approx([norms[0] / norms[1]], rel=1e-10)
    with pytest.raises(InputError, match="empty"):
        kernel_change(model, x, [])
    with pytest.raises(InputError, match="not one of this model"):
        kernel_change(model, x, [two_layers(9, outputs=2)])
    with pytest.raises(InputError, match="unknown norm"):
        kernel_change(model, x, [other], norm="nuclear")


@pytest.mark.parametrize("radius", [0.1, 1.0])
def test_the_bound_holds_on_the_ball_and_is_not_empty(radius):
    """sup |H| of one tanh layer over the whole ball, from the bounds of the activation's derivatives."""
    model, x = two_layers(50), samples(3)
    v = float(model.head.weight.detach().abs().max()) + radius
    size = (x.square().sum(1) / 5).numpy()
    a = 0.7699 * v * size  # max |tanh''| = 4 / (3 sqrt 3)
    sup = (a + np.sqrt(a**2 + 4 * size)) / 2 / math.sqrt(50)
    found = hessian_norm(model, x, tolerance=1e-6)
    assert (found.values[:, 0] <= sup).all()
    bound = kernel_change_bound(found.gradient_norms[:, 0], sup, radius)
    first = jacobian_kernel(model, x).reshape(3, 3).numpy()
    draws, largest = generator(1, "ball"), 0.0
    steps = [
        [torch.randn(p.shape, generator=draws, dtype=torch.float64) for p in model.parameters()]
        for _ in range(9)
    ]
    steps += [
        [torch.zeros_like(model.hidden[0].weight), sign * model.head.weight.detach()] for sign in (1, -1)
    ]
    for step in steps:
        length = math.hypot(*[float(s.norm()) for s in step])
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, part in zip(other.parameters(), step, strict=True):
                parameter += radius * part / length
        change = np.abs(jacobian_kernel(other, x).reshape(3, 3).numpy() - first)
        assert (change <= bound).all()
        largest = max(largest, float((change / bound).max()))
    assert largest > 0.05
    assert (bound == bound.T).all()
    with pytest.raises(InputError, match="one each a row"):
        kernel_change_bound([1.0], [1.0, 2.0], 1.0)
    with pytest.raises(InputError, match="negative"):
        kernel_change_bound([1.0], [-1.0], 1.0)
