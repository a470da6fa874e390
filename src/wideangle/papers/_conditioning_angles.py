"""The claims of `conditioning` about gradient angles of infinitely wide networks."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import torch

from wideangle.document import Figure, Series, Table
from wideangle.kernel import infinite
from wideangle.kernel._duals import angle_of
from wideangle.papers._frame import Finding, Setting
from wideangle.papers._samples import DEGREES

DEPTHS = [1, 2, 3, 5, 10]
LIMIT = math.acos(0.25)

INPUTS = [0.1, 1.0, 5.0, 10.0, 30.0, 60.0, 90.0, 120.0]
GOLDEN = {  # degrees at the inputs above, by depth; three decimals
    1: [1.354, 4.387, 10.767, 16.718, 36.749, 61.890, 80.842, 91.652],
    2: [1.912, 6.115, 14.300, 21.201, 41.576, 63.225, 76.787, 83.418],
    5: [3.020, 9.553, 21.368, 30.150, 50.632, 65.765, 72.621, 75.452],
    10: [4.267, 13.386, 28.913, 39.207, 58.236, 68.069, 71.560, 72.885],
    100: [13.333, 37.949, 61.300, 67.805, 72.735, 73.879, 74.187, 74.297],
    10_000: [67.717, 74.718, 75.355, 75.433, 75.484, 75.495, 75.498, 75.499],
}
SMOOTH = {  # degrees from 10 degrees at depth 1, 3, 10, 30, two decimals, by quadrature
    "tanh": [11.90, 15.94, 33.70, 84.66],
    "gelu": [11.57, 14.56, 24.75, 56.80],
    "relu2": [12.96, 19.86, 56.38, 89.99],
    "erf": [12.34, 17.43, 40.96, 88.78],
}


def _radians(degrees: list[float] | np.ndarray) -> torch.Tensor:
    return torch.as_tensor(degrees, dtype=torch.float64) / DEGREES


def _angles(degrees: list[float] | np.ndarray, depth: int, activation: str = "relu") -> np.ndarray:
    """Return gradient angles in degrees from input angles in degrees."""
    return infinite.gradient_angle(_radians(degrees), depth, activation).numpy() * DEGREES


def _over_depths(
    degrees: list[float] | np.ndarray, depths: list[int], activation: str = "relu"
) -> np.ndarray:
    """Return gradient angles in degrees, one row a depth, in one pass through the layers."""
    one = torch.ones((), dtype=torch.float64)
    states = infinite.by_depth(_radians(degrees), one, one, activation, "all")
    wanted = set(depths)
    rows = [angle_of(s.gap).numpy() for d, s in enumerate(islice(states, max(depths) + 1)) if d in wanted]
    return np.array(rows) * DEGREES


def lemma(theta: float, depth: int) -> float:
    """Return phi from the sum of Lemma 3.1 as it is stated, by Horner's rule, in plain floats."""
    total = math.cos(theta)
    for _ in range(depth):
        factor = 1 - theta / math.pi
        theta = math.acos(min(1.0, factor * math.cos(theta) + math.sin(theta) / math.pi))
        total = math.cos(theta) + factor * total
    return math.acos(total / (depth + 1))


def closed_form(setting: Setting) -> Finding:
    """Lemma 3.1 against the sum evaluated as stated, and against values kept to three decimals."""
    cells, apart, off = [], 0.0, 0.0
    for depth, kept in GOLDEN.items():
        row = _angles(INPUTS, depth)
        stated = np.array([lemma(t / DEGREES, depth) * DEGREES for t in INPUTS])
        apart = max(apart, float(np.abs(row / stated - 1).max()))
        off = max(off, float(np.abs(row - kept).max()))
        cells.append([depth, *row])
    return Finding(
        apart < 1e-4 and off < 6e-4,
        f"largest relative difference from the sum as stated {apart:.1e}; from the kept values {off:.1e} degrees",
        "holds below 1e-4 relative and within the rounding of three decimals, for L up to 10,000",
        tables=[Table("Gradient angle [degrees]", ["depth", *(f"input {t:g}" for t in INPUTS)], cells)],
    )


