"""The fully connected net against its formula."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from wideangle.errors import InputError
from wideangle.nets import ACTIVATIONS, MLP, c_sigma
from wideangle.seeds import generator

X = torch.randn(6, 2, 3, generator=generator(0, "inputs"))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_ntk_forward_is_the_formula(name, bias):
    net = MLP(6, 3, width=5, depth=2, activation=name, bias=bias, generator=generator(1)).double()
    w = [layer.weight for layer in (*net.hidden, net.head)]
    b = [layer.bias if bias else 0.0 for layer in (*net.hidden, net.head)]
    h = X.double().reshape(6, 6)
    h = math.sqrt(c_sigma(name)) * ACTIVATIONS[name](h @ w[0].T / math.sqrt(6) + b[0])
    h = math.sqrt(c_sigma(name)) * ACTIVATIONS[name](h @ w[1].T / math.sqrt(5) + b[1])
    torch.testing.assert_close(net(X.double()), h @ w[2].T / math.sqrt(5) + b[2])


def test_standard_forward_is_a_plain_sequence():
    net = MLP(6, 3, width=5, depth=2, parameterization="standard", bias=True)
    plain = nn.Sequential(nn.Flatten(), net.hidden[0], nn.ReLU(), net.hidden[1], nn.ReLU(), net.head)
    torch.testing.assert_close(net(X), plain(X), rtol=0, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_drawn_as_said(bias):
    ntk = MLP(400, 300, width=500, depth=1, bias=bias)
    standard = MLP(400, 300, width=500, depth=1, bias=bias, parameterization="standard")
    for layer in (ntk.hidden[0], ntk.head):
        for parameter in map(torch.Tensor.detach, layer.parameters()):
            n = parameter.numel()
            assert abs(float(parameter.mean())) < 5 / math.sqrt(n)
            assert abs(float(parameter.var()) - 1) < 5 * math.sqrt(2 / n)
    for layer, fan_in in ((standard.hidden[0], 400), (standard.head, 500)):
        for parameter in map(torch.Tensor.detach, layer.parameters()):
            bound = 1 / math.sqrt(fan_in)
            assert bound * 0.97 < float(parameter.max()) <= bound
            assert -bound <= float(parameter.min()) < -bound * 0.97


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "erf", "swish"])
def test_the_gain_keeps_the_size_of_the_signal(name):
    """With |x|^2 = d every layer has a second moment near 1; without gain it shrinks with depth."""
    x = torch.randn(40, 100, generator=generator(2))
    x = x / x.norm(dim=1, keepdim=True) * 10
    net = MLP(100, 2000, width=2000, depth=4, activation=name, generator=generator(3, name))
    assert float(net(x).detach().square().mean()) == pytest.approx(1, abs=0.12)
    bare = MLP(100, 2000, width=2000, depth=4, activation=name, gain=False, generator=generator(3, name))
    assert float(bare(x).detach().square().mean()) < 0.3


def test_parameters_depth_and_bottleneck():
    assert [p.shape for p in MLP(6, 3, depth=0).parameters()] == [(3, 6)]
    assert sum(p.numel() for p in MLP(6, 3, width=5, depth=3).parameters()) == 30 + 25 + 25 + 15
    assert sum(p.numel() for p in MLP(6, 3, width=5, depth=3, bias=True).parameters()) == 95 + 15 + 3
    narrow = MLP(6, 3, width=5, depth=3, bottleneck=1)
    assert [layer.out_features for layer in narrow.hidden] == [5, 1, 5]
    assert [layer.out_features for layer in MLP(6, 3, width=(7, 4)).hidden] == [7, 4]
    assert len(MLP(6, 3).hidden) == 2


def test_depth_zero_is_linear():
    net = MLP(6, 3, depth=0)
    torch.testing.assert_close(net(X), X.flatten(1) @ net.head.weight.T / math.sqrt(6))


def test_output_activation_and_own_functions():
    plain = MLP((2, 3), 3, width=5, generator=generator(4))
    squashed = MLP((2, 3), 3, width=5, output_activation="tanh", generator=generator(4))
    torch.testing.assert_close(squashed(X), torch.tanh(plain(X)))
    named = MLP(6, 3, width=5, activation="erf", generator=generator(4))
    passed = MLP(
        6, 3, width=5, activation=torch.erf, output_activation=lambda f: 2 * f, generator=generator(4)
    )
    torch.testing.assert_close(passed(X), 2 * named(X), rtol=1e-5, atol=1e-6)


def test_drawing_is_deterministic_and_local():
    state = torch.random.get_rng_state()
    nets = [MLP(6, 3, width=5, generator=generator(seed)) for seed in (5, 5, 6)]
    defaults = [MLP(6, 3, width=5) for _ in range(2)]
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [net.head.weight for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(defaults[0].head.weight, defaults[1].head.weight)


def test_layers_are_plain_modules_and_the_input_is_left_alone():
    net = MLP(6, 3, width=5)
    assert {type(layer) for layer in (*net.hidden, net.head)} == {nn.Linear}
    seen = []
    net.hidden[1].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    before = X.clone()
    net(X)
    ((h, output),) = seen
    torch.testing.assert_close(output, h @ net.hidden[1].weight.T)
    assert torch.equal(X, before)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nets_can_be_copied_and_pickled(name):
    net = MLP(6, 3, width=5, activation=name, output_activation=name)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(X), net(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameterization": "mup"}, "choose 'ntk' or 'standard'"),
        ({"activation": "tahn"}, "did you mean 'tanh'"),
        ({"output_activation": "softmax"}, "unknown activation 'softmax'"),
        ({"depth": -1}, "zero or more"),
        ({"width": 0}, "at least one unit"),
        ({"bottleneck": 0}, "at least one unit"),
        ({"depth": 0, "bottleneck": 2}, "needs a hidden layer"),
        ({"width": (3, 4), "depth": 3}, "names 2 layers but depth is 3"),
        ({"outputs": 0}, "outputs must be"),
        ({"in_features": 0}, "in_features must be"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        MLP(**{"in_features": 6, "outputs": 3, **options})


def test_inputs_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"takes 7 inputs per sample, got \(6, 2, 3\)"):
        MLP(7, 3)(X)
