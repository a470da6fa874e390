"""build(): the models the command line knows."""

from __future__ import annotations

import time

import pytest
import torch

from wideangle import data, nets
from wideangle.errors import InputError


@pytest.mark.parametrize("name", nets.MODELS)
def test_models_fit_the_data_set(name):
    digits = data.load("digits", n=20)
    model = nets.build(name, digits)
    assert model(digits.x).shape == (20, 10)
    assert model.training
    same, other = nets.build(name, (1, 8, 8), outputs=10), nets.build(name, digits, seed=1)
    assert torch.equal(same(digits.x), model(digits.x))
    assert not torch.equal(other(digits.x), model(digits.x))
    assert nets.build(name, digits, outputs=3)(digits.x).shape == (20, 3)


def test_tables_and_regression():
    table = data.load("breast-cancer", n=10)
    assert nets.build("mlp", table)(table.x).shape == (10, 2)
    targets = data.Dataset(torch.zeros(4, 5), torch.zeros(4, 3), classes=0, name="toy")
    assert nets.build("mlp", targets)(targets.x).shape == (4, 3)


def test_models_are_quick():
    digits = data.load("digits", n=512)
    for name in nets.MODELS:
        model = nets.build(name, digits)
        start = time.perf_counter()
        model(digits.x).square().mean().backward()
        assert time.perf_counter() - start < 5
        assert sum(p.numel() for p in model.parameters()) < 2_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mpl", (4,), 2), "did you mean 'mlp'"),
        (("transformer", (4,), 2), "Known are|known are mlp, conv, resnet"),
        (("mlp", (4,)), "how many outputs"),
        (("conv", (4,), 2), r"needs images .* the data is \(4,\)"),
        (("resnet", (8, 8), 2), "use 'mlp'"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        nets.build(*arguments)


def test_token_ids_are_refused():
    tokens = data.Dataset(torch.ones(2, 3).long(), torch.tensor([0, 1]), classes=2, name="toy", vocabulary=5)
    with pytest.raises(InputError, match=r"nn\.Embedding"):
        nets.build("mlp", tokens)
