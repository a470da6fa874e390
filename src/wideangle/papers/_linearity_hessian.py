"""The claims of `linearity` about the Hessian norm: how it scales with width, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.curvature import hessian_norm
from wideangle.curvature.scaling import WidthScaling, width_scaling
from wideangle.document import Figure, Series, Table
from wideangle.papers import _linearity_models as models
from wideangle.papers._descents import few_seeds
from wideangle.papers._frame import Finding, Setting
from wideangle.papers._linearity_models import Factory

Test = Callable[[Setting], Finding]
NARROW = (-0.6, -0.25)  # the slope in the width of a narrow layer: -1/2, flatter while that is small
COLUMNS = [
    "network",
    "narrowest",
    "widest",
    "at the narrowest",
    "at the widest",
    "slope",
    "low",
    "high",
    "verdict",
]


def norm(net: nn.Module, x: Tensor) -> float:
    """Return |H| of the output at the weights, to 1 %; with probability 0.9 it is below 1.1 times that."""
    return hessian_norm(net.eval(), x, confidence=0.9, allow_kinks=True).value  # all smooth: no need to look


def norm_in_ball(net: nn.Module, x: Tensor) -> float:
    """Return |H| at w0 + 3 grad f / |grad f|."""
    return norm(models.uphill(net, x), x)


def slope_size(net: nn.Module, x: Tensor) -> float:
    """Return |grad f|."""
    return float(models.gradient(net, x).norm())


METRICS = {"start": norm, "ball": norm_in_ball, "gradient": slope_size}
WHERE = {"start": "|H(w0)|", "ball": "|H| at w0 + 3 grad f / |grad f|", "gradient": "|grad f(w0)|"}


def sweep_seeds(setting: Setting) -> list[int]:
    """Return the seeds every Hessian table shares: six, twelve from size cpu on."""
    return setting.at_least(setting.pick(6, 12, 12))


def sweep(
    setting: Setting,
    key: Any,
    factory: Factory,
    widths: list[int],
    metric: Any,
    seeds: list[int],
    jobs: int | None = None,
) -> WidthScaling:
    """Return how a measurement scales with width, kept for the run; in this process below size paper."""
    if setting.size != "paper":
        jobs = 1

    def make() -> WidthScaling:
        return width_scaling(factory, widths, metric, seeds, jobs=jobs, label=str(key))

    return setting.once(("linearity", key), make)


def row(name: str, found: WidthScaling) -> list[Any]:
    """Return the line of a sweep in the tables."""
    ends = [found.widths[0], found.widths[-1], found.means[0], found.means[-1]]
    return [name, *ends, found.slope, *found.interval, found.verdict]


def said(found: WidthScaling) -> str:
    """Return the sweep in a few words."""
    low, high = found.interval
    return (
        f"slope {found.slope:.3f} [{low:.2f}, {high:.2f}], {found.means[0]:.3g} to {found.means[-1]:.3g} over "
        f"m = {found.widths[0]} to {found.widths[-1]}: {found.verdict}"
    )


def figure(title: str, label: str, sweeps: dict[str, WidthScaling], caption: str) -> Figure:
    """Return the means of several sweeps against the width."""
    lines = [
        Series(name, [float(w) for w in found.widths], list(found.means)) for name, found in sweeps.items()
    ]
    return Figure(title, "width m", label, lines, x_log=True, y_log=True, caption=caption)


def doubling(first: int, last: int) -> list[int]:
    """Return first, 2 first, ... up to last."""
    return [first * 2**k for k in range(int(math.log2(last // first)) + 1)]


def unit_widths(setting: Setting) -> list[int]:
    """Return the units of fully connected layers."""
    return [32, 96, 256] if setting.size == "smoke" else doubling(32, setting.pick(256, 512, 2048))


def vector_sweep(setting: Setting, name: str, where: str) -> WidthScaling:
    """Return the sweep of an architecture on ten numbers."""
    widths = unit_widths(setting)
    if name == "random DAG":  # in-degrees; the layers have 512 neurons
        widths = [8, 45, 256] if setting.size == "smoke" else doubling(8, 256)
    metric = partial(METRICS[where], x=models.vector_sample(setting))
    drawn = (
        setting.at_least(12) if _class_of(name) == "does not" else sweep_seeds(setting)
    )  # these spread more
    return sweep(setting, (name, where), models.VECTORS[name], widths, metric, drawn)


def image_sweep(setting: Setting, data: str, name: str, where: str) -> WidthScaling:
    """Return the sweep of an architecture on one image of a data set."""
    x = models.image_sample(setting, data)
    widths = image_widths(setting, data, name)
    metric = partial(METRICS[where], x=x)
    factory = models.images(tuple(x.shape[1:]))[name]
    return sweep(setting, (data, name, where), factory, widths, metric, image_seeds(setting))


def image_seeds(setting: Setting) -> list[int]:
    """Return the seeds every table of images shares."""
    return setting.at_least(setting.pick(6, 8, 12))


def image_widths(setting: Setting, data: str, name: str) -> list[int]:
    """Return channels of the convolutions, numbers per token, or units, so that each sweep is seconds long."""
    kind = name.split(",")[0]
    if setting.size == "smoke":
        units = [32, 64, 128] if data == "mnist" else [32, 96, 256]
        small = {"CNN": [16, 32, 64], "ResNet": [16, 64], "attention": [16, 48, 128]}
        return small.get(kind, units)
    if kind in ("CNN", "ResNet"):
        return doubling(16, setting.pick(0, 128 if data == "digits" else 64, 256))
    if name.startswith("attention"):
        return doubling(16, setting.pick(0, 256, 1024))
    return doubling(32, setting.pick(0, 256, 2048))


def within(name: str, low: float, high: float, where: str = "start", data: str | None = None) -> Test:
    """Return the test that the slope of an architecture lies between two numbers."""

    def test(setting: Setting) -> Finding:
        found = (
            vector_sweep(setting, name, where) if data is None else image_sweep(setting, data, name, where)
        )
        limits = f"under {high:g}" if low == -math.inf else f"from {low:g} to {high:g}"
        return Finding(
            low <= found.slope <= high,
            said(found),
            f"{WHERE[where]}; holds with a slope {limits}; 95 % interval, {found.method}{few_seeds(setting)}",
            found.seeds,
        )

    test.__doc__ = f"{name}: slope of {WHERE[where]} in the width."
    return test


def _class_of(name: str) -> str:
    stays = ("tanh output", "swish output", "bottleneck", "2 heads")
    return "does not" if any(word in name for word in stays) and "/ d" not in name else "transitions"


def verdicts(
    setting: Setting, title: str, label: str, sweeps: dict[str, WidthScaling], headline: str = ""
) -> Finding:
    """Return whether the verdicts of several sweeps are those of the theory, at most one of them unclear."""
    wanted = {name: _class_of(name) for name in sweeps}
    right = [name for name, found in sweeps.items() if found.verdict == wanted[name]]
    opposite = [name for name, s in sweeps.items() if s.verdict not in (wanted[name], "unclear")]
    unclear = [name for name, s in sweeps.items() if s.verdict == "unclear"]
    slopes = ", ".join(f"{name} {found.slope:.2f}" for name, found in sweeps.items())
    notes = [
        f"{text}: {', '.join(names)}"
        for text, names in (("opposite", opposite), ("unclear", unclear))
        if names
    ]
    return Finding(
        not opposite and len(unclear) <= 1 and bool(right),
        "; ".join(
            [f"{len(right)} of {len(sweeps)} verdicts as the theory has them", *notes, f"slopes: {slopes}"]
        ),
        "holds where no verdict is the opposite and at most one unclear; transitions: slope under -0.25, interval "
        "under -0.2; does not: slope over -0.2, interval over -0.25; means over seeds are geometric; a tanh output "
        "bends nothing where f is near 0 (a swish output does), so that seeds spread widely there"
        + few_seeds(setting),
        next(iter(sweeps.values())).seeds,
        figures=[figure(title, label, sweeps, "Falling lines become linear with width; flat ones do not.")],
        tables=[Table(title, COLUMNS, [row(name, found) for name, found in sweeps.items()])],
        headline=headline.format(right=len(right), all=len(sweeps)),
    )


def all_vectors(setting: Setting) -> Finding:
    """All architectures on ten numbers, at the start."""
    sweeps = {name: vector_sweep(setting, name, "start") for name in models.VECTORS}
    return verdicts(
        setting,
        "Hessian norm at the start, d = 10",
        WHERE["start"],
        sweeps,
        "Width slopes of the Hessian norm: {right} of {all} architectures on synthetic data get the verdict of the "
        "theory (linear output, no narrow layer: becomes linear).",
    )


def all_in_ball(setting: Setting) -> Finding:
    """The same at distance 3; a non-linear output saturates there and is left out."""
    names = [name for name in models.VECTORS if not name.endswith("output") or name == "linear output"]
    if setting.size == "smoke":
        names = ["linear output", "three swish layers", "bottleneck of 1", "bottleneck of 8"]
    sweeps = {name: vector_sweep(setting, name, "ball") for name in names}
    return verdicts(setting, "Hessian norm at distance 3, d = 10", WHERE["ball"], sweeps)


def all_images(data: str, where: str) -> Test:
    """Return the test of all architectures on one image of a data set; attention with two heads apart."""

    def test(setting: Setting) -> Finding:
        names = [
            name
            for name in models.images((1, 8, 8))
            if "2 heads" not in name and not (where == "ball" and "output" in name)
        ]
        if setting.size == "smoke":
            names = ["FCN", "attention", "bottleneck of 1"] if where == "start" else ["FCN", "attention"]
            names = ["FCN", "bottleneck of 1"] if data == "mnist" else names
        elif setting.size == "cpu" and data == "mnist":
            names = ["FCN", "CNN", "attention", "swish output", "bottleneck of 1"]
        sweeps = {name: image_sweep(setting, data, name, where) for name in names}
        return verdicts(setting, f"{WHERE[where]}, one image of {data}", WHERE[where], sweeps)

    test.__doc__ = f"All architectures on one image of {data}: {WHERE[where]}."
    return test


def gradient_stays(setting: Setting) -> Finding:
    """|grad f| does not fall with the width: the two norms part, and that is the whole effect."""
    names = ["linear output", "three swish layers"]
    sweeps = {name: vector_sweep(setting, name, "gradient") for name in names}
    return Finding(
        all(abs(found.slope) < 0.1 for found in sweeps.values()),
        "; ".join(f"{name}: {said(found)}" for name, found in sweeps.items()),
        "holds with slopes of |grad f| within 0.1 of 0, beside those of |H| near -1/2",
        sweep_seeds(setting),
        tables=[Table("Gradient norm at the start", COLUMNS, [row(n, f) for n, f in sweeps.items()])],
    )


def narrow_law(setting: Setting) -> Finding:
    """|H| of [256, m_b, 256] falls with m_b, about as 1/sqrt(m_b): the narrow layer sets it, not the width."""
    narrow, x = [1, 4, 16, 64, 256], models.vector_sample(setting)
    factory = _narrow_at_256
    found = sweep(setting, "narrow law", factory, narrow, partial(norm, x=x), sweep_seeds(setting))
    means = [float(value) for value in found.values.mean(0)]
    falling = all(b < a for a, b in pairwise(means))
    low, high = NARROW
    return Finding(
        falling and low <= found.slope <= high,
        ", ".join(f"m_b = {b}: {value:.2f}" for b, value in zip(narrow, means, strict=True))
        + f"; slope {found.slope:.2f} [{found.interval[0]:.2f}, {found.interval[1]:.2f}]",
        "holds where the mean falls at every step and the slope lies between -0.6 and -0.25 (another draw: -0.33): it "
        "is flatter than -1/2 while m_b is small" + few_seeds(setting),
        found.seeds,
        figures=[
            Figure(
                "Hessian norm of [256, m_b, 256]",
                "width m_b of the narrow layer",
                "|H(w0)|, mean over seeds",
                [Series("measured", [float(b) for b in narrow], list(means))],
                x_log=True,
                y_log=True,
            )
        ],
    )


def _narrow_at_256(narrow: int, seed: int) -> nn.Module:
    return models.narrowed(256, seed, narrow=narrow)


def two_layers(setting: Setting) -> Finding:
    """Two layers: Lanczos against the closed form, both layers trained and the first alone."""
    x, cells, worst = models.vector_sample(setting), [], 0.0
    for width in (16, 64, 256, 1024):
        for seed in sweep_seeds(setting):
            net = models.dense(width, seed, depth=1)
            for trained in (True, False):
                params = None if trained else ["hidden.0.weight"]
                exact = models.two_layer_norm(net, x, trained)  # type: ignore[arg-type]
                found = hessian_norm(net, x, params=params).value
                worst = max(worst, abs(found / exact - 1))
                if seed == setting.seed:
                    cells.append([width, "both" if trained else "first", exact, found, found / exact - 1])
    return Finding(
        worst < 1e-2,
        f"largest relative difference {worst:.1e} over widths 16 to 1024",
        "holds below 1e-2, the tolerance of the eigenvalue; |H| = (1/sqrt(m)) max_i |A_i/2 -+ sqrt(A_i^2/4 + B_i^2)|",
        sweep_seeds(setting),
        tables=[
            Table("Two-layer tanh network", ["width", "trained", "exact", "Lanczos", "difference"], cells)
        ],
    )


def output_identity(setting: Setting) -> Finding:
    """A non-linear output: | |H~| - |phi''| |grad f|^2 | <= |phi'| |H|, and the kernel gets phi' phi'."""
    x, cells, worst = models.vector_sample(setting), [], 0.0
    for width in unit_widths(setting):
        for seed in sweep_seeds(setting):
            plain, bent = (models.dense(width, seed, output_activation=phi) for phi in (None, "tanh"))
            with torch.no_grad():
                value = float(torch.tanh(plain(x)))
            first, second = 1 - value**2, 2 * abs(value) * (1 - value**2)
            inner, outer = norm(plain, x), norm(bent, x)
            from_gradient = second * slope_size(plain, x) ** 2
            worst = max(worst, abs(outer - from_gradient) / (first * inner))
            if seed == setting.seed:
                cells.append([width, outer, from_gradient, first * inner])
    return Finding(
        worst < 1.02,
        f"largest ratio of the left side to the right {worst:.3f}",
        "deterministic; holds up to the tolerance of two eigenvalues, 2 %",
        sweep_seeds(setting),
        tables=[Table("tanh output", ["width", "|H~|", "|phi''| |grad f|^2", "|phi'| |H|"], cells)],
    )


def few_heads(setting: Setting) -> Finding:
    """A fixed number of heads: the scores are a narrow layer, so attention does not become linear (derived)."""
    names = ["attention", "attention, 2 heads", "attention, 2 heads, scores / d"]
    sweeps = {name: image_sweep(setting, "digits", name, "start") for name in names}
    found = verdicts(setting, "Attention: heads and scores, one image of digits", WHERE["start"], sweeps)
    few = sweeps["attention, 2 heads"].slope
    return Finding(
        few > -0.2,
        "; ".join(f"{name}: {said(s)}" for name, s in sweeps.items()),
        "not in the paper; holds with a slope over -0.2 for two heads. Widths reach a few hundred only, where the "
        "part of the Hessian that does vanish may still be the larger one",
        found.seeds,
        figures=found.figures,
        tables=found.tables,
    )
