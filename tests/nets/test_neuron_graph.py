"""The neuron graph of a module against counts by hand, and against the gradients that say who feeds whom."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from wideangle.errors import InputError
from wideangle.nets import DAG, MLP, ConvNet, NeuronGraph, ResNet
from wideangle.nets._trace_products import conv_in_degrees
from wideangle.seeds import generator


def brief(found: NeuronGraph) -> list[tuple]:
    return [
        (layer.name, layer.depth, layer.neurons, layer.in_degrees, layer.counts) for layer in found.layers
    ]


def test_a_perceptron_of_modules_and_ours():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 50), nn.Tanh(), nn.Linear(50, 4), nn.ReLU(), nn.Linear(4, 3)
    )
    found = DAG.from_module(model, torch.zeros(2, 3, 4))
    assert brief(found) == [
        ("1", 1, 50, [12], [50]),
        ("3", 2, 4, [50], [4]),
        ("5", 3, 3, [4], [3]),
    ]
    assert (found.width, found.narrowest, found.at_output, found.linear_output) == (4, "5", True, True)
    assert [layer.output for layer in found.layers] == [False, False, True]
    assert [layer.weights for layer in found.layers] == [600, 200, 12]
    assert found.thin_neurons(10) == {"5": 3}
    assert found.thin_neurons(13) == {"5": 3}
    assert found.unread == found.joins == found.averages == []
    ours = DAG.from_module(MLP((3, 4), 3, width=(50, 4), output_activation="tanh"), torch.zeros(2, 3, 4))
    assert [row[1:] for row in brief(ours)] == [row[1:] for row in brief(found)]
    assert not ours.linear_output
    assert NeuronGraph.from_json(found.to_json()) == found
    assert "width          4 (5, an output)" in str(found)


def fed_by(layer: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """Return how many inputs move each output of a layer, by its gradients."""
    x = torch.randn(1, *shape, generator=generator(0), requires_grad=True)
    outputs = layer(x)[0].flatten()
    gradients = (torch.autograd.grad(out, x, retain_graph=True)[0] for out in outputs)
    return sorted(int((gradient != 0).sum()) for gradient in gradients)


CONVOLUTIONS = [
    (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=2), (4, 7, 6)),
    (nn.Conv2d(2, 3, 4, padding="same"), (2, 6, 6)),
    (nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    (nn.Conv1d(3, 2, 5, stride=2, padding=2), (3, 11)),
    (nn.Conv3d(2, 2, 3, padding=1), (2, 3, 4, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=str)
def test_in_degrees_of_a_convolution_are_what_its_gradients_say(layer, shape):
    found = DAG.from_module(nn.Sequential(layer), torch.zeros(2, *shape)).layers[0]
    counted = [d for d, n in zip(found.in_degrees, found.counts, strict=True) for _ in range(n)]
    assert counted == fed_by(layer, shape)
    assert found.weights == layer.weight.numel()
    assert found.neurons == len(counted)


def test_in_degrees_of_a_convolution_by_hand():
    assert conv_in_degrees((3,), (1, 2, 3), 1, 1, 1) == [4, 6, 4]
    assert conv_in_degrees((2, 3), (5, 1, 3, 3), 1, 1, 1) == [4, 6, 4, 4, 6, 4]


def test_convolutional_nets():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = DAG.from_module(model, torch.randn(2, 1, 8, 8, generator=generator(1)))
    assert brief(found) == [
        ("0", 1, 512, [4, 6, 9], [32, 192, 288]),
        ("4", 2, 256, [32, 48, 72], [64, 128, 64]),
        ("8", 3, 10, [16], [10]),
    ]
    assert (found.width, found.narrowest, found.at_output) == (16, "8", True)
    assert found.averages == ["3", "6"]
    assert found.thin_neurons(40) == {"4": 64, "8": 10}
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    ours = DAG.from_module(ConvNet((1, 8, 8), 10, width=(8, 16)), torch.zeros(2, 1, 8, 8))
    assert [row[1:] for row in brief(ours)[:2]] == [row[1:] for row in brief(found)[:2]]
    assert ours.layers[2].in_degrees == [256]


def test_residual_nets():
    found = DAG.from_module(ResNet((1, 8, 8), 10, width=8, depth=2), torch.zeros(2, 1, 8, 8))
    assert len(found.joins) == 2
    assert found.layers[-1].depth == 6  # stem, twice two, head
    assert found.width == 8
    assert found.narrowest == "blocks.1.skip"  # a 1x1 convolution of 8 channels
    assert found.at_output  # the head has 8 too
    assert found.unread == []


class DenselyConnected(nn.Module):
    """Every layer sees the concatenation of all before it; the skip to the end is an identity."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 20), nn.Linear(20, 3)
        self.third = nn.Linear(23, 20)
        self.last = nn.Parameter(torch.ones(20, 2))
        self.scale = 0.5

    def forward(self, x):
        a = torch.tanh(self.first(x))
        b = torch.tanh(self.second(a))
        c = torch.tanh(self.third(torch.cat([a, b], 1)))
        return (a + c) @ (self.last * self.scale)


