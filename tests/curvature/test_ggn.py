"""The Gauss-Newton spectrum through the kernel against the dense p x p Gauss-Newton matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wideangle.curvature.ggn import ggn_blocks, ggn_top_eigenpair
from wideangle.errors import InputError
from wideangle.kernel import factors, jacobian
from wideangle.seeds import generator


def setting(outputs: int) -> tuple[nn.Module, torch.Tensor]:
    draws = generator(0, "ggn")
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, outputs)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return model, torch.randn(9, 4, generator=draws, dtype=torch.float64)


def dense(model: nn.Module, x: torch.Tensor, loss: str) -> torch.Tensor:
    """J^T B J / n with B the Hessian of the sample's loss in its outputs, taken by autograd."""
    j = jacobian(model, x)
    z = model(x).detach()
    target = torch.zeros(len(x), dtype=torch.long)
    total = torch.zeros(j.shape[2], j.shape[2], dtype=torch.float64)
    for i in range(len(x)):

        def one(out: torch.Tensor, i: int = i) -> torch.Tensor:
            if loss == "mse":
                return out.square().mean()
            return nn.functional.cross_entropy(out[None], target[i : i + 1])

        curvature = torch.autograd.functional.hessian(one, z[i])
        assert isinstance(curvature, torch.Tensor)
        total += j[i].T @ curvature @ j[i] / len(x)
    return total


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("outputs", [2, 5])
def test_top_eigenvalue_equals_the_dense_one(loss: str, outputs: int):
    model, x = setting(outputs)
    found = ggn_top_eigenpair(factors(model, x), model(x), loss, tolerance=1e-8)
    expected = torch.linalg.eigvalsh(dense(model, x, loss))[-1]
    assert abs(float(found.values[0] / expected) - 1) < 1e-8


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_blocks_are_the_curvature_of_single_samples(loss: str):
    model, x = setting(3)
    blocks = ggn_blocks(factors(model, x), model(x), loss)
    for i in range(3):
        expected = torch.linalg.eigvalsh(dense(model, x[i : i + 1], loss))[-1]
        assert abs(float(torch.linalg.eigvalsh(blocks[i])[-1] / expected) - 1) < 1e-10


def test_bad_input():
    model, x = setting(3)
    cache = factors(model, x)
    with pytest.raises(InputError, match="unknown loss 'hinge'"):
        ggn_top_eigenpair(cache, model(x), "hinge")
    with pytest.raises(InputError, match=r"logits of shape \(8, 3\) do not fit 9 samples and 3 outputs"):
        ggn_top_eigenpair(cache, model(x)[:8], "mse")
