"""The claims of `assembly` on independent sub-models: the block formula, its rate, and what breaks it."""

from __future__ import annotations

import math

import torch

from wideangle import nets, seeds
from wideangle.curvature import assembly_hessian_norm
from wideangle.papers._assembly_sweeps import (
    DIMENSION,
    FLAT,
    HALF,
    KINDS,
    NETWORK,
    Feature,
    blocks,
    cell,
    counts,
    expected_largest,
    figure,
    independent,
    inside,
    sample,
    slope_finding,
    slope_text,
    sweep,
    table,
    tiny_net,
    whole,
)
from wideangle.papers._descents import few_seeds
from wideangle.papers._frame import Finding, Setting

FEW = 6  # seeds, at the least: one small assembly is cheap and noisy


def block_formula(setting: Setting) -> Finding:
    """|H_f| = max_i |v_i| |H_gi| / s, against the Hessian of all weights as one matrix."""
    worst, checked = 0.0, 0
    for seed in setting.seeds:
        x = sample(seed)
        assemblies = [independent(kind, 4, seed, "normal") for kind in KINDS]
        assemblies.append(nets.Assembly(assemblies[:2], "normal", "mean"))
        for assembly in assemblies:
            found = assembly_hessian_norm(assembly, x, tolerance=1e-9)
            norm, slope = whole(assembly, x)
            off = max(abs(found.value / norm - 1), abs(float(found.gradient_norms[0, 0]) / slope - 1))
            worst, checked = max(worst, off), checked + (found.method == "blocks")
    total = (len(KINDS) + 1) * len(setting.seeds)
    return Finding(
        worst < 1e-6 and checked == total,
        f"largest relative difference {worst:.1e} over {total} assemblies of {', '.join(KINDS)} and one of assemblies",
        "holds below 1e-6, with |grad f|^2 = sum v_i^2 |grad g_i|^2 / s^2 beside it; blocks by Lanczos",
        setting.seeds,
    )


def _kind(setting: Setting, kind: str):
    over = setting.at_least(FEW)
    return setting.once(
        ("kind", kind),
        lambda: sweep(counts(setting), over, lambda m, s: blocks(independent(kind, m, s), sample(s))),
    )


def tiny_nets(setting: Setting) -> Finding:
    """Slope -1/2 for independent tiny MLPs (30 parameters each) with bounded Hessians."""
    return slope_finding(
        setting,
        _kind(setting, "tiny MLPs")("|H|"),
        HALF,
        "Tiny MLPs, v = +-1",
        "last weights +-1, so that one beta bounds every Hessian",
    )


def gaussian_nets(setting: Setting) -> Finding:
    """The same with Gaussian last weights: the Hessians have no common bound."""
    return slope_finding(
        setting,
        _kind(setting, "Gaussian MLPs")("|H|"),
        HALF,
        "Tiny MLPs with Gaussian last weights, v = +-1",
        "no beta bounds these Hessians: the largest of m grows slowly with m and flattens the slope",
    )


def sines(setting: Setting) -> Finding:
    """Slope -1/2 for independent g = sin(w . x / sqrt(d))."""
    return slope_finding(setting, _kind(setting, "sin")("|H|"), HALF, "sin, v = +-1")


def quadratics(setting: Setting) -> Finding:
    """Slope -1/2 for independent quadratic polynomials."""
    return slope_finding(setting, _kind(setting, "quadratic")("|H|"), HALF, "Quadratic polynomials, v = +-1")


def cubics(setting: Setting) -> Finding:
    """Slope -1/2 +- 0.1 for cubic polynomials, whose Hessians have no common bound."""
    return slope_finding(
        setting,
        _kind(setting, "cubic")("|H|"),
        HALF,
        "Cubic polynomials, v = +-1",
        "no beta bounds these sub-models: the largest of m Hessians grows like sqrt(log m)",
    )


