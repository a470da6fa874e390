"""c_sigma against closed forms and published values."""

from __future__ import annotations

import math

import pytest
import torch

from wideangle.errors import InputError
from wideangle.nets import ACTIVATIONS, activation_function, c_sigma


@pytest.mark.parametrize(
    ("name", "published"),
    [("relu", 2.0), ("tanh", 2.5362), ("gelu", 2.3517), ("erf", 2.1526), ("identity", 1.0)],
)
def test_published_values(name, published):
    assert c_sigma(name) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize(
    ("function", "moment"),
    [
        (torch.relu, 1 / 2),
        (torch.erf, 2 / math.pi * math.asin(2 / 3)),
        (lambda z: torch.relu(z) ** 2, 3 / 2),
        (torch.cos, (1 + math.exp(-2)) / 2),
        (torch.sin, (1 - math.exp(-2)) / 2),
        (lambda z: z**3, 15.0),
        (torch.exp, math.exp(2)),
        (torch.abs, 1.0),
    ],
)
def test_the_integral_against_closed_forms(function, moment):
    assert c_sigma(function) == pytest.approx(1 / moment, rel=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_names_and_functions_agree(name):
    assert c_sigma(ACTIVATIONS[name]) == pytest.approx(c_sigma(name), rel=1e-6)
    assert activation_function(name) is ACTIVATIONS[name]


def test_an_in_place_function_is_integrated_as_well():
    assert c_sigma(torch.nn.ReLU(inplace=True)) == pytest.approx(2.0, rel=1e-6)


def test_swish_is_silu():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(activation_function("swish")(z), z / (1 + torch.exp(-z)))


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("rellu", "did you mean 'relu'"),
        (torch.zeros_like, "second moment 0"),
        (lambda z: z / 0, "second moment"),
        (lambda z: z.sum(), "same shape"),
        (torch.nn.ReLU, "same shape"),
        (lambda z: 3.0, "float"),
    ],
)
def test_what_is_refused(activation, message):
    with pytest.raises(InputError, match=message):
        c_sigma(activation)
