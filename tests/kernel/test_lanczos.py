"""Lanczos eigenpairs against the dense decomposition; no value without a checked residual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from zoo import MODELS, fresh, normal

from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.kernel import factors, tangent_kernel
from wideangle.kernel.lanczos import lanczos_eigenpairs, top_eigenpairs


@pytest.mark.parametrize("name", ["mlp", "residual", "attention"])
def test_top_of_the_kernel(name: str):
    build, _ = MODELS[name]
    model = fresh(build())
    x = {"mlp": normal(20, 4), "residual": normal(12, 1, 5, 5)}.get(name)
    x = MODELS[name][1]() if x is None else x
    kernel = tangent_kernel(model, x)
    size = kernel.shape[0] * kernel.shape[1]
    expected = torch.linalg.eigvalsh(kernel.reshape(size, size)).flip(0)[:3]
    found = top_eigenpairs(factors(model, x), 3, tolerance=1e-8)
    assert np.allclose(found.values, expected, rtol=1e-8)
    assert found.residuals.max() < 1e-8 * found.values[0]
    assert np.allclose(found.vectors.T @ found.vectors, np.eye(3), atol=1e-6)


def test_indefinite_operator_gives_the_largest_not_the_most_negative():
    values = torch.cat([torch.linspace(-50, 1, 40, dtype=torch.float64), torch.tensor([2.0])]).double()
    found = lanczos_eigenpairs(lambda v: values * v, 41, tolerance=1e-6)
    assert abs(found.values[0] - 2.0) < 1e-5


def test_says_when_it_did_not_converge():
    values = torch.linspace(0.0, 1.0, 2000, dtype=torch.float64)
    with pytest.raises(ConvergenceError, match="max_products=12 products were not enough"):
        lanczos_eigenpairs(lambda v: values * v, 2000, tolerance=1e-12, max_products=12)


def test_zero_operator_has_eigenvalue_zero():
    found = lanczos_eigenpairs(lambda v: v * 0, 50, k=2)
    assert found.values.tolist() == [0.0, 0.0]


def test_bad_input():
    with pytest.raises(InputError, match="k=5 eigenpairs of an operator of size 3"):
        lanczos_eigenpairs(lambda v: v, 3, k=5)
    with pytest.raises(InputError, match="start has 2 entries"):
        lanczos_eigenpairs(lambda v: v, 30, start=torch.ones(2))
    with pytest.raises(NumericsError, match="not finite"):
        lanczos_eigenpairs(lambda v: v * float("nan"), 30)
