"""What `DAG.from_module` must read right, or name as not read, of products, divisions and assemblies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from wideangle.nets import DAG, MLP, Assembly, NeuronGraph
from wideangle.seeds import generator

X = torch.zeros(2, 5)


class Formula(nn.Module):
    """A module whose forward pass is a function of itself and x."""

    def __init__(self, formula):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.w, self.v = nn.Parameter(torch.ones(5, 7)), nn.Parameter(torch.ones(7))
        self.pair, self.table = nn.Parameter(torch.ones(2, 1, 1)), nn.Parameter(torch.ones(2, 5))
        self.mixed = nn.Parameter(torch.ones(3, 7))
        self.loose = [torch.ones(7, requires_grad=True)]
        self.register_buffer("fixed", torch.ones(2))
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self, x)


def read(formula) -> NeuronGraph:
    return DAG.from_module(Formula(formula), X)


def inner(m, x):
    return m.b(torch.tanh(m.a(x)))


def hidden(m, x):
    return torch.tanh(x @ m.w)


def linear_in_last_weights(formula) -> bool:
    """Whether second differences in the last layer's bias vanish: what linear_output says, by moving it."""
    module = Formula(formula).double()
    draws = generator(0)
    x = torch.rand(2, 5, dtype=torch.float64, generator=draws)
    with torch.no_grad():
        for layer in (module.a, module.b):
            layer.weight.copy_(torch.randn(layer.weight.shape, dtype=torch.float64, generator=draws))
    nn.init.zeros_(module.a.bias)
    values = []
    for step in range(3):
        with torch.no_grad():
            module.b.bias.fill_(1.0 + step / 4)
            values.append(module(x))
    return torch.allclose(values[0] + values[2], 2 * values[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("formula", "linear"),
    [
        (lambda m, x: 1 / inner(m, x), False),
        (lambda m, x: torch.div(3.0, inner(m, x)), False),
        (lambda m, x: torch.div(input=torch.ones(3), other=inner(m, x)), False),
        (lambda m, x: inner(m, x).reciprocal(), False),
        (lambda m, x: torch.div(inner(m, x), 0.3, rounding_mode="floor"), False),
        (lambda m, x: (lambda f: f * f)(inner(m, x)), False),
        (lambda m, x: inner(m, x) / 3, True),
        (lambda m, x: torch.div(inner(m, x), torch.full((3,), 2.0)), True),
        (lambda m, x: 2.0 * inner(m, x) * torch.ones(3) - 1, True),
        (
            lambda m, x: torch.stack([inner(m, x), inner(m, 2 * x)]).sum(0) @ torch.ones(3, 2, dtype=x.dtype),
            True,
        ),
        (lambda m, x: torch.einsum("k,knc->nc", m.fixed, torch.stack([inner(m, x), inner(m, 2 * x)])), True),
    ],
)
def test_a_linear_output_is_what_moving_the_last_bias_says(formula, linear):
    assert linear_in_last_weights(formula) is linear
    found = read(formula)
    assert found.linear_output is linear
    assert found.unread_weights == []
    assert found.width == 8


@pytest.mark.parametrize(
    ("formula", "degree"),
    [
        (lambda m, x: (hidden(m, x) * m.v).sum(1, True), 7),
        (lambda m, x: (m.v * hidden(m, x) / math.sqrt(7)).sum(dim=-1), 7),
        (lambda m, x: (hidden(m, x) * m.v).mean(1), 7),
        (lambda m, x: (hidden(m, x)[:, None] * m.mixed).sum(2), 7),
        (lambda m, x: torch.einsum("nk,ck->nc", hidden(m, x), m.mixed), 7),
        (lambda m, x: torch.einsum("ck, nk -> nc", m.mixed, hidden(m, x)), 7),
        (lambda m, x: torch.einsum("nk,k", hidden(m, x), m.v), 7),
        (lambda m, x: torch.tensordot(hidden(m, x), m.mixed, dims=([1], [1])), 7),
        (lambda m, x: torch.tensordot(hidden(m, x), m.v, dims=1), 7),
        (lambda m, x: hidden(m, x) @ dict(m.named_parameters())["v"], 7),
        (lambda m, x: hidden(m, x) @ m.loose[0], 7),
        (lambda m, x: (m.pair * torch.stack([hidden(m, x), hidden(m, 2 * x)])).sum(0), 2),
    ],
)
def test_a_product_with_a_parameter_that_is_summed_is_a_layer(formula, degree):
    found = read(formula)
    assert found.unread == []
    assert (found.width, found.linear_output) == (degree, True)
    assert found.layers[-1].output
    assert found.layers[-1].in_degrees == [degree]
    assert found.layers[-1].depth == 2
    assert found.averages == []


@pytest.mark.parametrize(
    "formula",
    [
        lambda m, x: hidden(m, x) * m.v,
        lambda m, x: hidden(m, x) / m.v,
        lambda m, x: m.v / hidden(m, x),
        lambda m, x: hidden(m, x).mul_(m.v[:1]).sum(1),
        lambda m, x: (lambda h: h.sum(1, True) + h)(hidden(m, x) * m.v),
        lambda m, x: torch.einsum("nk,k->nk", hidden(m, x), m.v),
        lambda m, x: torch.einsum("nk,nk,k->n", hidden(m, x), hidden(m, x), m.v),
        lambda m, x: torch.maximum(hidden(m, x), m.v),
        lambda m, x: torch.mv(hidden(m, x), m.v),
        lambda m, x: hidden(m, x) + m.table[(x[:, 0] > 0).long()][:, :1],
        lambda m, x: torch.addmm(torch.ones(3), hidden(m, x), m.mixed.T),
    ],
)
def test_weights_that_are_in_no_layer_are_named_and_leave_the_width_unknown(formula):
    found = read(formula)
    assert len(found.unread_weights) == 1
    assert found.unread_weights[0] in found.unread
    assert (found.width, found.narrowest, found.at_output) == (None, "", False)
    assert f"unknown: the weights of {found.unread_weights[0]} are in no layer" in str(found)
    assert NeuronGraph.from_json(found.to_json()) == found


def test_a_product_that_is_no_layer_names_its_parameter():
    assert read(lambda m, x: hidden(m, x) * m.v).unread == ["mul (mul by v)"]


class Attended(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 1)

    def forward(self, x):
        return self.last(self.attention(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.last = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.cells(x)[0][:, -1])


SEQUENCE = torch.zeros(2, 4, 6)
TOKENS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("model", "x", "named"),
    [
        (Attended(), SEQUENCE, "attention (MultiheadAttention)"),
        (Recurrent(), SEQUENCE, "cells (LSTM)"),
        (nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2)), TOKENS, "0 (Embedding)"),
        (nn.Sequential(nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 1)), SEQUENCE, "1 (PReLU)"),
        (nn.Sequential(nn.Embedding(5, 4)), TOKENS, "0 (Embedding)"),
    ],
)
def test_modules_with_weights_that_are_not_read_leave_the_width_unknown(model, x, named):
    found = DAG.from_module(model, x)
    assert found.unread_weights == found.unread == [named]
    assert found.width is None
    assert f"unknown: the weights of {named} are in no layer" in str(found)


