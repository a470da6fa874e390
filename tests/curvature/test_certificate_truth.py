"""Certificates against the truth: short types, functions that jump, models that are not their layers."""

from __future__ import annotations

import copy
import math
import types

import pytest
import torch
from torch import nn

from wideangle import nets
from wideangle.curvature import _smooth, hessian_bound, pl_ratio, uniform_conditioning
from wideangle.curvature import landscape as ls
from wideangle.errors import InputError, NumericsError
from wideangle.kernel import factors, jacobian


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(activation: nn.Module, d: int = 3, width: int = 40, seed: int = 0, shift: float = 0.0) -> nn.Module:
    model = nn.Sequential(nn.Linear(d, width), activation, nn.Linear(width, 1)).double()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(draw(*p.shape, seed=seed + k))
        model[0].bias += shift
    return model


def smallest(model: nn.Module, x: torch.Tensor) -> float:
    """lambda_min(K) from the Jacobian in float64."""
    J = jacobian(copy.deepcopy(model).double(), x.double()).reshape(len(x), -1)
    return float(torch.linalg.svdvals(J)[-1]) ** 2


def test_certificates_in_float32_stay_below_the_truth():
    gaps = []
    for seed in range(40):
        model = chain(nn.Tanh(), seed=10 * seed).float()
        x = draw(6, 3, seed=seed).float()
        x = torch.cat([x, x[:1] + 1e-3 * draw(1, 3, seed=99).float()])
        found = uniform_conditioning(model, x, radius=1e-9, dtype=None)
        truth = smallest(model, x)
        assert found.mu is None or found.mu <= found.lambda_0 <= truth
        J = jacobian(model, x).double().reshape(len(x), -1)
        assert found.lipschitz >= float(
            torch.linalg.svdvals(jacobian(model.double(), x.double()).reshape(len(x), -1))[0]
        )
        gaps.append(float(torch.linalg.svdvals(J)[-1]) ** 2 / truth)
        if found.mu is not None:
            assert found.mu > truth / 2  # and not by far
    assert max(gaps) > 1 + 1e-5  # float32 alone is above it
    exact = uniform_conditioning(model, x.double(), radius=1e-9)
    assert exact.lambda_0 == pytest.approx(truth, rel=1e-6)


def test_what_float32_cannot_tell_from_zero_gets_no_certificate():
    model, x = chain(nn.Tanh()).float(), draw(3, 3).float()
    x = torch.cat([x, x[:1] * (1 + 2e-7)])
    found = uniform_conditioning(model, x, radius=1e-9, dtype=None)
    assert (found.mu, found.certified) == (None, False)
    assert "rank 3 of 4" in found.reason or "rounding" in found.reason


@pytest.mark.parametrize("rows", [1024, 0])
def test_extremes_hold_the_truth_in_float32(rows, monkeypatch):
    monkeypatch.setattr("wideangle.curvature._pl._ROWS", rows)
    for seed in range(10):
        model, x = chain(nn.Tanh(), seed=10 * seed).float(), draw(6, 3, seed=seed).float()
        ends = ls.kernel_extremes(factors(model, x), sum(p.numel() for p in model.parameters()))
        values = torch.linalg.svdvals(jacobian(model.double(), x.double()).reshape(6, -1)) ** 2
        assert ends.smallest_low <= float(values[-1]) <= ends.smallest_high
        assert float(values[0]) <= ends.largest_high <= float(values[0]) * 1.001
        assert ends.smallest_low > 0


def test_a_softplus_that_jumps_has_no_bound():
    x = draw(4, 3)
    low = chain(nn.Softplus(threshold=1.0))
    with pytest.raises(InputError, match=r"threshold=1.0\) jumps by 0.31"):
        hessian_bound(low, x)
    found = uniform_conditioning(low, x, radius=1e-4)
    assert not found.certified
    assert "jumps" in found.reason
    assert hessian_bound(chain(nn.Softplus()), x).shape == (4, 1)


def test_a_certificate_ends_where_a_softplus_may_pass_its_threshold():
    x = draw(4, 3)
    x = x / x.norm(dim=1, keepdim=True)
    inside = uniform_conditioning(chain(nn.Softplus()), x, radius=1e-3)
    assert inside.certified
    past = uniform_conditioning(chain(nn.Softplus(), shift=18.0), x, radius=1e-3)
    assert not past.certified
    assert "threshold 20" in past.reason
    later = uniform_conditioning(chain(nn.Softplus(threshold=40), shift=18.0), x, radius=1e-3)
    assert "threshold" not in later.reason
    model = chain(nn.Softplus(), width=1)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        model[0].bias.fill_(18.0)
    layers = _smooth.chain(model)
    sup = _smooth.hessian_sup(layers, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))
    # z = 19 and |(w, b)| moves it by radius sqrt(2)
    assert sup.jumps(0.99 / math.sqrt(2)) == ""
    assert "20" in sup.jumps(1.01 / math.sqrt(2))


@pytest.mark.parametrize("kind", ["sequential", "mlp"])
def test_a_model_that_is_not_its_layers_has_no_bound(kind):
    x = draw(4, 3)
    if kind == "mlp":
        gen = torch.Generator().manual_seed(0)
        model: nn.Module = nets.MLP(3, 1, width=16, depth=2, activation="tanh", generator=gen).double()
    else:
        model = chain(nn.Tanh())
    for dtype in (torch.float64, torch.float32):
        assert uniform_conditioning(model, x, radius=1e-6, dtype=dtype).method == "analytic"
    before = type(model).forward
    model.forward = types.MethodType(lambda self, x: before(self, x) + 0.001 * before(self, x) ** 2, model)
    for dtype in (torch.float64, torch.float32):
        found = uniform_conditioning(model, x, radius=1e-6, dtype=dtype)
        assert not found.certified
        assert "not those of its layers" in found.reason
    with pytest.raises(InputError, match="not those of its layers"):
        hessian_bound(model, x)


@pytest.mark.parametrize("name", sorted(_smooth.DERIVATIVES))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_is_no_other_function(name, dtype):
    """Deep and wide nets and large weights pass; a part in a thousand of the output does not."""
    gen = torch.Generator().manual_seed(1)
    activation = _smooth.FUNCTIONS[name]
    model = nets.MLP(30, 3, width=200, depth=4, activation=activation, bias=True, generator=gen).to(dtype)
    for scale in (0.1, 1.0, 10.0):
        x = (scale * draw(20, 30)).to(dtype)
        layers, outputs = _smooth.chain(model), model(x).detach()
        assert not _smooth.off(layers, x, outputs)
        if dtype == torch.float64:
            assert _smooth.off(layers, x, outputs * (1 + 1e-3))


def test_radii_that_overflow_are_named():
    x, model = draw(3, 3), chain(nn.Tanh())
    deep = nets.MLP(3, 1, width=8, depth=2, activation="tanh").double()
    for radius in (1e160, 1e300):
        for net in (model, deep):
            with pytest.raises(InputError, match="radius=1e"):
                uniform_conditioning(net, x, radius=radius)
    with pytest.raises(InputError, match=r"radius=1e\+300"):
        hessian_bound(deep, x, 1e300)
    bent = chain(nn.Softplus(), shift=1.0)
    with pytest.raises((InputError, NumericsError), match=r"radius=1e\+300"):
        uniform_conditioning(bent, x, radius=1e300, method="sampled", points=2)


def test_certified_means_that_there_is_a_mu():
    x = draw(4, 3)
    for radius in (1e-4, 1e-2, 1.0, 100.0):
        found = uniform_conditioning(chain(nn.Tanh()), x, draw(4, 1, seed=5), radius=radius)
        assert found.certified is (found.mu is not None)
        assert found.method == "analytic"
        assert bool(found.reason) is (found.mu is None)
    assert found.mu is None
    assert pl_ratio(chain(nn.Tanh()), x, draw(4, 1, seed=5)).lambda_min == pytest.approx(
        smallest(chain(nn.Tanh()), x)
    )
