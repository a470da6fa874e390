"""Better NTK Conditioning: A Free Lunch from (ReLU) Nonlinear Activation (arXiv 2305.08813), claim by claim."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from wideangle import nets, seeds
from wideangle.document import Figure, Series, Table
from wideangle.kernel import angles, eigenpairs, infinite, tangent_kernel
from wideangle.kernel.convergence import steps_to
from wideangle.papers._frame import Finding, Paper, Setting, Statement

__all__ = ["PAPER"]

DEGREES = 180.0 / math.pi
DEPTHS = [1, 2, 3, 5, 10]
ANGLES, WIDTH, DATA, TRAINING = "Angles", "Finite networks", "Condition numbers", "Training"


def pair(theta: float, dimension: int = 10) -> Tensor:
    """Return two unit vectors at an angle."""
    x = torch.zeros(2, dimension, dtype=torch.float64)
    x[0, 0], x[1, 0], x[1, 1] = 1.0, math.cos(theta), math.sin(theta)
    return x


def unit(x: Tensor) -> Tensor:
    """Return samples as vectors of norm one, blank ones left out."""
    flat = x.flatten(1).double()
    norms = flat.norm(dim=1, keepdim=True)
    return (flat / norms.clamp_min(1e-300))[norms[:, 0] > 0]


def mlp_kernel(
    x: Tensor, width: int, depth: int, seed: int, activation: str = "relu", scalar: bool = True
) -> Tensor:
    """Return the tangent kernel of one freshly drawn MLP, times the input dimension (the paper's scaling)."""
    draws = seeds.generator(seed, "conditioning", depth, activation)
    net = nets.MLP(
        x.shape[1], 1 if scalar else 10, width=width, depth=depth, activation=activation, generator=draws
    ).double()
    return tangent_kernel(net, x, outputs="trace") * x.shape[1]


def finite_angles(setting: Setting) -> Finding:
    """Lemma 3.1: the closed form of the gradient angle against wide networks."""
    width = setting.pick(512, 3000, 3000)
    worst, cells = 0.0, []
    for depth in (1, 2, 5):
        for degrees in (5.0, 30.0, 90.0):
            cosines = []
            for seed in setting.seeds:
                k = mlp_kernel(pair(degrees / DEGREES), width, depth, seed)
                cosines.append(float(k[0, 1] / (k[0, 0] * k[1, 1]).sqrt()))
            expected = float(torch.cos(infinite.gradient_angle(degrees / DEGREES, depth)))
            worst = max(worst, abs(float(np.mean(cosines)) - expected))
            cells.append([depth, degrees, expected, float(np.mean(cosines))])
    bound = 5.0 / math.sqrt(width * len(setting.seeds))
    table = Table(
        f"cos of the gradient angle, width {width}",
        ["depth", "input angle", "closed form", "network (mean over seeds)"],
        cells,
    )
    return Finding(
        worst < bound,
        f"largest difference of cos over depths and angles {worst:.4f} at width {width}",
        f"holds below 5 / sqrt(width x seeds) = {bound:.3f}",
        setting.seeds,
        tables=[table],
    )


def gradient_norm(setting: Setting) -> Finding:
    """|grad f|^2 = (L + 1) |x|^2, on networks."""
    width = setting.pick(512, 3000, 3000)
    ratios = {
        depth: float(
            np.mean([float(mlp_kernel(pair(0.5), width, depth, s).diagonal().mean()) for s in setting.seeds])
        )
        for depth in (1, 3)
    }
    off = max(abs(value / (depth + 1) - 1) for depth, value in ratios.items())
    shown = ", ".join(f"L = {depth}: {value:.2f}" for depth, value in ratios.items())
    return Finding(off < 0.15, f"|grad f|^2 / |x|^2 is {shown}", "holds within 15 % of L + 1", setting.seeds)


def gradient_norm_printed(setting: Setting) -> Finding:
    """|grad f| = (L + 1) |x| as printed, that is |grad f|^2 = (L + 1)^2 |x|^2."""
    width = setting.pick(512, 3000, 3000)
    value = float(
        np.mean([float(mlp_kernel(pair(0.5), width, 3, s).diagonal().mean()) for s in setting.seeds])
    )
    return Finding(
        abs(value / 16 - 1) < 0.15,
        f"|grad f|^2 / |x|^2 is {value:.2f} at L = 3, where 16 is printed",
        "the paper's own proof of Theorem 4.3 divides by L + 1",
        setting.seeds,
    )


def separation(setting: Setting) -> Finding:
    """Theorem 3.2: gradients are farther apart than close inputs, the more so the deeper."""
    theta = np.concatenate([np.geomspace(0.01, 30, 25)]) / DEGREES
    table = np.array([[float(infinite.gradient_angle(float(t), d)) for t in theta] for d in DEPTHS])
    apart = bool((table > theta).all())
    deeper = bool((np.diff(table, axis=0) > 0).all())
    few = [0.1, 1.0, 10.0, 30.0]
    cells = [[d, *(float(infinite.gradient_angle(t / DEGREES, d)) * DEGREES for t in few)] for d in DEPTHS]
    figure = Figure(
        title="Gradient angle against input angle",
        x_label="input angle [degrees]",
        y_label="gradient angle [degrees]",
        x_log=True,
        y_log=True,
        series=[
            *(
                Series(f"ReLU, depth {d}", list(theta * DEGREES), list(row * DEGREES))
                for d, row in zip(DEPTHS, table, strict=True)
            ),
            Series("linear network", list(theta * DEGREES), list(theta * DEGREES), "dashed"),
        ],
        caption="Every curve lies above the linear network's: close inputs are pulled apart.",
    )
    return Finding(
        apart and deeper,
        f"above the input angle at all {theta.size} angles up to 30 degrees and rising with depth: {apart and deeper}",
        figures=[figure],
        tables=[Table("Gradient angle [degrees]", ["depth", *(f"input {t:g}" for t in few)], cells)],
    )


def small_angle(setting: Setting) -> Finding:
    """Corollary 3.3: cos phi = (1 - L theta / (2 pi)) cos theta for small theta."""
    theta, off = 1e-4, 0.0
    for depth in DEPTHS:
        phi = float(infinite.gradient_angle(theta, depth))
        slope = 2 * math.sin(phi / 2) ** 2 / theta
        off = max(off, abs(slope / (depth / (2 * math.pi)) - 1))
    return Finding(
        off < 0.01, f"(1 - cos phi) / theta is L / (2 pi) within {off:.2%} at theta = 1e-4, L up to 10"
    )


def deep_angle(setting: Setting) -> Finding:
    """Theorem 3.5: the angle tends to arccos(1/4) for every pair."""
    phi = [float(infinite.gradient_angle(t / DEGREES, 10_000)) * DEGREES for t in (1.0, 10.0, 90.0)]
    limit = math.acos(0.25) * DEGREES
    off = max(abs(p - limit) for p in phi)
    return Finding(
        off < 1.0,
        f"at depth 10,000: {', '.join(f'{p:.2f}' for p in phi)} degrees from 1, 10, 90; the limit is {limit:.2f}",
        "slow, O(log L / L); holds within one degree",
    )


def other_activations(setting: Setting) -> Finding:
    """ReLU^2, GeLU, tanh and erf pull close inputs apart and tend to 90 degrees."""
    cells, rising = [], True
    for name in ("relu", "tanh", "gelu", "erf", "relu2"):
        row = [float(infinite.gradient_angle(10.0 / DEGREES, d, name)) * DEGREES for d in (1, 3, 10, 30)]
        cells.append([name, *row])
        rising &= bool(np.all(np.diff(row) > 0)) and row[0] > 10.0
    last = {str(row[0]): float(row[-1]) for row in cells}
    deep = all(last[name] > 75.6 for name in ("tanh", "erf", "relu2"))
    return Finding(
        rising and deep,
        f"all above 10 degrees and rising; at depth 30 tanh {last['tanh']:.1f}, erf {last['erf']:.1f}, "
        f"ReLU^2 {last['relu2']:.1f}, GeLU {last['gelu']:.1f} (slower)",
        tables=[Table("Gradient angle from 10 degrees", ["activation", "L=1", "L=3", "L=10", "L=30"], cells)],
    )


def _kappa_at_infinite_depth(setting: Setting) -> tuple[int, float]:
    n = 10
    x = unit(torch.randn(n, 20, generator=seeds.generator(setting.seed, "deep"), dtype=torch.float64))
    return n, eigenpairs(infinite.ntk(x, setting.pick(20_000, 100_000, 100_000))).condition_number


def kappa_limit(setting: Setting) -> Finding:
    """Corrected limit (n + 3) / 3."""
    n, kappa = _kappa_at_infinite_depth(setting)
    limit = infinite.kappa_limit(n)
    return Finding(abs(kappa / limit - 1) < 5e-3, f"kappa {kappa:.4f} for n = {n}; (n + 3) / 3 = {limit:.4f}")


def kappa_limit_printed(setting: Setting) -> Finding:
    """The limit as printed, (n + 4) / 3."""
    n, kappa = _kappa_at_infinite_depth(setting)
    return Finding(
        abs(kappa / ((n + 4) / 3) - 1) < 5e-3,
        f"kappa {kappa:.4f} for n = {n}; (n + 4) / 3 = {(n + 4) / 3:.4f}",
        "the matrix in the proof, 3/4 I + 1/4 J, has top eigenvalue (n + 3) / 4",
    )


def first_layer(setting: Setting) -> Finding:
    """Theorem 4.2: with only the first layer trained kappa never rises with depth."""
    draws = seeds.generator(setting.seed, "gauss")
    cases = {
        "digits": unit(setting.load("digits", 300).x),
        "N(0, I_5)": unit(torch.randn(200, 5, generator=draws, dtype=torch.float64)),
        "N(0, I_1000)": unit(torch.randn(100, 1000, generator=draws, dtype=torch.float64)),
        "orthonormal": torch.eye(50, dtype=torch.float64),
    }
    cells, falls = [], True
    for name, x in cases.items():
        report = angles.separation_report(x, [0, *DEPTHS])
        row = report.first_layer_condition
        falls &= all(b <= a * (1 + 1e-9) for a, b in pairwise(row))
        cells.append([name, *row])
    heads = ["data", "L=0 (linear)", *(f"L={d}" for d in DEPTHS)]
    return Finding(
        falls,
        f"never rises on {len(cells)} data sets: {falls}",
        tables=[Table("kappa, first layer trained", heads, cells)],
    )


def always_better(setting: Setting) -> Finding:
    """ReLU lowers kappa for every data set, all layers trained: orthonormal inputs."""
    report = angles.separation_report(torch.eye(50), [1, 3, 10])
    values = ", ".join(f"{k:.1f}" for k in report.relu_condition)
    return Finding(
        max(report.relu_condition) <= report.linear_condition,
        f"50 orthonormal inputs: linear {report.linear_condition:.0f}, ReLU {values} at L = 1, 3, 10",
        "proven for two close inputs only; well-separated data are a counter-example",
    )


def close_data(setting: Setting) -> Finding:
    """Figure 3: on data with close pairs kappa falls with depth and lies under the linear network's."""
    n = setting.pick(300, 512, 2000)
    sets, missing = setting.sets(n)
    cases = {found.name: unit(found.x) for found in sets}
    cases["N(0, I_5)"] = unit(
        torch.randn(n, 5, generator=seeds.generator(setting.seed, "five"), dtype=torch.float64)
    )
    cells, series, holds = [], [], True
    for name, x in cases.items():
        report = angles.separation_report(x, DEPTHS)
        row = report.relu_condition
        falls = all(b < a for a, b in pairwise(row)) and row[0] < report.linear_condition
        holds &= falls
        cells.append([name, report.input_angle * DEGREES, report.linear_condition, *row])
        series.append(Series(name, [float(d) for d in DEPTHS], list(row)))
    figure = Figure(
        title="Condition number against depth, infinitely wide ReLU networks",
        x_label="depth",
        y_label="condition number",
        y_log=True,
        series=series,
        caption="The linear network's is infinite where there are more samples than features.",
    )
    heads = ["data", "smallest input angle", "linear", *(f"L={d}" for d in DEPTHS)]
    return Finding(
        holds,
        "; ".join(f"{c[0]}: linear {c[2]:.3g}, ReLU {c[3]:.3g} to {c[-1]:.3g}" for c in cells),
        f"not there: {', '.join(missing)}" if missing else "",
        figures=[figure],
        tables=[Table(f"kappa, all layers trained, n = {n}", heads, cells)],
    )


def finite_data(setting: Setting) -> Finding:
    """Figure 3 on finite networks: smallest gradient angle rises, kappa falls with depth; linear baseline."""
    n, width = setting.pick(100, 256, 512), 512
    sets, missing = setting.sets(n)
    cells, holds = [], True
    for found in sets:
        x = unit(found.x)
        angle, kappa, linear = [], [], []
        for depth in (1, 3, 6):
            kernels = [mlp_kernel(x, width, depth, seed) for seed in setting.seeds]
            angle.append(float(np.mean([angles.min_angle(angles.gradient_angles(k)).angle for k in kernels])))
            kappa.append(float(np.mean([eigenpairs(k, vectors=False).condition_number for k in kernels])))
            line = [mlp_kernel(x, width, depth, seed, "identity") for seed in setting.seeds]
            linear.append(float(np.mean([angles.min_angle(angles.gradient_angles(k)).angle for k in line])))
        wider = all(b > a for a, b in pairwise(angle)) and angle[0] > linear[0]
        falls = all(b < a for a, b in pairwise(kappa))
        holds &= wider and falls
        cells.append([found.name, *(a * DEGREES for a in angle), linear[-1] * DEGREES, *kappa])
    heads = [
        "data",
        *(f"angle L={d}" for d in (1, 3, 6)),
        "angle, linear net",
        *(f"kappa L={d}" for d in (1, 3, 6)),
    ]
    return Finding(
        holds,
        "; ".join(
            f"{c[0]}: angle {c[1]:.1f} to {c[3]:.1f} (linear {c[4]:.1f}), kappa {c[5]:.3g} to {c[7]:.3g}"
            for c in cells
        ),
        f"not there: {', '.join(missing)}" if missing else "",
        setting.seeds,
        tables=[Table(f"MLP of width {width}, n = {n}", heads, cells)],
    )


def convolutional(setting: Setting) -> Finding:
    """The same for a convolutional network (not in the paper's theory): smallest angles, against the inputs'."""
    n = setting.pick(60, 128, 256)
    sets, missing = setting.sets(n)
    cells, holds = [], True
    for found in sets:
        shape = tuple(found.x.shape[1:])
        inputs = float(angles.min_angle(angles.input_angles(found.x)).angle) * DEGREES
        measured = []
        for seed in setting.seeds:
            draws = seeds.generator(seed, "conditioning", "conv")
            net = nets.ConvNet(shape, 10, width=(16, 32, 32), generator=draws)
            kernel = tangent_kernel(net, found.x, outputs="trace")
            measured.append(float(angles.min_angle(angles.gradient_angles(kernel)).angle) * DEGREES)
        holds &= float(np.mean(measured)) > inputs
        cells.append([found.name, inputs, float(np.mean(measured))])
    return Finding(
        holds,
        "; ".join(f"{c[0]}: inputs {c[1]:.1f}, gradients {c[2]:.1f} degrees" for c in cells),
        f"not there: {', '.join(missing)}" if missing else "",
        setting.seeds,
        tables=[
            Table(f"Smallest angle [degrees], n = {n}", ["data", "inputs (linear net)", "conv net"], cells)
        ],
    )


def faster(setting: Setting) -> Finding:
    """Figure 4 in the kernel regime: deeper networks need fewer steps, at step 1 / lambda_max each."""
    found = setting.load("digits", 300)
    x = unit(found.x)
    draws = seeds.generator(setting.seed, "random labels")
    labels = {
        "parity": (found.y % 2).double() * 2 - 1,
        "random": torch.randint(0, 2, (len(x),), generator=draws).double() * 2 - 1,
    }
    cells, holds = [], True
    for name, y in labels.items():
        row = []
        for depth in DEPTHS:
            spectrum = eigenpairs(infinite.ntk(x, depth))
            row.append(steps_to(spectrum, y, 1 / float(spectrum.eigenvalues[0]), 0.005 * float(y @ y)))
        holds &= all(b < a for a, b in pairwise(row))
        gram = eigenpairs(x @ x.T)
        linear = steps_to(gram, y, 1 / float(gram.eigenvalues[0]), 0.005 * float(y @ y))
        cells.append([name, linear, *row])
    heads = ["labels", "linear network", *(f"L={d}" for d in DEPTHS)]
    return Finding(
        holds,
        "; ".join(
            f"{c[0]}: {', '.join(f'{v:,.0f}' for v in c[2:])} steps at L = 1, 2, 3, 5, 10" for c in cells
        ),
        "the paper trains finite networks with cross-entropy; this keeps its claim without training noise",
        [setting.seed],
        tables=[Table("Steps to 1 % of the loss, digits n = 300", heads, cells)],
    )


PAPER = Paper(
    "conditioning",
    "Better NTK conditioning",
    "Liu, Bi, Hui, Liu, arXiv 2305.08813",
    (
        Statement(
            "separation", ANGLES, "Theorem 3.2: phi > theta for close inputs, rising with depth", separation
        ),
        Statement(
            "small angle", ANGLES, "Corollary 3.3: cos phi = (1 - L theta / 2 pi) cos theta", small_angle
        ),
        Statement("infinite depth", ANGLES, "Theorem 3.5: phi tends to arccos(1/4)", deep_angle),
        Statement(
            "other activations",
            ANGLES,
            "Figures 2, 6: the same for tanh, GeLU, ReLU^2, erf",
            other_activations,
        ),
        Statement("gradient angle of networks", WIDTH, "Lemma 3.1: closed form of cos phi", finite_angles),
        Statement("gradient norm, corrected", WIDTH, "|grad f|^2 = (L + 1) |x|^2", gradient_norm),
        Statement("gradient norm, as printed", WIDTH, "|grad f| = (L + 1) |x|", gradient_norm_printed, False),
        Statement("depth on networks", WIDTH, "Figure 3: angle up, kappa down with depth", finite_data),
        Statement("convolutional network", WIDTH, "remarked, not proven: CNNs behave alike", convolutional),
        Statement("kappa limit, corrected", DATA, "Theorem 3.5: kappa tends to (n + 3) / 3", kappa_limit),
        Statement("kappa limit, as printed", DATA, "kappa tends to (n + 4) / 3", kappa_limit_printed, False),
        Statement("first layer trained", DATA, "Theorem 4.2: kappa never rises with depth", first_layer),
        Statement(
            "close data", DATA, "Figure 3: kappa falls with depth, under the linear network's", close_data
        ),
        Statement(
            "always better", DATA, "ReLU always lowers kappa, all layers trained", always_better, False
        ),
        Statement("faster training", TRAINING, "Figure 4: deeper networks converge faster", faster),
    ),
)