def angle_map(setting: Setting) -> Finding:
    """The angle map g is increasing, g(theta) < theta, and theta_l ~ 3 pi / l."""
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    image = infinite.relu_angle_map(theta)
    increasing, below = bool((image.diff() > 0).all()), bool((image[1:] < theta[1:]).all())
    second = float((0.01 - infinite.relu_angle_map(0.01)) / 0.01**2 * 3 * math.pi)
    steps = 2000
    here = _radians([1.0, 30.0, 180.0])
    for _ in range(steps):
        here = infinite.relu_angle_map(here)
    tail = (here * steps / (3 * math.pi)).tolist()
    first = math.radians(1.0)
    expected = steps * first / (1 + steps * first / (3 * math.pi)) / (3 * math.pi)
    good = abs(second - 1) < 0.02 and all(abs(t - 1) < 0.05 for t in tail[1:])
    return Finding(
        increasing and below and good and abs(tail[0] / expected - 1) < 0.05,
        f"increasing: {increasing}, below theta: {below}; 3 pi (theta - g) / theta^2 = {second:.3f} at 0.01; "
        f"l theta_l / (3 pi) after {steps} layers: {', '.join(f'{t:.3f}' for t in tail)} from 1, 30, 180 degrees",
        "holds within 2 % and 5 %",
    )


def separation(setting: Setting) -> Finding:
    """Theorem 3.2: gradients are farther apart than close inputs, the more so the deeper."""
    theta = np.geomspace(0.01, 30, 60)
    deep = list(range(1, 21))
    table = _over_depths(theta, deep)
    apart, deeper = bool((table > theta).all()), bool((np.diff(table, axis=0) > 0).all())
    series = [Series(f"ReLU, depth {d}", theta.tolist(), table[d - 1].tolist()) for d in DEPTHS]
    figure = Figure(
        title="Gradient angle against input angle",
        x_label="input angle [degrees]",
        y_label="gradient angle [degrees]",
        x_log=True,
        y_log=True,
        series=[*series, Series("linear network", theta.tolist(), theta.tolist(), "dashed")],
        caption="Every curve lies above the linear network's: close inputs are pulled apart.",
    )
    return Finding(
        apart and deeper,
        f"phi > theta at {theta.size} angles from 0.01 to 30 degrees and L = 1 to 20: {apart}; rising with L: {deeper}",
        "the linear network keeps phi = theta at every depth",
        figures=[figure],
    )


def far_pairs(setting: Setting) -> Finding:
    """Inputs that are far apart keep gradients that are far apart, at every depth."""
    theta = np.arange(30.0, 180.5, 0.5)
    depths = [*range(1, 31), 50, 100, 300, 1000]
    table = _over_depths(theta, depths)
    least = float(table.min())
    depth, place = np.unravel_index(int(table.argmin()), table.shape)
    series = [
        Series(f"input {t:g}", [float(d) for d in depths], table[:, int((t - 30) * 2)].tolist())
        for t in (30, 60, 90, 120, 180)
    ]
    return Finding(
        least > 30,
        f"smallest gradient angle over inputs 30 to 180 degrees and L up to 1,000: {least:.2f} degrees "
        f"(input {theta[place]:g}, L = {depths[int(depth)]})",
        "holds above 30 degrees",
        figures=[
            Figure(
                title="Gradient angle of far pairs against depth",
                x_label="depth",
                y_label="gradient angle [degrees]",
                x_log=True,
                series=series,
                caption="All tend to arccos(1/4) = 75.5 degrees, from above or below.",
            )
        ],
    )


def falling_pairs(setting: Setting) -> Finding:
    """Where one hidden layer begins to bring pairs nearer: the text puts it at about 60 degrees."""
    theta = np.linspace(30, 180, 15_001)
    falls = _angles(theta, 1) < theta
    crossing = float(theta[falls.argmax()])
    always = bool(falls[falls.argmax() :].all())
    return Finding(
        always and crossing <= 60.0,
        f"one hidden layer lowers the angle from {crossing:.2f} degrees on, and at every larger one: {always}",
        "between 60 degrees and there ReLU still pulls pairs apart",
    )


