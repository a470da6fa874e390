"""The fast claims of the run `assembly`, and what they are computed with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from claims import has_verdict
from torch import nn

from wideangle import nets
from wideangle.curvature import assembly_hessian_norm, dominance
from wideangle.papers import _assembly_blocks as block
from wideangle.papers import _assembly_layers as layer
from wideangle.papers import _assembly_sweeps as sweeps
from wideangle.papers._frame import Setting
from wideangle.seeds import generator

CLAIMS = [
    (block.block_formula, True),
    (block.tiny_nets, True),
    (block.sines, True),
    (block.quadratics, True),
    (block.cubics, False),
    (block.cubics_corrected, True),
    (block.effective_number, True),
    (block.trained_coefficients, True),
    (block.dominated, True),
    (block.heavy_tailed, True),
    (block.mean_field, True),
    (block.shared_weights, False),
    (layer.diversity, True),
]


@pytest.mark.parametrize(("test", "holds"), CLAIMS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_fast_claims_have_the_verdict_known(setting: Setting, test, holds: bool):
    has_verdict(test(setting), holds)


@pytest.mark.parametrize("kind", sorted(sweeps.KINDS))
def test_whole_hessians_of_the_parts_agree_with_the_library(kind: str):
    assembly, x = sweeps.independent(kind, 3, 1, "normal"), sweeps.sample(1)
    found, known = sweeps.blocks(assembly, x), assembly_hessian_norm(assembly, x, tolerance=1e-8)
    assert found["|H|"] == pytest.approx(known.value, rel=1e-9)
    assert found["|grad f|"] == pytest.approx(float(known.gradient_norms[0, 0]), rel=1e-9)
    assert found["|H| / |grad f|^2"] == pytest.approx(known.ratio, rel=1e-9)
    assert found["effective number"] == pytest.approx(dominance(assembly, x).effective, rel=1e-9)
    assert sweeps.whole(assembly, x) == pytest.approx((found["|H|"], found["|grad f|"]), rel=1e-9)


def test_bounded_nets_have_their_bound():
    x = sweeps.sample(0)
    a, b = 4 / (3 * math.sqrt(3)), 1.0  # largest |tanh''| and |tanh'|, times |x|/sqrt(d) = 1
    bound = (a + math.sqrt(a**2 + 4 * b**2)) / 2 / math.sqrt(5)
    norms = [sweeps.whole(sweeps.bounded_net(generator(0, "bounded", k)), x)[0] for k in range(30)]
    gain = nets.c_sigma("tanh")  # multiplies what the last layer sees
    assert 0.5 * bound < max(norms) <= bound * math.sqrt(gain) * 1.0001


def test_expected_largest_against_draws():
    draws = np.abs(np.random.default_rng(0).standard_normal((20_000, 16))).max(1)
    assert sweeps.expected_largest(16) == pytest.approx(draws.mean(), abs=4 * draws.std() / math.sqrt(20_000))
    assert sweeps.expected_largest(1) == pytest.approx(math.sqrt(2 / math.pi), abs=1e-6)


def test_the_closed_form_against_the_whole_hessian():
    draws = generator(0, "closed form")
    parts = [sweeps.Feature(torch.tanh, draws) for _ in range(6)]
    net = nets.Assembly(parts, "normal", trainable_coefficients=True, generator=draws)
    x = sweeps.sample(0)
    exact = block.two_layer_norm(torch.stack([p.w.detach() for p in parts]), net.coefficients.detach(), x[0])
    assert sweeps.whole(net, x)[0] == pytest.approx(exact, rel=1e-10)


def test_a_sweep_measures_every_cell_once():
    seen = []

    def measure(m: int, seed: int) -> dict[str, float]:
        seen.append((m, seed))
        return sweeps.cell(m**-0.5, 2.0)

    scaling = sweeps.sweep([4, 16, 64], [0, 1], measure)
    found = scaling("|H|")
    assert scaling("|H| / |grad f|^2").values == pytest.approx(found.values / 4)
    assert sorted(seen) == [(m, seed) for m in (4, 16, 64) for seed in (0, 1)]
    assert found.slope == pytest.approx(-0.5)
    assert sweeps.inside(found, sweeps.HALF)
    assert not sweeps.inside(found, sweeps.FLAT)
    drawn = sweeps.figure("title", {"|H|": found})
    assert drawn.series[1].y == pytest.approx(found.means)


def test_moving_changes_the_weights_by_the_distance():
    assembly, x = sweeps.independent("sin", 4, 0), sweeps.sample(0)
    before = nn.utils.parameters_to_vector(assembly.parameters()).detach().clone()
    block._moved(assembly, x, 3.0, None)
    after = nn.utils.parameters_to_vector(assembly.parameters()).detach()
    assert float((after - before).norm()) == pytest.approx(3.0)


def test_the_number_of_sub_models_needs_its_slope(monkeypatch: pytest.MonkeyPatch):
    for slope, holds in ((-0.33, True), (-0.5, True), (-0.2, False), (-0.7, False)):
        monkeypatch.setattr(layer, "_bottleneck", lambda m, w, s, slope=slope: sweeps.cell(m**slope, 1.0))
        found = layer.bottleneck_width(Setting())
        assert found.holds is holds
        assert "size cpu decides" in found.detail
