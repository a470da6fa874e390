"""The claims of `alignment` about how labels and residuals are spread over the kernel's modes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wideangle import nets, seeds
from wideangle.data import Dataset
from wideangle.document import Figure, Series, Table
from wideangle.kernel import eigenpairs, infinite, tangent_kernel
from wideangle.kernel.alignment import Alignment, label_alignment, residual_alignment
from wideangle.kernel.spectrum import project
from wideangle.papers._alignment_bounds import digits, spectrum_of, start, start_variance
from wideangle.papers._alignment_dynamics import descend
from wideangle.papers._frame import Finding, Setting, absent
from wideangle.papers._samples import pair, signs, unit

KEPT = {1: "one-hot 1.21, parity 1.19, permuted 0.06", 4: "one-hot 1.78, parity 1.65, permuted -0.07"}


class Line(NamedTuple):
    """A slope with its 95 % interval."""

    slope: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """True where the value lies within the interval."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.slope:.2f} [{self.low:.2f}, {self.high:.2f}]"


def line_of(found: Alignment) -> Line:
    """Return the slope of an alignment."""
    return Line(found.slope, found.low, found.high)


def pooled_line(values: np.ndarray, energies: np.ndarray, bins: int = 20, least: int = 25) -> Line:
    """Return the slope of log mean energy against log eigenvalue over bins of modes of many kernels."""
    from scipy.stats import t

    log = np.log(values)
    edges = np.linspace(log.min(), log.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, log, side="right") - 1, 0, bins - 1)
    groups = [place == b for b in range(bins) if (place == b).sum() >= least]
    x = np.array([log[group].mean() for group in groups])
    e = np.log([energies[group].mean() for group in groups])
    x, e = x - x.mean(), e - e.mean()
    slope = float(x @ e / (x @ x))
    left = float(((e - slope * x) ** 2).sum()) / (len(x) - 2)
    half = float(t.ppf(0.975, len(x) - 2)) * math.sqrt(left / float(x @ x))
    return Line(slope, slope - half, slope + half)


def _on_digits(setting: Setting, depth: int) -> list[tuple[int, Alignment, Alignment, Alignment]]:
    """Return (seed, one-hot labels, parity labels, residual at the start) on digits."""

    def make() -> list[tuple[int, Alignment, Alignment, Alignment]]:
        rows = []
        for seed in setting.at_least(3):
            x, y = digits(setting, seed)
            spectrum, draws = spectrum_of(setting, depth, seed), seeds.generator(seed, "permuted", depth)
            labels = (y, signs(y.argmax(1)))
            found = [label_alignment(spectrum, target, 15, generator=draws) for target in labels]
            residual = residual_alignment(spectrum, start(x, depth, 10, seed) - y, 15, generator=draws)
            rows.append((seed, found[0], found[1], residual))
        return rows

    return setting.once(("digits alignment", depth), make)


def _verdict(setting: Setting, depth: int, column: int, wanted: float) -> Finding:
    rows = _on_digits(setting, depth)
    lines = [line_of(row[column]) for row in rows]  # type: ignore[arg-type]
    names = {1: "one-hot", 2: "parity", 3: "residual"}
    cells = [
        [row[0], names[k], *line_of(row[k]), row[k].control_slope]  # type: ignore[arg-type, union-attr]
        for row in rows
        for k in ((1, 2) if column == 1 else (3,))
    ]
    found: Alignment = rows[0][column]  # type: ignore[assignment]
    figure = Figure(
        title=f"Energy of the {'labels' if column == 1 else 'residual'} in the modes of digits, L = {depth}",
        x_label="eigenvalue",
        y_label="mean energy a mode",
        x_log=True,
        y_log=True,
        series=[
            Series("measured", found.bin_eigenvalue, list(found.bin_energy), "points"),
            _reference(f"slope {wanted:g}", found, wanted),
            _reference(f"slope {found.slope:.2f} (fit)", found, found.slope),
        ],
        caption="Binned by eigenvalue, averaged, then the logarithm taken; the lines go through the middle.",
    )
    n = setting.pick(300, 1000, 1000)
    return Finding(
        all(line.contains(wanted) for line in lines),
        f"{'; '.join(map(str, lines))} over seeds",
        f"holds where every 95 % interval of the regression contains {wanted:g}; digits n = {n}, infinite width, "
        + (f"another draw of n = 1000: {KEPT[depth]}" if column == 1 else "r_0 = f_0 - y"),
        setting.at_least(3),
        figures=[figure],
        tables=[
            Table(f"Slopes at L = {depth}", ["seed", "target", "slope", "low", "high", "permuted"], cells)
        ],
    )


