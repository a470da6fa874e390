"""The convolutional and the residual net against their formulas."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from wideangle.errors import InputError
from wideangle.nets import ConvNet, ResNet
from wideangle.seeds import generator

G = math.sqrt(2)
X = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=generator(0, "images"))


def conv(h, layer, fan_in, stride=1):
    padding = layer.weight.shape[-1] // 2
    return functional.conv2d(h, layer.weight, stride=stride, padding=padding) / math.sqrt(fan_in)


@pytest.mark.parametrize("head", ["flatten", "average"])
@pytest.mark.parametrize("downsample", ["average", "stride", "none"])
def test_conv_forward_is_the_formula(head, downsample):
    net = ConvNet(
        (2, 8, 8), 3, width=(3, 4), downsample=downsample, head=head, generator=generator(1)
    ).double()
    h = G * torch.relu(conv(X, net.hidden[0], 18))
    h = functional.avg_pool2d(h, 2) if downsample == "average" else h
    h = G * torch.relu(conv(h, net.hidden[1], 27, stride=2 if downsample == "stride" else 1))
    side = 8 if downsample == "none" else 4
    assert h.shape == (4, 4, side, side)
    r = h.mean((2, 3)) if head == "average" else h.flatten(1)
    torch.testing.assert_close(net(X), r @ net.head.weight.T / math.sqrt(r.shape[1]))


def test_standard_conv_is_a_plain_sequence():
    net = ConvNet((2, 8, 8), 3, width=4, depth=2, parameterization="standard", bias=True).double()
    plain = nn.Sequential(
        net.hidden[0], nn.ReLU(), nn.AvgPool2d(2), net.hidden[1], nn.ReLU(), nn.Flatten(), net.head
    )
    torch.testing.assert_close(net(X), plain(X), rtol=0, atol=0)
    bound = 1 / math.sqrt(18)
    largest = float(net.hidden[0].weight.detach().abs().max())
    assert largest <= bound < largest * 1.1


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 3, 5), (2, 1, 1)])
@pytest.mark.parametrize("kind", [ConvNet, ResNet])
def test_every_image_size(kind, shape):
    net = kind(shape, 10, width=4, depth=5)
    assert net(torch.zeros(2, *shape)).shape == (2, 10)


def test_images_are_halved_down_to_two_pixels():
    sides = []
    net = ConvNet((1, 28, 28), 2, width=2, depth=6)
    for layer in net.hidden:
        layer.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    net(torch.zeros(1, 1, 28, 28))
    assert sides == [28, 14, 7, 3, 3, 3]


def test_conv_keeps_the_size_of_the_signal_away_from_the_border():
    net = ConvNet(
        (100, 30, 30), 1, width=400, depth=2, downsample="none", activation="tanh", generator=generator(2)
    )
    x = torch.randn(1, 100, 30, 30, generator=generator(3))
    moments = []
    for layer in net.hidden:
        layer.register_forward_hook(
            lambda module, inputs, output: moments.append(
                float(output.detach()[..., 3:-3, 3:-3].square().mean())
            )
        )
    net(x)
    assert moments == pytest.approx([1, 1], abs=0.08)


def block(h, parts, stride):
    first, last = parts.conv1.weight.shape[1], parts.conv2.weight.shape[1]
    branch = conv(G * torch.relu(parts.norm1(h)), parts.conv1, 9 * first, stride)
    branch = conv(G * torch.relu(parts.norm2(branch)), parts.conv2, 9 * last)
    skip = h if parts.skip is None else conv(h, parts.skip, first, stride)
    return (skip + branch) / math.sqrt(2)


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_residual_forward_is_the_formula(norm):
    net = ResNet((2, 8, 8), 3, width=(4, 4, 6), norm=norm, generator=generator(4)).double().eval()
    assert [parts.skip is None for parts in net.blocks] == [True, False, False]
    h = conv(X, net.stem, 18)
    for parts, stride in zip(net.blocks, (1, 2, 2), strict=True):
        h = block(h, parts, stride)
    assert h.shape == (4, 6, 2, 2)
    r = G * torch.relu(net.norm(h)).mean((2, 3))
    torch.testing.assert_close(net(X), r @ net.head.weight.T / math.sqrt(6))


def test_residual_blocks_keep_the_size_of_the_signal():
    net = ResNet((64, 3, 3), 1, width=256, depth=4, generator=generator(5))
    x = torch.randn(30, 64, 3, 3, generator=generator(6))
    with torch.no_grad():
        first = net.stem(x * net.stem_scale)[..., 1:2, 1:2].square().mean()
        single = ResNet((64, 1, 1), 1, width=256, depth=4, generator=generator(5))
        h = single.stem(x[..., :1, :1] * single.stem_scale)
        start = float(h.square().mean())
        for parts in single.blocks:
            h = parts(h)
    assert float(first) == pytest.approx(1, abs=0.1)
    # one pixel sees 1/9 of each kernel: a branch adds 1/81 of the skip's size before the division by 2
    assert float(h.square().mean()) / start == pytest.approx(((1 + 1 / 81) / 2) ** 4, rel=0.1)


def test_standard_residual_net_has_no_factors():
    net = ResNet((2, 8, 8), 3, width=4, depth=1, parameterization="standard", generator=generator(7)).double()
    parts = net.blocks[0]
    h = net.stem(X)
    h = h + parts.conv2(torch.relu(parts.conv1(torch.relu(h))))
    torch.testing.assert_close(net(X), net.head(torch.relu(h).mean((2, 3))))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_normalisation_layers(norm):
    kinds = {"group": nn.GroupNorm, "batch": nn.BatchNorm2d}
    net = ResNet((2, 8, 8), 3, width=(6, 8), norm=norm)
    assert sum(isinstance(module, kinds[norm]) for module in net.modules()) == 5
    assert not any(isinstance(module, kinds[norm]) for module in ResNet((2, 8, 8), 3, width=4).modules())
    if norm == "group":
        assert [net.blocks[1].norm1.num_groups, net.blocks[1].norm2.num_groups] == [2, 8]


@pytest.mark.parametrize("kind", [ConvNet, ResNet])
def test_options_shared_by_both(kind):
    def make(**options):
        return kind((2, 8, 8), 3, **{"width": 4, "depth": 3, "generator": generator(8), **options}).double()

    plain = make()
    torch.testing.assert_close(make(output_activation="erf")(X), torch.erf(plain(X)))
    assert not torch.equal(make(activation="tanh")(X), plain(X))
    assert torch.equal(make()(X), plain(X))
    assert not torch.equal(make(generator=generator(9))(X), plain(X))
    layers = [module for module in plain.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert {type(layer) for layer in layers} == {nn.Conv2d, nn.Linear}
    assert all(layer.bias is None for layer in layers)
    assert sum(p.numel() for p in plain.parameters()) == sum(layer.weight.numel() for layer in layers)
    assert all(layer.bias is not None for layer in make(bias=True).modules() if isinstance(layer, nn.Conv2d))
    narrow = make(bottleneck=1)
    assert min(p.shape[0] for p in narrow.parameters()) == 1
    before, state = X.clone(), torch.random.get_rng_state()
    make()(X)
    assert torch.equal(before, X)
    assert torch.equal(state, torch.random.get_rng_state())
    for twin in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert torch.equal(twin(X), plain(X))
    assert float(make(gain=False)(X).detach().norm()) < float(plain(X).detach().norm())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ConvNet, {"in_shape": (8, 8)}, r"\(channels, height, width\), got \(8, 8\)"),
        (ConvNet, {"downsample": "max"}, "unknown downsample"),
        (ConvNet, {"head": "max"}, "unknown head"),
        (ConvNet, {"outputs": 0}, "outputs must be"),
        (ResNet, {"norm": "layer"}, "unknown norm"),
        (ResNet, {"depth": 0}, "at least one block"),
        (ResNet, {"parameterization": "mup"}, "choose 'ntk'"),
    ],
)
def test_what_is_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind(**{"in_shape": (2, 8, 8), "outputs": 3, **options})


@pytest.mark.parametrize("kind", [ConvNet, ResNet])
def test_images_of_another_shape_are_refused(kind):
    with pytest.raises(InputError, match=r"inputs \(n, 2, 8, 8\), got \(4, 64\)"):
        kind((2, 8, 8), 3, width=4)(torch.zeros(4, 64))
