from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from wideangle.curvature import Audit, LinearityGap, audit, linearity_gap
from wideangle.errors import InputError, NumericsError


def _gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class _Ntk(nn.Module):
    """A fully connected net in the NTK parameterisation, for the width laws."""

    def __init__(self, sizes, seed, output=None, activation=torch.tanh):
        super().__init__()
        gen = _gen(seed)
        self.weights = nn.ParameterList(
            torch.randn(b, a, generator=gen, dtype=torch.float64) for a, b in itertools.pairwise(sizes)
        )
        self.output, self.activation = output, activation

    def forward(self, x):
        for i, weight in enumerate(self.weights):
            x = (self.activation(x) if i else x) @ weight.T / math.sqrt(weight.shape[1])
        return x if self.output is None else self.output(x)


class _Quadratic(nn.Module):
    """f_ic = b_c . w + w^T Q_c w / 2 times x_i: the remainder is known to the last digit."""

    def __init__(self, outputs=2, size=4):
        super().__init__()
        gen = _gen(1)
        self.w = nn.Parameter(torch.randn(size, generator=gen, dtype=torch.float64))
        half = torch.randn(outputs, size, size, generator=gen, dtype=torch.float64)
        self.register_buffer("q", half + half.transpose(1, 2))
        self.register_buffer("b", torch.randn(outputs, size, generator=gen, dtype=torch.float64))

    def forward(self, x):
        row = self.b @ self.w + torch.einsum("cij,i,j->c", self.q, self.w, self.w) / 2
        return x[:, :1] * row


def test_gap_of_a_quadratic_model_is_its_second_order_term():
    model = _Quadratic()
    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    unit = torch.tensor([0.5, -0.5, 0.5, 0.5], dtype=torch.float64)
    for radius in (0.3, 2.0):
        found = linearity_gap(model, x, radius, unit)
        curvature = torch.einsum("cij,i,j->c", model.q, unit, unit)
        exact = (x * curvature).square().mean().sqrt() * radius**2 / 2
        slope = (
            (x * ((model.b + torch.einsum("cij,j->ci", model.q, model.w.detach())) @ unit))
            .square()
            .mean()
            .sqrt()
        )
        assert found.gap == pytest.approx(float(exact), rel=1e-12)
        assert found.first_order == pytest.approx(radius * float(slope), rel=1e-12)
        assert found.relative == pytest.approx(float(exact / (radius * slope)), rel=1e-12)
        assert (found.samples, found.outputs, found.direction) == (2, 2, "given")
    one = linearity_gap(model, x, 1.0, unit, outputs=1)
    assert one.gap == pytest.approx(float((x * curvature[1]).square().mean().sqrt() / 2), rel=1e-12)


def test_top_hessian_is_the_eigenvector_of_largest_magnitude():
    model = _Quadratic(outputs=1)
    x = torch.ones(1, 1, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(model.q[0])
    top = int(values.abs().argmax())
    found = linearity_gap(model, x, 1.0, "top_hessian")
    assert found.gap == pytest.approx(float(values[top].abs()) / 2, rel=1e-6)
    assert found.gap == pytest.approx(linearity_gap(model, x, 1.0, vectors[:, top]).gap, rel=1e-6)


def test_gap_along_the_gradient_equals_the_formula_of_the_paper():
    model = _Ntk((5, 16, 16, 1), seed=2)
    x = torch.randn(1, 5, generator=_gen(3), dtype=torch.float64)
    gradient = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient))
    moved = _Ntk((5, 16, 16, 1), seed=2)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), gradient, strict=True):
            p.add_(3 * g / norm)
        exact = abs(float(moved(x) - model(x)) - 3 * norm)
    found = linearity_gap(model, x, 3.0)
    assert found.gap == pytest.approx(exact, rel=1e-10)
    assert found.first_order == pytest.approx(3 * norm, rel=1e-10)
    weight = math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert found.displacement == pytest.approx(3 / weight, rel=1e-12)


def test_unit_change_radius_does_not_depend_on_the_scale_of_the_weights():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            base = _Ntk((5, 16, 1), seed=2)
            self.factor = factor
            self.a = nn.Parameter(base.weights[0].detach() / factor)
            self.b = nn.Parameter(base.weights[1].detach() / factor)

        def forward(self, x):
            return torch.tanh(x @ (self.factor * self.a).T) @ (self.factor * self.b).T / 4

    x = torch.randn(4, 5, generator=_gen(3), dtype=torch.float64)
    plain, small = linearity_gap(Scaled(1.0), x), linearity_gap(Scaled(10.0), x)
    assert plain.first_order == pytest.approx(1, abs=1e-12)
    assert small.gap == pytest.approx(plain.gap, rel=1e-9)
    assert small.radius == pytest.approx(plain.radius / 10, rel=1e-9)


def _slope(build, seeds, direction="gradient", widths=(32, 128, 512)) -> float:
    x = torch.randn(1, 10, generator=_gen(11), dtype=torch.float64)
    x *= math.sqrt(10) / x.norm()
    gaps = [
        np.mean([linearity_gap(build(m, s), x, 3.0, direction).gap for s in range(seeds)]) for m in widths
    ]
    return float(np.polyfit(np.log(widths), np.log(gaps), 1)[0])