def _reference(name: str, found: Alignment, slope: float) -> Series:
    x, e = np.log(found.bin_eigenvalue), np.log(found.bin_energy)
    line = np.exp(e.mean() + slope * (x - x.mean()))
    return Series(name, found.bin_eigenvalue, line.tolist(), "dashed")


def label_slope_shallow(setting: Setting) -> Finding:
    """(v_i . y)^2 ~ lambda_i^2 with one hidden layer."""
    return _verdict(setting, 1, 1, 2.0)


def label_slope_deep(setting: Setting) -> Finding:
    """(v_i . y)^2 ~ lambda_i^2 with four hidden layers."""
    return _verdict(setting, 4, 1, 2.0)


def residual_slope_shallow(setting: Setting) -> Finding:
    """(v_i . r_0)^2 ~ lambda_i with one hidden layer."""
    return _verdict(setting, 1, 3, 1.0)


def residual_slope_deep(setting: Setting) -> Finding:
    """(v_i . r_0)^2 ~ lambda_i with four hidden layers."""
    return _verdict(setting, 4, 3, 1.0)


def depth_trend(setting: Setting) -> Finding:
    """The label slope is no constant: it rises with depth on every set, through 2."""
    n, depths = setting.pick(300, 1000, 1000), [1, 2, 4, 8, 16]
    cells, rising, passes, missing = [], True, True, []
    for seed in setting.seeds:
        sets, missing = setting.sets(n, seed)
        for found in sets:
            x, y = unit(found.x), found.one_hot(torch.float64)
            slopes = [
                label_alignment(eigenpairs(infinite.ntk(x, d)), y, 15, permutations=0).slope for d in depths
            ]
            rising &= all(b > a for a, b in pairwise(slopes))
            passes &= slopes[0] < 2 < slopes[-1]
            cells.append([found.name, seed, *slopes])
    series = [
        Series(c[0], [float(d) for d in depths], list(c[2:])) for c in cells if c[1] == setting.seeds[0]
    ]
    return Finding(
        rising,
        "; ".join(f"{s.name}: {', '.join(f'{v:.2f}' for v in s.y if v is not None)}" for s in series)
        + f" at L = {', '.join(map(str, depths))}",
        f"holds where it rises at every step; passes 2 between the ends on all sets: {passes}. {absent(missing)}",
        setting.seeds,
        figures=[
            Figure(
                "Label slope against depth, infinite width",
                "depth",
                "slope of log energy against log eigenvalue",
                [*series, Series("2", [1.0, 16.0], [2.0, 2.0], "dashed")],
                x_log=True,
                caption="The paper's 2 is passed on the way; it is not a constant of the data.",
            )
        ],
        tables=[Table("Label slopes", ["data", "seed", *(f"L={d}" for d in depths)], cells)],
    )


def above_control(setting: Setting) -> Finding:
    """Labels are aligned with the kernel, permuted ones are not (slope about 0)."""
    n = setting.pick(300, 1000, 1000)
    cells, above, missing = [], True, []
    for seed in setting.seeds:
        sets, missing = setting.sets(n, seed)
        for found in sets:
            x, y = unit(found.x), found.one_hot(torch.float64)
            for depth in (1, 4):
                draws = seeds.generator(seed, "permuted", found.name, depth)
                got = label_alignment(eigenpairs(infinite.ntk(x, depth)), y, 15, generator=draws)
                above &= got.above_control
                cells.append(
                    [
                        found.name,
                        depth,
                        seed,
                        got.slope,
                        got.control_slope,
                        got.control_spread,
                        got.modes_for_90,
                        got.control_modes_for_90,
                    ]
                )
    control = max(abs(float(c[4])) for c in cells)
    heads = ["data", "L", "seed", "slope", "permuted", "spread", "modes for 90 %", "permuted: modes for 90 %"]
    return Finding(
        above and control < 0.15,
        f"slopes {min(c[3] for c in cells):.2f} to {max(c[3] for c in cells):.2f}, permuted within {control:.3f} of 0",
        "holds where each interval lies over the permuted mean plus two spreads, and permuted means within 0.15 of 0. "
        + absent(missing),
        setting.seeds,
        tables=[Table("Label slopes beside permuted labels", heads, cells)],
    )


def _family(kind: str, shape: tuple[int, ...], seed: int) -> nn.Module:
    """Return the paper's five-layer networks, in the NTK parameterisation."""
    draws = seeds.generator(seed, "alignment", "family", kind)
    if kind == "mlp":
        return nets.MLP(math.prod(shape), 10, width=512, depth=4, generator=draws)
    return nets.ConvNet(shape, 10, width=(32, 64, 128, 128, 256), generator=draws)


def _batches(setting: Setting, found: Dataset, kind: str, count: int) -> dict[str, Line]:
    """Return the slopes by the paper's protocol: the modes of many batches of 100 samples together."""
    net = _family(kind, tuple(found.x.shape[1:]), setting.seed)
    parts: dict[str, list[np.ndarray]] = {"value": [], "labels": [], "residual": [], "permuted": []}
    draws = seeds.generator(setting.seed, "alignment", "batches")
    for b in range(count):
        rows = slice(100 * b, 100 * (b + 1))
        x, y = found.x[rows], found.one_hot(torch.float64)[rows]
        spectrum = eigenpairs(
            tangent_kernel(net, x, outputs="trace", reduction="mean"), factor_dtype=torch.float32
        )
        with torch.no_grad():
            residual = net(x).double() - y
        keep = spectrum.resolved > 0
        parts["value"].append(spectrum.eigenvalues[keep])
        for name, target in (
            ("labels", y),
            ("residual", residual),
            ("permuted", y[torch.randperm(100, generator=draws)]),
        ):
            parts[name].append((project(spectrum, target) ** 2).mean(1)[keep])
    joined = {name: np.concatenate(part) for name, part in parts.items()}
    return {name: pooled_line(joined["value"], joined[name]) for name in ("labels", "residual", "permuted")}


