"""The claims of `assembly` on networks: every neuron an assembly of the neurons before it; real inputs."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from wideangle import nets, seeds
from wideangle.curvature import assembly_hessian_norm, gradient_diversity, preactivation_hessian_norms
from wideangle.papers._assembly_sweeps import (
    FLAT,
    HALF,
    NARROW,
    NETWORK,
    blocks,
    bounded_net,
    cell,
    combined,
    counts,
    figure,
    inside,
    part_norms,
    sample,
    slope_text,
    sweep,
    table,
    tiny_net,
)
from wideangle.papers._descents import few_seeds
from wideangle.papers._frame import Finding, Setting
from wideangle.papers._samples import unit

LAYERS = ("hidden.0", "hidden.1", "hidden.2", "head")


def _net(width: int, seed: int) -> nn.Module:
    return tiny_net(seeds.generator(seed, "assembly", "layers", width), width=width, depth=3)


def _widths(setting: Setting) -> list[int]:
    widths = {"smoke": [32, 96, 288], "cpu": [32, 64, 128, 256, 512]}
    return widths.get(setting.size, [32, 64, 128, 256, 512, 1024])


def _layers(setting: Setting):
    """Mean Hessian norms of pre-activations by layer, width and seed."""

    def measure(width: int, seed: int) -> dict[str, float]:
        found = preactivation_hessian_norms(
            _net(width, seed), sample(seed), neurons=setting.pick(6, 6, 8), confidence=0.0, seed=seed
        )
        return {layer: float(norms.mean()) for layer, norms in found.norms.items()}

    def make():
        cells = {(w, s): measure(w, s) for w in _widths(setting) for s in setting.at_least(10)}
        return cells, sweep(_widths(setting), setting.at_least(10), lambda w, s: cells[w, s])

    return setting.once("layers", make)


def hidden_layers(setting: Setting) -> Finding:
    """Slope -1/2 for the pre-activations of every layer from the second on."""
    _, scaling = _layers(setting)
    rows = {layer: scaling(layer) for layer in LAYERS[1:]}
    return Finding(
        all(inside(found, NETWORK) for found in rows.values()),
        "slopes " + "; ".join(f"{layer} {slope_text(found)}" for layer, found in rows.items()),
        "tanh nets with three hidden layers; holds with every slope in [-0.6, -0.35], as for the output of a network"
        + few_seeds(setting),
        setting.at_least(10),
        figures=[figure("Hessian norms of pre-activations", rows, "width m")],
        tables=[table("Mean Hessian norm of the pre-activations of a layer", rows)],
    )


def first_layer(setting: Setting) -> Finding:
    """The pre-activations of the first layer are linear in the weights."""
    cells, _ = _layers(setting)
    largest = max(found[LAYERS[0]] for found in cells.values())
    return Finding(
        largest == 0.0,
        f"largest Hessian norm in the first layer {largest}",
        "holds at 0",
        setting.at_least(10),
    )


def diversity(setting: Setting) -> Finding:
    """The gradients of the neurons in one layer come apart as the net gets wider."""
    widths = [32, 64, 128, 256, 512, 1024][: setting.pick(4, 5, 6)]

    def measure(width: int, seed: int) -> dict[str, float]:
        net, x = _net(width, seed), sample(seed)
        return {
            layer: gradient_diversity(net, layer, x, neurons=32, seed=seed).mean
            for layer in ("hidden.1", "hidden.2")
        }

    scaling = sweep(widths, setting.at_least(3), measure)
    rows = {layer: scaling(layer) for layer in ("hidden.1", "hidden.2")}
    return Finding(
        all(found.verdict == "transitions" and np.all(np.diff(found.means) < 0) for found in rows.values()),
        "; ".join(
            f"{layer}: mean |cos| {found.means[0]:.3f} at m = {widths[0]}, {found.means[-1]:.3f} at m = {widths[-1]}, "
            f"slope {slope_text(found)}"
            for layer, found in rows.items()
        ),
        "holds where the mean over seeds falls at every step and the slope is below -0.25, its interval below -0.2"
        + few_seeds(setting),
        setting.at_least(3),
        tables=[table("Mean |cos| between gradients of pre-activations", rows)],
    )


def _bottleneck(count: int, width: int, seed: int) -> dict[str, float]:
    """An assembly of a few sub-models tanh(wide net): what a bottleneck layer makes of a net."""
    draws = seeds.generator(seed, "assembly", "bottleneck", count, width)
    parts = [nn.Sequential(tiny_net(draws, width=width), nn.Tanh()) for _ in range(count)]
    assembly = nets.Assembly(parts, "signs", generator=draws)
    if width <= 32:
        return blocks(assembly, sample(seed))
    found = assembly_hessian_norm(assembly, sample(seed), confidence=0.0)
    return cell(found.value, float(found.gradient_norms[0, 0]))


def bottleneck(setting: Setting) -> Finding:
    """Few sub-models: |H| does not fall as each of them gets wider."""
    widths, over = [32, 128, 512, 2048][: setting.pick(3, 3, 4)], setting.at_least(24)
    rows = {
        f"{count} sub-models": sweep(widths, chosen, lambda w, s, count=count: _bottleneck(count, w, s))(
            "|H|"
        )
        for count, chosen in ((1, over), (4, setting.at_least(6)))
    }
    return Finding(
        all(inside(found, FLAT) for found in rows.values()),
        "slopes in the width of the sub-models: "
        + "; ".join(f"{name} {slope_text(found)}" for name, found in rows.items()),
        "sub-models tanh(net of width m), v = +-1; holds with slopes in [-0.2, 0.2]" + few_seeds(setting),
        over,
        tables=[table("|H| of few sub-models tanh(net of width m)", rows)],
    )


def bottleneck_width(setting: Setting) -> Finding:
    """|H| falls about as 1/sqrt(m_b) in the number of sub-models."""
    over = setting.at_least(6)
    found = sweep(counts(setting)[:4], over, lambda count, s: _bottleneck(count, 32, s))("|H|")
    return Finding(
        inside(found, NARROW) and bool(np.all(np.diff(found.means) < 0)),
        f"slope in the number of sub-models {slope_text(found)}, each of width 32",
        "holds where |H| falls at every step with a slope in [-0.6, -0.25]; Gaussian weights keep it above -1/2 at "
        "such m_b" + few_seeds(setting),
        over,
        tables=[table("|H| against the number of sub-models tanh(net of width 32)", {"|H|": found}, "m_b")],
    )


def digits(setting: Setting) -> Finding:
    """The rate and the dominated control on real inputs."""
    over, widths = setting.at_least(3), counts(setting)[:4]
    images = unit(setting.load("digits", len(over)).x.flatten(1).double()) * 8.0

    def measure(m: int, seed: int) -> dict[str, float]:
        draws = seeds.generator(seed, "assembly", "digits", m)
        parts = nets.Assembly([bounded_net(draws, inputs=64) for _ in range(m)])
        norms, slopes = part_norms(parts, images[over.index(seed)][None])
        v = torch.ones(m, dtype=torch.float64)
        equal = combined(norms, slopes, v, parts.scale)["|H|"]
        v[0] = math.sqrt(m)
        return {"equal": equal, "dominated": combined(norms, slopes, v, parts.scale)["|H|"]}

    scaling = sweep(widths, over, measure)
    rows = {name: scaling(name) for name in ("equal", "dominated")}
    return Finding(
        inside(rows["equal"], HALF) and rows["dominated"].verdict == "does not",
        f"slope {slope_text(rows['equal'])} for equal coefficients, {slope_text(rows['dominated'])} for v_1 = sqrt(m)",
        "MLPs of width 5 on digits of norm sqrt(64), one image a seed; holds with the first slope in [-0.6, -0.4] and "
        "the verdict 'does not' for the second" + few_seeds(setting),
        over,
        tables=[table("|H| on digits", rows)],
        headline=f"On digits the slope is {rows['equal'].slope:.2f}, with one dominant coefficient "
        f"{rows['dominated'].slope:.2f}.",
    )