def _linear_output(m, seed):
    return _Ntk((10, m, m, 1), seed)


def _tanh_output(m, seed):
    return _Ntk((10, m, m, 1), seed, torch.tanh)


def _narrow(m, seed):
    return _Ntk((10, m, 1, m, 1), seed)


@pytest.mark.slow
def test_the_gap_vanishes_with_width_only_for_a_linear_output_without_bottleneck():
    widths = (32, 64, 128, 256, 512, 1024)
    linear = _slope(_linear_output, 12, widths=widths)
    assert linear < -0.5
    assert _slope(_tanh_output, 12, widths=widths) > -0.2
    assert _slope(_narrow, 12, widths=widths) > -0.2
    # Along a random direction the gap vanishes also where the model stays non-linear: no test of linearity.
    assert _slope(_tanh_output, 12, "random", widths=widths) < -0.5


def test_width_law_at_small_size():
    assert _slope(_linear_output, 4) < -0.5
    assert _slope(_tanh_output, 4) > -0.2


def test_batchnorm_float32_dict_and_tuple_models_leave_no_trace():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(4, 1, 5, 5, generator=_gen(0))
    single, double = linearity_gap(model, x), linearity_gap(model, x, dtype=torch.float64)
    assert single.gap == pytest.approx(double.gap, rel=1e-3)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, images):
            return {"logits": self.inner(images)}

    wrapped = linearity_gap(Wrapped(), {"images": x}, output="logits")
    assert wrapped.gap == pytest.approx(single.gap, rel=1e-6)
    assert LinearityGap.from_json(wrapped.to_json()).gap == wrapped.gap


def test_bad_gap_input_is_refused():
    model, x = _Ntk((5, 8, 1), 0), torch.ones(1, 5, dtype=torch.float64)
    with pytest.raises(InputError, match="radius"):
        linearity_gap(model, x, -1.0)
    with pytest.raises(InputError, match="direction"):
        linearity_gap(model, x, 1.0, "sideways")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="numbers"):
        linearity_gap(model, x, 1.0, torch.ones(3))
    with pytest.raises(InputError, match="outputs=1"):
        linearity_gap(model, x, 1.0, outputs=1)
    with pytest.raises(InputError, match="drops units"):
        linearity_gap(nn.Sequential(nn.Linear(5, 1), nn.Dropout()).double(), x)
    dead = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        dead[0].bias.fill_(-100)
    with pytest.raises(NumericsError, match="direction"):
        linearity_gap(dead, x)


# --- the audit ---------------------------------------------------------------------------------------


class _Functional(nn.Module):
    """The output function is a call in forward, not a module."""

    def __init__(self, output):
        super().__init__()
        self.first, self.last, self.output = nn.Linear(4, 32), nn.Linear(32, 3), output

    def forward(self, x):
        return self.output(self.last(torch.relu(self.first(x))))


OUTPUTS = {
    "none": (lambda z: z, True),
    "scaled": (lambda z: 3 * z.flatten(1) - 1, True),
    "log-less mean": (lambda z: z.mean(1, keepdim=True), True),
    "tanh": (torch.tanh, False),
    "softmax": (lambda z: z.softmax(1), False),
    "relu": (torch.relu, False),
    "square": (lambda z: z * z, False),
    "normalised": (lambda z: z / z.norm(dim=1, keepdim=True), False),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_non_linear_output_is_measured_not_guessed(name):
    function, linear = OUTPUTS[name]
    found = audit(_Functional(function), torch.randn(6, 4, generator=_gen(0)))
    assert found.linear_output is linear
    assert found.output_functions == ([name] if name in ("tanh", "softmax", "relu") else [])
    text = " ".join(found.findings)
    assert ("does not become linear" in text) is not linear


def test_modules_after_the_last_layer_are_seen():
    x = torch.randn(6, 4, generator=_gen(0))
    for last, linear in (
        (nn.Tanh(), False),
        (nn.LayerNorm(3), False),
        (nn.Identity(), True),
        (nn.Flatten(), True),
    ):
        model = nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Linear(32, 3), last)
        assert audit(model, x).linear_output is linear
    late = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Softmax(1))
    assert audit(late, x).output_functions == ["tanh", "softmax"]


def test_widths_bottleneck_and_layers():
    x = torch.randn(2, 10, generator=_gen(0))
    narrow = nn.Sequential(
        nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 2), nn.Tanh(), nn.Linear(2, 64), nn.Linear(64, 5)
    )
    found = audit(narrow, x)
    assert [row["width"] for row in found.layers] == [64, 2, 64, 5]
    assert [row["fan_in"] for row in found.layers] == [10, 64, 2, 64]
    assert [row["name"] for row in found.layers] == ["0", "2", "4", "5"]
    assert (found.narrowest, found.typical_width, found.bottleneck) == (2, 64, True)
    assert any("'2' is a bottleneck" in text for text in found.findings)
    assert found.parameters == sum(p.numel() for p in narrow.parameters())
    even = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))
    assert not audit(even, x).bottleneck
    even[0].requires_grad_(False)
    assert audit(even, x).trainable == found.parameters * 0 + 64 * 32 + 32 + 33
    assert any("704 of them frozen" in text for text in audit(even, x).findings)


