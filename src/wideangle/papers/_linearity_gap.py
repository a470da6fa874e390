"""The claims of `linearity` about the distance from the linear expansion, along three directions."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from wideangle import seeds
from wideangle.curvature import hessian_norm, kernel_change_bound, linearity_gap
from wideangle.curvature.scaling import WidthScaling
from wideangle.document import Table
from wideangle.kernel import tangent_kernel
from wideangle.papers import _linearity_models as models
from wideangle.papers._descents import few_seeds
from wideangle.papers._frame import Finding, Setting
from wideangle.papers._linearity_hessian import COLUMNS, Test, doubling, figure, row, said, sweep
from wideangle.papers._samples import gaussian

NETS = {
    "linear output": models.dense,
    "tanh output": partial(models.dense, output_activation="tanh"),
    "bottleneck of 1": partial(models.narrowed, narrow=1),
    "ReLU": partial(models.dense, activation="relu", gain=True),
}
LIMITS = {"gradient": -0.5, "top_hessian": -0.25}
LABEL = "|f(w0 + 3 u) - f(w0) - 3 grad f . u|"


def gap(net: nn.Module, x: Tensor, direction: str) -> float:
    """Return the distance from the linear expansion at radius 3."""
    return linearity_gap(net, x, models.RADIUS, direction).gap  # type: ignore[arg-type]


def gap_sweep(setting: Setting, name: str, direction: str) -> WidthScaling:
    """Return the sweep of the gap; all networks and directions share twelve seeds."""
    most = setting.pick(256, 512, 1024) if direction == "top_hessian" else setting.pick(256, 1024, 4096)
    widths = [32, 96, 256] if setting.size == "smoke" else doubling(32, most)
    metric = partial(gap, x=models.vector_sample(setting), direction=direction)
    return sweep(setting, ("gap", name, direction), NETS[name], widths, metric, setting.at_least(12))


def gap_slope(name: str, low: float, high: float, direction: str = "gradient") -> Test:
    """Return the test that the gap's slope in the width lies between two numbers."""

    def test(setting: Setting) -> Finding:
        found = gap_sweep(setting, name, direction)
        limits = f"under {high:g}" if low == -math.inf else f"over {low:g}"
        return Finding(
            low < found.slope < high,
            said(found),
            f"{LABEL}, u the {direction.replace('_', ' ')} direction; holds with a slope {limits}{few_seeds(setting)}",
            found.seeds,
        )

    test.__doc__ = f"{name}: the gap along the {direction} direction against width."
    return test


def _table(setting: Setting, direction: str, names: list[str]) -> tuple[dict[str, WidthScaling], dict]:
    sweeps = {name: gap_sweep(setting, name, direction) for name in names}
    title = f"Gap along the {direction.replace('_', ' ')} direction, R = 3"
    shown = {
        "figures": [figure(title, LABEL, sweeps, "Means over seeds, geometric.")],
        "tables": [Table(title, COLUMNS, [row(name, found) for name, found in sweeps.items()])],
    }
    return sweeps, shown


def telling_directions(setting: Setting) -> Finding:
    """The gradient and the top Hessian directions part linear from non-linear outputs and narrow layers."""
    names, said_of, right, figures, tables = (
        ["linear output", "tanh output", "bottleneck of 1"],
        [],
        True,
        [],
        [],
    )
    for direction in ("gradient", "top_hessian"):
        sweeps, shown = _table(setting, direction, names)
        slopes = [sweeps[name].slope for name in names]
        right &= slopes[0] < LIMITS[direction] and min(slopes[1:]) > -0.2
        said_of.append(f"{direction.replace('_', ' ')}: " + ", ".join(f"{s:.2f}" for s in slopes))
        figures += shown["figures"]
        tables += shown["tables"]
    return Finding(
        right,
        "; ".join(said_of) + f" (slopes of {', '.join(names)})",
        "holds with a slope for the linear output under -0.5 along the gradient and under -0.25 along the top "
        "eigenvector (where the remainder is R^2 |H| / 2, so falls as |H| does), and over -0.2 for the others",
        setting.at_least(12),
        figures=figures,
        tables=tables,
    )


