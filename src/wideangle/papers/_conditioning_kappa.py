"""The claims of `conditioning` about condition numbers of infinitely wide networks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from wideangle.document import Figure, Series, Table
from wideangle.kernel import angles, condition_number, eigenpairs, infinite
from wideangle.papers._frame import Finding, Setting, absent
from wideangle.papers._samples import DEGREES, gaussian, pair, unit

DEPTHS = [1, 2, 3, 5, 10]
KEPT = {  # other draws of the same data, L = 1, 2, 3, 5, 10
    "digits, n = 512": [1.68e4, 7.90e3, 5.02e3, 2.83e3, 1.33e3],
    "N(0, I_5), n = 512": [3.28e4, 1.69e4, 1.25e4, 8.49e3, 5.16e3],
    "N(0, I_1000), n = 100": [29.1, 39.6, 45.0, 49.9, 52.3],
}
KEPT_FIRST = {
    "N(0, I_5), n = 512": [8.97e3, 2.64e3, 1.39e3, 600.0, 188.0],
    "N(0, I_1000), n = 100": [1.87, 1.49, 1.34, 1.25, 1.22],
}


def _row(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _limit_kernel(setting: Setting) -> Tensor:
    """Return the kernel of 50 unit vectors at very large depth; its corners serve smaller n."""
    depth = setting.pick(20_000, 100_000, 100_000)
    x = gaussian(50, 20, setting.seed)
    return setting.once("limit kernel", lambda: infinite.ntk(x, depth))


def _limit(setting: Setting, formula: str, shift: int) -> Finding:
    kernel, cells = _limit_kernel(setting), []
    for n in (2, 10, 50):
        kappa = condition_number(kernel[:n, :n])
        cells.append([n, kappa, (n + shift) / 3, kappa / ((n + shift) / 3) - 1])
    tolerance = 5e-3 if setting.size == "smoke" else 1e-3
    return Finding(
        all(abs(cell[3]) < tolerance for cell in cells),
        ", ".join(f"n = {c[0]}: {c[1]:.4f}, {formula} = {c[2]:.4f}" for c in cells),
        f"L = {setting.pick(20_000, 100_000, 100_000):,}; holds within {tolerance:.1%}; the matrix in the proof, "
        "3/4 I + 1/4 J, has top eigenvalue (n + 3) / 4",
        [setting.seed],
        tables=[Table("kappa at very large depth", ["n", "measured", formula, "relative difference"], cells)],
    )


def kappa_limit(setting: Setting) -> Finding:
    """The corrected limit (n + 3) / 3."""
    return _limit(setting, "(n + 3) / 3", 3)


def kappa_limit_printed(setting: Setting) -> Finding:
    """The limit as printed, (n + 4) / 3."""
    return _limit(setting, "(n + 4) / 3", 4)


def deep_digits(setting: Setting) -> Finding:
    """The kappa of real data falls towards (n + 3) / 3 as the depth grows, slowly."""
    n = setting.pick(100, 512, 512)
    depths = [10, 30, 100, 300, 1000] if setting.size == "smoke" else [10, 30, 100, 300, 1000, 3000]
    x = unit(setting.load("digits", n).x)
    report = angles.separation_report(x, depths)
    row, limit = report.relu_condition, infinite.kappa_limit(n)
    above = row[-1] / limit - 1
    tolerance = 0.1 if setting.size == "smoke" else 0.03
    return Finding(
        all(b < a for a, b in pairwise(row)) and 0 < above < tolerance,
        f"n = {n}: {_row(row)} at L = {', '.join(map(str, depths))}; (n + 3) / 3 = {limit:.4g}, "
        f"{above:.1%} below the last",
        f"holds falling and within {tolerance:.0%} at the last depth",
        [setting.seed],
        tables=[
            Table("kappa of digits against depth", [f"L={d}" for d in [*depths, "limit"]], [[*row, limit]])
        ],
    )


def first_layer(setting: Setting) -> Finding:
    """Theorem 4.2: with only the first layer trained kappa never rises with depth, whatever the data."""
    cells, falls, n = [], True, setting.pick(200, 512, 512)
    for seed in setting.seeds:
        cases = {
            "digits": unit(setting.load("digits", n, seed=seed).x),
            f"N(0, I_5), n = {n}": gaussian(n, 5, seed, normalised=False),
            "N(0, I_1000), n = 100": gaussian(100, 1000, seed, normalised=False),
            "orthonormal, n = 50": torch.eye(50, dtype=torch.float64),
        }
        for name, x in cases.items():
            report = angles.separation_report(x, [0, *DEPTHS], normalize=False)
            row = report.first_layer_condition
            falls &= all(b <= a * (1 + 1e-9) for a, b in pairwise(row))
            cells.append([name, seed, *row])
    kept = [[f"{name}, another draw", "", None, *row] for name, row in KEPT_FIRST.items()]
    heads = ["data", "seed", "L=0 (linear)", *(f"L={d}" for d in DEPTHS)]
    return Finding(
        falls,
        "; ".join(f"{c[0]}: {_row(c[2:])}" for c in cells[:4]) + " at L = 0, 1, 2, 3, 5, 10",
        f"never rises on {len(cells)} sets: {falls}; orthonormal inputs stay at 1 (no strict fall there)",
        setting.seeds,
        tables=[Table("kappa, first layer trained", heads, [*cells, *kept])],
    )


def always_better(setting: Setting) -> Finding:
    """ReLU lowers kappa for every data set, all layers trained: orthonormal inputs."""
    cases = {
        "orthonormal, n = 50": torch.eye(50, dtype=torch.float64),
        "N(0, I_1000), n = 100": gaussian(100, 1000, setting.seed, normalised=False),
    }
    cells, lower = [], True
    for name, x in cases.items():
        report = angles.separation_report(x, DEPTHS, normalize=False)
        lower &= max(report.relu_condition) <= report.linear_condition
        cells.append([name, report.linear_condition, *report.relu_condition])
    kept = [[f"{name}, another draw", None, *row] for name, row in KEPT.items() if "1000" in name]
    heads = ["data", "linear", *(f"L={d}" for d in DEPTHS)]
    return Finding(
        lower,
        "; ".join(f"{c[0]}: linear {c[1]:.3g}, ReLU {_row(c[2:])} at L = 1, 2, 3, 5, 10" for c in cells),
        "proven for two close inputs only; well-separated data are a counter-example",
        [setting.seed],
        tables=[Table("kappa of well-separated data, all layers trained", heads, [*cells, *kept])],
    )


def close_data(setting: Setting) -> Finding:
    """Figure 3: on data with close pairs kappa falls with depth and lies under the linear network's."""
    n, depths = setting.pick(256, 512, 2000), list(range(1, 11))
    cells, series, holds, missing = [], [], True, []
    for seed in setting.seeds:
        sets, missing = setting.sets(n, seed)
        cases = {found.name: unit(found.x) for found in sets} | {"N(0, I_5)": gaussian(n, 5, seed)}
        for name, x in cases.items():
            report = angles.separation_report(x, depths)
            row = report.relu_condition
            close = report.input_angle < math.radians(30)
            holds &= close and all(b < a for a, b in pairwise(row)) and row[0] < report.linear_condition
            cells.append(
                [
                    name,
                    seed,
                    report.input_angle * DEGREES,
                    report.linear_condition,
                    *(row[d - 1] for d in DEPTHS),
                ]
            )
            if seed == setting.seeds[0]:
                series.append(Series(f"{name}, ReLU", [float(d) for d in depths], list(row)))
                if math.isfinite(report.linear_condition):
                    flat: list[float | None] = [report.linear_condition] * 10
                    series.append(Series(f"{name}, linear", [float(d) for d in depths], flat, "dashed"))
    kept = [
        [f"{name}, another draw", "", None, None, *row] for name, row in KEPT.items() if "1000" not in name
    ]
    heads = ["data", "seed", "smallest input angle", "linear", *(f"L={d}" for d in DEPTHS)]
    figure = Figure(
        title="Condition number against depth, infinitely wide ReLU networks",
        x_label="depth",
        y_label="condition number",
        y_log=True,
        series=series,
        caption="The linear network's is infinite, and not drawn, where there are more samples than features.",
    )
    return Finding(
        holds,
        "; ".join(
            f"{c[0]}: linear {c[3]:.3g}, ReLU {c[4]:.3g} to {c[-1]:.3g}"
            for c in cells[: len(cells) // len(setting.seeds)]
        ),
        f"smallest input angles under 30 degrees; falling at every L = 1 to 10 on {len(cells)} sets. {absent(missing)}",
        setting.seeds,
        figures=[figure],
        tables=[Table(f"kappa, all layers trained, unit norm, n = {n}", heads, [*cells, *kept])],
    )


def two_samples(setting: Setting) -> Finding:
    """Theorem F.1: for two close inputs kappa = (1 + cos phi) / (1 - cos phi), and falls with depth."""
    off, falls, cells = 0.0, True, []
    for degrees in (0.1, 1.0, 5.0):
        row = []
        for depth in range(11):
            kappa = condition_number(infinite.ntk(pair(degrees / DEGREES), depth))
            phi = float(infinite.gradient_angle(degrees / DEGREES, depth))
            off = max(off, abs(kappa * math.tan(phi / 2) ** 2 - 1))
            row.append(kappa)
        falls &= all(b < a for a, b in pairwise(row))
        cells.append([degrees, *(row[d] for d in (0, *DEPTHS))])
    heads = ["input angle [degrees]", "L=0 (linear)", *(f"L={d}" for d in DEPTHS)]
    return Finding(
        falls and off < 1e-6,
        f"1 degree: {_row(cells[1][1:])} at L = 0, 1, 2, 3, 5, 10; formula within {off:.0e}; falls: {falls}",
        "holds within 1e-6",
        tables=[Table("kappa of two unit inputs", heads, cells)],
    )


def angle_bound(setting: Setting) -> Finding:
    """Proposition 4.1: lambda_min <= 2 b_i b_j (1 - cos phi) / (b_i + b_j) over all pairs; kappa phi^2 >= 2."""
    cells, worst = [], math.inf
    for seed in setting.seeds:
        found = setting.load("digits", setting.pick(200, 512, 1000), seed=seed)
        for name, x in (
            ("digits, raw norms", found.x.flatten(1).double()),
            ("digits, unit norm", unit(found.x)),
        ):
            for depth in (1, 5):
                kernel = infinite.ntk(x, depth)
                spectrum = eigenpairs(kernel, vectors=False)
                square = kernel.diagonal()
                phi = angles.gradient_angles(kernel)
                bound = 2 * (square[:, None] * square) / (square[:, None] + square) * (1 - torch.cos(phi))
                least = float(bound.fill_diagonal_(math.inf).min())
                lowest = float(spectrum.eigenvalues[-1])
                kappa = spectrum.condition_number * angles.min_angle(phi).angle ** 2
                worst = min(worst, least / lowest, kappa / 2)
                cells.append([name, seed, depth, lowest, least, kappa])
    heads = ["data", "seed", "L", "lambda_min", "bound from the closest pair", "kappa phi_min^2"]
    return Finding(
        worst >= 1,
        f"{cells[0][0]}, L = 1: lambda_min {cells[0][3]:.3g} under {cells[0][4]:.3g}, "
        f"kappa phi_min^2 = {cells[0][5]:.3g}",
        "holds where the bound is never crossed and kappa phi_min^2 is 2 or more",
        setting.seeds,
        tables=[Table("Smallest eigenvalue and smallest angle", heads, cells)],
    )


def schur(setting: Setting) -> Finding:
    """The step behind Theorem 4.2: lambda_min rises and lambda_max falls with each layer, first layer trained."""
    worst = 0.0
    for seed in setting.seeds:
        for x in (unit(setting.load("digits", 200, seed=seed).x), gaussian(100, 1000, seed)):
            ends = []
            for depth in (0, *DEPTHS):
                values = eigenpairs(infinite.ntk(x, depth, trainable="first"), vectors=False).eigenvalues
                ends.append((values[0], values[-1]))
            ends = np.array(ends)
            scale = 1e-9 * ends[0, 0]
            worst = max(
                worst, float(np.diff(ends[:, 0]).max() - scale), float(-np.diff(ends[:, 1]).min() - scale)
            )
    return Finding(
        worst <= 0,
        f"lambda_max never rises and lambda_min never falls over L = 0 to 10: {worst <= 0}",
        "K_L = K_{L-1} * D with D positive semi-definite of unit diagonal (Schur product)",
        setting.seeds,
    )
