"""The claims of `aiming` on least squares, where every expectation can be written out."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from wideangle import seeds
from wideangle.curvature import aiming
from wideangle.curvature.landscape import batch_smoothness, iterations, sgd_step
from wideangle.document import Figure, Series, Table
from wideangle.papers._descents import slope_of
from wideangle.papers._frame import Finding, Setting
from wideangle.papers._samples import gaussian

_TARGET = 1e-6  # of the squared distance at the start


def two(setting: Setting) -> Finding:
    """The ratio is 2 for every least-squares problem, whatever the point, the shape and the conditioning."""
    worst, cells = 0.0, []
    for seed in setting.at_least(3):
        for n, d, decay in ((5, 20, 0.0), (20, 20, 1.0), (30, 60, 2.0), (30, 10, 1.0)):
            x = gaussian(n, d, seed, normalised=False) * torch.logspace(0, -decay, d, dtype=torch.float64)
            net = nn.Linear(d, 1, bias=False).double()
            with torch.no_grad():
                net.weight.copy_(gaussian(1, d, seed + 1, normalised=False))
            y = x @ gaussian(1, d, seed + 2, normalised=False).T  # can be met, also where n > d
            found = aiming(net, x, y)
            worst = max(worst, abs(found.theta - 2))
            cells.append([seed, n, d, found.theta - 2, found.steps, found.distance])
    return Finding(
        worst < 1e-10,
        f"largest |theta - 2| {worst:.1e} over {len(cells)} problems",
        "holds below 1e-10; the projection by minimum-norm steps through the tangent kernel",
        setting.at_least(3),
        tables=[Table("Least squares", ["seed", "n", "d", "theta - 2", "steps", "distance"], cells)],
    )


def _problem(n: int, d: int, ratio: float, seed: int) -> Tensor:
    """Return samples whose H = X^T X / n has eigenvalues from 1 to 1/ratio, evenly in the logarithm, rotated."""
    draws = seeds.generator(seed, "aiming", "design", n, d)
    left = torch.linalg.qr(torch.randn(n, n, generator=draws, dtype=torch.float64))[0][:, :d]
    right = torch.linalg.qr(torch.randn(d, d, generator=draws, dtype=torch.float64))[0]
    values = torch.logspace(0, -math.log10(ratio), d, dtype=torch.float64)
    return math.sqrt(n) * left @ torch.diag(values.sqrt()) @ right.T


def _fourth(x: Tensor) -> Tensor:
    """Return (1/n) sum |x_i|^2 x_i x_i^T."""
    return (x.T * x.square().sum(1)) @ x / len(x)


def one_step(setting: Setting) -> Finding:
    """E dist^2(w+) <= (1 - eta alpha (theta - beta eta)) dist^2, by the largest eigenvalue of the expectation."""
    worst, cells, gradients = -math.inf, [], -math.inf
    for seed in setting.at_least(3):
        for ratio in (3.0, 30.0, 300.0):
            x = _problem(12, 8, ratio, seed)
            H, eye = x.T @ x / 12, torch.eye(8, dtype=torch.float64)
            values = torch.linalg.eigvalsh(H)
            alpha, beta = float(values[0]), float(x.square().sum(1).max())
            for batch in (1, 4, 16):
                smooth = batch_smoothness(beta, float(values[-1]), batch)
                second = _fourth(x) / batch + (batch - 1) / batch * H @ H
                # E|g|^2 <= 2 beta_b L: the largest quotient of the two forms
                root = torch.linalg.inv(torch.linalg.cholesky(H))
                excess = float(torch.linalg.eigvalsh(root @ second @ root.T)[-1]) - smooth
                gradients = max(gradients, excess)
                for share in (0.5, 1.0, 1.9):
                    eta = share * sgd_step(2.0, smooth)
                    factor = float(torch.linalg.eigvalsh(eye - 2 * eta * H + eta**2 * second)[-1])
                    bound = 1 - eta * alpha * (2 - smooth * eta)
                    worst = max(worst, factor - bound)
                    cells.append([seed, beta / alpha, batch, share, 1 - factor, 1 - bound])
    heads = ["seed", "beta / alpha", "batch", "eta / (theta / 2 beta)", "1 - factor", "1 - bound"]
    return Finding(
        worst <= 1e-12 and gradients <= 1e-9,
        f"largest factor minus bound {worst:.1e}; largest E|g_b|^2 / (2 L) minus beta_b {gradients:.1e}",
        "expectation over samples written out; batches of independent draws with beta_b",
        setting.at_least(3),
        tables=[Table("One step of SGD on least squares", heads, cells)],
    )


def _operator(x: Tensor, eta: float) -> Tensor:
    """Return E[(I - eta x x^T) (x) (I - eta x x^T)], which maps E e e^T to the next one, flattened."""
    d = x.shape[1]
    steps = torch.eye(d, dtype=x.dtype) - eta * x[:, :, None] * x[:, None, :]
    return torch.einsum("iab,icd->acbd", steps, steps).reshape(d * d, d * d) / len(x)


def _first_below(operator: Tensor, start: Tensor, target: float) -> int:
    """Return the first t with trace(operator^t start) <= target * trace(start), by doubling and descent."""
    d = round(math.sqrt(len(start)))
    rows = torch.eye(d, dtype=start.dtype).reshape(-1)
    goal = target * float(rows @ start)
    powers = [operator]
    while float(rows @ (powers[-1] @ start)) > goal:
        powers.append(powers[-1] @ powers[-1])
        if len(powers) > 60:
            return 2**60
    t, now = 0, start
    for k in range(len(powers) - 1, -1, -1):
        ahead = powers[k] @ now
        if float(rows @ ahead) > goal:
            t, now = t + 2**k, ahead
    return t + 1


def complexity(setting: Setting) -> Finding:
    """T(epsilon) of SGD at theta / (2 beta) and of gradient descent grow like beta/alpha, of PL steps squared.

    The two differ by the factor 2 beta / beta_L, beta_L the smoothness of the mean loss: at most 2 n.
    """
    ratios = [10.0, 1e2, 1e3, 1e4]
    cells, slopes, holds, lines, apart = [], [], True, [], []
    for seed in setting.at_least(3):
        rows: list[list[float]] = []
        for ratio in ratios:
            x = _problem(10, 8, ratio, seed)
            H = x.T @ x / 10
            values = torch.linalg.eigvalsh(H)
            alpha, top, beta = float(values[0]), float(values[-1]), float(x.square().sum(1).max())
            # start in the worst direction: nothing else decides the worst case
            worst = torch.linalg.eigh(H).eigenvectors[:, 0]
            start = torch.outer(worst, worst).reshape(-1)
            mean = torch.eye(8, dtype=torch.float64) - H / top
            times = [
                _first_below(_operator(x, sgd_step(2.0, beta)), start, _TARGET),
                _first_below(torch.kron(mean, mean), start, _TARGET),
                _first_below(_operator(x, alpha / beta**2), start, _TARGET),
            ]
            bound = iterations(_TARGET, 1.0, growth=alpha, beta=beta)
            apart.append((times[0] / times[1], beta / top))
            holds &= times[0] <= bound and apart[-1][0] <= 2 * len(x)
            rows.append([beta / alpha, *(float(t) for t in times)])
            cells.append([seed, beta / alpha, top / alpha, *times, bound, *apart[-1]])
        base = [row[0] for row in rows]
        slopes.append([slope_of(base, [row[k] for row in rows]) for k in (1, 2, 3)])
        lines = [
            Series(name, base, [row[k] for row in rows])
            for k, name in ((1, "SGD, theta / (2 beta)"), (2, "gradient descent"), (3, "SGD, alpha / beta^2"))
        ]
    low, high = np.array(slopes).min(0), np.array(slopes).max(0)
    fits = [max(abs(low[k] - goal), abs(high[k] - goal)) < 0.15 for k, goal in enumerate((1, 1, 2))]
    heads = [
        "seed",
        "beta / alpha",
        "beta_L / alpha",
        "SGD",
        "gradient descent",
        "SGD with PL step",
        "bound of SGD",
        "SGD / gradient descent",
        "beta / beta_L",
    ]
    return Finding(
        holds and all(fits),
        f"slopes: SGD {low[0]:.2f} to {high[0]:.2f}, gradient descent {low[1]:.2f} to {high[1]:.2f}, PL steps "
        f"{low[2]:.2f} to {high[2]:.2f}; SGD takes {min(a for a, _ in apart):.1f} to {max(a for a, _ in apart):.1f} "
        f"times the steps of gradient descent, beta / beta_L {min(b for _, b in apart):.1f} to "
        f"{max(b for _, b in apart):.1f}",
        "steps until E dist^2 is a millionth, exact from the expectation operator; holds where slopes are 1, 1 and 2 "
        "within 0.15, SGD is within its bound and within 2 n = 20 times gradient descent (beta <= n beta_L)",
        setting.at_least(3),
        figures=[Figure("Steps against conditioning", "beta / alpha", "steps", lines, True, True)],
        tables=[Table("Steps to a millionth of dist^2", heads, cells)],
        headline=f"SGD at theta / (2 beta) needs steps like (beta/alpha)^{np.mean(slopes, axis=0)[0]:.2f}, with the "
        f"step that PL alone allows like (beta/alpha)^{np.mean(slopes, axis=0)[2]:.2f}.",
    )
