"""The claims of `dag` behind the theorem: the ball, every pre-activation, remainder, gradient, non-linear output."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.curvature import hessian_norm, kernel_change_bound
from wideangle.document import Figure, Series, Table
from wideangle.kernel import tangent_kernel
from wideangle.kernel.reference import jacobian
from wideangle.nets import DAG
from wideangle.papers import _dag_nets as nets
from wideangle.papers._dag_architectures import finding
from wideangle.papers._dag_nets import Row, draws, draws_of
from wideangle.papers._frame import Finding, Setting

RADIUS = 3.0
CAP = 10  # times the bound of a gradient norm


class Before(nn.Module):
    """The first pre-activations of one layer of a net, as a net of its own."""

    def __init__(self, net: DAG, layer: int, count: int):
        super().__init__()
        self.net, self.layer, self.count = net, layer, count

    def forward(self, x: Tensor) -> Tensor:
        """Return pre_v of the first `count` neurons of the layer."""
        return self.net.preactivations(x)[self.layer - 1][:, : self.count]


def ball(setting: Setting) -> Finding:
    """Theorem 3.6 on a ball: the largest Hessian norm at distance 3 and less falls too."""
    x, columns = nets.inputs(setting.seed), nets.few_widths(setting)
    points = setting.pick(1, 3, 5)
    rows = []
    for name in ("[m, m]", "random, in-degree m", "[m, 4, m]"):
        factory = nets.ROWS[name][0]
        found = nets.scaling(
            setting, f"{name}, R = 3", factory, columns, lambda net: nets.norm(net, x, RADIUS, points)
        )
        rows.append(Row(f"{name}, R = 3", found))
    holds = rows[0].falls and rows[1].falls and rows[2].stays
    detail = (
        f"the largest of the centre and {points} points at distance 3, along the gradient first: a lower "
    )
    detail += "bound; holds where the first two fall and the net with a narrow layer stays"
    return finding(setting, rows, holds, "Largest Hessian norm on a ball of radius 3", detail)


def preactivations(setting: Setting) -> Finding:
    """Theorem 3.8: the Hessian norm of every pre-activation falls, in every layer behind the first."""
    x, columns, count = nets.inputs(setting.seed), nets.few_widths(setting), setting.pick(1, 4, 8)
    rows = []
    for name, factory, layer in (
        ("[m, m, m], layer 2", _three, 2),
        ("[m, m, m], layer 3", _three, 3),
        ("random, layer 2", nets.random, 2),
        ("[m, 4, m], layer 3", nets.narrow, 3),
    ):
        found = nets.scaling(
            setting,
            name,
            factory,
            columns,
            lambda net, at=layer: nets.norm(Before(net, at, count), x),  # type: ignore[misc]
        )
        rows.append(Row(name, found))
    holds = all(row.falls for row in rows[:3]) and rows[3].stays
    detail = f"the largest of {count} neurons a layer; the layer behind a narrow one is the control"
    return finding(setting, rows, holds, "Hessian norm of pre-activations", detail)


def _three(m: int, seed: int) -> DAG:
    return DAG.fcn(nets.FEATURES, 1, width=(m, m, m), generator=draws(seed)).double()


def first_layer(setting: Setting) -> Finding:
    """The base of the induction: a pre-activation of the first layer is linear in the weights."""
    x, worst = nets.inputs(setting.seed, 3), 0.0
    for seed in draws_of(setting):
        net = nets.random(16, seed)
        weights = tuple(p.detach() for p in net.parameters())
        names = [name for name, _ in net.named_parameters()]

        def before(*moved: Tensor, net: DAG = net, names: list[str] = names) -> Tensor:
            named = {f"net.{name}": w for name, w in zip(names, moved, strict=True)}
            return torch.func.functional_call(Before(net, 1, 20), named, (x,))

        steps = tuple(torch.randn(w.shape, generator=draws(seed, "step"), dtype=w.dtype) for w in weights)
        first = torch.func.jvp(before, weights, steps)[1]
        ahead = before(*(w + 10 * s for w, s in zip(weights, steps, strict=True)))
        worst = max(worst, float((ahead - before(*weights) - 10 * first).abs().max() / first.abs().max()))
    return Finding(
        worst < 1e-12,
        f"largest relative remainder after a step of 10 in every weight: {worst:.1g}",
        "holds within 1e-12",
        draws_of(setting),
    )


def _moved(net: nn.Module, step: Tensor) -> nn.Module:
    """Return a copy of a net with its weights moved by a flat step."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        flat = nn.utils.parameters_to_vector(twin.parameters()) + step
        nn.utils.vector_to_parameters(flat, twin.parameters())
    return twin


def _remainder(net: nn.Module, x: Tensor, radius: float, points: int) -> tuple[float, float]:
    """Return |f - f_lin| at distance R along the gradient, and R^2/2 times the largest Hessian norm on the way."""
    gradient = jacobian(net, x)[0, 0]
    unit = gradient / gradient.norm()
    with torch.no_grad():
        gap = float((_moved(net, radius * unit)(x) - net(x) - radius * gradient.norm()).abs())
    along = [_moved(net, radius * float(t) * unit) for t in torch.linspace(0, 1, points)]
    return gap, radius**2 / 2 * max(nets.norm(twin, x) for twin in along)


def remainder_bound(setting: Setting) -> Finding:
    """Corollary 3.7: |f - f_lin| <= R^2/2 sup |H|, along the gradient."""
    cells, least, points = [], math.inf, setting.pick(3, 9, 9)
    for seed in setting.seeds:
        x = nets.inputs(seed)
        for name, (factory, _) in nets.ROWS.items():
            for radius in (0.5, RADIUS):
                gap, bound = _remainder(factory(64, seed), x, radius, points)
                least = min(least, bound / gap)
                cells.append([name, seed, radius, gap, bound, bound / gap])
    heads = ["net, m = 64", "seed", "R", "|f - f_lin|", "R^2/2 sup |H|", "ratio"]
    return Finding(
        least >= 1,
        f"{len(cells)} pairs of net and radius: the bound is at least {least:.2f} times the gap",
        f"the supremum over {points} points of the segment, which is all the remainder depends on",
        setting.seeds,
        tables=[Table("Remainder and bound", heads, cells)],
    )


def gap_falls(setting: Setting) -> Finding:
    """Corollary 3.7: the gap along the gradient falls with m at least as the Hessian norm does."""
    x, columns, rows = nets.inputs(setting.seed), [16, 32, 64, 128, 256], []
    many = setting.at_least(12)
    for name in ("[m, m]", "random, in-degree m", "[m, 4, m]"):
        found = nets.scaling(
            setting, f"{name}, gap", nets.ROWS[name][0], columns, lambda net: _gap(net, x), many
        )
        rows.append(Row(name, found))
    holds = rows[0].falls and rows[1].falls and rows[2].stays
    detail = "holds where the first two fall and the net with a narrow layer stays"
    shown = finding(setting, rows, holds, "Gap to the linear expansion, R = 3 along the gradient", detail)
    return replace(shown, seeds=many, figures=[replace(shown.figures[0], y_label="|f - f_lin|")])


def _gap(net: nn.Module, x: Tensor) -> float:
    gradient = jacobian(net, x)[0, 0]
    step = RADIUS * gradient / gradient.norm()
    with torch.no_grad():
        return float((_moved(net, step)(x) - net(x) - step @ gradient).abs())


def _squared_relu(z: Tensor) -> Tensor:
    return torch.relu(z).square()


HOMOGENEOUS = {  # activation, degree r, C = E sigma(z)^2 for z ~ N(0, 1)
    "identity": ("identity", 1, 1.0),
    "ReLU": ("relu", 1, 0.5),
    "ReLU^2": (_squared_relu, 2, 1.5),
}


def gradient_bound(degree: int, constant: float, depth: int) -> float:
    """Return the bound of Proposition 4.4: sqrt(min(1, min_j C^(1 + r + ... + r^(j-1)))), j = 1, ..., L."""
    powers = [constant ** sum(degree**power for power in range(j)) for j in range(1, depth + 1)]
    return math.sqrt(min(1.0, *powers))


