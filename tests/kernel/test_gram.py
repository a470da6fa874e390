"""The tangent kernel against its slow twin, the explicit Jacobian, for every kind of layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from zoo import MODELS, Attention, DictInput, Residual, fresh, normal, tokens

from wideangle.errors import InputError, NumericsError
from wideangle.kernel import factors, jacobian_kernel, tangent_kernel
from wideangle.seeds import generator


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def small() -> tuple[nn.Module, torch.Tensor]:
    build, data = MODELS["mlp"]
    return fresh(build()), data()


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_jacobian(name: str):
    build, data = MODELS[name]
    model, x = fresh(build()), data()
    expected = jacobian_kernel(model, x)
    assert relative(tangent_kernel(model, x), expected) < 1e-10
    trace = torch.einsum("icjc->ij", expected)
    assert relative(tangent_kernel(model, x, outputs="trace"), trace) < 1e-10
    assert relative(tangent_kernel(model, x, outputs="sum"), expected.sum((1, 3))) < 1e-10
    assert relative(tangent_kernel(model, x, outputs=0), expected[:, 0, :, 0]) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_cross_kernel_and_blocks_of_samples(name: str):
    build, data = MODELS[name]
    model, x = fresh(build()), data()
    expected = jacobian_kernel(model, x, x[:2])
    assert relative(tangent_kernel(model, x, x[:2]), expected) < 1e-10
    pieces = [x[:1], x[1:3], x[3:]]
    assert relative(tangent_kernel(model, pieces, [(x[:2], None)]), expected) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_products_with_the_factors(name: str):
    build, data = MODELS[name]
    model, x = fresh(build()), data()
    cache, expected = factors(model, x), jacobian_kernel(model, x)
    n, c = expected.shape[:2]
    flat = expected.reshape(n * c, n * c)
    v = normal(n * c, 3)
    assert relative(cache @ v, flat @ v) < 1e-10
    assert relative(cache @ v[:, 0].reshape(n, c), (flat @ v[:, 0]).reshape(n, c)) < 1e-10
    assert relative(cache.blocks(), torch.einsum("icid->icd", expected)) < 1e-10
    assert relative(cache.diagonal(), torch.einsum("icic->ic", expected)) < 1e-10
    assert abs(cache.squared_norm() / float(expected.square().sum()) - 1) < 1e-10
    layers = cache.per_layer()
    assert relative(sum(layers.values()), expected) < 1e-10  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_both_methods_agree(name: str, monkeypatch: pytest.MonkeyPatch):
    """Whatever the cost model picks, the other method gives the same kernel."""
    from wideangle.kernel import cost

    build, data = MODELS[name]
    model, x = fresh(build()), data()
    original, expected = cost._cheaper, jacobian_kernel(model, x)
    for forced in ("per-sample", "factorised"):

        def force(cover, layout, *rest, forced=forced):
            free = cover.rule.gradient is None and not cover.rule.lookup
            return forced if free else original(cover, layout, *rest)

        monkeypatch.setattr(cost, "_cheaper", force)
        assert relative(tangent_kernel(model, x), expected) < 1e-10
        trace = torch.einsum("icjc->ij", expected)
        assert relative(tangent_kernel(model, x, outputs="trace"), trace) < 1e-10


def test_fallback_only_where_no_rule_holds():
    for name in ("mlp", "conv grouped dilated", "conv1d norms", "batchnorm2d", "residual", "called twice"):
        build, data = MODELS[name]
        assert factors(fresh(build()), data()).fallback == (), name
    build, data = MODELS["tied embedding"]
    assert factors(fresh(build()), data()).fallback == ("embed.weight",)
    odd = factors(fresh(MODELS["own forward"][0]()), MODELS["own forward"][1]())
    assert odd.fallback == ("0.weight", "0.bias")
    attention = factors(fresh(Attention()), tokens(4, 6)).fallback
    assert set(attention) == {
        "offset",
        "block.self_attn.in_proj_weight",
        "block.self_attn.in_proj_bias",
        "block.self_attn.out_proj.weight",
        "block.self_attn.out_proj.bias",
    }


def test_library_nets_put_nothing_into_the_fallback():
    from wideangle import nets

    x = normal(3, 1, 8, 8).float()
    for name in ("mlp", "conv", "resnet"):
        assert factors(nets.build(name, (1, 8, 8), 10, seed=0), x).fallback == ()


@pytest.mark.parametrize("limit", [8_000, 20_000, 10**9])
def test_memory_limit_changes_nothing(limit: int):
    model, x = small()
    x = normal(23, 4)
    expected = jacobian_kernel(model, x, x)
    trace = torch.einsum("icjc->ij", expected)
    assert relative(tangent_kernel(model, x, outputs="trace", max_memory=limit), trace) < 1e-10


def test_permutation_and_positive_semidefinite():
    model, x = small()
    kernel = tangent_kernel(model, x)
    order = torch.randperm(len(x), generator=generator(3, "order"))
    assert relative(tangent_kernel(model, x[order]), kernel[order][:, :, order]) < 1e-12
    n, c = kernel.shape[:2]
    values = torch.linalg.eigvalsh(kernel.reshape(n * c, n * c))
    assert values[0] > -1e-12 * values[-1]
    assert torch.equal(kernel, kernel.permute(2, 3, 0, 1))


def test_reductions():
    model, x = small()
    assert (
        relative(
            tangent_kernel(model, x, outputs="trace", reduction="mean") * 3,
            tangent_kernel(model, x, outputs="trace"),
        )
        < 1e-14
    )
    assert (
        relative(
            tangent_kernel(model, x, outputs="sum", reduction="mean") * 9,
            tangent_kernel(model, x, outputs="sum"),
        )
        < 1e-14
    )
    assert tangent_kernel(model, x).shape == (6, 3, 6, 3)


def test_parameters_selected_and_frozen():
    model, x = small()
    first = tangent_kernel(model, x, params="0")
    assert relative(first, jacobian_kernel(model, x, params=["0.weight", "0.bias"])) < 1e-10
    rest = tangent_kernel(model, x, params=lambda name: name.startswith("2"))
    assert relative(first + rest, tangent_kernel(model, x)) < 1e-10
    for bias_only in ("0.bias", "2.weight"):
        assert (
            relative(tangent_kernel(model, x, params=bias_only), jacobian_kernel(model, x, params=bias_only))
            < 1e-10
        )
    model[0].weight.requires_grad_(False)  # type: ignore[index]
    assert relative(tangent_kernel(model, x), jacobian_kernel(model, x)) < 1e-10
    assert (
        relative(tangent_kernel(model, x, params="0.weight"), jacobian_kernel(model, x, params="0.weight"))
        < 1e-10
    )
    assert model[0].weight.requires_grad is False  # type: ignore[index]


def test_dict_input_and_picked_output():
    model = fresh(DictInput())
    batch = {"ids": tokens(4, 5), "mask": torch.ones(4, 5, dtype=torch.float64)}
    expected = jacobian_kernel(model, batch, output="logits")
    assert relative(tangent_kernel(model, batch, output="logits"), expected) < 1e-10
    assert relative(tangent_kernel(model, batch, output=lambda raw: raw["logits"]), expected) < 1e-10
    with pytest.raises(InputError, match=r"returns a dict with logits, hidden.*output='logits'"):
        tangent_kernel(model, batch)
    with pytest.raises(InputError, match="no part 'scores'"):
        tangent_kernel(model, batch, output="scores")


def test_state_is_left_as_found():
    model = fresh(Residual())
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.conv.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    tangent_kernel(model, normal(3, 1, 5, 5))
    with torch.no_grad():
        tangent_kernel(model, normal(3, 1, 5, 5))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.conv.weight.grad is None
    assert model.conv.weight.requires_grad is False
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(not module._forward_hooks for module in model.modules())
    assert not model.training


def test_buffers_written_by_the_model_are_kept():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.layer(x)

    model = fresh(Counting())
    model.calls.zero_()
    tangent_kernel(model, normal(3, 2))
    assert model.calls.item() == 0


def test_batch_coupled_and_random_models_are_refused():
    coupled = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"'1' \(BatchNorm1d\) is in train mode"):
        tangent_kernel(coupled, torch.ones(4, 3))
    with pytest.raises(InputError, match=r"'1' \(Dropout\) drops units at random"):
        tangent_kernel(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), torch.ones(4, 3))

    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x - x.mean(0))

    with pytest.raises(InputError, match="it is batch-coupled"):
        tangent_kernel(Centred(), normal(4, 3).float())

    class Noisy(Centred):
        def forward(self, x):
            return nn.functional.dropout(self.layer(x).repeat(1, 20), 0.5)

    with pytest.raises(InputError, match="it is random"):
        tangent_kernel(Noisy().eval(), normal(4, 3).float())


def test_bad_input():
    model, x = small()
    broken = x.clone()
    broken[2, 1] = float("nan")
    with pytest.raises(InputError, match=r"non-finite numbers in 1 of 6 samples .first: sample 2"):
        tangent_kernel(model, broken)
    with pytest.raises(InputError, match="outputs=7, but the model has 3 outputs"):
        tangent_kernel(model, x, outputs=7)
    with pytest.raises(InputError, match="outputs is 'all'"):
        tangent_kernel(model, x, outputs="all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no parameter is called 'nope'"):
        tangent_kernel(model, x, params="nope")
    with pytest.raises(InputError, match="holds no samples"):
        tangent_kernel(model, x[:0])
    with pytest.raises(InputError, match="goes with outputs='trace' or 'sum'"):
        tangent_kernel(model, x, reduction="mean")
    with pytest.raises(InputError, match="more than max_memory"):
        tangent_kernel(model, x, max_memory=1000)
    with pytest.raises(InputError, match="has no parameters"):
        tangent_kernel(nn.ReLU(), x)
    with pytest.raises(InputError, match="first dimension must be the sample"):
        tangent_kernel(nn.Sequential(model, nn.Flatten(0)), x)
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")  # type: ignore[index]
    with pytest.raises(InputError, match=r"parameter '0.weight' holds 1 non-finite numbers"):
        tangent_kernel(model, x)
    huge = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        huge[0].weight.fill_(3e38)
    with pytest.raises(NumericsError, match="non-finite"):
        tangent_kernel(huge, torch.full((3, 2), 1e3))