def test_parameterisation_is_told_from_the_weights():
    x = torch.randn(2, 64, generator=_gen(0))
    model = nn.Sequential(nn.Linear(64, 128, bias=False), nn.ReLU(), nn.Linear(128, 10))
    assert audit(model, x).parameterization == "standard"
    with torch.no_grad():
        model[0].weight.normal_(generator=_gen(1))
    assert audit(model, x).parameterization == "mixed"
    with torch.no_grad():
        model[2].weight.normal_(generator=_gen(1))
    assert audit(model, x).parameterization == "ntk"
    assert audit(nn.Linear(3, 1), torch.ones(1, 3)).parameterization == "unknown"


def test_norms_dropout_activations_and_attention_are_listed():
    conv = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(72, 2)
    )
    found = audit(conv, torch.ones(2, 1, 5, 5))
    assert found.normalization == {"BatchNorm2d": 1}
    assert found.dropout == {"3": 0.3}
    assert found.activations == {"silu": 1}
    assert not found.attention
    assert [row["width"] for row in found.layers] == [8, 2]
    assert found.linear_output
    assert conv.training
    assert int(conv[1].num_batches_tracked) == 0
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    seen = audit(nn.Sequential(block, nn.Flatten(), nn.Linear(24, 2)), torch.ones(2, 3, 8))
    assert seen.attention
    assert seen.normalization == {"LayerNorm": 2}
    assert seen.activations == {"relu": 1}
    assert seen.linear_output
    assert [row["type"] for row in seen.layers] == ["MultiheadAttention", "Linear", "Linear", "Linear"]


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mid = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, scale):
        return {"hidden": tokens, "logits": scale * self.head(torch.tanh(self.mid(self.embed(tokens))))}


class _Bare(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 4, generator=_gen(1)))
        self.v = nn.Parameter(torch.randn(16, generator=_gen(2)))
        self.output = output

    def forward(self, x):
        return self.output(torch.tanh(x @ self.w.T) @ self.v)


class _Custom(nn.Module):
    """A layer of someone else's, with a function of its own behind the weights."""

    def __init__(self, output):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16, generator=_gen(1)))
        self.output = output

    def forward(self, x):
        return self.output(x @ self.weight.T)


def test_exotic_models_are_audited_too():
    tied = audit(_Tied(), {"tokens": torch.tensor([[1, 2], [3, 4]]), "scale": torch.tensor(2.0)})
    assert tied.linear_output
    assert tied.activations == {"tanh": 1}
    assert tied.parameters == 88 + 72
    shared = nn.Linear(8, 8)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    found = audit(twice, torch.randn(3, 8, generator=_gen(0)))
    assert found.linear_output
    assert found.layers[0]["calls"] == 2
    x = torch.randn(5, 4, generator=_gen(0))
    assert audit(_Bare(lambda z: z), x).linear_output
    assert audit(_Bare(torch.tanh), x).linear_output is False
    shifted = _Functional(torch.tanh)
    shifted.shift = nn.Parameter(torch.ones(3))
    shifted.output = lambda z: torch.tanh(z) + shifted.shift
    assert audit(shifted, x).linear_output is False
    custom = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), _Custom(torch.tanh))
    assert audit(custom, torch.randn(5, 4, generator=_gen(0))).linear_output is False
    custom[2].output = torch.clone
    assert audit(custom, torch.randn(5, 4, generator=_gen(0))).linear_output
    recurrent = audit(nn.LSTM(4, 16, batch_first=True), torch.randn(2, 3, 4, generator=_gen(0)))
    assert recurrent.linear_output is False
    assert recurrent.parameters == 4 * 16 * (4 + 16 + 2)
    normed = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 32)),
        nn.Tanh(),
        nn.utils.parametrizations.weight_norm(nn.Linear(32, 2)),
    )
    assert [row["width"] for row in audit(normed, x).layers] == [32, 2]
    assert audit(normed, x).linear_output
    assert audit(nn.Sequential(nn.Flatten()), x).linear_output is None


def test_two_arguments_and_a_recorded_audit():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Bilinear(3, 4, 5)

        def forward(self, a, b):
            return self.mix(a, b)

    found = audit(Two(), (torch.ones(2, 3), torch.ones(2, 4)))
    assert found.linear_output
    assert Audit.from_json(found.to_json()) == found
    assert "linear output" in str(found)


def test_a_model_that_does_not_run_is_an_input_error_and_loses_its_hooks():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    with pytest.raises(InputError, match="does not run"):
        audit(model, torch.ones(2, 7))
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks
    assert all(m.training for m in model.modules())
    audit(model, torch.ones(2, 4))
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks
