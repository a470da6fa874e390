"""The claims of `alignment` about dynamics: recursion, finite networks, predicted against measured loss."""

from __future__ import annotations

import math

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
from wideangle.kernel.convergence import predict
from wideangle.papers._frame import Finding, Setting
from wideangle.taylor import linearize

__all__ = ["finite_network", "predicted_against_measured", "recursion"]


def _half_sum(y: Tensor):
    return lambda f: (f - y.to(f)).square().sum() / 2


def _train(net: nn.Module, x: Tensor, y: Tensor, step: float, steps: int) -> list[float]:
    """Return the losses of full-batch gradient descent on half the sum of squares, in place."""
    loss, losses = _half_sum(y), []
    parameters = [p for p in net.parameters() if p.requires_grad]
    for _ in range(steps + 1):
        value = loss(net(x))
        losses.append(float(value.detach()))
        gradients = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= step * gradient
    return losses


def recursion(setting: Setting) -> Finding:
    """Gradient descent on the linearised model by autograd, against the recursion in the eigenbasis."""
    found = setting.load("digits", 40)
    x, y = found.x.flatten(1).double(), found.one_hot(torch.float64)
    worst = 0.0
    for seed in setting.seeds:
        net = nets.MLP(64, 10, width=64, depth=2, generator=seeds.generator(seed, "recursion")).double()
        kernel = tangent_kernel(net, x)
        values, vectors = torch.linalg.eigh(kernel.reshape(400, 400))
        step = 1 / float(values[-1])
        residual = vectors.T @ (net(x).detach() - y).flatten()
        expected = [float((((1 - step * values) ** t * residual) ** 2).sum() / 2) for t in range(51)]
        measured = _train(linearize(net), x, y, step, 50)
        worst = max(worst, max(abs(m / e - 1) for m, e in zip(measured, expected, strict=True)))
    return Finding(worst < 1e-10, f"largest relative difference over 50 steps {worst:.1e}", "", setting.seeds)


def finite_network(setting: Setting) -> Finding:
    """A ReLU network, 2 x 512, on 300 digits at 1 / lambda_max: losses within 10 % up to t = 100."""
    found = setting.load("digits", 300)
    x, y = found.x.flatten(1), found.one_hot()
    cells, worst = [], 0.0
    times = [1, 10, 100]
    for seed in setting.seeds:
        net = nets.MLP(64, 10, width=512, depth=2, generator=seeds.generator(seed, "finite"))
        cache = factors(net, x)
        step = 1 / float(top_eigenpairs(cache).values[0])
        predicted = linearised_descent(cache, net(x).detach(), _half_sum(y), step, times[-1]).losses
        measured = _train(net, x, y, step, times[-1])
        cells += [[seed, t, measured[t], float(predicted[t])] for t in times]
        worst = max(worst, max(abs(measured[t] / predicted[t] - 1) for t in times))
    shown = ", ".join(f"t = {c[1]}: {c[2]:.1f} / {c[3]:.1f}" for c in cells[:3])
    return Finding(
        worst < 0.1,
        f"measured / predicted {shown}; largest deviation {worst:.1%}",
        "holds within 10 % up to t = 100",
        setting.seeds,
        tables=[Table("Loss, half the sum of squares", ["seed", "t", "measured", "predicted"], cells)],
    )


def predicted_against_measured(setting: Setting) -> Finding:
    """MLP and CNN on three sets: median |log10 (measured / predicted)|, goal 0.1."""
    n, steps = setting.pick(60, 128, 1000), setting.pick(60, 100, 200)
    width = setting.pick(1024, 2048, 2048)
    channels = (32, 64, 64) if setting.size == "paper" else (16, 32, 32)
    sets, missing = setting.sets(n)
    cells, figures, ratios = [], [], []
    for found in sets:
        shape = tuple(found.x.shape[1:])
        for kind in ("mlp", "conv"):
            rows = []
            for seed in setting.seeds:
                draws = seeds.generator(seed, "predicted", found.name, kind)
                if kind == "mlp":
                    net: nn.Module = nets.MLP(math.prod(shape), 10, width=width, depth=2, generator=draws)
                else:
                    net = nets.ConvNet(shape, 10, width=channels, generator=draws)
                rows.append(_compare(net, found.x, found.one_hot(), steps))
            here = np.median([row[0] for row in rows])
            ratios.append(float(here))
            cells.append(
                [found.name, kind, float(here), *(float(np.mean([r[k] for r in rows])) for k in (1, 2))]
            )
            figures.append(_figure(found.name, kind, rows[0][3], rows[0][4]))
    total = float(np.median(ratios))
    heads = ["data", "model", "median |log10|, full kernel", "the same, K_trace / C", "kernel drift"]
    return Finding(
        total < 0.1,
        f"median |log10 (measured / predicted)| {total:.3f} over "
        + ", ".join(f"{c[0]} {c[1]} {c[2]:.3f}" for c in cells),
        f"goal 0.1 at {steps} steps, n = {n}" + (f"; not there: {', '.join(missing)}" if missing else ""),
        setting.seeds,
        figures=figures[:6],
        tables=[Table("Predicted against measured loss", heads, cells)],
    )


def _compare(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> tuple[float, float, float, list, list]:
    """Return medians for the full and the mean kernel, the kernel's drift, and both curves."""
    cache = factors(net, x)
    step = 1 / float(top_eigenpairs(cache).values[0])
    with torch.no_grad():
        outputs = net(x)
    predicted = linearised_descent(quickest_product(cache), outputs, _half_sum(y), step, steps).losses
    before = cache.gram(kind="trace") / cache.outputs
    spectrum = eigenpairs(before, factor_dtype=cache.dtype)
    mean = predict(spectrum, (outputs - y).double(), step, list(range(steps + 1)), loss="half_sum").exact
    measured = _train(net, x, y, step, steps)
    after = tangent_kernel(net, x, outputs="trace") / cache.outputs
    log = np.log10(np.array(measured))
    return (
        float(np.median(np.abs(log - np.log10(predicted))[1:])),
        float(np.median(np.abs(log - np.log10(np.array(mean)))[1:])),
        float((after - before).norm() / before.norm()),
        measured,
        [float(p) for p in predicted],
    )


def _figure(name: str, kind: str, measured: list[float], predicted: list[float]) -> Figure:
    steps = [float(t) for t in range(len(measured))]
    return Figure(
        title=f"{kind} on {name}",
        x_label="step",
        y_label="loss, half the sum of squares",
        y_log=True,
        series=[
            Series("measured", steps, list(measured)),
            Series("predicted by the linearised model", steps, list(predicted), "dashed"),
        ],
        caption="First seed, full batches, step 1 / lambda_max.",
    )
