"""Hessians of assemblies against dense ones, dominance, and the neurons of a net."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from wideangle import nets
from wideangle.curvature import (
    assembly_hessian_norm,
    dominance,
    gradient_diversity,
    preactivation_hessian_norms,
)
from wideangle.curvature.assembly import AssemblyNorm, NeuronNorms
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._model import call
from wideangle.nets import Assembly
from wideangle.seeds import generator

X = torch.randn(2, 3, generator=generator(0, "x"), dtype=torch.float64)
EXACT = {"tolerance": 1e-9}


def part(number: int, outputs: int = 1, width: int = 3) -> nets.MLP:
    draws = generator(0, "part", number)
    return nets.MLP(3, outputs, width=width, depth=1, activation="tanh", generator=draws).double()


def parts(count: int, outputs: int = 1) -> list[nets.MLP]:
    return [part(number, outputs) for number in range(count)]


def dense(model: nn.Module, x: torch.Tensor, read=lambda f: f) -> tuple[np.ndarray, np.ndarray]:
    """Hessian and gradient norms of every output at every sample, from whole matrices."""
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    flat = torch.cat([p.flatten() for p in named.values()])

    def output(w, one):
        pieces = w.split([p.numel() for p in named.values()])
        given = {n: q.view_as(p) for (n, p), q in zip(named.items(), pieces, strict=True)}
        return read(call(model, given, one[None]))[0]  # torch's own call damages modules that occur twice

    hessians = [torch.func.hessian(output)(flat, one) for one in x]
    slopes = [torch.func.jacrev(output)(flat, one).norm(dim=-1).numpy() for one in x]
    return np.array([torch.linalg.matrix_norm(h, ord=2).numpy() for h in hessians]), np.array(slopes)


def check(model: Assembly, method: str, x: torch.Tensor = X) -> AssemblyNorm:
    found = assembly_hessian_norm(model, x, **EXACT)
    norms, slopes = dense(model, x)
    assert found.values == pytest.approx(norms, rel=1e-6)
    assert found.gradient_norms == pytest.approx(slopes, rel=1e-8)
    assert found.value == pytest.approx(norms.max(), rel=1e-6)
    assert found.ratio == pytest.approx((norms / slopes**2).max(), rel=1e-6)
    assert found.method == method
    return found


class Monomial(nn.Module):
    """A tiny sub-model that is no network: (w . x)^3 / 3."""

    def __init__(self, number: int):
        super().__init__()
        draws = torch.randn(3, generator=generator(0, "monomial", number), dtype=torch.float64)
        self.w = nn.Parameter(draws)

    def forward(self, x):
        return (x @ self.w[:, None]) ** 3 / 3


V = torch.tensor([0.3, -2.0, 1.1, 0.7], dtype=torch.float64)


@pytest.mark.parametrize("scale", ["sqrt", "mean", 0.7])
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_block_formula_is_exact(scale, outputs: int):
    found = check(Assembly(parts(4, outputs), V, scale), "blocks")
    assert found.block is not None
    assert "block diagonal" in found.reason


def test_sub_models_of_any_kind_and_assemblies_within_assemblies():
    check(Assembly([part(0), Monomial(1), Monomial(2), part(3)], V), "blocks")
    inner = Assembly([part(4), Monomial(5)], "normal")
    coupled = Assembly([part(6), part(7)], trainable_coefficients=True)
    check(Assembly([inner, part(8), coupled], V[:3]), "blocks")


def test_the_block_named_is_the_largest():
    subs = parts(4)
    for number in range(4):
        v = torch.ones(4, dtype=torch.float64)
        v[number] = 50.0
        assert assembly_hessian_norm(Assembly(subs, v), X).block == number


def test_shared_parameters_fall_back_to_the_whole():
    a, b, c = parts(3)
    b.head.weight = a.head.weight
    found = check(Assembly([a, b, c], V[:3]), "lanczos")
    assert "sub-models 0 and 1 share the trainable parameter 'head.weight'" in found.reason
    assert found.block is None
    check(Assembly([c, c, Monomial(0)], V[:3]), "lanczos")  # one module twice
    inner = Assembly([part(5), part(6)])
    check(Assembly([inner, inner.sub_models[1]], V[:2]), "lanczos")
    twice = assembly_hessian_norm(Assembly([c, c]), X, **EXACT)
    assert twice.value == pytest.approx(math.sqrt(2) * dense(c, X)[0].max())  # the blocks would say half


def test_a_shared_frozen_parameter_couples_nothing():
    a, b = parts(2)
    b.head.weight = a.head.weight
    a.head.weight.requires_grad_(False)
    check(Assembly([a, b], V[:2]), "blocks")


def test_trained_coefficients_fall_back_to_the_whole():
    found = check(Assembly(parts(3), V[:3], trainable_coefficients=True), "lanczos")
    assert found.reason == "the coefficients are trained"


def test_a_frozen_sub_model_adds_nothing():
    subs = parts(2)
    subs[0].requires_grad_(False)
    v = torch.tensor([100.0, 1.0], dtype=torch.float64)
    assert check(Assembly(subs, v), "blocks").block == 1


def exact_two_layer(w: torch.Tensor, v: torch.Tensor, x: torch.Tensor, v_trained: bool) -> float:
    """||H|| of (1/sqrt(m)) sum v_i tanh(w_i . x / sqrt(d)), neuron by neuron."""
    z, s = w @ x / math.sqrt(len(x)), float(x.norm()) / math.sqrt(len(x))
    slope = 1 - z.tanh() ** 2
    a = v * (-2 * z.tanh() * slope) * s**2
    b = slope * s if v_trained else torch.zeros_like(slope)
    root = (a**2 + 4 * b**2).sqrt()
    return float(torch.maximum((a + root).abs(), (a - root).abs()).max()) / 2 / math.sqrt(len(v))


class Neuron(nn.Module):
    """tanh(w . x / sqrt(d))."""

    def __init__(self, w: torch.Tensor):
        super().__init__()
        self.w = nn.Parameter(w.clone())

    def forward(self, x):
        return torch.tanh(x @ self.w[:, None] / math.sqrt(len(self.w)))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("m", [4, 16])
def test_a_two_layer_net_is_an_assembly_of_its_neurons(m: int, trained: bool):
    draws = generator(3, "two-layer", m)
    w = torch.randn(m, 3, generator=draws, dtype=torch.float64)
    v = torch.randn(m, generator=draws, dtype=torch.float64)
    net = Assembly([Neuron(row) for row in w], v, trainable_coefficients=trained)
    found = assembly_hessian_norm(net, X[:1], **EXACT)
    assert found.value == pytest.approx(exact_two_layer(w, v, X[0], trained), rel=1e-6)
    assert found.method == ("lanczos" if trained else "blocks")


def test_the_norm_falls_like_one_over_root_m_unless_one_dominates():
    def norm(m: int, v) -> float:
        return assembly_hessian_norm(Assembly(parts(m), v), X[:1], confidence=0.0).value

    fair = [norm(m, "signs") for m in (4, 64)]
    assert fair[1] < 0.45 * fair[0]
    heavy = []
    for m in (4, 64):
        v = torch.ones(m, dtype=torch.float64)
        v[0] = math.sqrt(m)
        heavy.append(norm(m, v))
    assert heavy[1] == pytest.approx(heavy[0], rel=1e-3)
    assert heavy[0] == pytest.approx(dense(part(0), X[:1])[0].max(), rel=1e-3)


def test_what_has_no_norm_is_refused():
    with pytest.raises(InputError, match="a MLP is no Assembly; use hessian_norm"):
        assembly_hessian_norm(part(0), X)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no parameter of the assembly requires a gradient"):
        assembly_hessian_norm(Assembly([part(0).requires_grad_(False)]), X)
    relu = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with pytest.raises(InputError, match="has kinks"):
        assembly_hessian_norm(Assembly([relu]), X)


@pytest.mark.parametrize("trained", [False, True])
def test_dominance_against_whole_gradients(trained: bool):
    model = Assembly(parts(4, 2), V, trainable_coefficients=trained)
    found = dominance(model, X)
    squares = torch.zeros(4, dtype=torch.float64)
    for one in X:
        for output in model(one[None])[0]:
            slopes = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
            owned = dict(zip([n for n, _ in model.named_parameters()], slopes, strict=True))
            for name, slope in owned.items():
                if name == "coefficients":
                    squares += slope**2
                else:
                    squares[int(name.split(".")[1])] += slope.square().sum()
    shares = (squares / squares.sum()).numpy()
    assert found.shares == pytest.approx(shares, rel=1e-10)
    assert found.largest == pytest.approx(shares.max())
    assert found.sub_model == int(shares.argmax())
    assert found.effective == pytest.approx(1 / (shares**2).sum())


def test_dominance_at_its_extremes():
    same = [part(0) for _ in range(5)]
    assert dominance(Assembly(same), X).effective == pytest.approx(5)
    v = torch.tensor([1e6, 1, 1, 1, 1], dtype=torch.float64)
    assert dominance(Assembly(same, v), X).effective == pytest.approx(1, abs=1e-10)
    same[0].requires_grad_(False)
    found = dominance(Assembly(same, v), X)
    assert (found.shares[0], found.effective) == (0, pytest.approx(4))
    with pytest.raises(NumericsError, match="add up to 0"):
        dominance(Assembly(same, torch.zeros(5)), X)
    with pytest.raises(InputError, match="no Assembly"):
        dominance(part(0), X)  # type: ignore[arg-type]


def small_net(kind: str) -> tuple[nn.Module, torch.Tensor]:
    draws = generator(1, kind)
    if kind == "mlp":
        net = nets.MLP(3, 1, width=4, depth=2, activation="tanh", bias=True, generator=draws).double()
        return net, X
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 1, 2), nn.Flatten(), nn.Linear(4, 1))
    for p in net.parameters():
        nn.init.normal_(p, generator=draws)
    return net.double(), torch.randn(1, 1, 4, 4, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_preactivation_hessians_against_whole_ones(kind: str):
    model, x = small_net(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = preactivation_hessian_norms(model, x, neurons=3, **EXACT)
    layers = ["hidden.0", "hidden.1", "head"] if kind == "mlp" else ["0", "2", "4"]
    assert list(found.norms) == layers
    for layer in layers:
        kept = []
        handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o, k=kept: k.append(o))
        norms, _ = dense(model, x, lambda _, k=kept: k[-1].flatten(1))
        handle.remove()
        chosen = found.neurons[layer]
        assert len(chosen) == min(3, norms.shape[1])
        assert found.norms[layer] == pytest.approx(norms[:, chosen], rel=1e-6, abs=1e-12)
    assert not found.norms[layers[0]].any()  # exactly zero
    assert found.norms[layers[1]].min() > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    again = NeuronNorms.from_json(found.to_json())
    assert np.array_equal(again.norms[layers[1]], found.norms[layers[1]])
    assert f"{layers[2]}" in str(found)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_diversity_against_gradients_one_by_one(kind: str):
    model, x = small_net(kind)
    for layer in ["hidden.0", "hidden.1"] if kind == "mlp" else ["0", "2"]:
        found = gradient_diversity(model, layer, x)
        kept = []
        handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o, k=kept: k.append(o))
        for i, one in enumerate(x):
            model(one[None])
            rows = []
            for value in kept[-1].flatten():
                slopes = torch.autograd.grad(
                    value, list(model.parameters()), retain_graph=True, allow_unused=True
                )
                rows.append(torch.cat([s.flatten() for s in slopes if s is not None]))
            unit = torch.stack([row / row.norm() for row in rows])
            assert found.cosines[i] == pytest.approx((unit @ unit.T).numpy(), abs=1e-10)
        handle.remove()
        upper = np.abs(found.cosines[:, *np.triu_indices(found.neurons, 1)])
        assert (found.mean, found.largest) == (pytest.approx(upper.mean()), pytest.approx(upper.max()))
    assert found.of == found.neurons


def test_activations_in_place_leave_the_neurons_alone():
    def net(inplace: bool) -> nn.Module:
        model = nn.Sequential(
            nn.Linear(3, 4), nn.SiLU(inplace), nn.Linear(4, 4), nn.SiLU(inplace), nn.Linear(4, 1)
        )
        for parameter in model.parameters():
            nn.init.normal_(parameter, generator=generator(0, "in place", *parameter.shape))
        return model.double()

    found, plain = (preactivation_hessian_norms(net(inplace), X, **EXACT) for inplace in (True, False))
    assert not found.norms["0"].any()  # exactly zero
    for layer in ("2", "4"):
        assert found.norms[layer] == pytest.approx(plain.norms[layer], rel=1e-6)
        assert found.norms[layer].min() > 0
    cosines = [gradient_diversity(net(inplace), "2", X).cosines for inplace in (True, False)]
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-12)


def test_neurons_of_a_wide_net_point_apart():
    def mean(width: int) -> float:
        net = nets.MLP(3, 1, width=width, depth=2, activation="tanh", generator=generator(0, width)).double()
        found = gradient_diversity(net, "hidden.1", X[:1], neurons=24)
        assert (found.neurons, found.of) == (min(24, width), width)
        return found.mean

    assert mean(1024) < 0.4 * mean(32)


def test_what_neurons_are_refused():
    model, x = small_net("mlp")
    with pytest.raises(InputError, match=r"unknown layer 'hiden\.1'; did you mean 'hidden\.1'"):
        gradient_diversity(model, "hiden.1", x)
    with pytest.raises(InputError, match="a cosine needs two"):
        gradient_diversity(model, "head", x)
    with pytest.raises(InputError, match="neurons must be at least 1"):
        preactivation_hessian_norms(model, x, neurons=0)
    with pytest.raises(InputError, match="no linear or convolutional layer"):
        preactivation_hessian_norms(nn.Sequential(nn.Tanh()), x)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.requires_grad_(False)
    model.hidden[1].weight.requires_grad_(True)
    with pytest.raises(NumericsError, match="gradient of norm 0"):
        gradient_diversity(model, "hidden.1", x)