def gradient_norm(setting: Setting) -> Finding:
    """Proposition 4.4: the mean gradient norm is bounded below whatever the width."""
    cells, least, count = [], math.inf, setting.pick(25, 100, 400)
    kinds = [(DAG.fcn, 1), (DAG.fcn, 2), (DAG.densenet, 2)]
    kinds += [] if setting.size == "smoke" else [(DAG.fcn, 3), (DAG.densenet, 3)]
    for name, (activation, degree, constant) in HOMOGENEOUS.items():
        for make, hidden in kinds:
            bound, means = gradient_bound(degree, constant, hidden + 1), []
            for m in (16, 128):
                seeds = [setting.seed + k for k in range(count)]
                norms = torch.cat([_norms(make, activation, m, hidden, seed) for seed in seeds])
                capped = norms.clamp(max=CAP * bound)
                lowest = float(capped.mean() - 2 * capped.std() / math.sqrt(count))
                means += [float(norms.mean()), lowest]
                least = min(least, lowest / bound)
            cells.append([name, make.__name__, hidden, bound, *means])
    heads = ["activation", "net", "hidden layers", "bound", "mean norm, m = 16", "at least"]
    heads += ["mean norm, m = 128", "at least "]
    return Finding(
        least >= 1,
        f"the mean is at least {least:.2f} times the bound, in {2 * len(cells)} cases",
        f"{count} draws of net and input each, x ~ N(0, I) in 10 dimensions; 'at least': the mean of norms cut at "
        f"{CAP} bounds, less two standard errors, which the heavy tail of ReLU^2 does not blur",
        [setting.seed + k for k in range(count)],
        tables=[Table("Gradient norm and its lower bound", heads, cells)],
    )


def _norms(make: Any, activation: Any, m: int, hidden: int, seed: int) -> Tensor:
    net = make(
        nets.FEATURES, 1, width=m, depth=hidden, activation=activation, generator=draws(seed, m)
    ).double()
    x = torch.randn(1, nets.FEATURES, generator=draws(seed, "gaussian"), dtype=torch.float64)
    return jacobian(net, x).norm(dim=2).flatten()


def _bent(m: int, seed: int) -> DAG:
    return DAG.fcn(nets.FEATURES, 1, width=(m, m), output_activation="tanh", generator=draws(seed)).double()


def nonlinear_output(setting: Setting) -> Finding:
    """A non-linear output: the Hessian norm stays, whatever the width."""
    x, columns, rows = nets.inputs(setting.seed, 4), nets.few_widths(setting), []
    for name, factory in (("[m, m], tanh output", _bent), ("[m, m], four inputs", nets.fcn)):
        found = nets.scaling(
            setting,
            name,
            factory,
            columns,
            lambda net: nets.norm(net, x),
        )
        rows.append(Row(name, found))
    detail = "the largest of four inputs, as the norm depends on where on tanh an output falls"
    return finding(setting, rows, rows[0].stays and rows[1].falls, "A non-linear output", detail)


def pl_with_nonlinear_output(setting: Setting) -> Finding:
    """A non-linear output and PL* all the same: descent converges at the rate of the smallest eigenvalue."""
    cells, series, holds = [], [], True
    for name, factory in {"tanh output": _bent, "linear output": nets.fcn}.items():
        for seed in setting.at_least(3):
            net, x = factory(setting.pick(64, 128, 512), seed), nets.inputs(seed, 6)
            y = torch.randint(0, 2, (6, 1), generator=draws(seed, "y")).double() - 0.5
            path = _descend(net, x, y)
            holds &= path["fell"] and path["least"] > 0 and path["ratio"] >= 1 - 1e-9 and path["rate"]
            cells.append(
                [name, seed, *(path[key] for key in ("steps", "loss", "start", "least", "ratio", "change"))]
            )
            if seed == setting.seed:
                shown = path["curve"]
                series.append(Series(name, [float(t) for t, _ in shown], [loss for _, loss in shown]))
    heads = ["net", "seed", "steps", "loss / first", "lambda_min at the start", "least on the way"]
    heads += ["least |grad L|^2 / (2 lambda_min L)", "kernel change"]
    own, linear = ([cell for cell in cells if cell[0] == name] for name in ("tanh output", "linear output"))
    changes = all(a[7] > b[7] for a, b in zip(own, linear, strict=True))
    return Finding(
        holds and changes,
        f"tanh output: lambda_min stays above {min(c[5] for c in own):.3g} on the way, the loss falls below 1e-4 "
        f"of the first in {max(c[2] for c in own)} steps or fewer, while the kernel changes by "
        f"{min(c[7] for c in own):.0%} to {max(c[7] for c in own):.0%} (linear output: "
        f"{min(c[7] for c in linear):.0%} to {max(c[7] for c in linear):.0%})",
        "loss 1/2 sum (f - y)^2, 6 inputs, labels -1/2 and 1/2, step 1/(2 lambda_max(K_0)); holds where at every "
        "checked step |grad L|^2 >= 2 lambda_min(K) L and L_t <= (1 - step x least lambda_min)^t L_0, "
        "and the kernel changes by more than that of the linear output from the same seed",
        setting.at_least(3),
        figures=[
            Figure(
                title="Loss", x_label="step", y_label="loss / first", x_log=True, y_log=True, series=series
            )
        ],
        tables=[Table("Descent with a non-linear output", heads, cells)],
    )


