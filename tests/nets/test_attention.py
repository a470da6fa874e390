"""The attention net against loops over samples, heads and tokens, and against its explicit Jacobian."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch.func import functional_call, grad, hessian, jvp

from wideangle.errors import InputError
from wideangle.kernel import tangent_kernel
from wideangle.kernel.reference import jacobian_kernel
from wideangle.nets import Transformer, c_sigma
from wideangle.seeds import generator

G = math.sqrt(c_sigma("gelu"))
TOKENS = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator(0, "tokens"))
IMAGES = torch.randn(3, 2, 4, 6, dtype=torch.float64, generator=generator(0, "images"))


def make(in_shape=(5, 4), outputs=3, **options):
    options = {"width": 6, "heads": 2, "generator": generator(1), **options}
    return Transformer(in_shape, outputs, **options).double()


def attended(h, part, heads, power):
    """Attention by loops: one head, one token at a time."""
    tokens, m = h.shape
    d = m // heads
    seen = torch.zeros_like(h)
    for k in range(heads):
        rows = slice(k * d, (k + 1) * d)
        query, key, value = (
            layer.weight[rows] / math.sqrt(m) for layer in (part.query, part.key, part.value)
        )
        for t in range(tokens):
            scores = [float((query @ h[t]) @ (key @ h[s])) / d**power for s in range(tokens)]
            weights = [math.exp(score) for score in scores]
            for s in range(tokens):
                seen[t, rows] += weights[s] / sum(weights) * (value @ h[s])
    return seen @ part.mixed.weight.T / math.sqrt(m)


def twin(net, tokens, heads, power=0.5, positions=True):
    """The formula of the docstring for one sample of tokens."""
    count = len(tokens)
    if positions:
        tokens = torch.cat([tokens, math.sqrt(count) * torch.eye(count, dtype=tokens.dtype)], dim=1)
    h = tokens @ net.stem.weight.T / math.sqrt(tokens.shape[1])
    for block in net.blocks:
        h = (h + attended(h, block.attention, heads, power)) / math.sqrt(2)
        hidden = G * torch.nn.functional.gelu(h @ block.first.weight.T / math.sqrt(h.shape[1]))
        h = (h + hidden @ block.second.weight.T / math.sqrt(hidden.shape[1])) / math.sqrt(2)
    return net.head.weight @ h.mean(0) / math.sqrt(h.shape[1])


@pytest.mark.parametrize(
    ("options", "heads", "power"),
    [
        ({}, 2, 0.5),
        ({"heads": 1, "depth": 2, "hidden": 5}, 1, 0.5),
        ({"heads": 3, "score_power": 1.0}, 3, 1.0),
    ],
)
@torch.no_grad()
def test_forward_is_the_formula(options, heads, power):
    net = make(**options)
    slow = torch.stack([twin(net, tokens, heads, power) for tokens in TOKENS])
    torch.testing.assert_close(net(TOKENS), slow, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_images_are_cut_into_patches_row_by_row():
    net = make((2, 4, 6))
    tokens = torch.stack(
        [IMAGES[:, :, i : i + 2, j : j + 2].flatten(1) for i in (0, 2) for j in (0, 2, 4)], dim=1
    )
    slow = torch.stack([twin(net, sample, 2) for sample in tokens])
    torch.testing.assert_close(net(IMAGES), slow, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_places_tell_tokens_apart():
    turned = TOKENS.roll(1, dims=1)
    blind = make(positions=False)
    torch.testing.assert_close(blind(turned), blind(TOKENS))
    torch.testing.assert_close(blind(TOKENS)[0], twin(blind, TOKENS[0], 2, positions=False))
    assert float((make()(turned) - make()(TOKENS)).abs().min()) > 1e-3


@torch.no_grad()
def test_standard_parameterisation_has_no_factors():
    net = make(parameterization="standard", positions=False, depth=0, bias=True)
    torch.testing.assert_close(net(TOKENS), net.head(net.stem(TOKENS).mean(1)))
    block = make(parameterization="standard").blocks[0]
    h = torch.randn(1, 5, 6, dtype=torch.float64, generator=generator(2))
    middle = h + block.attention(h)
    torch.testing.assert_close(block(h), middle + block.second(torch.nn.functional.gelu(block.first(middle))))
    one = block.attention.mixed(block.attention.value(h[:, :1]))
    torch.testing.assert_close(block.attention(h[:, :1]), one)


def test_tangent_kernel_is_exact():
    for net, x in ((make(depth=2), TOKENS), (make((2, 4, 6), bias=True), IMAGES)):
        torch.testing.assert_close(tangent_kernel(net, x), jacobian_kernel(net, x), rtol=1e-10, atol=1e-12)


def test_second_derivatives_by_double_backward_by_functorch_and_by_differences():
    net = make(outputs=1, width=2, heads=1)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    push = {n: torch.randn(w.shape, dtype=w.dtype, generator=generator(3, n)) for n, w in weights.items()}

    def f(w):
        return functional_call(net, w, (TOKENS[:1],))[0, 0]

    _, forward = jvp(grad(f), (weights,), (push,))
    table = hessian(f)(weights)
    step = 1e-5
    moved = [grad(f)({n: w + sign * step * push[n] for n, w in weights.items()}) for sign in (1, -1)]
    slopes = torch.autograd.grad(net(TOKENS[:1])[0, 0], list(net.parameters()), create_graph=True)
    total = sum((slope * push[n]).sum() for (n, _), slope in zip(net.named_parameters(), slopes, strict=True))
    backward = torch.autograd.grad(total, list(net.parameters()))
    assert float(forward["blocks.0.attention.query.weight"].abs().max()) > 1e-4
    for (name, w), double in zip(weights.items(), backward, strict=True):
        dense = sum(table[name][other].reshape(w.numel(), -1) @ push[other].reshape(-1) for other in weights)
        differences = (moved[0][name] - moved[1][name]) / (2 * step)
        torch.testing.assert_close(forward[name], differences, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(forward[name], double, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(forward[name].flatten(), dense, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_tokens_keep_the_size_of_the_signal():
    x = torch.randn(20, 1, 50, generator=generator(4))
    net = Transformer((1, 50), 1, width=600, heads=6, depth=3, generator=generator(5))
    h = net.stem(torch.cat([x, net.places.expand(20, 1, 1)], 2) * net.stem_scale)
    for block in net.blocks:
        h = block(h)
    assert float(h.square().mean()) == pytest.approx(1, abs=0.15)


@torch.no_grad()
def test_options_and_copies():
    plain = make()
    torch.testing.assert_close(make(output_activation="tanh")(TOKENS), torch.tanh(plain(TOKENS)))
    assert not torch.equal(make(activation="tanh")(TOKENS), plain(TOKENS))
    assert torch.equal(make()(TOKENS), plain(TOKENS))
    assert not torch.equal(make(generator=generator(9))(TOKENS), plain(TOKENS))
    assert not torch.equal(make(gain=False)(TOKENS), plain(TOKENS))
    assert all(p.ndim == 2 for p in plain.parameters())
    assert "places" not in plain.state_dict()
    before, state = TOKENS.clone(), torch.random.get_rng_state()
    make()(TOKENS)
    assert torch.equal(before, TOKENS)
    assert torch.equal(state, torch.random.get_rng_state())
    for copied in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert torch.equal(copied(TOKENS), plain(TOKENS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_shape": (8,)}, r"or \(channels, height, width\), got \(8,\)"),
        ({"in_shape": (0, 4)}, r"got \(0, 4\)"),
        ({"in_shape": (1, 8, 6), "patch": 4}, "side 4 do not tile images of 8 x 6"),
        ({"in_shape": (1, 8, 6), "patch": 0}, "side 0"),
        ({"heads": 4}, "heads=4 does not divide width=6"),
        ({"heads": 0}, "heads=0"),
        ({"width": 0}, "width 0"),
        ({"hidden": 0}, "hidden 0"),
        ({"depth": -1}, "depth must be"),
        ({"outputs": 0}, "outputs must be"),
        ({"activation": "gellu"}, "unknown activation"),
        ({"parameterization": "mup"}, "choose 'ntk'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"inputs \(n, 5, 4\), got \(3, 4, 5\)"):
        make()(TOKENS.transpose(1, 2))