def cubics_corrected(setting: Setting) -> Finding:
    """The same with the largest of m Gaussians divided out."""
    found = _kind(setting, "cubic")("|H|")
    ratios = [
        mean * math.sqrt(m) / (2 * expected_largest(m))
        for m, mean in zip(found.widths, found.means, strict=True)
    ]
    rate = found.slope - _slope_of(found.widths)
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return Finding(
        HALF[0] <= rate <= HALF[1],
        f"|H| sqrt(m) / (2 E max |z_i|) = {shown} at m = {', '.join(map(str, found.widths))}; slope {rate:.2f}",
        "holds with a slope in [-0.6, -0.4] once E max |z_i| of m Gaussians is divided out"
        + few_seeds(setting),
        setting.at_least(FEW),
    )


def _slope_of(widths: list[int]) -> float:
    import numpy as np

    return float(np.polyfit(np.log(widths), np.log([expected_largest(m) for m in widths]), 1)[0])


def _moved(assembly: nets.Assembly, x: torch.Tensor, distance: float, draws: torch.Generator | None) -> None:
    """Move the weights along the gradient, or at random."""
    weights = list(assembly.parameters())
    steps = torch.autograd.grad(assembly(x)[0, 0], weights)
    if draws is not None:
        steps = [torch.randn(w.shape, generator=draws, dtype=w.dtype) for w in weights]
    length = math.sqrt(sum(float(step.square().sum()) for step in steps))
    with torch.no_grad():
        for weight, step in zip(weights, steps, strict=True):
            weight += distance * step / length


def everywhere(setting: Setting) -> Finding:
    """|H| <= beta max |v| / sqrt(m) at every w, for sin features: beta = |x|^2 / d = 1."""
    largest, over = 0.0, setting.at_least(FEW)
    for m in counts(setting):
        for seed in over:
            draws = seeds.generator(seed, "assembly", "everywhere", m)
            for distance, away in ((0.0, None), (3.0, None), (3.0, draws), (100.0, None), (100.0, draws)):
                assembly, x = independent("sin", m, seed, "normal"), sample(seed)
                _moved(assembly, x, distance, away)
                bound = float(assembly.coefficients.abs().max()) / math.sqrt(m)
                largest = max(largest, blocks(assembly, x)["|H|"] / bound)
    return Finding(
        0.5 < largest <= 1 + 1e-9,
        f"largest |H| sqrt(m) / (beta max |v|) = {largest:.4f} at the start and at 3 and 100 from it",
        "along the gradient and at random, sin features; holds at 1 or below (above 0.5: the bound is no empty one)",
        over,
    )


def in_the_ball(setting: Setting) -> Finding:
    """The rate at w_0 + 3 grad f / |grad f|."""
    over = setting.at_least(FEW)

    def measure(m: int, seed: int):
        assembly, x = independent("tiny MLPs", m, seed), sample(seed)
        _moved(assembly, x, 3.0, None)
        return blocks(assembly, x)

    return slope_finding(
        setting,
        sweep(counts(setting), over, measure)("|H|"),
        HALF,
        "Tiny MLPs, 3 away along the gradient",
        "from m = 4 on, where 3 is far for each sub-model",
    )


def whole_networks(setting: Setting) -> Finding:
    """Bagging: whole networks with a scale of 1/sqrt(m)."""
    over, width = setting.at_least(FEW), setting.pick(8, 32, 64)

    def measure(m: int, seed: int):
        draws = seeds.generator(seed, "assembly", "bagging", m)
        parts = [tiny_net(draws, width=width, depth=2) for _ in range(m)]
        assembly, x = nets.Assembly(parts, "signs", generator=draws), sample(seed)
        if setting.size == "smoke":
            return blocks(assembly, x)
        found = assembly_hessian_norm(assembly, x, confidence=0.0)
        return cell(found.value, float(found.gradient_norms[0, 0]))

    scaling = sweep(counts(setting)[:3], over, measure)
    return slope_finding(
        setting,
        scaling("|H|"),
        HALF,
        f"Networks with two hidden layers of {width}, v = +-1",
        "Gaussian weights: no beta bounds these Hessians, and the largest of m grows slowly with m",
    )


