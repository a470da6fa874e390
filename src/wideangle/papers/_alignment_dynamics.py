"""The claims of `alignment` about dynamics: recursion, finite networks, predicted against measured loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from wideangle import nets, seeds
from wideangle.document import Figure, Series, Table
from wideangle.kernel import (
    eigenpairs,
    factors,
    linearised_descent,
    quickest_product,
    tangent_kernel,
    top_eigenpairs,
)
from wideangle.kernel.convergence import loss_bound_lambda_min, loss_bound_trace, loss_curve, predict
from wideangle.papers._frame import Finding, Setting, absent
from wideangle.papers._samples import signs, unit
from wideangle.taylor import linearize

LINEAR_REGIME = 0.2  # relative change of the kernel over the run
KEPT = {1: (189.86, 189.89), 10: (105.6, 104.9), 100: (37.9, 36.3), 300: (19.7, 17.4), 1000: (6.79, 5.44)}


def half_sum(y: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the loss 1/2 sum |f - y|^2."""
    return lambda f: (f - y.to(f)).square().sum() / 2


def descend(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    step: float,
    steps: int,
    seen: Callable[[int, Tensor], None] | None = None,
) -> list[float]:
    """Return the losses of full-batch gradient descent on half the sum of squares, in place."""
    loss, losses = half_sum(y), []
    parameters = [p for p in net.parameters() if p.requires_grad]
    for t in range(steps + 1):
        outputs = net(x)
        value = loss(outputs)
        losses.append(float(value.detach()))
        if seen is not None:
            seen(t, outputs.detach())
        if t < steps:
            gradients = torch.autograd.grad(value, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=step)
    return losses


def _two_nets(seed: int) -> list[tuple[str, nn.Module]]:
    draws = [seeds.generator(seed, "recursion", kind) for kind in ("mlp", "conv")]
    return [
        ("MLP", nets.MLP(64, 10, width=64, depth=2, generator=draws[0]).double()),
        ("CNN", nets.ConvNet((1, 8, 8), 10, width=(4, 8), generator=draws[1]).double()),
    ]


def recursion(setting: Setting) -> Finding:
    """Gradient descent on the linearised model by autograd, mode by mode, against (1 - eta lambda_i)^t."""
    found = setting.load("digits", 30)
    x, y = found.x.double(), found.one_hot(torch.float64)
    worst: dict[str, float] = {}
    for seed in setting.seeds:
        for name, net in _two_nets(seed):
            kernel = tangent_kernel(net, x)
            values, vectors = torch.linalg.eigh(kernel.reshape(300, 300))
            step = 1 / float(values[-1])
            with torch.no_grad():
                start = vectors.T @ (net(x) - y).flatten()
            gaps: list[float] = []

            def compare(t: int, outputs: Tensor) -> None:
                modes = vectors.T @ (outputs - y).flatten()  # noqa: B023 - called within this turn
                gaps.append(float((modes - (1 - step * values) ** t * start).abs().max()))  # noqa: B023

            descend(linearize(net), x, y, step, 50, compare)
            worst[name] = max(worst.get(name, 0.0), max(gaps) / float(start.norm()))
    return Finding(
        max(worst.values()) < 1e-10,
        "largest difference in any mode over 50 steps, over |r_0|: "
        + ", ".join(f"{name} {gap:.1e}" for name, gap in worst.items()),
        "holds below 1e-10",
        setting.seeds,
    )


def _scalar_run(
    setting: Setting, width: int, seed: int, steps: int
) -> tuple[list[float], list[float], float]:
    """Return measured and predicted losses on 300 digits with parity labels, and the kernel's drift."""
    found = setting.load("digits", 300, seed=seed)
    x, y = unit(found.x).float() * 8.0, signs(found.y)[:, None].float()
    net = nets.MLP(64, 1, width=width, depth=2, generator=seeds.generator(seed, "finite", width))
    kernel = tangent_kernel(net, x, outputs=0)
    spectrum = eigenpairs(kernel, factor_dtype=torch.float32)
    step = 1 / float(spectrum.eigenvalues[0])
    with torch.no_grad():
        residual = (net(x) - y).double()
    predicted = loss_curve(spectrum, residual, step, np.arange(steps + 1))
    measured = descend(net, x, y, step, steps)
    drift = float((tangent_kernel(net, x, outputs=0) - kernel).norm() / kernel.norm())
    return measured, predicted.tolist(), drift