def small_angle(setting: Setting) -> Finding:
    """Corollary 3.3: cos phi = (1 - L theta / (2 pi) + o(theta)) cos theta."""
    cells, off = [], 0.0
    for depth in DEPTHS:
        found = []
        for theta in (1e-2, 1e-4, 1e-6):
            phi = float(infinite.gradient_angle(theta, depth))
            drop = (2 * math.sin(phi / 2) ** 2 - 2 * math.sin(theta / 2) ** 2) / math.cos(theta)
            found.append(drop / theta * 2 * math.pi / depth)
        cells.append(
            [depth, *found, float(infinite.gradient_angle(1e-6, depth)) / math.sqrt(depth * 1e-6 / math.pi)]
        )
        off = max(off, abs(found[-1] - 1), abs(cells[-1][-1] - 1))
    heads = ["depth", *(f"ratio at {t:g}" for t in (1e-2, 1e-4, 1e-6)), "phi / sqrt(L theta / pi) at 1e-6"]
    return Finding(
        off < 1e-3,
        f"(1 - cos phi / cos theta) over L theta / (2 pi), and phi over sqrt(L theta / pi), are 1 within {off:.1e} "
        "at theta = 1e-6, L up to 10",
        "holds within 1e-3; the printed range L = Omega(1/theta) must read L = o(1/theta)",
        tables=[Table("Small angles: measured over the corollary", heads, cells)],
    )


def deep_angle(setting: Setting) -> Finding:
    """Theorem 3.5: the angle tends to arccos(1/4) for every pair, like log L / L."""
    inputs = [1.0, 10.0, 90.0, 180.0]
    depths = [1_000, setting.pick(10_000, 100_000, 100_000)]
    gaps = list(np.abs(_over_depths(inputs, depths) / DEGREES - LIMIT))
    rates = [gap * d / math.log(d) for gap, d in zip(gaps, depths, strict=True)]
    last = gaps[1] * DEGREES
    steady = bool((rates[1][1:] < 2 * rates[0][1:]).all())
    tolerance = 1.0 if depths[1] < 100_000 else 0.1
    return Finding(
        float(last.max()) < tolerance and steady,
        f"at L = {depths[1]:,}: {', '.join(f'{g:.3f}' for g in last)} degrees from {LIMIT * DEGREES:.4f}, "
        f"inputs 1, 10, 90, 180 degrees; gap x L / log L from 10 degrees on {rates[0][1]:.2f} to {rates[1][1]:.2f}",
        f"holds within {tolerance:g} degree and a rate that does not double from L = 1,000 on",
    )


def other_activations(setting: Setting) -> Finding:
    """ReLU^2, GeLU, tanh and erf pull close inputs apart and tend to 90 degrees."""
    cells, good, off = [], True, 0.0
    for name in ("relu", *SMOOTH):
        row = _over_depths([10.0], [1, 3, 10, 30, 100], name)[:, 0].tolist()
        cells.append([name, *row])
        good &= bool(np.all(np.diff(row) > 0)) and row[0] > 10.0
        if name in SMOOTH:
            good &= row[-1] > 89
            off = max(off, float(np.abs(np.array(row[:4]) / SMOOTH[name] - 1).max()))
    last = {str(row[0]): float(row[-1]) for row in cells}
    heads = ["activation", *(f"L={d}" for d in (1, 3, 10, 30, 100))]
    return Finding(
        good and off < 0.005,
        "from 10 degrees, rising with L, at L = 100: " + ", ".join(f"{k} {v:.1f}" for k, v in last.items()),
        f"within {off:.2%} of the kept values (quadrature), holds within 0.5 %; ReLU alone stays at 75.5",
        tables=[Table("Gradient angle from 10 degrees", heads, cells)],
    )


def smooth_ratio(setting: Setting) -> Finding:
    """Near zero a smooth activation stretches angles by a constant, ReLU by 1 / sqrt(theta)."""
    cells, good = [], True
    for name in ("relu", "tanh", "gelu", "erf"):
        row = [float(infinite.gradient_angle(t, 1, name)) / t for t in (1e-2, 1e-4, 1e-6)]
        cells.append([name, *row])
        constant = abs(row[2] / row[1] - 1) < 1e-3
        good &= constant if name != "relu" else abs(row[2] / row[1] / 10 - 1) < 0.01
    tanh = cells[1][-1]
    return Finding(
        good and abs(float(tanh) - 1.20) < 0.005,
        f"phi / theta at theta = 1e-4, 1e-6: ReLU {cells[0][2]:.1f}, {cells[0][3]:.1f}; tanh {cells[1][2]:.4f}, "
        f"{tanh:.4f}",
        "holds where smooth ratios agree to 1e-3 and ReLU's grows tenfold",
        tables=[Table("phi / theta at L = 1", ["activation", "theta 1e-2", "1e-4", "1e-6"], cells)],
    )