def dominated(setting: Setting) -> Finding:
    """v_1 = sqrt(m): |H_f| stays that of the first sub-model."""
    over = setting.at_least(FEW)

    def measure(m: int, seed: int):
        v = torch.ones(m, dtype=torch.float64)
        v[0] = math.sqrt(m)
        return blocks(independent("tiny MLPs", m, seed, v), sample(seed))

    scaling = sweep(counts(setting), over, measure)
    rows = {name: scaling(name) for name in ("|H|", "|grad f|", "effective number")}
    fair = _kind(setting, "tiny MLPs")
    return Finding(
        rows["|H|"].verdict == "does not",
        f"slope of |H| {slope_text(rows['|H|'])}: {rows['|H|'].verdict}; effective number of sub-models "
        f"{rows['effective number'].means[-1]:.1f} of {rows['|H|'].widths[-1]}, for equal coefficients "
        f"{fair('effective number').means[-1]:.1f}",
        "holds where the slope of |H| is above -0.2 with its interval above -0.25" + few_seeds(setting),
        over,
        figures=[
            figure(
                "One dominant sub-model beside equal ones", {"dominated": rows["|H|"], "equal": fair("|H|")}
            )
        ],
        tables=[table("Tiny MLPs, v_1 = sqrt(m), all others 1", rows)],
        headline=f"Among tiny MLPs |H| falls with slope {fair('|H|').slope:.2f} in their number; with one dominant "
        f"coefficient the slope is {rows['|H|'].slope:.2f}.",
    )


def heavy_tailed(setting: Setting) -> Finding:
    """Cauchy coefficients: no decay, also after scaling to |grad f| = 1."""
    over = setting.at_least(12)

    def measure(m: int, seed: int):
        v = torch.empty(m, dtype=torch.float64)
        v.cauchy_(generator=seeds.generator(seed, "assembly", "cauchy", m))
        return blocks(independent("tiny MLPs", m, seed, v), sample(seed))

    scaling = sweep(counts(setting), over, measure)
    names = ("|H|", "|grad f|", "|H| / |grad f|", "|H| / |grad f|^2", "effective number")
    rows = {name: scaling(name) for name in names}
    return Finding(
        rows["|H|"].slope > FLAT[0] and rows["|H| / |grad f|"].slope > FLAT[0],
        f"slope of |H| {slope_text(rows['|H|'])}, of |H| / |grad f| {slope_text(rows['|H| / |grad f|'])}; effective "
        f"number {rows['effective number'].means[-1]:.1f} of {rows['|H|'].widths[-1]} (geometric means)",
        "holds with both slopes above -0.2; |grad f| itself grows, so |H| / |grad f|^2 falls without the rescaling"
        + few_seeds(setting),
        over,
        tables=[table("Tiny MLPs, Cauchy coefficients", rows)],
    )


def mean_field(setting: Setting) -> Finding:
    """S = m: |H| ~ 1/m, but |grad f|^2 falls as fast."""
    over = setting.at_least(FEW)
    scaling = sweep(
        counts(setting),
        over,
        lambda m, seed: blocks(independent("tiny MLPs", m, seed, scale="mean"), sample(seed)),
    )
    rows = {name: scaling(name) for name in ("|H|", "|grad f|", "|H| / |grad f|^2")}
    return Finding(
        inside(rows["|H|"], (-1.1, -0.9)) and inside(rows["|H| / |grad f|^2"], FLAT),
        f"slopes: |H| {slope_text(rows['|H|'])}, |grad f| {slope_text(rows['|grad f|'])}, |H| / |grad f|^2 "
        f"{slope_text(rows['|H| / |grad f|^2'])}",
        "holds with the slope of |H| in [-1.1, -0.9] and that of |H| / |grad f|^2 in [-0.2, 0.2]: for a change of f "
        "by 1 the model stays as curved as it is" + few_seeds(setting),
        over,
        tables=[table("Tiny MLPs, s = m", rows)],
    )


