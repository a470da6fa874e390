"""The claims of `conditioning` measured on finite networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from wideangle import nets, seeds
from wideangle.document import Figure, Series, Table
from wideangle.kernel import angles, eigenpairs, infinite, tangent_kernel
from wideangle.papers._frame import Finding, Setting, absent
from wideangle.papers._samples import DEGREES, pair, unit

FAMILY = (32, 64, 128, 128, 256)  # channels of the five-layer CNN of arXiv 2605.25275


def mlp_kernel(
    x: Tensor, width: int, depth: int, seed: int, activation: str = "relu", scale: float = 1.0
) -> Tensor:
    """Return the tangent kernel of one freshly drawn scalar MLP, times d (the paper's scaling), float64.

    The weights are N(0, scale^2).
    """
    draws = seeds.generator(seed, "conditioning", depth, activation)
    net = nets.MLP(x.shape[1], 1, width=width, depth=depth, activation=activation, generator=draws).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight *= scale
    return tangent_kernel(net, x, outputs=0) * x.shape[1]


def _cosines(kernel: Tensor) -> Tensor:
    norms = kernel.diagonal().sqrt()
    return kernel / norms[:, None] / norms


def finite_angles(setting: Setting) -> Finding:
    """Lemma 3.1: the closed form of the gradient angle against wide networks, for single pairs."""
    width = setting.pick(512, 3000, 3000)
    worst, cells = 0.0, []
    for depth in (1, 2, 5):
        for degrees in (5.0, 30.0, 90.0):
            kernels = [mlp_kernel(pair(degrees / DEGREES), width, depth, s) for s in setting.seeds]
            mean = float(np.mean([float(_cosines(k)[0, 1]) for k in kernels]))
            expected = float(torch.cos(infinite.gradient_angle(degrees / DEGREES, depth)))
            worst = max(worst, abs(mean - expected))
            cells.append([depth, degrees, expected, mean])
    bound = 5.0 / math.sqrt(width * len(setting.seeds))
    heads = ["depth", "input angle", "closed form", "network (mean over seeds)"]
    return Finding(
        worst < bound,
        f"largest difference of cos over depths and angles {worst:.4f} at width {width}",
        f"holds below 5 / sqrt(width x seeds) = {bound:.3f}",
        setting.seeds,
        tables=[Table(f"cos of the gradient angle, width {width}", heads, cells)],
    )


def _spread(
    setting: Setting, activation: str, expected: Callable[[Tensor, int], Tensor]
) -> tuple[list[int], dict[int, list[float]], float]:
    """Return widths, root-mean-square errors of the cosines by depth, and the steepest misfit to -1/2."""
    widths = [64, 128, 256, 512, 1024] if setting.size == "smoke" else [128, 256, 512, 1024, 3000]
    repeats = [*setting.seeds, *(seed + 1000 for seed in setting.seeds)]
    x = unit(setting.load("digits", 60).x)
    upper = torch.triu(torch.ones(len(x), len(x), dtype=torch.bool), 1)
    errors: dict[int, list[float]] = {}
    for depth in (1, 3):
        goal = expected(x, depth)
        row = []
        for width in widths:
            gaps = [
                (_cosines(mlp_kernel(x, width, depth, s, activation)) - goal)[upper].square().mean()
                for s in repeats
            ]
            row.append(float(torch.stack(gaps).mean().sqrt()))
        errors[depth] = row
    slopes = [float(np.polyfit(np.log(widths), np.log(row), 1)[0]) for row in errors.values()]
    return widths, errors, float(np.mean(slopes))


def _width_finding(
    setting: Setting, widths: list[int], errors: dict[int, list[float]], slope: float, goal: str
) -> Finding:
    allowed = 0.01 * math.sqrt(3000 / widths[-1])
    cells = [[f"L={depth}", *row] for depth, row in errors.items()]
    shown = [float(w) for w in widths]
    figure = Figure(
        title=f"cos of the gradient angle at finite width: distance from {goal}",
        x_label="width m",
        y_label="root mean square over pairs and seeds",
        x_log=True,
        y_log=True,
        series=[
            *(Series(f"L = {depth}", shown, list(row), "points") for depth, row in errors.items()),
            Series("slope -1/2", shown, [errors[1][0] * math.sqrt(widths[0] / w) for w in widths], "dashed"),
        ],
        caption="The distance falls like one over the square root of the width.",
    )
    return Finding(
        -0.65 < slope < -0.35 and errors[1][-1] < allowed,
        f"root mean square at m = {widths[-1]}: {errors[1][-1]:.4f} (L = 1), {errors[3][-1]:.4f} (L = 3); slope in m "
        f"{slope:.2f}",
        f"holds with a slope in [-0.65, -0.35] and below 0.01 sqrt(3000 / m) = {allowed:.3f} at L = 1; digits, n = 60",
        setting.seeds,
        figures=[figure],
        tables=[Table(f"Distance from {goal}", ["depth", *(f"m={w}" for w in widths)], cells)],
    )


def width_rate(setting: Setting) -> Finding:
    """|cos phi_m - cos phi_inf| = O(1 / sqrt(m)) on ReLU networks."""
    widths, errors, slope = _spread(
        setting, "relu", lambda x, d: torch.cos(infinite.gradient_angle(angles.input_angles(x), d))
    )
    return _width_finding(setting, widths, errors, slope, "the closed form")


def linear_net(setting: Setting) -> Finding:
    """A linear network keeps the input angle, cos phi = cos theta, up to O(1 / sqrt(m))."""
    widths, errors, slope = _spread(setting, "identity", lambda x, d: torch.cos(angles.input_angles(x)))
    return _width_finding(setting, widths, errors, slope, "cos of the input angle (linear network)")


def _norm_ratios(setting: Setting) -> dict[tuple[str, int], float]:
    width = setting.pick(512, 3000, 3000)
    repeats = [*setting.seeds, *(seed + 1000 * k for seed in setting.seeds for k in (1, 2))]

    def make() -> dict[tuple[str, int], float]:
        return {
            (act, depth): float(
                np.mean(
                    [float(mlp_kernel(pair(0.5), width, depth, s, act).diagonal().mean()) for s in repeats]
                )
            )
            for act in ("relu", "identity")
            for depth in (1, 3)
        }

    return setting.once("gradient norms", make)


def _norms(setting: Setting, power: int) -> Finding:
    ratios = _norm_ratios(setting)
    off = max(abs(value / (depth + 1) ** power - 1) for (_, depth), value in ratios.items())
    shown = ", ".join(f"{act} L = {d}: {v:.2f}" for (act, d), v in ratios.items())
    formula = "L + 1" if power == 1 else "(L + 1)^2"
    return Finding(
        off < 0.15,
        f"|grad f|^2 / |x|^2: {shown}; {formula} is {2**power}, {4**power} at L = 1, 3",
        "holds within 15 %; the paper's own proof of Theorem 4.3 divides by L + 1",
        setting.seeds,
    )


def gradient_norm(setting: Setting) -> Finding:
    """|grad f|^2 = (L + 1) |x|^2, ReLU and linear (whose kernel is then (L + 1) G)."""
    return _norms(setting, 1)


def gradient_norm_printed(setting: Setting) -> Finding:
    """|grad f| = (L + 1) |x| and the linear kernel (L + 1)^2 G, as printed."""
    return _norms(setting, 2)


def init_variance(setting: Setting) -> Finding:
    """Figure 6: the variance of the weights does not change the angles of a ReLU network."""
    x = unit(setting.load("digits", 50).x)
    worst = 0.0
    for seed in setting.seeds:
        base = _cosines(mlp_kernel(x, 256, 3, seed))
        for variance in (0.01, 0.1, 10.0):
            other = _cosines(mlp_kernel(x, 256, 3, seed, scale=math.sqrt(variance)))
            worst = max(worst, float((base - other).abs().max()))
    return Finding(
        worst < 1e-9,
        f"largest change of cos phi between variances 0.01, 0.1, 1 and 10: {worst:.1e}",
        "exact, since ReLU is homogeneous",
        setting.seeds,
    )


def finite_data(setting: Setting) -> Finding:
    """Figure 3 on networks of width 512: smallest gradient angle up, kappa down; linear networks beside."""
    n, width = setting.pick(80, 256, 512), 512
    depths = [1, 3, 6, 10]
    angle_lines, kappa_lines, cells, holds, flattens = [], [], [], True, False
    found_sets, missing = setting.sets(n)
    for found in found_sets:
        x = unit(found.x)
        rows = {act: [_smallest(setting, x, width, d, act) for d in depths] for act in ("relu", "identity")}
        wide, kappa = ([row[k] for row in rows["relu"]] for k in (0, 1))
        flat, linear = ([row[k] for row in rows["identity"]] for k in (0, 1))
        holds &= all(b > a for a, b in pairwise(wide[:3])) and all(
            a > b for a, b in zip(wide, flat, strict=True)
        )
        holds &= all(b < a for a, b in pairwise(kappa[:3]))
        holds &= all(a < b for a, b in zip(kappa, linear, strict=True))
        flattens |= kappa[3] >= kappa[2] or wide[3] <= wide[2]
        cells += [[found.name, "ReLU", *wide, *kappa], [found.name, "linear", *flat, *linear]]
        shown = [float(d) for d in depths]
        angle_lines += [
            Series(f"{found.name}, ReLU", shown, list(wide)),
            Series(f"{found.name}, linear", shown, list(flat), "dashed"),
        ]
        kappa_lines += [
            Series(f"{found.name}, ReLU", shown, list(kappa)),
            Series(f"{found.name}, linear", shown, list(linear), "dashed"),
        ]
    heads = ["data", "network", *(f"angle L={d}" for d in depths), *(f"kappa L={d}" for d in depths)]
    title = f"networks of width {width}, n = {n}"
    return Finding(
        holds,
        "; ".join(
            f"{c[0]} {c[1]}: angle {c[2]:.1f} to {c[5]:.1f} degrees, kappa {c[6]:.3g} to {c[9]:.3g}"
            for c in cells
        )
        + f" from L = {depths[0]} to {depths[-1]}",
        "holds where both move the right way from L = 1 to 3 to 6 and beat the linear network at every L; by L = 10 "
        f"a network of this width {'flattens or turns' if flattens else 'goes on'}. Means over seeds, geometric for "
        f"kappa. {absent(missing)}",
        setting.at_least(3),
        figures=[
            Figure(f"Smallest gradient angle, {title}", "depth", "degrees", angle_lines),
            Figure(
                f"Condition number, {title}",
                "depth",
                "condition number",
                kappa_lines,
                y_log=True,
                caption="Infinite ones (linear, more samples than features) are not drawn.",
            ),
        ],
        tables=[Table(f"Smallest angle and kappa, {title}", heads, cells)],
    )


def _smallest(setting: Setting, x: Tensor, width: int, depth: int, activation: str) -> tuple[float, float]:
    """Return the mean smallest gradient angle in degrees and the geometric mean of kappa over the seeds."""
    kernels = [mlp_kernel(x, width, depth, seed, activation) for seed in setting.at_least(3)]
    angle = np.mean([angles.min_angle(angles.gradient_angles(k)).angle for k in kernels])
    kappa = np.exp(np.mean([np.log(eigenpairs(k, vectors=False).condition_number) for k in kernels]))
    return float(angle) * DEGREES, float(kappa)


def _conv_table(setting: Setting) -> tuple[list[list], list[str], int]:
    """Return rows (data, inputs, linear CNN, ReLU CNN), the absent sets and the number of layers."""
    n = setting.pick(48, 64, 256)
    channels = (16, 32, 32) if setting.size == "smoke" else FAMILY
    sets, missing = setting.sets(n)
    cells = []
    for found in sets:
        inputs = angles.min_angle(angles.input_angles(found.x)).angle * DEGREES
        row = [
            float(np.mean([_conv_angle(found.x, channels, seed, act) for seed in setting.at_least(3)]))
            for act in ("identity", "relu")
        ]
        cells.append([found.name, inputs, *row])
    return cells, missing, len(channels)


def _conv_finding(setting: Setting, against: int, tables: bool) -> Finding:
    cells, missing, layers = setting.once("conv angles", lambda: _conv_table(setting))
    heads = ["data", "inputs", "linear CNN", "ReLU CNN"]
    return Finding(
        all(cell[3] > cell[against] for cell in cells),
        "; ".join(
            f"{c[0]}: inputs {c[1]:.1f}, linear CNN {c[2]:.1f}, ReLU CNN {c[3]:.1f} degrees" for c in cells
        ),
        f"{layers} convolutions, scalar output; the theory is for fully connected networks. {absent(missing)}",
        setting.at_least(3),
        tables=[Table("Smallest angle [degrees]", heads, cells)] if tables else [],
    )


def convolutional(setting: Setting) -> Finding:
    """A ReLU CNN's smallest gradient angle against a linear CNN's of the same form."""
    return _conv_finding(setting, 2, tables=True)


def convolutional_inputs(setting: Setting) -> Finding:
    """A ReLU CNN's smallest gradient angle against the smallest angle of the images."""
    return _conv_finding(setting, 1, tables=False)


def _conv_angle(x: Tensor, channels: tuple[int, ...], seed: int, activation: str) -> float:
    draws = seeds.generator(seed, "conditioning", "conv", activation)
    net: nn.Module = nets.ConvNet(
        tuple(x.shape[1:]), 1, width=channels, activation=activation, generator=draws
    )
    kernel = tangent_kernel(net.double(), x.double(), outputs=0)
    return angles.min_angle(angles.gradient_angles(kernel)).angle * DEGREES
