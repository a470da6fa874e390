from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import MODELS, Attention, fresh

from wideangle import nets
from wideangle.kernel import Explanation, explain, factors
from wideangle.kernel.cost import machine


def test_the_numbers_of_a_small_net():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    plan = explain(model, torch.rand(10, 6))
    half = 10**2 / 2
    assert [row[:5] for row in plan.layers] == [
        ["0", "Linear", 1, 35, "factorised"],
        ["2", "Linear", 1, 18, "factorised"],
    ]
    assert [row[6] for row in plan.layers] == [half * (6 + 9 * 5), half * (5 + 9 * 3)]
    assert plan.layers[0][7] == 10 * (6 + 3 * 5) * 4
    assert plan.result_bytes == 30 * 30 * 8
    assert (plan.outputs, plan.backward_passes, plan.fallback) == (3, 3, [])
    trace = explain(model, torch.rand(10, 6), outputs="trace")
    assert [row[6] for row in trace.layers] == [half * (6 + 3 * 5), half * (5 + 3 * 3)]


def test_conv_layers_count_positions_and_forming():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
    plan = explain(model, torch.rand(20, 1, 8, 8), outputs="trace")
    name, kind, positions, parameters, method, form, gram, held = plan.layers[0]
    assert (name, kind, positions, parameters, method) == ("0", "Conv2d", 64, 40, "per-sample")
    assert (form, gram, held) == (20 * 2 * 64 * 36, 200 * 2 * 36, 20 * 2 * 40 * 4)


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet"])
def test_no_parameter_of_the_built_in_nets_is_in_the_fallback(name):
    x = torch.rand(4, 1, 8, 8) if name != "mlp" else torch.rand(4, 64)
    model = nets.build(name, (1, 8, 8) if name != "mlp" else (64,), 10)
    assert explain(model, x).fallback == []


def test_attention_names_its_exceptions():
    plan = explain(fresh(Attention()).eval(), MODELS["attention"][1]())
    projections = [f"block.self_attn.{one}" for one in ("in_proj_weight", "in_proj_bias")]
    outward = [f"block.self_attn.out_proj.{one}" for one in ("weight", "bias")]
    assert sorted(plan.fallback) == sorted(["offset", *projections, *outward])


def test_it_tells_what_is_done_and_prints():
    build, data = MODELS["conv strided"]
    model, x = fresh(build()), data()
    plan = explain(model, x)
    assert {row[0]: row[4] for row in plan.layers} == factors(model, x).methods
    text = str(plan)
    for piece in ("layer", "per-sample", "fallback          none", "full kernel of 5 samples and 2 outputs"):
        assert piece in text
    assert Explanation.from_json(plan.to_json()).layers == plan.layers


def test_a_kernel_that_does_not_fit_is_explained_all_the_same():
    model = nn.Sequential(nn.Linear(50, 80), nn.ReLU(), nn.Linear(80, 10))
    plan = explain(model, torch.rand(300, 50), max_memory=100_000)
    assert not plan.fits
    assert "blocks, passed again" in str(plan)


def test_the_machine_is_measured_once():
    rates = machine(torch.device("cpu"), torch.float32)
    assert rates is machine(torch.device("cpu"), torch.float32)
    assert rates.multiply_adds > 1e8
    assert rates.bytes > 1e8
    assert rates.balance == 2 ** round(torch.log2(torch.tensor(rates.balance)).item())