def effective_number(setting: Setting) -> Finding:
    """For independent sub-models the effective number grows like m."""
    found = _kind(setting, "tiny MLPs")("effective number")
    return Finding(
        inside(found, (0.9, 1.1)),
        f"slope of the effective number {slope_text(found)}; {found.means[-1]:.1f} at m = {found.widths[-1]}",
        "holds with a slope in [0.9, 1.1]" + few_seeds(setting),
        setting.at_least(FEW),
        tables=[table("Tiny MLPs, v = +-1: effective number of sub-models", {"effective number": found})],
    )


def shared_weights(setting: Setting) -> Finding:
    """The block formula for sub-models that share their weights."""
    worst, over = 0.0, setting.seeds
    for seed in over:
        part = tiny_net(seeds.generator(seed, "assembly", "shared"))
        found = assembly_hessian_norm(nets.Assembly([part] * 16), sample(seed))
        formula = whole(part, sample(seed))[0] / 4
        worst = max(worst, found.value / formula)
    return Finding(
        worst < 1.01,
        f"16 copies of one module: the norm is {worst:.1f} times what the formula says",
        "the formula needs weights of their own; assembly_hessian_norm sees the sharing and takes the whole",
        over,
    )


def trained_coefficients(setting: Setting) -> Finding:
    """The two-layer net as an assembly with trained coefficients, against its closed form."""
    over = setting.at_least(3)
    exact: dict[tuple[int, int], float] = {}

    def measure(m: int, seed: int):
        draws = seeds.generator(seed, "assembly", "two-layer", m)
        parts = [Feature(torch.tanh, draws) for _ in range(m)]
        net = nets.Assembly(parts, "normal", trainable_coefficients=True, generator=draws)
        x = sample(seed)
        found = assembly_hessian_norm(net, x)
        exact[m, seed] = two_layer_norm(
            torch.stack([p.w.detach() for p in parts]), net.coefficients.detach(), x[0]
        )
        return cell(found.value, float(found.gradient_norms[0, 0])) | {
            "off": abs(found.value / exact[m, seed] - 1)
        }

    widths = [16, 64, 256][: setting.pick(2, 3, 3)]
    cells = {(m, s): measure(m, s) for m in widths for s in over}
    scaling = sweep([16, 64, 256, 1024], setting.at_least(12), lambda m, s: cell(_drawn_norm(m, s), 1.0))
    worst = max(found["off"] for found in cells.values())
    slope = scaling("|H|")
    return Finding(
        worst < 1e-2 and inside(slope, NETWORK),
        f"largest relative difference from the closed form {worst:.1e} up to m = {widths[-1]}; slope of the "
        f"closed form up to m = 1024 {slope_text(slope)}",
        "holds below 1e-2 and with a slope in [-0.6, -0.35]: max |v_i| adds sqrt(log m); cross blocks 2 x 2 a neuron"
        + few_seeds(setting),
        over,
    )


def _drawn_norm(m: int, seed: int) -> float:
    draws = seeds.generator(seed, "assembly", "closed form", m)
    w = torch.randn(m, DIMENSION, generator=draws, dtype=torch.float64)
    return two_layer_norm(w, torch.randn(m, generator=draws, dtype=torch.float64), sample(seed)[0])


def two_layer_norm(w: torch.Tensor, v: torch.Tensor, x: torch.Tensor) -> float:
    """Return max_i |A_i -+ sqrt(A_i^2 + 4 B_i^2)| / (2 sqrt(m)), A = v tanh'' s^2, B = tanh' s, s = |x|/sqrt(d)."""
    s, z = float(x.norm()) / math.sqrt(len(x)), w @ x / math.sqrt(len(x))
    slope = 1 - z.tanh() ** 2
    a, b = -2 * v * z.tanh() * slope * s**2, slope * s
    return float((a.abs() + (a**2 + 4 * b**2).sqrt()).max()) / 2 / math.sqrt(len(v))
