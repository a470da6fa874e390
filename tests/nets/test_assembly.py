"""The assembly: a weighted, scaled sum of any sub-models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wideangle import nets
from wideangle.errors import InputError
from wideangle.nets import Assembly
from wideangle.seeds import generator


def parts(count: int) -> list[nn.Module]:
    return [
        nets.MLP(3, 2, width=4, depth=1, activation="tanh", generator=generator(0, "part", k)).double()
        for k in range(count)
    ]


X = torch.randn(5, 3, generator=generator(0, "x"), dtype=torch.float64)


@pytest.mark.parametrize(("scale", "divisor"), [("sqrt", math.sqrt(3)), ("mean", 3.0), (2.5, 2.5)])
def test_the_sum_and_its_scale(scale, divisor: float):
    subs, v = parts(3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected = sum(v[i] * subs[i](X) for i in range(3)) / divisor
    assert torch.allclose(Assembly(subs, v, scale)(X), expected, rtol=1e-13)


def test_coefficients():
    subs = parts(200)
    assert torch.equal(Assembly(subs).coefficients, torch.ones(200, dtype=torch.float64))
    signs = Assembly(subs, "signs").coefficients
    assert set(signs.tolist()) == {1.0, -1.0}
    assert abs(float(signs.mean())) < 0.3
    draws = Assembly(subs, "normal", generator=generator(1, "v")).coefficients
    assert torch.equal(draws, torch.randn(200, generator=generator(1, "v"), dtype=torch.float64))
    assert torch.equal(signs, Assembly(subs, "signs").coefficients)
    assert not torch.equal(draws, Assembly(subs, "normal", generator=generator(2, "v")).coefficients)
    assert signs.dtype == torch.float64
    assert Assembly([nn.Linear(1, 1)], "normal").coefficients.dtype == torch.float32
    assert Assembly([nn.Tanh()], "normal").coefficients.dtype == torch.float32


def test_only_trained_coefficients_are_parameters():
    fixed, trained = Assembly(parts(2)), Assembly(parts(2), trainable_coefficients=True)
    assert "coefficients" not in dict(fixed.named_parameters())
    assert "coefficients" in fixed.state_dict()
    trained(X).sum().backward()
    expected = torch.stack([part(X).sum() for part in trained.sub_models]) / math.sqrt(2)
    assert torch.allclose(trained.coefficients.grad, expected)


def test_assemblies_of_assemblies_and_shared_modules():
    a, b = parts(2)
    nested = Assembly([Assembly([a, b]), Assembly([a, a], scale=4.0)], torch.tensor([1.0, 3.0]))
    expected = ((a(X) + b(X)) / math.sqrt(2) + 3 * a(X) / 2) / math.sqrt(2)
    assert torch.allclose(nested(X), expected)
    assert len(list(nested.parameters())) == 4
    again = Assembly([Assembly(parts(2)), Assembly(parts(2))])
    again.load_state_dict(Assembly([Assembly([a, b]), Assembly([b, a])]).state_dict())
    assert torch.allclose(again(X), (a(X) + b(X)) * math.sqrt(2) / math.sqrt(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one sub-model"),
        (([torch.tanh],), "must be modules, got a"),
        ((parts(2), torch.ones(3)), r"expected \(2,\) floats"),
        ((parts(2), torch.tensor([1.0, math.nan])), "must be finite"),
        ((parts(2), "sign"), "unknown coefficients 'sign'"),
        ((parts(2), None, "root"), "unknown scale 'root'"),
        ((parts(2), None, 0.0), "must be positive"),
        ((parts(2), None, math.inf), "must be positive"),
    ],
)
def test_what_is_refused(arguments, message: str):
    with pytest.raises(InputError, match=message):
        Assembly(*arguments)


def test_outputs_of_different_shapes_are_refused():
    with pytest.raises(InputError, match=r"first returned \(5, 2\), number 1 \(5, 1\)"):
        Assembly([nn.Linear(3, 2), nn.Linear(3, 1)])(X.float())


def test_outputs_of_different_types_are_refused():
    mixed = Assembly([nn.Linear(3, 2), nn.Linear(3, 2).double()])
    with pytest.raises(InputError, match=r"parameters of torch.float32 and torch.float64 .* assembly.double"):
        mixed(X.float())
    assert mixed.double()(X).dtype == torch.float64
    with pytest.raises(RuntimeError):  # an ordinary one stays what it is
        mixed(torch.ones(5, 4, dtype=torch.float64))
    late = Assembly([nn.Linear(3, 2)])
    late.sub_models.double()
    with pytest.raises(InputError, match=r"outputs .* coefficients are of torch.float64 and torch.float32"):
        late(X)


def test_autocast_chooses_the_types():
    subs = parts(2)
    net = Assembly(subs).float()
    with torch.autocast("cpu", torch.bfloat16):
        f = net(X.float())
    assert torch.allclose(f.double(), net.double()(X), atol=0.05)


def test_no_output_that_is_no_tensor():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(InputError, match=r"first returned tuple, number 0 tuple"):
        Assembly([Two()])(X)
