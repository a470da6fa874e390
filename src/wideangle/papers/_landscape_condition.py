"""The claims of `landscape` about PL* itself: the identity, rates of descent, a point against a ball."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from wideangle import nets, seeds
from wideangle.curvature import kernel_change, pl_along, pl_ratio, sharpness, uniform_conditioning
from wideangle.curvature.landscape import (
    pl_sgd_rate,
    pl_sgd_step,
    solution_radius,
    transformed_pl,
)
from wideangle.document import Table
from wideangle.papers._descents import descent, state_of, tanh_net, two_digits
from wideangle.papers._frame import Finding, Setting, SkippedError
from wideangle.papers._samples import gaussian


def identity(setting: Setting) -> Finding:
    """|grad L|^2 / 2 = 1/2 r^T K r, and the ratio lies between the extreme eigenvalues, along a descent."""
    worst, inside, cells = 0.0, True, []
    for seed in setting.seeds:
        x, y = two_digits(setting, 20, seed)
        net = tanh_net(x.shape[1], 64, seed)
        step = 1 / (pl_ratio(net, x, y).lambda_max or 1.0)
        run = descent(net, x, y, step, 300, 8)
        for t, state in zip(run.times, run.states, strict=True):
            net.load_state_dict(state)
            found = pl_ratio(net, x, y)
            assert found.lambda_min is not None
            assert found.lambda_max is not None
            worst = max(worst, found.identity_error or 0.0)
            slack = 1e-9 * found.lambda_max
            inside &= found.lambda_min - slack <= found.ratio <= found.lambda_max + slack
            cells.append([seed, t, found.loss, found.lambda_min, found.ratio, found.lambda_max])
    heads = ["seed", "step", "loss", "lambda_min", "PL* ratio", "lambda_max"]
    return Finding(
        worst < 1e-10 and inside,
        f"largest relative error {worst:.1e}; ratio within [lambda_min, lambda_max] at all "
        f"{len(cells)} looks: {inside}",
        "holds below 1e-10; gradient by autograd, kernel by the factor cache",
        setting.seeds,
        tables=[Table("PL* ratio along a descent, 20 digits, width 64", heads, cells)],
    )


def descent_rate(setting: Setting) -> Finding:
    """L(w_t) <= (1 - eta mu)^t L_0 with the measured mu and smoothness of the path; R against the way gone."""
    holds, cells = True, []
    width, steps = setting.pick(400, 1600, 6400), setting.pick(1500, 4000, 20000)
    for seed in setting.seeds:
        x, y = two_digits(setting, 40, seed)
        net = tanh_net(x.shape[1], width, seed)
        start = pl_ratio(net, x, y)
        assert start.lambda_max is not None
        eta = 1 / (1.5 * start.lambda_max)
        run = descent(net, x, y, eta, steps, 10)
        path = pl_along(net, x, y, run.states, spectrum=True)
        mu = min(value or 0.0 for value in path.lambda_min)
        smooth = 0.0
        for state in run.states:
            net.load_state_dict(state)
            # "mse" is 2/n times L for one output
            smooth = max(smooth, sharpness(net, "mse", x, y, tolerance=1e-3).value * len(x) / 2)
        bound = run.losses[0] * (1 - eta * mu) ** np.arange(len(run.losses))
        below = bool((np.array(run.losses) <= bound * (1 + 1e-9)).all())
        residual = math.sqrt(2 * start.loss)
        reach = solution_radius(residual, lipschitz=math.sqrt(start.lambda_max), mu=mu)
        gone = max(path.distances)
        holds &= below and eta * smooth <= 1 and mu > 0 and gone <= reach
        cells.append([seed, mu, eta, eta * smooth, run.losses[-1] / bound[-1], reach, gone])
    heads = ["seed", "mu on the path", "eta", "eta times smoothness", "last loss / bound", "R", "way gone"]
    return Finding(
        holds,
        "; ".join(f"seed {c[0]}: R = {c[5]:.0f}, gone {c[6]:.2f}" for c in cells),
        f"the loss is under (1 - eta mu)^t L_0 at each of {steps} steps and eta <= 1/smoothness and |w - w_0| <= R "
        "at the looks; R is with the Lipschitz constant at the start; mu is measured on the path, not on the ball",
        setting.seeds,
        tables=[Table(f"Gradient descent under PL*, 40 digits, width {width}", heads, cells)],
        headline=f"The radius that PL* guarantees is {cells[0][5] / cells[0][6]:,.0f} times the way descent goes.",
    )


def certified_ball(setting: Setting) -> Finding:
    """A ball proven to hold a solution, on orthogonal inputs; the same recipe on digits, which gives none."""
    holds, cells = True, []
    for seed in setting.seeds:
        for width in (64, 1024, 4096):
            x = torch.eye(3, 4, dtype=torch.float64) * 2
            draws = seeds.generator(seed, "landscape", "certified", width)
            net = nets.MLP(4, 1, width=width, depth=1, activation="tanh", gain=False, generator=draws)
            net = net.double()
            y = net(x).detach() + 0.1
            found = uniform_conditioning(net, x, y, radius=None)
            reached, gone = math.nan, math.nan
            if found.solution_inside:
                before = state_of(net)
                assert found.step is not None
                assert found.rate is not None
                run = descent(net, x, y, found.step, 60, 3)
                bound = run.losses[0] * found.rate ** np.arange(len(run.losses))
                after = state_of(net)
                gone = math.sqrt(sum(float((after[k] - before[k]).square().sum()) for k in before))
                reached = run.losses[-1]
                assert found.solution_radius is not None
                holds &= bool((np.array(run.losses) <= bound + 1e-25).all())
                holds &= gone <= found.solution_radius
            cells.append(
                [seed, "orthogonal", width, found.lambda_0, found.mu, found.radius, gone, found.rate, reached]
            )
        holds &= bool(cells[-1][4]) and not math.isnan(float(cells[-1][6]))
        x, y = two_digits(setting, 40, seed)
        found = uniform_conditioning(tanh_net(x.shape[1], 4096, seed), x, y, radius=1.0)
        cells.append([seed, "digits", 4096, found.lambda_0, found.mu, found.radius, None, found.rate, None])
    heads = ["seed", "inputs", "width", "lambda_0", "mu", "radius", "way gone", "rate", "last loss"]
    wide = cells[2]
    return Finding(
        holds,
        f"width 4096, 3 orthogonal inputs: mu = {wide[4]:.3g} on radius {wide[5]:.3g}, gone {wide[6]:.2g}; 40 digits: "
        f"mu {'none' if cells[3][4] is None else format(cells[3][4], '.2g')} on radius 1",
        "holds where the widest net is certified, and its losses and its way obey what was certified; targets 0.1 "
        "off the outputs; a mu of none means that the bound gives nothing there",
        setting.seeds,
        tables=[Table("Balls certified by the analytic bound of the Hessian", heads, cells)],
    )


class _Product(nn.Module):
    """F(w) = w_1 w_2: K = |w|^2, zero at the origin."""

    def __init__(self, a: float, b: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.w.prod()).reshape(-1, 1)


def point_is_a_ball(setting: Setting) -> Finding:
    """The ratio at one point holds on a ball: refuted by F = w_1 w_2, and by a narrow net along its path."""
    one, goal = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), -1.0, dtype=torch.float64)
    at_point = pl_ratio(_Product(1.0, 1.0), one, goal).ratio
    on_ball = pl_ratio(_Product(0.0, 0.0), one, goal).ratio  # at distance sqrt(2)
    found = uniform_conditioning(_Product(1.0, 1.0), one, radius=1.5, points=5)
    cells, kept = [["F = w_1 w_2", "", at_point, on_ball]], on_ball >= at_point
    for seed in setting.seeds:
        x, y = two_digits(setting, 40, seed)
        for width in (20, 400):
            net = tanh_net(x.shape[1], width, seed)
            start = pl_ratio(net, x, y)
            run = descent(net, x, y, 1 / (1.5 * (start.lambda_max or 1.0)), setting.pick(500, 2000, 8000), 8)
            path = pl_along(net, x, y, run.states)
            kept &= (path.constant or 0.0) >= start.ratio
            cells.append([f"net of width {width}", seed, start.ratio, path.constant])
    return Finding(
        bool(kept),
        f"F = w_1 w_2: ratio {at_point:g} at (1, 1), {on_ball:g} at (0, 0); sampled on the ball, mu "
        f"{'none' if found.mu is None else format(found.mu, '.2g')}; net of width 20: {cells[1][2]:.3g} at the start, "
        f"{cells[1][3]:.2g} on its path",
        "a ratio at one point bounds mu from above only",
        setting.seeds,
        tables=[Table("PL* ratio at the start against its minimum", ["", "seed", "start", "minimum"], cells)],
    )


def relaxed(setting: Setting) -> Finding:
    """PL*_epsilon: with fewer parameters than equations descent reaches epsilon at the rate of mu_epsilon."""
    holds, cells = True, []
    for seed in setting.at_least(3):
        x = gaussian(30, 28, seed, normalised=False)
        y = gaussian(30, 1, seed + 1000, normalised=False)
        net = nn.Linear(28, 1, bias=False).double()
        top = float(torch.linalg.eigvalsh(x @ x.T)[-1])
        best = float((y - x @ torch.linalg.lstsq(x, y).solution).square().sum()) / 2
        epsilon = 1.5 * best
        steps, limit = setting.pick(4000, 20000, 100000), setting.pick(100_000, 400_000, 2_000_000)
        while True:  # until epsilon is met, or the steps that the bound allows are over
            with torch.no_grad():
                net.weight.zero_()
            run = descent(net, x, y, 1 / top, steps, 200, until=epsilon)
            path = pl_along(net, x, y, run.states, epsilon=epsilon)
            rate = 1 - (path.constant or 0.0) / top
            late = math.log(run.losses[0] / epsilon) / -math.log(rate) if rate < 1 else math.inf
            if run.losses[-1] <= epsilon or steps > late:
                break
            if late > limit:
                raise SkippedError(
                    f"seed {seed}: epsilon is not met in {steps} steps, and the bound allows {late:.0f}, over the "
                    f"{limit} of size {setting.size}"
                )
            steps = math.ceil(late) + 1
        ends = pl_ratio(net, x, y)
        reached = run.losses[-1] <= epsilon
        holds &= reached and len(run.losses) - 1 <= late + 1 and ends.lambda_min == 0.0
        cells.append([seed, ends.lambda_min, epsilon, path.constant, len(run.losses) - 1, late])
    heads = ["seed", "lambda_min", "epsilon", "mu_epsilon on the path", "steps to epsilon", "bound"]
    return Finding(
        holds,
        "; ".join(f"seed {c[0]}: {c[4]} steps, bound {c[5]:.0f}" for c in cells),
        "30 equations, 28 parameters: lambda_min = 0, no solution; epsilon is 1.5 times the smallest loss; "
        "descent may take the steps of the bound",
        setting.at_least(3),
        tables=[Table("Relaxed PL* on a system with no solution", heads, cells)],
    )


def sgd_step_bound(setting: Setting) -> Finding:
    """E L(w+) <= (1 - mu s eta / n) L(w) for every residual: the exact expectation's largest eigenvalue."""
    worst, cells = -math.inf, []
    for seed in setting.at_least(3):
        for n, p in ((8, 12), (20, 40)):
            x = gaussian(n, p, seed, normalised=False) * torch.logspace(0, -0.5, p, dtype=torch.float64)
            K = x @ x.T
            beta, mu = float(x.square().sum(1).max()), float(torch.linalg.eigvalsh(K)[0])
            for s in (1, 2, 4, 8, 16, 32):
                eta = pl_sgd_step(mu, beta, samples=n, batch=s)
                gap = _largest_factor(K, eta, s) - pl_sgd_rate(mu, eta, samples=n, batch=s)
                break_at = _breaking(K, mu, s)
                worst = max(worst, gap)
                cells.append([seed, n, s, eta, gap, break_at / eta])
    heads = ["seed", "n", "batch", "step", "factor - bound", "largest step that keeps it / this step"]
    least = min(float(c[5]) for c in cells)
    return Finding(
        worst <= 1e-12 and least >= 1,
        f"largest factor minus bound {worst:.1e}; the inequality breaks from {least:.3g} times the step on",
        "the expectation over batches with replacement is written out; holds where it is not above the bound",
        setting.at_least(3),
        tables=[Table("One step of SGD under PL*, linear systems", heads, cells)],
    )


