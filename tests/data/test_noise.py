"""Label noise: its rate, its transition matrix and the mask."""

from __future__ import annotations

import math

import pytest
import torch

from wideangle.data import label_noise
from wideangle.errors import InputError
from wideangle.seeds import generator

N = 40_000
KINDS = ["symmetric", "pair", "instance"]
Y = torch.arange(N) % 5
X = torch.randn(N, 3, 2, generator=generator(0, "x"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
def test_rate_is_the_share_of_wrong_labels(kind, rate):
    noisy, flipped = label_noise(Y, rate, kind, generator(1, kind, int(rate * 100)), x=X)
    assert torch.equal(flipped, noisy != Y)
    assert abs(float(flipped.double().mean()) - rate) < 4.5 * math.sqrt(rate * (1 - rate) / N)
    assert noisy.dtype == Y.dtype
    assert 0 <= int(noisy.min()) <= int(noisy.max()) < 5


@pytest.mark.parametrize("kind", KINDS)
def test_rates_zero_and_one(kind):
    noisy, flipped = label_noise(Y, 0.0, kind, x=X)
    assert torch.equal(noisy, Y)
    assert not flipped.any()
    noisy, flipped = label_noise(Y, 1.0, kind, x=X)
    assert flipped.all()
    assert not (noisy == Y).any()


def test_symmetric_spreads_evenly_over_the_other_classes():
    noisy, _ = label_noise(Y, 0.5, "symmetric", generator(2))
    counts = torch.zeros(5, 5).index_put_((Y, noisy), torch.ones(N), accumulate=True) / (N / 5)
    expected = 0.5 * torch.eye(5) + 0.125 * (1 - torch.eye(5))
    assert float((counts - expected).abs().max()) < 4.5 * math.sqrt(0.25 / (N / 5))


def test_pair_goes_to_the_next_class():
    noisy, flipped = label_noise(Y, 0.3, "pair", generator(3))
    assert torch.equal(noisy[flipped], (Y[flipped] + 1) % 5)
    more, flipped = label_noise(Y, 1.0, "pair", generator(3), classes=7)
    assert int(more[Y == 4][0]) == 5


def test_instance_noise_depends_on_the_inputs():
    _, flipped = label_noise(Y, 0.3, "instance", generator(4), x=X)
    flat = X.flatten(1).double()
    centred = flipped.double() - flipped.double().mean()
    instance = float((flat.T @ centred / N).norm())
    _, independent = label_noise(Y, 0.3, "symmetric", generator(4))
    baseline = float((flat.T @ (independent.double() - independent.double().mean()) / N).norm())
    assert instance > 10 * baseline
    assert baseline < 6 * math.sqrt(6 * 0.21 / N)


def test_instance_noise_does_not_depend_on_the_scale_of_the_inputs():
    first = label_noise(Y, 0.3, "instance", generator(5), x=X.double())
    second = label_noise(Y, 0.3, "instance", generator(5), x=X.double() * 1000 + 7)
    assert float((first[0] != second[0]).double().mean()) < 1e-3
    constant = torch.cat([X, torch.ones(N, 1, 2)], 1)
    assert bool(label_noise(Y, 0.3, "instance", generator(5), x=constant)[1].any())


@pytest.mark.parametrize("kind", KINDS)
def test_same_generator_same_noise(kind):
    first = label_noise(Y, 0.4, kind, generator(6), x=X)
    again = label_noise(Y, 0.4, kind, generator(6), x=X)
    other = label_noise(Y, 0.4, kind, generator(7), x=X)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    state = torch.random.get_rng_state()
    default = label_noise(Y, 0.4, kind, x=X)
    assert torch.equal(default[0], label_noise(Y, 0.4, kind, x=X)[0])
    assert torch.equal(state, torch.random.get_rng_state())


def test_small_integer_types_are_kept():
    noisy, _ = label_noise(Y.to(torch.uint8), 0.5)
    assert noisy.dtype == torch.uint8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": Y.float()}, "integer class labels"),
        ({"y": Y[:, None]}, "integer class labels"),
        ({"y": Y[:0]}, "integer class labels"),
        ({"rate": 1.5}, "rate must lie"),
        ({"rate": math.nan}, "rate must lie"),
        ({"kind": "symetric"}, "did you mean 'symmetric'"),
        ({"classes": 3}, "labels run from 0 to 4 with classes=3"),
        ({"y": Y * 0}, "labels run from 0 to 0"),
        ({"y": Y - 1}, "labels run from -1"),
        ({"kind": "instance"}, "pass x="),
        ({"kind": "instance", "x": X[:7]}, "one row per label"),
        ({"kind": "instance", "x": X * torch.inf}, "not finite"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(InputError, match=message):
        label_noise(**{"y": Y, "rate": 0.2, **arguments})