def finite_network(setting: Setting) -> Finding:
    """A ReLU network, 2 x 512, on 300 digits at 1 / lambda_max: within 10 % up to t = 100."""
    steps = setting.pick(300, 1000, 1000)
    times = [t for t in KEPT if t <= steps]
    cells, worst, curves = [], 0.0, None
    for seed in setting.seeds:
        measured, predicted, drift = _scalar_run(setting, 512, seed, steps)
        curves = curves or (measured, predicted)
        for t in times:
            ratio = measured[t] / predicted[t]
            worst = max(worst, abs(ratio - 1)) if t <= 100 else worst
            cells.append([seed, t, measured[t], predicted[t], ratio, drift, KEPT[t][0] / KEPT[t][1]])
    late = [c for c in cells if c[1] == times[-1]]
    gap, moved = (float(np.mean([abs(c[k] - shift) for c in late])) for k, shift in ((4, 1), (5, 0)))
    heads = ["seed", "t", "measured", "predicted", "ratio", "kernel drift at the end", "ratio, another draw"]
    figure = Figure(
        title="ReLU network 2 x 512, digits n = 300, parity labels",
        x_label="step",
        y_label="loss, half the sum of squares",
        x_log=True,
        y_log=True,
        series=[
            Series(name, [float(t) for t in range(1, steps + 1)], list(curve[1:]), style)  # type: ignore[arg-type]
            for name, curve, style in zip(
                ("measured", "predicted from the kernel at the start"),
                curves or ([], []),
                ("line", "dashed"),
                strict=True,
            )
        ],
        caption="The network falls slightly behind as its kernel drifts.",
    )
    return Finding(
        worst < 0.1,
        f"largest deviation up to t = 100 {worst:.1%}; at t = {times[-1]} {gap:.0%}, where the kernel has moved by "
        f"{moved:.0%}",
        "holds within 10 % up to t = 100",
        setting.seeds,
        figures=[figure],
        tables=[Table("Loss, half the sum of squares", heads, cells)],
    )


def closer_with_width(setting: Setting) -> Finding:
    """The gap between network and linearisation closes as the width grows."""
    widths = [64, 256, 1024] if setting.size == "smoke" else [64, 256, 1024, 2048]
    runs = {w: [_scalar_run(setting, w, seed, 100) for seed in setting.seeds] for w in widths}
    gaps = [float(np.mean([abs(math.log10(m[-1] / p[-1])) for m, p, _ in runs[w]])) for w in widths]
    drifts = [float(np.mean([d for _, _, d in runs[w]])) for w in widths]
    slope = float(np.polyfit(np.log(widths), np.log(drifts), 1)[0])
    cells = [list(row) for row in zip(widths, gaps, drifts, strict=True)]
    return Finding(
        gaps[-1] < gaps[0] / 2 and slope < -0.3,
        f"|log10 (measured / predicted)| at t = 100: {gaps[0]:.3f} at width {widths[0]}, {gaps[-1]:.3f} at "
        f"{widths[-1]}; the kernel's drift falls with slope {slope:.2f} in the width",
        "holds where the gap at least halves and the drift falls faster than width^-0.3",
        setting.seeds,
        tables=[
            Table("Network against linearisation", ["width", "|log10| at t = 100", "kernel drift"], cells)
        ],
    )


def _network(setting: Setting, kind: str, shape: tuple[int, ...], seed: int, name: str) -> nn.Module:
    draws = seeds.generator(seed, "predicted", name, kind)
    if kind == "mlp":
        width, depth = setting.pick(1024, 2048, 512), setting.pick(2, 2, 4)
        return nets.MLP(math.prod(shape), 10, width=width, depth=depth, generator=draws)
    channels = {"smoke": (16, 32, 32), "cpu": (16, 32, 32), "paper": (32, 64, 128, 128, 256)}[setting.size]
    return nets.ConvNet(shape, 10, width=channels, generator=draws)