def _protocol(setting: Setting) -> tuple[list[tuple[str, str, dict[str, Line]]], list[str]]:
    counts = {"mlp": setting.pick(4, 12, 500), "conv": setting.pick(2, 10, 500)}
    sets, missing = setting.sets(100 * max(counts.values()) if setting.size != "paper" else 1400)
    rows = []
    for found in sets:
        for kind, count in counts.items():
            if kind == "conv" and setting.size == "smoke" and found.name != "digits":
                continue
            rows.append((found.name, kind, _batches(setting, found, kind, min(count, len(found) // 100))))
    return rows, missing


def _protocol_finding(setting: Setting, which: str, wanted: float) -> Finding:
    rows, missing = setting.once("protocol", lambda: _protocol(setting))
    cells = [[name, kind, *lines[which], lines["permuted"].slope] for name, kind, lines in rows]
    return Finding(
        all(lines[which].contains(wanted) for _, _, lines in rows),
        "; ".join(f"{name} {kind} {lines[which]}" for name, kind, lines in rows),
        f"MLP 5 x 512 and the five-layer CNN at initialisation, batches of 100, modes pooled; holds where every 95 % "
        f"interval contains {wanted:g}. {absent(missing)}",
        [setting.seed],
        tables=[
            Table(
                f"Slopes of the {which}, the paper's protocol",
                ["data", "model", "slope", "low", "high", "permuted"],
                cells,
            )
        ],
    )


def label_protocol(setting: Setting) -> Finding:
    """Label slope 2 on the paper's networks and batches."""
    return _protocol_finding(setting, "labels", 2.0)


def residual_protocol(setting: Setting) -> Finding:
    """Residual slope 1 on the paper's networks and batches."""
    return _protocol_finding(setting, "residual", 1.0)


def stable_in_training(setting: Setting) -> Finding:
    """The residual's slope on the slow modes, step lambda t < 0.1, stays as it was while a network trains."""
    n, times = setting.pick(200, 300, 1000), [0, 10, 100]
    cells, worst = [], 0.0
    for seed in setting.seeds:
        found = setting.load("digits", n, seed=seed)
        x, y = unit(found.x).float() * 8.0, signs(found.y)[:, None].float()
        net = nets.MLP(64, 1, width=1024, depth=2, generator=seeds.generator(seed, "alignment", "stable"))
        spectrum = eigenpairs(tangent_kernel(net, x, outputs=0), factor_dtype=torch.float32)
        step = 1 / float(spectrum.eigenvalues[0])
        kept: dict[int, Tensor] = {}

        def keep(t: int, outputs: Tensor) -> None:
            if t in times:
                kept[t] = (outputs - y).double()  # noqa: B023 - called within this turn

        descend(net, x, y, step, times[-1], keep)
        row = [
            residual_alignment(spectrum, kept[t], 8, permutations=0, below=0.1 / (step * times[-1])).slope
            for t in times
        ]
        worst = max(worst, *(abs(slope - row[0]) for slope in row))
        cells.append([seed, *row])
    return Finding(
        worst < 0.2,
        f"slopes {', '.join(f'{v:.2f}' for v in cells[0][1:])} at t = 0, 10, 100; largest change {worst:.2f}",
        "the same slow modes at all three times; holds below 0.2",
        setting.seeds,
        tables=[
            Table("Slope of the residual on the slow modes", ["seed", *(f"t = {t}" for t in times)], cells)
        ],
    )


def start_energy(setting: Setting) -> Finding:
    """E (v_i . f_0)^2 = v_i . Sigma v_i <= lambda_i, exactly, at infinite width."""
    ratios: dict[int, list[float]] = {1: [], 4: []}
    for seed in setting.seeds:
        x, _ = digits(setting, seed)
        for depth, row in ratios.items():
            spectrum = spectrum_of(setting, depth, seed)
            keep = spectrum.resolved > 0
            row.append(float((start_variance(x, depth, spectrum)[keep] / spectrum.eigenvalues[keep]).max()))
    return Finding(
        max(map(max, ratios.values())) <= 1,
        f"largest ratio {max(ratios[1]):.2f} at depth 1, {max(ratios[4]):.2f} at depth 4",
        "the NNGP kernel is the last layer's part of the tangent kernel; another draw of n = 1000: 0.59 and 0.32",
        setting.seeds,
    )


def start_energy_networks(setting: Setting) -> Finding:
    """The same on finite networks, averaged over draws and over bins of modes."""
    draws, n = setting.pick(20, 100, 200), setting.pick(100, 200, 200)
    found = setting.load("digits", n)
    x = unit(found.x)
    ratio, total = np.zeros(n), 0
    for k in range(draws):
        net = nets.MLP(
            64, 1, width=512, depth=2, generator=seeds.generator(setting.seed, "start energy", k)
        ).double()
        spectrum = eigenpairs(tangent_kernel(net, x, outputs=0))
        with torch.no_grad():
            ratio += project(spectrum, net(x))[:, 0] ** 2 / spectrum.eigenvalues
        total += 1
    means = np.array([part.mean() for part in np.array_split(ratio / total, 10)])
    return Finding(
        bool(means.max() <= 1),
        f"mean of (v_i . f_0)^2 / lambda_i over {draws} networks by tenths of the modes: "
        f"{', '.join(f'{m:.2f}' for m in means)}",
        "leading modes first; ReLU 2 x 512, each network's own kernel",
        [setting.seed],
    )


def two_points(setting: Setting) -> Finding:
    """Why slope 2: a close pair's small mode is L (L + 1) theta / (2 pi) for ReLU, and theta^2 for smooth nets."""
    cells, off = [], 0.0
    for depth in (1, 4, 8):
        values = [float(eigenpairs(infinite.ntk(pair(t), depth)).eigenvalues[-1]) / t for t in (1e-3, 1e-5)]
        expected = depth * (depth + 1) / (2 * math.pi)
        off = max(off, abs(values[1] / expected - 1))
        cells.append([f"ReLU, L = {depth}", *values, expected])
    smooth = [float(eigenpairs(infinite.ntk(pair(t), 4, "tanh")).eigenvalues[-1]) for t in (1e-1, 1e-2)]
    power = math.log10(smooth[0] / smooth[1])
    return Finding(
        off < 1e-3 and abs(power - 2) < 0.02,
        f"lambda_2 / theta at L = 4: {cells[1][2]:.4f}, formula {cells[1][3]:.4f}; tanh: lambda_2 ~ theta^{power:.3f}",
        "with (v . y)^2 <= Lip^2 theta^2 / 2 this gives exponent 2 for ReLU and 1 for smooth activations (derived)",
        tables=[
            Table(
                "Small eigenvalue of two inputs over their angle",
                ["net", "theta 1e-3", "1e-5", "formula"],
                cells,
            )
        ],
    )
