"""Norm, eigenpairs, trace and density against matrices whose spectrum is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wideangle.curvature import (
    LossHessian,
    eigenpairs,
    lanczos_steps,
    spectral_density,
    spectral_norm,
    trace,
)
from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.seeds import generator


class Diagonal:
    """A matrix with given eigenvalues in a random basis (or in the unit vectors), as an operator."""

    def __init__(self, values: Tensor, turned: bool = True):
        self.values, self.size = values.double(), len(values)
        self.device, self.dtype = torch.device("cpu"), torch.float64
        if turned:
            noise = torch.randn(self.size, self.size, generator=generator(0, "turn"), dtype=torch.float64)
            self.basis = torch.linalg.qr(noise)[0]
        self.count, self.turned = 0, turned

    def product(self, vector: Tensor) -> Tensor:
        self.count += 1
        if not self.turned:
            return self.values * vector
        return self.basis @ (self.values * (self.basis.T @ vector))


def spread(size: int = 300) -> Tensor:
    return torch.cat([torch.linspace(-1, 1, size - 4), torch.tensor([-3.0, -2.5, 2.0, 2.9])])


def test_the_norm_is_the_larger_end_whatever_its_sign():
    for values, signed in ((spread(), -3.0), (-spread(), 3.0), (torch.linspace(0, 5, 200), 5.0)):
        operator = Diagonal(values)
        found = spectral_norm(operator, tolerance=1e-6)
        assert found.signed == pytest.approx(signed, rel=1e-8)
        assert found.value == abs(found.signed)
        assert found.products == operator.count
        image = operator.product(torch.as_tensor(found.vector))
        error = float((image - found.signed * torch.as_tensor(found.vector)).norm())
        assert error <= max(2 * found.residual, 1e-12)
        assert found.residual <= 1e-6 * found.value


def test_two_ends_of_one_size_on_which_power_iteration_fails():
    values = torch.cat([torch.tensor([-2.0, 2.0]), torch.linspace(-1, 1, 198)])
    v = torch.randn(200, generator=generator(1, "power"), dtype=torch.float64)
    operator = Diagonal(values)
    for _ in range(200):
        v = operator.product(v / v.norm())
    unit = v / v.norm()
    rayleigh = float(unit @ operator.product(unit))
    assert abs(rayleigh) < 1.9  # it hangs between the two
    assert spectral_norm(Diagonal(values)).value == pytest.approx(2, rel=1e-4)


def test_the_probability_is_that_of_the_steps_and_one_where_nothing_is_left():
    found = spectral_norm(Diagonal(spread()), confidence=0.9, tolerance=1e-9)
    steps = lanczos_steps(300, 0.1, 0.9)
    assert found.products >= steps
    share = 0.1 / 2.2
    least = 1 - 3.296 * math.sqrt(300) * math.exp(-math.sqrt(share) * (2 * steps - 1))
    assert 0.9 <= least <= found.probability < 1
    unrestarted = min(found.products, max(24, steps))
    exact = 1 - 3.296 * math.sqrt(300) * math.exp(-math.sqrt(share) * (2 * unrestarted - 1))
    assert found.probability == pytest.approx(exact, rel=1e-12)
    assert lanczos_steps(300, 0.1, 0.9) < lanczos_steps(300, 0.1, 0.99) < lanczos_steps(300, 0.01, 0.99)
    assert spectral_norm(Diagonal(torch.tensor([1.0, -4.0, 2.0]))).probability == 1.0


def test_the_norm_is_missed_no_more_often_than_said():
    """A lone eigenvalue far out, found late: in 200 starts the bound holds at least as often as promised."""
    values = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([1.2])])

    def missed(steps: int) -> int:
        count = 0
        for seed in range(200):
            options = {"confidence": 0.0, "tolerance": 1e-9, "max_products": steps, "strict": False}
            count += 1.1 * spectral_norm(Diagonal(values, turned=False), seed=seed, **options).value < 1.2
        return count

    assert missed(4) > 100  # so few steps do miss it
    assert missed(lanczos_steps(1000, 0.1, 0.5)) <= 100


def test_what_the_norm_refuses():
    operator = Diagonal(spread())
    for options, text in (
        ({"confidence": 1.0}, "confidence"),
        ({"slack": 0.0}, "slack"),
        ({"tolerance": -1.0}, "tolerance"),
    ):
        with pytest.raises(InputError, match=text):
            spectral_norm(operator, **options)
    with pytest.raises(ConvergenceError, match="raise max_products"):
        spectral_norm(Diagonal(torch.linspace(-1, 1, 2000), turned=False), tolerance=1e-9, max_products=12)
    operator.values[0] = math.nan
    with pytest.raises(NumericsError, match="non-finite"):
        spectral_norm(operator)


@pytest.mark.parametrize("size", [30, 300])
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude", "both"])
def test_eigenpairs_of_every_end(size, which):
    values = spread(size)
    operator = Diagonal(values)
    found = eigenpairs(operator, 3, which, tolerance=1e-8)
    expected = {
        "largest": np.sort(values.numpy())[::-1][:3],
        "smallest": np.sort(values.numpy())[:3][::-1],
        "magnitude": np.array([2.9, -2.5, -3.0]),
        "both": np.array([2.9, 2.0, -3.0]),
    }[which]
    assert found.values == pytest.approx(expected, abs=1e-7)
    image = np.stack([operator.product(torch.as_tensor(v.copy())).numpy() for v in found.vectors.T], 1)
    assert np.linalg.norm(image - found.vectors * found.values, axis=0) == pytest.approx(
        found.residuals, abs=1e-12
    )
    assert np.abs(found.vectors.T @ found.vectors - np.eye(3)).max() < 1e-8
    assert operator.count - 3 == found.products


def test_what_eigenpairs_refuse():
    operator = Diagonal(spread())
    for arguments, text in (((0,), "k=0"), ((300,), "from 1 to 299"), ((2, "top"), "unknown which")):
        with pytest.raises(InputError, match=text):
            eigenpairs(operator, *arguments)
    with pytest.raises(InputError, match="rounding"):
        eigenpairs(operator, 1, tolerance=1e-16)
    with pytest.raises(ConvergenceError, match="eigenpairs converged to"):
        eigenpairs(Diagonal(torch.linspace(-1, 1, 2000), turned=False), 4, tolerance=1e-9, max_products=30)


def test_the_trace_and_its_error():
    values = 10.0 * torch.arange(1, 401, dtype=torch.float64) ** -1.5 - 0.05
    errors = []
    for seed in range(30):
        found = trace(Diagonal(values), 60, seed=seed)
        assert found.products == 60
        errors.append((found.value - float(values.sum())) / found.error)
    assert abs(np.mean(errors)) < 0.6
    assert 0.5 < np.std(errors) < 1.6
    plain = math.sqrt(2 * float((values**2).sum()) / 60)  # Hutchinson's error with as many products
    assert found.error < plain
    exact = trace(Diagonal(values), 400)
    assert (exact.value, exact.error, exact.products) == (pytest.approx(float(values.sum())), 0.0, 400)
    with pytest.raises(InputError, match="at least 6"):
        trace(Diagonal(values), 5)


def test_the_density_has_the_moments_and_masses_of_the_spectrum():
    values = torch.cat([torch.linspace(-1, 1, 900), torch.full((100,), 4.0)])
    operator = Diagonal(values, turned=False)
    found = spectral_density(operator, 40, vectors=10)
    assert found.products == operator.count
    assert found.weights.sum() == pytest.approx(1, abs=1e-12)
    for power in (1, 2, 3):
        expected = float((values**power).mean())
        assert found.weights @ found.nodes**power == pytest.approx(expected, abs=0.015 * 4**power)
    assert found.mass(3, 5) == pytest.approx(0.1, abs=0.03)
    assert found.mass(high=0) == pytest.approx(0.45, abs=0.05)
    assert (found.lowest, found.highest) == (pytest.approx(-1, abs=0.01), pytest.approx(4, abs=1e-6))
    grid = np.linspace(-3, 6, 2001)
    assert np.trapezoid(found.smooth(grid, 0.1), grid) == pytest.approx(1, abs=1e-3)
    one = spectral_density(Diagonal(torch.full((50,), 2.0)), 20)
    assert one.products == 1
    assert one.nodes == pytest.approx([2.0])
    with pytest.raises(InputError, match="width"):
        found.smooth(grid, 0.0)
    with pytest.raises(InputError, match="at least 1"):
        spectral_density(operator, 0)


def test_a_hessian_in_float32_and_the_results_as_json():
    from wideangle import Result

    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 2))
    for k, p in enumerate(model.parameters()):
        p.data.copy_(torch.sin(torch.arange(p.numel()) + k).reshape(p.shape))
    x, y = torch.linspace(-1, 1, 60).reshape(10, 6), torch.arange(10) % 2
    small = LossHessian(model, "mse", x, y)
    exact = np.linalg.eigvalsh(
        (LossHessian(model, "mse", x, y, dtype=torch.float64) @ torch.eye(small.size)).numpy()
    )
    assert spectral_norm(small).value == pytest.approx(np.abs(exact).max(), rel=1e-4)
    assert eigenpairs(small, 2, "smallest").values == pytest.approx(exact[1::-1], rel=1e-3)
    assert trace(small, 500).value == pytest.approx(exact.sum(), rel=1e-4)
    for found in (spectral_norm(small), eigenpairs(small), trace(small), spectral_density(small, 10)):
        again = Result.from_json(found.to_json())
        assert str(again) == str(found)
