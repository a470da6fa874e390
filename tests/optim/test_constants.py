"""Critical step and constants: four loss conventions against the true divergence of the linearisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wideangle.errors import InputError, NumericsError
from wideangle.kernel import factors, jacobian, tangent_kernel
from wideangle.kernel.function_space import DenseKernel, linearised_descent, quickest_product
from wideangle.kernel.lanczos import top_eigenpairs
from wideangle.losses import SQUARED_LOSSES, hessian_factor
from wideangle.optim import Constants, choose_batch, choose_step, critical_step, measure_constants
from wideangle.seeds import generator

SUM_OVER = {
    "half_sum": lambda r: r.square().sum() / 2,
    "mean": lambda r: r.square().sum() / r.shape[0],
    "half_mean": lambda r: r.square().sum() / (2 * r.shape[0]),
    "mse": lambda r: torch.nn.functional.mse_loss(r, torch.zeros_like(r)),
}


def setting(outputs: int, samples: int = 12) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    draws = generator(1, "constants")
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, outputs)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    x = torch.randn(samples, 5, generator=draws, dtype=torch.float64)
    return model, x, torch.randn(samples, outputs, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize("loss", SQUARED_LOSSES)
@pytest.mark.parametrize("outputs", [1, 10])
def test_linearised_descent_diverges_exactly_above_the_critical_step(loss: str, outputs: int):
    """Plain gradient descent on the weights of the linearised model, by autograd, with no kernel in sight."""
    model, x, y = setting(outputs)
    step = critical_step(
        float(top_eigenpairs(factors(model, x), tolerance=1e-8).values[0]),
        loss=loss,
        samples=len(x),
        outputs=outputs,
    )
    j = jacobian(model, x)
    start = model(x).detach() - y

    def final(factor: float) -> float:
        w = torch.zeros(j.shape[2], dtype=torch.float64)
        for _ in range(4000):
            w.requires_grad_(True)
            value = SUM_OVER[loss](start + (j @ w))
            w = (w - factor * step * torch.autograd.grad(value, w)[0]).detach()
        return float(SUM_OVER[loss](start + (j @ w)))

    before = float(SUM_OVER[loss](start))
    assert final(0.99) < before
    assert final(1.01) > 1e3 * before


@pytest.mark.parametrize("loss", SQUARED_LOSSES)
def test_hessian_factor_is_the_true_hessian_of_a_linear_model(loss: str):
    model = nn.Linear(3, 2, bias=False).double()
    x = torch.randn(6, 3, generator=generator(2, "x"), dtype=torch.float64)
    kernel = tangent_kernel(model, x).reshape(12, 12)

    def value(w: torch.Tensor) -> torch.Tensor:
        return SUM_OVER[loss](x @ w.T)

    hessian = torch.autograd.functional.hessian(value, model.weight.detach())
    assert isinstance(hessian, torch.Tensor)
    top = torch.linalg.eigvalsh(hessian.reshape(6, 6))[-1]
    c = hessian_factor(loss, 6, 2)
    assert abs(float(c * torch.linalg.eigvalsh(kernel)[-1] / top) - 1) < 1e-10


def test_trace_kernel_would_give_a_wrong_step():
    model, x, _ = setting(10)
    full = tangent_kernel(model, x)
    trace = torch.einsum("icjc->ij", full)
    assert torch.linalg.eigvalsh(trace)[-1] > 2 * torch.linalg.eigvalsh(full.reshape(120, 120))[-1]


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_function_space_equals_weight_space(loss: str):
    model, x, y = setting(3)
    labels = y.argmax(1)

    def value(z: torch.Tensor) -> torch.Tensor:
        if loss == "mse":
            return nn.functional.mse_loss(z, y)
        return nn.functional.cross_entropy(z, labels)

    run = linearised_descent(factors(model, x), model(x), value, 0.05, 30)
    j, z0 = jacobian(model, x), model(x).detach()
    w = torch.zeros(j.shape[2], dtype=torch.float64)
    for t in range(31):
        w.requires_grad_(True)
        now = value(z0 + j @ w)
        assert abs(run.losses[t] - float(now.detach())) < 1e-10
        assert abs(run.distance[t] - float(w.detach().norm())) < 1e-9
        w = (w - 0.05 * torch.autograd.grad(now, w)[0]).detach()


def test_overflow_is_a_value():
    model, x, y = setting(1)
    run = linearised_descent(factors(model, x), model(x), lambda z: (z - y).square().sum() / 2, 50.0, 400)
    assert math.isinf(run.losses[-1])
    assert run.losses[0] < run.losses[1]


def test_batch_smoothness_is_the_curvature_bound_of_batches():
    """E[H_m^2] <= L_m H for batches without replacement, checked by exhausting all batches."""
    from itertools import combinations

    model, x, _ = setting(1, samples=6)
    constants = measure_constants(factors(model, x), model(x))
    j = jacobian(model, x)[:, 0]
    for m in (1, 2, 3, 6):
        batches = [2 * j[list(rows)].T @ j[list(rows)] / m for rows in combinations(range(6), m)]
        second = sum(h @ h for h in batches) / len(batches)
        bound = constants.batch_smoothness(m) * (2 * j.T @ j / 6)
        assert torch.linalg.eigvalsh(bound - second)[0] > -1e-9
    assert constants.batch_smoothness(6) == pytest.approx(constants.smoothness)
    assert constants.batch_smoothness(1) == pytest.approx(constants.sample_smoothness)


def test_recommendation():
    constants = Constants("mse", 100, 10, smoothness=2.0, sample_smoothness=8.0)
    step, batch = choose_step(constants, 100)
    assert (step.value, batch.value) == (0.5, 100)
    assert "L = 2 " in step.evidence
    assert constants.critical_batch == 4.0
    assert choose_batch(constants, lambda m: 1.0)[0].batch == 16
    assert choose_batch(constants, lambda m: float(m))[0].batch == 16  # timings are shown, they do not decide
    steep = Constants("mse", 100, 10, smoothness=2.0, sample_smoothness=20.0)
    assert choose_batch(steep, lambda m: 1.0)[0].batch == 32
    few = Constants("mse", 9, 10, smoothness=2.0, sample_smoothness=20.0)
    assert choose_batch(few, lambda m: 1.0)[0].batch == 9
    with pytest.raises(InputError, match="batch size 101 of 100"):
        choose_step(constants, 101)
    with pytest.raises(InputError, match="lambda_max is 0"):
        critical_step(0.0, samples=1, outputs=1)
    with pytest.raises(InputError, match="unknown squared loss 'sse'"):
        hessian_factor("sse", 1, 1)


def test_a_saturated_softmax_is_a_typed_error():
    model, x, _ = setting(3)
    with pytest.raises(NumericsError, match=r"cross-entropy loss is 0: .* saturated"):
        measure_constants(factors(model, x), model(x) * 1e9, "cross-entropy")


def test_the_dense_product_is_the_same():
    model, x, y = setting(3, samples=2)
    cache = factors(model, x)
    dense = quickest_product(cache)
    small = quickest_product(cache, max_memory=1)
    assert isinstance(dense, DenseKernel)
    assert small is cache
    v = torch.randn(2, 3, generator=generator(5, "v"), dtype=torch.float64)
    assert torch.allclose(dense @ v, cache @ v, rtol=1e-12)
    runs = [
        linearised_descent(k, model(x), lambda z: (z - y).square().mean(), 0.1, 20) for k in (dense, cache)
    ]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-10)
    assert runs[0].distance == pytest.approx(runs[1].distance, rel=1e-8)