def _descend(net: DAG, x: Tensor, y: Tensor, most: int = 20_000) -> dict:
    """Return what full-batch descent to 1e-4 of the first loss did; the kernel is looked at in steps 0, 1, 2, 4, ..."""
    kernel = _kernel(net, x)
    values = torch.linalg.eigvalsh(kernel)
    step, first, level = 0.5 / float(values[-1]), 0.0, math.inf
    curve, least, ratio, change, t = [], math.inf, math.inf, 0.0, 0
    for t in range(most + 1):
        loss = 0.5 * (net(x) - y).square().sum()
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        level = float(loss.detach())
        first = level if t == 0 else first
        done = level <= 1e-4 * first
        if t & (t - 1) == 0 or done:
            now = _kernel(net, x)
            lowest = float(torch.linalg.eigvalsh(now)[0])
            square = sum(float(s.square().sum()) for s in slopes)
            least, ratio = min(least, lowest), min(ratio, square / (2 * lowest * level))
            change = max(change, float((now - kernel).norm() / kernel.norm()))
            curve.append((max(t, 1), level / first))
        if done:
            break
        with torch.no_grad():
            for weight, slope in zip(net.parameters(), slopes, strict=True):
                weight -= step * slope
    rate = all(loss <= (1 - step * least) ** (s if s > 1 else 0) * (1 + 1e-9) for s, loss in curve)
    return {
        "steps": t,
        "loss": level / first,
        "fell": level <= 1e-4 * first,
        "start": float(values[0]),
        "least": least,
        "ratio": ratio,
        "change": change,
        "rate": rate,
        "curve": curve,
    }


def _kernel(net: nn.Module, x: Tensor) -> Tensor:
    found = tangent_kernel(net, x)
    return found.reshape(len(x), len(x)).double()


def kernel_on_ball(setting: Setting) -> Finding:
    """The step to PL*: the kernel on the ball changes by R, the Hessian norms and the gradients at most."""
    cells, least = [], math.inf
    for seed in setting.seeds:
        x = nets.inputs(seed, setting.pick(2, 4, 4))
        for name in ("[m, m]", "random, in-degree m", "[m, 4, m]"):
            net = nets.ROWS[name][0](64, seed)
            start = jacobian(net, x)[:, 0]
            noise = torch.randn(start.shape[1], generator=draws(seed, "direction"), dtype=torch.float64)
            for kind, direction in (("gradient", start.sum(0)), ("random", noise)):
                step = RADIUS * direction / direction.norm()
                change = (_kernel(_moved(net, step), x) - start @ start.T).abs()
                along = [
                    hessian_norm(_moved(net, float(t) * step), x).values for t in torch.linspace(0, 1, 3)
                ]
                top = np.max(along, axis=0)[:, 0]
                bound = torch.as_tensor(kernel_change_bound(start.norm(dim=1), top, RADIUS))
                least = min(least, float((bound / change).min()))
                cells.append(
                    [name, seed, kind, float(change.max()), float(bound.max()), float((bound / change).min())]
                )
    heads = ["net, m = 64", "seed", "direction", "largest change", "largest bound", "least ratio of an entry"]
    return Finding(
        least >= 1,
        f"every entry's bound is at least {least:.2f} times its change, {len(cells)} cases, R = 3",
        "|K_xz(w) - K_xz(w0)| <= R S_x |g_z| + R S_z |g_x| + R^2 S_x S_z, S the largest Hessian norm at three points "
        "of the segment",
        setting.seeds,
        tables=[Table("Kernel change and bound", heads, cells)],
    )