def test_densely_connected_nets_and_bare_parameters():
    model = DenselyConnected()
    found = DAG.from_module(model, torch.zeros(2, 5))
    assert [row[1:] for row in brief(found)] == [
        (1, 20, [5], [20]),
        (2, 3, [20], [3]),
        (3, 20, [23], [20]),
        (4, 2, [20], [2]),
    ]
    assert len(found.joins) == 2
    assert found.width == 20
    assert found.layers[-1].output
    assert found.layers[-1].kind == "matmul"
    assert not [name for name in vars(model) if "constant" in name]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(torch.ones(4, 1, 3, 3)), nn.Parameter(torch.ones(2, 64))
        self.register_buffer("fixed", torch.ones(64, 64))

    def forward(self, x, scale=2.0, flag=None):
        h = functional.conv2d(x * scale, self.kernel, None, 2, padding=1).relu()
        assert h.shape[1:] == (4, 4, 4)
        n, *rest = h.size()
        h = h.view(n, math.prod(rest)) @ self.fixed + torch.ones(64)
        return functional.linear(torch.tanh(h), self.matrix) if flag is None else h


def test_functional_code_that_looks_at_shapes():
    found = DAG.from_module(Functional(), torch.zeros(3, 1, 8, 8))
    assert brief(found) == [
        ("kernel", 1, 64, [4, 6, 9], [4, 24, 36]),
        ("matrix", 2, 2, [64], [2]),
    ]
    assert found.unread == []
    model = Functional()
    DAG.from_module(model, {"x": torch.zeros(3, 1, 8, 8)})
    assert set(vars(model)) == set(vars(Functional()))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, x):
        a = torch.softmax(self.q(x) @ x.mT, -1)
        return self.out((a @ self.v(x)).mean(1))


def test_products_of_two_signals_are_named_as_not_read():
    found = DAG.from_module(Attention(), torch.zeros(2, 4, 6))
    assert [name.split(" ")[1] for name in found.unread] == ["(matmul)", "(matmul)"]
    assert found.layers[-1].in_degrees == [6]
    assert found.layers[0].neurons == 24
    recurrent = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2))
    found = DAG.from_module(recurrent, torch.zeros(3, 2, dtype=torch.long))
    assert found.unread == ["0 (Embedding)"]
    assert found.layers[0].in_degrees == [8]


def test_a_dag_is_read_neuron_by_neuron():
    net = DAG.random(6, 2, layers=(30, 30), in_degree=(3, 9))
    found = DAG.from_module(net, torch.zeros(2, 6))
    degrees = net.in_degrees()
    for labels, layer in zip(net.layers()[1:], found.layers, strict=True):
        assert layer.neurons == len(labels)
        assert set(layer.in_degrees) == {degrees[v] for v in labels}
    assert found.width == net.width()
    inside = DAG.from_module(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), net), torch.zeros(2, 3))
    assert [layer.depth for layer in inside.layers] == [1, 2, 3, 4]
    assert found.linear_output
    assert not DAG.from_module(
        DAG.fcn(6, 1, width=4, output_activation="tanh"), torch.zeros(2, 6)
    ).linear_output


def test_shared_layers_and_dead_branches():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 9)

        def forward(self, x):
            self.b(x)
            return self.a(torch.tanh(self.a(x)))

    found = DAG.from_module(Shared(), torch.zeros(2, 4))
    assert [layer.name for layer in found.layers] == ["a", "a, call 2"]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Reading(nn.Module):
    def forward(self, x):
        return x * x.sum().item()


@pytest.mark.parametrize("model", [Branching(), Reading()])
def test_a_forward_pass_that_depends_on_the_values_is_refused(model):
    with pytest.raises(InputError, match=r"branches on the values .* wideangle.curvature.audit"):
        DAG.from_module(model, torch.ones(2, 3))


def test_what_else_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(InputError, match="could not be traced on x: RuntimeError"):
        DAG.from_module(model, torch.ones(2, 5))
    with pytest.raises(InputError, match="does not take x"):
        DAG.from_module(model, {"pixels": torch.ones(2, 3)})
    with pytest.raises(InputError, match="no weighted layer"):
        DAG.from_module(nn.Tanh(), torch.ones(2, 3))
    assert model(torch.ones(2, 3)).shape == (2, 1)
