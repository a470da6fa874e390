"""Layers below a linear head: found where they are, refused where they are not, exact either way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import fresh, normal

from wideangle.kernel import factors, jacobian_kernel, tangent_kernel
from wideangle.kernel._separable import SeparableOuter, SeparablePositions, separate


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_a_product_is_taken_apart_and_dead_units_are_zero():
    w, d = normal(2, 3, 5), normal(2, 40, 4, 5, seed=2)
    d[:, :, :, 1] = 0.0
    found = separate(w[:, None, :, None] * d[:, :, None])
    assert found is not None
    assert (
        relative(found[0][:, None, :, None] * found[1][:, :, None], w[:, None, :, None] * d[:, :, None])
        < 1e-14
    )
    assert bool((found[1][..., 1] == 0).all())


@pytest.mark.parametrize("sample", [0, 1, 7, 39])
def test_one_odd_sample_is_enough_to_refuse(sample):
    w, d = normal(1, 3, 5), normal(1, 40, 4, 5, seed=2)
    g = w[:, None, :, None] * d[:, :, None]
    g[0, sample, 1, 2, 3] += 0.1
    assert separate(g) is None


def test_one_logit_is_left_alone():
    assert separate(normal(1, 6, 1, 2, 3)) is None


class TwoHeads(nn.Module):
    """Which head a sample goes through follows from the sample: the gradients below are no one product."""

    def __init__(self):
        super().__init__()
        self.hidden, self.one, self.two = nn.Linear(4, 9), nn.Linear(9, 3), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.hidden(x))
        return torch.where(x[:, :1] > 1.5, self.one(h), self.two(h))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.skip = (
            nn.Conv2d(2, 4, 3),
            nn.Conv2d(4, 6, 3, groups=2),
            nn.Conv2d(2, 6, 5),
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.skip(x)).mean((2, 3)))


CASES = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)),
        (40, 4),
    ),
    "two heads": (TwoHeads, (60, 4)),
    "residual": (Block, (20, 2, 8, 8)),
    "max pool": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        (20, 2, 6, 6),
    ),
    "softmax inside": (
        lambda: nn.Sequential(nn.Linear(4, 9), nn.Softmax(1), nn.Linear(9, 3)),
        (40, 4),
    ),
    "nothing linear at the end": (
        lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3), nn.Tanh()),
        (40, 4),
    ),
}


@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize("name", CASES)
def test_exact_whatever_is_found(name, outputs):
    make, shape = CASES[name]
    model, x = fresh(make()), normal(*shape)
    exact = jacobian_kernel(model, x)
    exact = exact if outputs == "full" else torch.einsum("icjc->ij", exact)
    assert relative(tangent_kernel(model, x, outputs=outputs), exact) < 1e-10
    if outputs == "full":
        return
    cache = factors(model, x)
    v = normal(cache.samples * cache.outputs, 2)
    matrix = jacobian_kernel(model, x).reshape(len(v), len(v))
    assert relative(cache @ v, matrix @ v) < 1e-10
    diagonal = matrix.diagonal().reshape(cache.samples, cache.outputs)
    assert relative(cache.diagonal(), diagonal) < 1e-10


def kinds(name: str) -> dict[str, str]:
    make, shape = CASES[name]
    (chunk,) = factors(fresh(make()), normal(*shape))._chunks
    return {layer: type(one).__name__ for layer, one in chunk.structures.items()}


def test_what_is_found():
    outer, positions = SeparableOuter.__name__, SeparablePositions.__name__
    assert kinds("mlp") == {"0": "Outer", "2": outer, "4": outer}
    assert kinds("residual") == {"conv1": "Explicit", "conv2": positions, "skip": positions, "head": outer}
    assert kinds("two heads")["hidden"] == "Outer"
    assert kinds("softmax inside")["0"] == "Outer"
    assert kinds("nothing linear at the end") == {"0": "Outer", "2": outer}  # each unit serves one logit


def test_chunks_of_different_forms_fit_together():
    """In one chunk all samples take one head and the layer is separable, in the other both are taken."""
    model, x = fresh(TwoHeads()), normal(60, 4)
    few = torch.cat([x[x[:, 0] <= 1.5][:20], x])
    one, two = factors(model, few[:20]), factors(model, few[20:])
    assert type(one._chunks[0].structures["hidden"]).__name__ == SeparableOuter.__name__
    exact = jacobian_kernel(model, few)
    assert relative(one.gram(two), exact[:20, :, 20:]) < 1e-10
    assert relative(one.gram(two, kind="trace"), torch.einsum("icjc->ij", exact)[:20, 20:]) < 1e-10


class Turned(nn.Module):
    """Which unit serves which logit depends on the sample."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return torch.where(x[:, :1] > 0, z, z.flip(1))


class Sorted(Turned):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).sort(1)[0]


@pytest.mark.parametrize("kind", [Turned, Sorted])
def test_units_that_serve_other_logits_in_the_other_chunk(kind):
    model, x = fresh(kind()), normal(40, 4)
    x = x[x[:, 0].argsort()]
    exact = jacobian_kernel(model, x)
    cut = int((x[:, 0] <= 0).sum())
    assert relative(tangent_kernel(model, x[:cut], x[cut:]), exact[:cut, :, cut:]) < 1e-10
    assert relative(factors(model, x).gram(), exact) < 1e-10


def test_a_deviation_on_one_sample_is_no_product_however_small():
    w, d = normal(1, 3, 5), normal(1, 60, 4, 5, seed=2)
    g = w[:, None, :, None] * d[:, :, None]
    g[0, 33, 1] *= 1 + 1e-12
    assert separate(g) is None


@pytest.mark.parametrize("name", CASES)
def test_small_chunks_are_joined(name, monkeypatch):
    from wideangle.kernel import _factors, cost

    monkeypatch.setattr(cost, "_LARGEST_PASS", 5)
    monkeypatch.setattr(cost, "_SMALLEST_PASS", 1)
    monkeypatch.setattr(_factors, "_JOINED", 12)
    make, shape = CASES[name]
    model, x = fresh(make()), normal(*shape)
    cache = factors(model, x)
    exact = jacobian_kernel(model, x)
    assert relative(cache.gram(), exact) < 1e-10
    v = normal(cache.samples * cache.outputs)
    assert relative(cache @ v, exact.reshape(len(v), len(v)) @ v) < 1e-10
    if name in ("mlp", "residual"):
        assert max(chunk.samples for chunk in cache._chunks) >= 12


def test_heads_that_differ_a_little_are_not_joined():
    def part(w: Tensor, seed: int) -> SeparableOuter:
        a, d = normal(4, 2, seed=seed), normal(4, 5, seed=seed + 1)
        return SeparableOuter(("weight",), (torch.Size((5, 2)),), w, a, d, True, False)

    w = torch.nn.functional.normalize(normal(3, 5), dim=0)
    near = torch.nn.functional.normalize(w + 1e-8 * normal(3, 5, seed=2), dim=0)
    assert SeparableOuter.joined([part(w, 3), part(near, 5)]) is None
    whole = SeparableOuter.joined([part(w, 3), part(-w, 5)])
    assert whole is not None
    expected = torch.cat([part(w, 3).general().g, part(-w, 5).general().g])
    assert relative(whole.general().g, expected) < 1e-14