def predicted_against_measured(setting: Setting) -> Finding:
    """MLP and CNN on three sets: median |log10 (measured / predicted)|, goal 0.1 in the linear regime."""
    n, steps = setting.pick(40, 128, 1000), setting.pick(50, 100, 200)
    cells, figures = [], []
    sets, missing = setting.sets(n)
    for found in sets:
        for kind in ("mlp", "conv"):
            rows = []
            for seed in setting.seeds:
                drawn = setting.load(found.name, n, seed=seed)
                net = _network(setting, kind, tuple(drawn.x.shape[1:]), seed, drawn.name)
                rows.append(_compare(net, drawn.x, drawn.one_hot(), steps))
            cells.append([found.name, kind, *(float(np.median([r[k] for r in rows])) for k in range(4))])
            figures.append(_figure(found.name, kind, rows[0][4]))
    linear = [cell[2] for cell in cells if cell[4] < LINEAR_REGIME]
    total = float(np.median([cell[2] for cell in cells]))
    inside = float(np.median(linear)) if linear else math.inf
    heads = ["data", "model", "full kernel", "K_trace / C", "kernel drift", "at the last step"]
    return Finding(
        inside < 0.1 and total < 0.1,
        f"median |log10 (measured / predicted)| {total:.3f} over all, {inside:.3f} where the kernel moved by under "
        "20 %: " + ", ".join(f"{c[0]} {c[1]} {c[2]:.3f} (drift {c[4]:.0%})" for c in cells),
        f"goal 0.1; {steps} full-batch steps at 1 / lambda_max, n = {n}, C = 10. {absent(missing)}",
        setting.seeds,
        figures=figures,
        tables=[Table("Median |log10 (measured / predicted loss)| over the steps", heads, cells)],
        headline=f"Predicted against measured loss: median |log10 ratio| {total:.3f} over MLP and CNN on "
        f"{len(cells) // 2} data sets, {inside:.3f} in the linear regime (goal 0.1).",
    )


def _compare(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> tuple[float, float, float, float, dict]:
    """Return medians for the full and the mean kernel, the kernel's drift, the last gap, and the curves."""
    cache = factors(net, x)
    step = 1 / float(top_eigenpairs(cache).values[0])
    with torch.no_grad():
        outputs = net(x)
    predicted = linearised_descent(quickest_product(cache), outputs, half_sum(y), step, steps).losses
    before = cache.gram(kind="trace") / cache.outputs
    spectrum = eigenpairs(before, factor_dtype=cache.dtype)
    residual, times = (outputs - y).double(), np.arange(steps + 1)
    mean = np.array(predict(spectrum, residual, step, times.tolist(), loss="half_sum").exact)
    measured = np.array(descend(net, x, y, step, steps))
    after = tangent_kernel(net, x, outputs="trace") / cache.outputs
    full, one = (np.abs(np.log10(measured / curve))[1:] for curve in (predicted, mean))
    curves = {
        "measured": measured,
        "predicted, full kernel": predicted,
        "full-spectrum bound, rigorous": loss_bound_trace(spectrum, residual, step, times),
        "full-spectrum, fitted (no bound)": loss_bound_trace(
            spectrum, residual, step, times, constant="fitted"
        ),
        "bound by the smallest eigenvalue": loss_bound_lambda_min(spectrum, residual, step, times),
    }
    drift = float((after - before).norm() / before.norm())
    return float(np.median(full)), float(np.median(one)), drift, float(full[-1]), curves


def _figure(name: str, kind: str, curves: dict[str, np.ndarray]) -> Figure:
    steps = [float(t) for t in range(len(curves["measured"]))]
    return Figure(
        title=f"{kind} on {name}",
        x_label="step",
        y_label="loss, half the sum of squares",
        y_log=True,
        series=[
            Series(label, steps, [float(v) for v in values], "line" if label == "measured" else "dashed")
            for label, values in curves.items()
        ],
        caption="First seed, full batches, step 1 / lambda_max of the full kernel; the bounds use K_trace / C.",
    )