def _largest_factor(K: torch.Tensor, eta: float, s: int) -> float:
    """Return max over r of E|r+|^2 / |r|^2, r+ = (I - eta K D) r, D the counts of s draws of n."""
    n = len(K)
    second = (K @ K) * (s * (s - 1) / n**2 + torch.diag(torch.full((n,), s / n, dtype=K.dtype)))
    mean = torch.eye(n, dtype=K.dtype) - 2 * eta * s / n * K + eta**2 * second
    return float(torch.linalg.eigvalsh(mean)[-1])


def _breaking(K: torch.Tensor, mu: float, s: int) -> float:
    """Return the largest step at which E L(w+) <= (1 - mu s eta / n) L(w) still holds, by bisection."""
    low, high = 0.0, 4 / float(K.diagonal().min())
    for _ in range(60):
        middle = (low + high) / 2
        fits = _largest_factor(K, middle, s) <= 1 - mu * s * middle / len(K) + 1e-15
        low, high = (middle, high) if fits else (low, middle)
    return low


class _Through(nn.Module):
    """phi(F), phi(z) = z + 0.5 sin(z + 1): slope between 0.5 and 1.5."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.inner(x)
        return f + 0.5 * torch.sin(f + 1)


def output_transform(setting: Setting) -> Finding:
    """lambda_min of phi(F) is at least rho^2 lambda_min of F, though its kernel changes at any width."""
    holds, cells = True, []
    for seed in setting.seeds:
        x, y = two_digits(setting, 20, seed)
        changes = {}
        for width in (100, 1600):
            net = tanh_net(x.shape[1], width, seed)
            both = _Through(net)
            start = pl_ratio(both, x, y)
            run = descent(both, x, y, 1 / (2 * (start.lambda_max or 1.0)), setting.pick(500, 2000, 8000), 6)
            least = math.inf
            for state in run.states:
                both.load_state_dict(state)
                outer, inner = pl_ratio(both, x, y), pl_ratio(net, x, y)
                assert inner.lambda_min is not None
                assert outer.lambda_min is not None
                low = transformed_pl(inner.lambda_min, 0.5)
                least = min(least, outer.lambda_min / low)
            both.load_state_dict(run.states[0])
            moved = kernel_change(both, x, run.states).largest
            inner_states = [{k.removeprefix("inner."): v for k, v in s.items()} for s in run.states]
            plain = kernel_change(net, x, inner_states).largest
            changes[width] = (moved, plain)
            holds &= least >= 1 - 1e-9 and run.losses[-1] < run.losses[0] / 4
            cells.append([seed, width, least, moved, plain, run.losses[0], run.losses[-1]])
        holds &= changes[1600][0] > 0.1 and changes[1600][0] > 3 * changes[1600][1]
    heads = ["seed", "width", "lambda_min / (rho^2 lambda_min F)", "change of K", "of K of F", "first loss"]
    return Finding(
        holds,
        f"smallest quotient {min(float(c[2]) for c in cells):.3g} (at least 1); at width 1600 the kernel changes by "
        f"{cells[1][3]:.0%}, that of F by {cells[1][4]:.1%}",
        "rho = 0.5; holds where the bound does at every look, the loss falls to a quarter, and at width 1600 the "
        "kernel of phi(F) still changes by over 10 % and thrice as much as that of F",
        setting.seeds,
        tables=[Table("A non-linear output on a wide net, 20 digits", [*heads, "last loss"], cells)],
    )