def test_a_product_of_two_signals_may_hide_the_second_layer():
    found = read(lambda m, x: m.a(x) * torch.sigmoid(m.a(x)))
    assert found.width is None
    assert found.unread_weights == []
    assert "may hold a second layer" in str(found)
    assert read(lambda m, x: m.a(x)).width == math.inf
    assert read(lambda m, x: m.b(m.a(x) * m.a(x))).width == 8  # the product itself has no weights


def test_biases_and_normalisation_are_no_layers():
    found = read(lambda m, x: nn.functional.layer_norm(hidden(m, x), (7,), m.v) @ m.mixed.T + m.v[:3])
    assert found.unread == []
    assert [layer.in_degrees for layer in found.layers] == [[5], [7]]


@pytest.mark.parametrize("coefficients", [None, "signs", torch.tensor([1.0, -2.0, 0.5])])
def test_an_assembly_is_a_join_of_its_sub_models(coefficients):
    parts = [MLP(5, 2, width=4 + k, depth=1, activation="tanh") for k in range(3)]
    found = DAG.from_module(Assembly(parts, coefficients), X)
    assert [(layer.depth, layer.in_degrees, layer.output) for layer in found.layers] == [
        *[(1, [5], False)] * 3,
        *[(2, [4 + k], True) for k in range(3)],
    ]
    assert (found.width, found.at_output, found.linear_output) == (4, True, True)
    assert found.joins == ["stack"]
    assert found.unread == found.averages == []


def test_trained_coefficients_of_an_assembly_are_a_layer():
    parts = [MLP(5, 2, width=4, depth=1, activation="tanh") for _ in range(3)]
    found = DAG.from_module(Assembly(parts, trainable_coefficients=True), X)
    last = found.layers[-1]
    assert (last.name, last.depth, last.neurons, last.in_degrees) == ("coefficients", 3, 2, [3])
    assert [layer.output for layer in found.layers] == [False] * 6 + [True]
    nested = DAG.from_module(Assembly([Assembly(parts), parts[0]]), X)
    assert len(nested.joins) == 2
    assert nested.width == 4
    inside = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), Assembly(parts), nn.Tanh(), nn.Linear(2, 1))
    assert DAG.from_module(inside, X).width == 2
