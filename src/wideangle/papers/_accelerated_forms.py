"""The claims of `accelerated` on one eigen-direction at a time: roots, polynomials, worst case, wrong L."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch

from wideangle import seeds
from wideangle.document import Figure, Mark, Series, Table
from wideangle.errors import NumericsError
from wideangle.optim import accelerated
from wideangle.papers._frame import Finding, Setting

METHODS = ("nesterov", "heavy_ball", "chebyshev")
_KAPPAS = (1.5, 10.0, 1e2, 1e4, 1e6)
_KAPPA = 1e4
_CHAPTER = {  # 1 - r of the slowest direction for kappa = 1e4, kappa_hat = 1, 10, ..., 1e6
    "nesterov": [1e-4, 2.1e-4, 5.5e-4, 1.7e-3, 1.0e-2, 3.2e-3, 1.0e-3],
    "heavy_ball": [1e-4, 3.2e-4, 1.0e-3, 3.2e-3, 2.0e-2, 6.3e-3, 2.0e-3],
}


def _shares(kappa_hat: float) -> np.ndarray:
    """Return s on both sides of the cut-off, the cut-off and the ends included."""
    inside = np.geomspace(1e-3 / kappa_hat, 1.0, 60)
    return np.unique(np.clip([*inside, 1 / kappa_hat, 1.0], 0, 1))


def _momentum(kappa_hat: float, method: str) -> tuple[float, float]:
    """Return the momentum and the step in units of 1 / L of a stationary method."""
    k = math.sqrt(kappa_hat)
    gamma = (k - 1) / (k + 1)
    return (gamma, 1.0) if method == "nesterov" else (gamma**2, 4 * kappa_hat / (k + 1) ** 2)


def roots(setting: Setting) -> Finding:
    """The largest root of the 2 x 2 recurrence is r(s); at the cut-off it is a double one."""
    cells, away, double = [], 0.0, 0.0
    for method, kappa_hat in product(("nesterov", "heavy_ball"), _KAPPAS):
        momentum, step = _momentum(kappa_hat, method)
        s = _shares(kappa_hat)
        if method == "nesterov":
            middle, last = (1 + momentum) * (1 - s), momentum * (1 - s)
        else:
            middle, last = 1 + momentum - step * s, np.full_like(s, momentum)
        matrices = np.zeros((len(s), 2, 2))
        matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 0] = middle, -last, 1
        largest = abs(np.linalg.eigvals(matrices)).max(1)
        off = abs(largest - accelerated.convergence_factor(s, kappa_hat, method))
        twice = (abs(s * kappa_hat - 1) < 1e-3) | ((method == "heavy_ball") & (s > 0.999))
        away, double = max(away, float(off[~twice].max())), max(double, float(off[twice].max()))
        cells.append([method, kappa_hat, float(off[~twice].max()), float(off[twice].max())])
    return Finding(
        away < 1e-9 and double < 1e-6,
        f"largest difference {away:.1e}, at double roots {double:.1e}",
        "62 eigenvalues for each of 5 kappa_hat; holds below 1e-9, and 1e-6 at double roots (s = 1/kappa_hat; for the "
        "heavy ball also s = 1)",
        tables=[Table("|largest root| - r(s)", ["method", "kappa_hat", "away", "double roots"], cells)],
    )


def course(s: np.ndarray, kappa_hat: float, method: str, steps: int) -> np.ndarray:
    """Return the errors of directions s after 0..steps steps, by the algorithms as they are written."""
    before = now = np.ones_like(s)
    rows = [now]
    theta, d = (1 + 1 / kappa_hat) / 2, (1 - 1 / kappa_hat) / 2
    rho = d / theta
    momentum, step = _momentum(kappa_hat, method)
    for t in range(steps):
        if method == "nesterov":
            u = now + momentum * (now - before)
            ahead = u - s * u
        elif method == "heavy_ball":
            ahead = now - step * s * now + momentum * (now - before)
        elif t == 0:
            ahead = now - s * now / theta
        else:
            new = 1 / (2 * theta / d - rho)
            ahead = now + new * rho * (now - before) - 2 * new / d * s * now
            rho = new
        before, now = now, ahead
        rows.append(now)
    return np.array(rows)


def polynomials(setting: Setting) -> Finding:
    """The closed forms of e_t are what the recurrences give, and do not overflow at large t."""
    cells, worst, t = [], 0.0, np.arange(51)[:, None]
    for method, kappa_hat in product(METHODS, _KAPPAS):
        s = _shares(kappa_hat)
        true = course(s, kappa_hat, method, 50)
        size = np.maximum(abs(true), accelerated.convergence_factor(s, kappa_hat, method) ** t)
        # below 1e-200 the powers themselves are lost
        off = abs(accelerated.residual_polynomial(s, t, kappa_hat, method) - true) / np.maximum(size, 1e-200)
        worst = max(worst, float(off.max()))
        cells.append([method, kappa_hat, float(off.max())])
    far = accelerated.residual_polynomial(_shares(1e4), 10**9, 1e4, "chebyshev")
    with np.errstate(over="ignore", invalid="ignore"):
        x, t_far = (1e4 + 1) / (1e4 - 1), np.arange(1, 50_000)
        naive = np.cosh(t_far * math.acosh(x))
    lost = int(t_far[~np.isfinite(naive)][0])
    return Finding(
        worst < 1e-10 and bool(np.isfinite(far).all()),
        f"largest relative difference {worst:.1e} for t <= 50; finite at t = 10^9",
        f"relative to max(|e_t|, r^t); written as T_t(x) / T_t(x_0), T_t(x_0) overflows from t = {lost:,} at kappa_hat "
        "= 10^4",
        tables=[Table("Closed form against recurrence", ["method", "kappa_hat", "difference"], cells)],
    )


def worst_case(setting: Setting) -> Finding:
    """The slowest direction for kappa = 1e4 and kappa_hat from 1 to 1e6: 1 - r rises to kappa and falls after."""
    guesses = np.logspace(0, 6, 7)
    fine = np.geomspace(1.001, 1e8, 2001)
    cells, agree, unimodal, lines, tops = [], True, True, [], []
    s = np.geomspace(1 / _KAPPA, 1, 4001)
    found = {}
    for method in ("nesterov", "heavy_ball"):
        found[method] = accelerated.worst_case(_KAPPA, guesses, method)
        agree &= all(f"{v:.1e}" == f"{w:.1e}" for v, w in zip(found[method], _CHAPTER[method], strict=True))
        slowest = np.array([1 - accelerated.convergence_factor(s, g, method).max() for g in guesses])
        agree &= bool(np.allclose(slowest, found[method], rtol=1e-6))
        many = accelerated.worst_case(_KAPPA, fine, method)
        rises = np.diff(many) > 0
        unimodal &= bool(rises[: int(rises.sum())].all())
        tops.append(float(fine[many.argmax()]))
        lines.append(Series(method, fine.tolist(), many.tolist()))
    lines.append(Series("gradient descent", [1.0, 1e8], [1 / _KAPPA] * 2, "dashed"))
    for k, guess in enumerate(guesses):
        row = [found[m][k] for m in ("nesterov", "heavy_ball")]
        cells.append([guess, *map(float, row), 1 / _KAPPA])
    near = all(abs(math.log(top / _KAPPA)) < 0.02 for top in tops)
    return Finding(
        agree and unimodal and near,
        "1 - r for kappa_hat = 1, 10, ..., 10^6: nesterov "
        + ", ".join(f"{v:.1e}" for v in found["nesterov"])
        + "; heavy ball "
        + ", ".join(f"{v:.1e}" for v in found["heavy_ball"]),
        f"one maximum, at kappa_hat = {tops[0]:.4g} and {tops[1]:.4g}; equal to a search over 4,001 directions; the "
        "derived table to its two digits",
        figures=[
            Figure(
                "Worst case when kappa = 10^4 and kappa_hat is assumed",
                "kappa_hat",
                "1 - r of the slowest direction",
                lines,
                True,
                True,
                [Mark(_KAPPA, "kappa")],
                "Too small and too large both cost a factor of sqrt(kappa_hat / kappa) at most twice over.",
            )
        ],
        tables=[
            Table(
                "Slowest direction, kappa = 10^4",
                ["kappa_hat", "nesterov", "heavy ball, Chebyshev", "gradient descent"],
                cells,
            )
        ],
        headline=f"A condition number of 10^4 taken for 10^6 or 10^2 leaves {found['nesterov'][6]:.1e} or "
        f"{found['nesterov'][2]:.1e} a step (nesterov), gradient descent {1 / _KAPPA:.0e}.",
    )


def rate_of_the_loss(setting: Setting) -> Finding:
    """kappa_hat = kappa: the error falls like 1 - 1/sqrt(kappa), the loss like its square."""
    cells, apart = [], 0.0
    for kappa in (1e2, 1e3, 1e4):
        values = torch.logspace(0, -math.log10(kappa), 40, dtype=torch.float64)
        losses: list[float] = []

        def look(t: int, r: torch.Tensor, values: torch.Tensor = values, kept: list[float] = losses) -> None:
            kept.append(float((r.square() / values).sum()) / 2)

        steps = round(6 * math.sqrt(kappa))
        accelerated.solve_quadratic(torch.diag(values), torch.ones(40), 1.0, kappa, steps=steps, watch=look)
        # at the double root e_t = (1 + t (1 - r)) r^t: what stands before r^t is divided out
        late, early = (losses[t] / (1 + t / math.sqrt(kappa)) ** 2 for t in (steps, steps // 2))
        rate = -math.log(late / early) / (steps - steps // 2)
        want = -2 * math.log1p(-1 / math.sqrt(kappa))
        apart = max(apart, abs(rate / want - 1))
        cells.append([kappa, rate, want, want / 2, 2 * -math.log1p(-1 / kappa)])
    heads = ["kappa", "measured", "2 / sqrt(kappa)", "usual bound", "gradient descent"]
    return Finding(
        apart < 0.1,
        ", ".join(f"kappa = {c[0]:g}: {c[1] / c[3]:.2f} times the usual exponent" for c in cells),
        "nesterov; -d log(loss) / dt, the factor (1 + t / sqrt(kappa))^2 of the double root divided out; holds within "
        "10 % of twice the usual bound's exponent, 1/sqrt(kappa)",
        tables=[Table("Exponent of the loss", heads, cells)],
    )


def below_cut_off(setting: Setting) -> Finding:
    """1 - r >= (k + 1)/2 s (nesterov), k s (heavy ball, Chebyshev), equal as s tends to 0."""
    cells, holds, limit = [], True, 0.0
    for kappa_hat in (4.0, 1e2, 1e4, 1e6):
        k = math.sqrt(kappa_hat)
        kappa = kappa_hat * np.geomspace(1.0, 1e6, 200)
        for method, gain in (("nesterov", (k + 1) / 2), ("heavy_ball", k)):
            ratio = accelerated.worst_case(kappa, kappa_hat, method) * kappa
            holds &= bool((ratio >= gain * (1 - 1e-9)).all())
            limit = max(limit, abs(float(ratio[-1]) / gain - 1))
            cells.append([method, kappa_hat, gain, float(ratio.min()), float(ratio.max())])
    heads = ["method", "kappa_hat", "gain promised", "least", "largest (at the cut-off)"]
    return Finding(
        holds and limit < 1e-3,
        f"never below; at lambda = 10^-6 of the cut-off equal within {limit:.1e}",
        "gain over gradient descent's 1 - r = lambda / L, for kappa_hat = 4 to 10^6",
        tables=[Table("Gain over gradient descent below the cut-off", heads, cells)],
    )


def transient(setting: Setting) -> Finding:
    """At the cut-off the error has a factor t before r^t; Chebyshev has none; heavy ball is not monotone."""
    kappa_hat, cells, holds = 1e4, [], True
    steps = np.arange(0, 2001)
    lines = []
    for method in METHODS:
        r = float(accelerated.convergence_factor(1 / kappa_hat, kappa_hat, method))
        left = abs(accelerated.residual_polynomial(1 / kappa_hat, steps, kappa_hat, method))
        factor = left[1000] / r**1000
        want = 2.0 if method == "chebyshev" else 1 + 1000 * (1 - r)
        top = float(abs(accelerated.residual_polynomial(1.0, steps, kappa_hat, method)).max())
        grows = method == "heavy_ball"
        holds &= abs(factor / want - 1) < 1e-6 and (top > 10) == grows
        cells.append([method, r, float(factor), want, top])
        lines.append(Series(method, [float(t) for t in steps], left.tolist()))
    heads = ["method", "r", "e_t / r^t at t = 1,000", "closed form", "largest |e_t(1)|"]
    return Finding(
        holds,
        "; ".join(f"{c[0]}: e_t = {c[2]:.1f} r^t at t = 1,000, largest |e_t(1)| {c[4]:.3g}" for c in cells),
        "kappa_hat = 10^4; 1 + t (1 - r) for nesterov and heavy ball, 2 for Chebyshev; the heavy ball's loss rises by "
        "orders of magnitude first where the largest eigenvalue carries it",
        figures=[Figure("At the cut-off", "steps", "|e_t|", lines, y_log=True)],
        tables=[Table("Transient", heads, cells)],
    )


def null_space(setting: Setting) -> Finding:
    """Components of w in the null space of H stay where they started, whatever kappa_hat."""
    cells, worst, steps = [], 0.0, 1000
    for seed in setting.seeds:
        draws = seeds.generator(seed, "accelerated", "null space")
        vectors = torch.linalg.qr(torch.randn(30, 30, generator=draws, dtype=torch.float64))[0]
        values = torch.cat([torch.logspace(0, -3, 20), torch.zeros(10)]).double()
        start, solution = torch.randn(2, 30, generator=draws, dtype=torch.float64)
        H = vectors @ torch.diag(values) @ vectors.T
        inverse = vectors[:, :20].T / values[:20, None]
        for method, kappa_hat in product(METHODS, (1.5, 1e3, 1e9)):
            sizes: list[float] = []

            def look(
                t: int, r: torch.Tensor, kept: list[float] = sizes, inverse: torch.Tensor = inverse
            ) -> None:
                kept.append(float((inverse @ r).norm()))

            run = accelerated.solve_quadratic(
                H, H @ solution, 1.0, kappa_hat, method, steps=steps, start=start, watch=look
            )
            moved = (vectors.T @ (torch.as_tensor(run.solution) - start))[20:].norm()
            # a rounding error a step, each carried on for up to as many steps
            rounding = steps**2 * np.finfo(float).eps * max(sizes)
            worst = max(worst, float(moved) / rounding)
            cells.append(
                [seed, method, kappa_hat, float(moved / start.norm()), max(sizes), run.relative_residual]
            )
    heads = ["seed", "method", "kappa_hat", "moved / |w_0|", "largest |w_t - w*|", "|residual| / |b|"]
    return Finding(
        worst < 1,
        f"moved by at most {max(c[3] for c in cells):.1e} of |w_0| in 1,000 steps, {worst:.1e} of what rounding allows",
        "rank 20 of 30, kappa = 10^3 on the range; holds below t^2 eps max |w_t - w*|; large where kappa_hat = 10^9 "
        "makes the heavy ball swing far beyond its start",
        setting.seeds,
        tables=[Table("Singular H", heads, cells)],
    )


def small_smoothness(setting: Setting) -> Finding:
    """An L a few per cent too small, as power iteration gives it, will do for every method."""
    values = torch.logspace(0, -3, 40, dtype=torch.float64)
    cells = []
    for method, share in product(METHODS, (1.01, 0.97, 0.8, 0.7)):
        try:
            run = accelerated.solve_quadratic(
                torch.diag(values), torch.ones(40), share, 1e3, method, steps=3000
            )
            cells.append([method, share, run.relative_residual, ""])
        except NumericsError as error:
            cells.append([method, share, math.inf, str(error).split(":")[0]])
    fails = [c for c in cells if not c[2] < 1 and c[1] in (0.97, 0.8)]
    bears = all(c[2] < 1 for c in cells if c[0] == "nesterov" and c[1] >= 0.8)
    return Finding(
        not fails,
        f"L at 0.97 or 0.8 of lambda_max: {len(fails)} of 6 runs diverge ({', '.join(sorted({c[0] for c in fails}))}); "
        f"nesterov {'bears both' if bears else 'does not bear them'}",
        "lambda_max = 1, kappa = kappa_hat = 10^3, 3,000 steps; heavy ball and Chebyshev are stable up to L (1 + "
        "1/kappa_hat), nesterov up to about 4/3 L: multiply an estimate by 1.01 to 1.05",
        tables=[Table("L too small", ["method", "L / lambda_max", "|residual| / |b|", "error"], cells)],
    )