def random_direction(setting: Setting) -> Finding:
    """The control: along a random direction the gap would part the networks too."""
    names = ["linear output", "tanh output", "bottleneck of 1"]
    sweeps, shown = _table(setting, "random", names)
    slopes = [sweeps[name].slope for name in names]
    return Finding(
        slopes[0] < -0.5 and min(slopes[1:]) > -0.2,
        ", ".join(f"{name} {slope:.2f}" for name, slope in zip(names, slopes, strict=True)),
        "would hold with slopes under -0.5 and over -0.2; a random direction is nearly orthogonal to the few that "
        "bend, so the gap vanishes for every network: use the gradient or the top Hessian direction",
        setting.at_least(12),
        **shown,
    )


def taylor_bound(setting: Setting) -> Finding:
    """The remainder is at most R^2 / 2 times the largest |H| on the way, four architectures."""
    x, image = models.vector_sample(setting), models.image_sample(setting, "digits")
    shape = tuple(image.shape[1:])
    every = {name: (models.images(shape)[name], image) for name in ("CNN", "ResNet", "attention")}
    nets = {"linear output": (models.dense, x), "tanh output": (NETS["tanh output"], x), **every}
    cells, worst, parts = [], 0.0, setting.pick(4, 8, 16)
    for name, (factory, sample) in nets.items():
        for seed in setting.seeds:
            net = factory(32, seed)
            slope = models.gradient(net, sample)
            for radius in (models.RADIUS,) if setting.size == "smoke" else (1.0, models.RADIUS):
                steps = [radius * k / parts * slope / slope.norm() for k in range(parts + 1)]
                largest = max(hessian_norm(models.moved(net, step), sample).value for step in steps)
                bound = radius**2 / 2 * largest
                found = linearity_gap(net, sample, radius).gap
                worst = max(worst, found / bound)
                cells.append([name, seed, radius, found, bound, found / bound])
    heads = ["network", "seed", "R", "remainder", "R^2 / 2 sup |H|", "ratio"]
    return Finding(
        worst <= 1.01,
        f"largest ratio of the remainder to the bound {worst:.3f}",
        "holds up to the tolerance of the eigenvalue, 1 %; the largest |H| of "
        f"{parts + 1} points on the way, width 32",
        setting.seeds,
        tables=[Table("Remainder along the gradient", heads, cells)],
    )


def kernel_bound(setting: Setting) -> Finding:
    """|K_xz(w) - K_xz(w0)| <= R S_x |g_z| + R S_z |g_x| + R^2 S_x S_z anywhere in the ball, two-layer networks."""
    x, cells, worst = gaussian(8, 10, setting.seed) * math.sqrt(10), [], 0.0
    for width in (16, 64, 256):
        for seed in setting.seeds:
            net = models.dense(width, seed, depth=1)
            start = tangent_kernel(net, x, outputs=0)
            sizes = start.diagonal().sqrt()
            for radius in (0.3, 1.0, models.RADIUS):
                limit = [models.two_layer_supremum(net, one, radius) for one in x]  # type: ignore[arg-type]
                bound = torch.as_tensor(kernel_change_bound(sizes, limit, radius))
                ratios = []
                for name, step in _steps(net, x, seed):
                    there = models.moved(net, radius * step)
                    change = (tangent_kernel(there, x, outputs=0) - start).abs()
                    ratios.append((name, float((change / bound).max())))
                name, ratio = max(ratios, key=lambda pair: pair[1])
                worst = max(worst, ratio)
                if seed == setting.seed:
                    cells.append([width, radius, ratio, name, max(limit)])
    heads = ["width", "R", "largest change / bound", "along", "bound of |H| on the ball"]
    return Finding(
        worst <= 1.0,
        f"largest change of an entry is {worst:.3f} of its bound, over widths 16 to 256 and R = 0.3, 1, 3",
        "deterministic: |H| is bounded on the whole ball in closed form; steps along each gradient, their sum, the "
        "output layer and at random",
        setting.at_least(3),
        tables=[Table("Kernel change against the bound of the Hessian", heads, cells)],
    )


def _steps(net: nn.Module, x: Tensor, seed: int) -> list[tuple[str, Tensor]]:
    """Return unit steps: along each sample's gradient and back, along their sum, and two random ones."""
    slopes = [models.gradient(net, one[None]) for one in x]
    draws = seeds.generator(seed, "linearity", "steps")
    noise = [torch.randn(len(slopes[0]), generator=draws, dtype=torch.float64) for _ in range(2)]
    named = [("a gradient", slope) for slope in slopes] + [("a gradient, back", -slope) for slope in slopes]
    named += [("the sum of gradients", sum(slopes[1:], slopes[0])), *(("random", n) for n in noise)]
    return [(name, step / step.norm()) for name, step in named]
