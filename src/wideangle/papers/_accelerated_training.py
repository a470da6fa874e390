"""The claims of `accelerated` about learning: early stopping, full-batch networks, mini-batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wideangle import nets, seeds
from wideangle.data.noise import label_noise
from wideangle.document import Figure, Series, Table
from wideangle.kernel import eigenpairs, factors
from wideangle.kernel.convergence import residual_energies
from wideangle.optim import AcceleratedGradient, accelerated
from wideangle.papers._accelerated_forms import METHODS
from wideangle.papers._accelerated_kernels import gram
from wideangle.papers._frame import Finding, Setting, SkippedError, absent
from wideangle.papers._samples import signs, unit

_GUESSES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


def _one_hot(labels: Tensor) -> Tensor:
    return functional.one_hot(labels, 10).double() - 0.1


def _paths(setting: Setting) -> tuple[list[list], list[str]]:
    """Return rows (data, seed, kappa_hat, times, test errors, accuracies, |r_T| / |r_0|, exact error and accuracy)."""
    return setting.once("accelerated paths", lambda: _measured_paths(setting))


def _measured_paths(setting: Setting) -> tuple[list[list], list[str]]:
    rows, missing = [], []
    for name in ("digits", "mnist"):
        for seed in setting.seeds:
            try:
                train = setting.load(name, setting.pick(300, 500, 2000), seed=seed)
                test = setting.load(name, setting.pick(300, 350, 350), "test", seed=seed)
            except SkippedError:
                missing.append(name)
                break
            labels, _ = label_noise(train.y, 0.2, generator=seeds.generator(seed, "accelerated", "flips"))
            rows += [[name, seed, *row] for row in _path(setting, train.x, labels, test.x, test.y)]
    return rows, missing


def _path(setting: Setting, x: Tensor, labels: Tensor, z: Tensor, truth: Tensor) -> list[list]:
    x, z, y = unit(x), unit(z), _one_hot(labels)
    K, width = gram("Gaussian", x)
    across = gram("Gaussian", x, z, width)[0]
    carry = torch.linalg.solve(K, across.T).T  # predictions from what is fitted of y
    goal, steps = _one_hot(truth), setting.pick(600, 2000, 20_000)
    wanted = set(np.unique(np.geomspace(1, steps, 40).round()).astype(int).tolist())

    def judged(fitted: Tensor) -> tuple[float, float]:
        out = carry @ fitted
        return float((out - goal).square().sum(1).mean()), float((out.argmax(1) == truth).double().mean())

    exact, found = judged(y), []
    for kappa_hat in _GUESSES:
        times: list[int] = []
        scores: list[tuple[float, float]] = []

        def look(
            t: int, r: Tensor, times: list[int] = times, kept: list[tuple[float, float]] = scores
        ) -> None:
            if t in wanted:
                times.append(t)
                kept.append(judged(y - r))

        norms = accelerated.kernel_regression(K, y, kappa_hat, steps=steps, watch=look).residuals
        left = float(np.linalg.norm(norms[-1]) / np.linalg.norm(norms[0]))
        found.append([kappa_hat, times, [s[0] for s in scores], [s[1] for s in scores], left, *exact])
    return found


def early_stopping(setting: Setting) -> Finding:
    """A small kappa_hat regularises: after many steps less of noisy labels is fitted; all can stop in time."""
    rows, missing = _paths(setting)
    cells, stops, orders = [], True, True
    for name, seed, kappa_hat, times, errors, accuracies, left, exact, accuracy in rows:
        best = int(np.argmin(errors))
        stops &= errors[best] < exact
        if 1 < kappa_hat <= (times[-1] / 5) ** 2:  # the row before is of the next smaller kappa_hat
            orders &= left < cells[-1][6]
        cells.append([name, seed, kappa_hat, times[best], errors[best], accuracies[best], left])
        cells[-1] += [errors[-1], exact, accuracy]
    heads = [
        "data",
        "seed",
        "kappa_hat",
        "best step",
        "test error",
        "accuracy",
        "training residual at the end",
    ]
    heads += ["test error at the end", "exact solution", "its accuracy"]
    first = [row for row in rows if row[:2] == rows[0][:2]]
    lines = [Series(f"kappa_hat = {r[2]:g}", [float(t) for t in r[3]], list(r[4])) for r in first]
    lines.append(Series("exact solution", [1.0, float(first[0][3][-1])], [first[0][7]] * 2, "dashed"))
    ends = ", ".join(f"{r[2]:g}: {r[6]:.2f} and {r[4][-1]:.3f}" for r in first)
    return Finding(
        stops and orders,
        f"training residual and test error after {rows[0][3][-1]} steps on {rows[0][0]}: {ends}; exact solution "
        f"{rows[0][7]:.3f}; best step {min(c[4] / c[8] for c in cells):.2f} to "
        f"{max(c[4] / c[8] for c in cells):.2f} of it",
        "Gaussian kernel, 20 % of the training labels flipped, nesterov; squared error summed over ten outputs; holds "
        "where the training residual falls as kappa_hat rises (up to sqrt(kappa_hat) = a fifth of the steps) and every "
        "kappa_hat's best step is below the exact solution. " + absent(missing),
        setting.seeds,
        figures=[Figure(f"Test error along training, {rows[0][0]}", "steps", "test error", lines, True)],
        tables=[Table("Early stopping against kappa_hat", heads, cells)],
    )


def free_choice(setting: Setting) -> Finding:
    """Stopped at its best step, every kappa_hat is as good on test data as gradient descent."""
    rows, missing = _paths(setting)
    cells, apart = [], dict.fromkeys(_GUESSES, 0.0)
    for name, seed in dict.fromkeys((row[0], row[1]) for row in rows):
        own = [min(row[4]) for row in rows if row[:2] == [name, seed]]
        cells.append([name, seed, *own])
        for guess, error in zip(_GUESSES, own, strict=True):
            apart[guess] = max(apart[guess], error / own[0] - 1)
    return Finding(
        max(apart.values()) < 0.05,
        "largest excess over gradient descent: " + ", ".join(f"{k:g}: {v:.1%}" for k, v in apart.items()),
        "best test error along training, as in the claim before; holds within 5 % for every kappa_hat. Where the "
        "cut-off lies below the noise, its directions are fitted together with those of the signal. "
        + absent(missing),
        setting.seeds,
        tables=[Table("Best test error along training", ["data", "seed", *map(str, _GUESSES)], cells)],
    )


def sooner(setting: Setting) -> Finding:
    """A larger kappa_hat reaches the best early-stopped error in fewer steps than gradient descent."""
    rows, missing = _paths(setting)
    cells, gains = [], []
    for name, seed in dict.fromkeys((row[0], row[1]) for row in rows):
        own = [row for row in rows if row[:2] == [name, seed]]
        goal = 1.05 * min(own[0][4])
        first = [next((t for t, e in zip(r[3], r[4], strict=True) if e <= goal), math.inf) for r in own]
        gains.append(first[0] / min(first))
        cells.append([name, seed, *first])
    return Finding(
        min(gains) >= 2,
        f"{min(gains):.1f} to {max(gains):.1f} times fewer steps than gradient descent",
        "first step within 5 % of gradient descent's best test error; holds where the best kappa_hat needs at most "
        "half of gradient descent's steps on every data set and seed. " + absent(missing),
        setting.seeds,
        tables=[Table("Steps to the early-stopped error", ["data", "seed", *map(str, _GUESSES)], cells)],
    )


def regularises(setting: Setting) -> Finding:
    """After 5 sqrt(kappa_hat) steps directions above the cut-off are fitted, those far below it are not."""
    cells, above, below, missing = [], 0.0, 1.0, []
    for name in ("digits", "mnist"):
        try:
            found = setting.load(name, setting.pick(300, 500, 2000))
        except SkippedError:
            missing.append(name)
            continue
        K, y = gram("Gaussian", unit(found.x))[0], signs(found.y)
        spectrum = eigenpairs(K)
        vectors, top = torch.as_tensor(spectrum.vectors), 1.01 * float(spectrum.eigenvalues[0])
        for kappa_hat in (10.0, 100.0, 1e3):
            steps, kept = round(5 * math.sqrt(kappa_hat)), []
            cut = accelerated.cut_off(top, kappa_hat)
            accelerated.kernel_regression(
                K, y, kappa_hat, steps=steps, smoothness=top, watch=lambda t, r, kept=kept: kept.append(r)
            )
            left = abs((vectors.T @ kept[-1]) / (vectors.T @ y)).numpy()
            high, low = spectrum.eigenvalues > 4 * cut, spectrum.eigenvalues < cut / 50
            above = max(above, float(left[high].max()))
            below = min(below, float(left[low].min()) if low.any() else 1.0)
            plain = (1 - spectrum.eigenvalues / top) ** steps
            cells.append(
                [name, kappa_hat, steps, int(high.sum()), float(left[high].max()), float(plain[high].max())]
            )
            cells[-1] += [int(low.sum()), float(left[low].min()) if low.any() else None]
    heads = ["data", "kappa_hat", "steps", "above 4 x cut-off", "largest left", "left by gradient descent"]
    return Finding(
        above < 0.05 and below > 0.9,
        f"at most {above:.1%} left above four times the cut-off, at least {below:.0%} below a fiftieth of it",
        "nesterov, 5 sqrt(kappa_hat) steps, share of each direction's residual that is left; holds below 5 % and above "
        "90 %. " + absent(missing),
        tables=[Table("What is left", [*heads, "below cut-off / 50", "least left"], cells)],
    )


def _closure(optimiser: AcceleratedGradient, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def _trained(
    net: nn.Module, x: Tensor, y: Tensor, lr: float, kappa_hat: float, method: str, steps: int
) -> float:
    """Return the half sum of squares over n after the last step; inf where it is not finite."""
    optimiser = AcceleratedGradient(net.parameters(), lr, kappa_hat, method)
    closure = _closure(optimiser, lambda: (net(x) - y).square().sum() / (2 * len(x)))
    for t in range(steps):
        value = float(closure().detach()) if t % 20 == 0 else 0.0
        if not math.isfinite(value) or value > 1e6:
            return math.inf
        optimiser.step(closure)
    with optimiser.eval_params(), torch.no_grad():
        last = float((net(x) - y).square().sum() / (2 * len(x)))
    return last if math.isfinite(last) else math.inf


def network(setting: Setting) -> Finding:
    """Full-batch training of a small network: kappa_hat from the spectrum at the start beats gradient descent."""
    n, width, steps = setting.pick(60, 100, 500), setting.pick(64, 128, 512), setting.pick(150, 300, 3000)
    cells, wins, near = [], [], []
    for seed in setting.seeds:
        found = setting.load("digits", n, seed=seed)
        x, y = unit(found.x) * 8, signs(found.y)[:, None]

        def net(d: int = x.shape[1], seed: int = seed) -> nn.Module:
            draws = seeds.generator(seed, "accelerated", "net")
            return nets.MLP(d, 1, width=width, depth=2, activation="tanh", generator=draws).double()

        model = net()
        spectrum = eigenpairs(factors(model, x).gram(dtype=torch.float64) / n)
        with torch.no_grad():
            energies = residual_energies(spectrum, (model(x) - y) / math.sqrt(n))
        top = 2 * float(spectrum.eigenvalues[0])  # room: the curvature rises along training
        guess = accelerated.best_kappa_hat(spectrum, steps, coefficients=energies, smoothness=top)
        foretold = float(
            accelerated.predicted_loss(spectrum, steps, guess, coefficients=energies, smoothness=top)
        )
        plain = _trained(net(), x, y, 1 / top, 1.0, "nesterov", steps)
        chosen = _trained(net(), x, y, 1 / top, guess, "nesterov", steps)
        grid = {k: _trained(net(), x, y, 1 / top, k, "nesterov", steps) for k in (10.0, 100.0, 1e3, 1e4)}
        rest = [_trained(net(), x, y, 1 / top, guess, m, steps) for m in METHODS[1:]]
        best = min(plain, chosen, *grid.values())
        wins.append(plain / chosen)
        near.append(chosen / best)
        cells.append([seed, guess, chosen, foretold, plain, *grid.values(), *rest])
    heads = ["seed", "kappa_hat chosen", "loss", "predicted", "gradient descent", "10", "100", "1e3", "1e4"]
    return Finding(
        min(wins) > 1 and max(near) < 2,
        f"loss {min(wins):.3g} to {max(wins):.3g} times below gradient descent's after {steps} steps, at most "
        f"{max(near):.2f} times the best of the grid",
        f"two hidden tanh layers of {width}, {n} digits by parity, lr = 1 / (2 L at the start), nesterov; predicted "
        "from the tangent kernel at the start; holds where the chosen kappa_hat beats gradient descent and is within "
        "twice the best of the grid for every seed",
        setting.seeds,
        tables=[Table("Full-batch training", [*heads, "heavy ball", "Chebyshev"], cells)],
    )


def mini_batches(setting: Setting) -> Finding:
    """The factor holds with mini-batch gradients."""
    cells, worst, exact, warned = [], math.inf, 0.0, 0
    n, batch, steps = 50, 5, setting.pick(300, 1000, 5000)
    for seed in setting.seeds:
        x, y = (lambda s: (unit(s.x), signs(s.y)))(setting.load("digits", n, seed=seed))
        spectrum = eigenpairs(x @ x.T / n)
        top, kappa = float(spectrum.eigenvalues[0]), float(spectrum.eigenvalues[0] / spectrum.eigenvalues[-1])
        finals = {}
        for name, kappa_hat, rows in (
            ("full batch, nesterov", kappa, n),
            ("full batch, gradient descent", 1.0, n),
            ("mini-batches, nesterov", kappa, batch),
            ("mini-batches, SGD", 1.0, batch),
        ):
            finals[name], seen = _least_squares(x, y, 1 / top, kappa_hat, rows, steps, seed)
            warned += seen and rows == batch
        promised = (
            float(
                accelerated.predicted_loss(
                    spectrum, steps, kappa, coefficients=residual_energies(spectrum, y / math.sqrt(n))
                )
            )
            * 2
        )
        exact = max(exact, abs(finals["full batch, nesterov"] / promised - 1))
        worst = min(worst, finals["mini-batches, nesterov"] / finals["full batch, nesterov"])
        cells.append([seed, kappa, *finals.values(), promised])
    heads = [
        "seed",
        "kappa",
        "full batch, nesterov",
        "full batch, gradient descent",
        "mini-batches, nesterov",
    ]
    heads += ["mini-batches, SGD, same step", "closed form"]
    runs = 2 * len(setting.seeds)
    return Finding(
        worst < 10,
        f"after {steps} steps the loss with batches of {batch} is {_times(worst)} that of the full batch; "
        f"AcceleratedGradient warned in {warned} of {runs} mini-batch runs",
        f"the full batch keeps the closed form within {exact:.0e}; "
        "least squares on 50 rows of digits, kappa_hat = kappa, lr = 1/L of the full batch, loss over the first one "
        "(inf: above 10^12); holds within a factor of ten; the remedy is MaSS with constants of the batch",
        setting.seeds,
        tables=[Table("Mini-batches", heads, cells)],
    )


def _times(ratio: float) -> str:
    return f"at least {ratio:.1e} times" if math.isfinite(ratio) else "beyond 10^12 times its start, unlike"


def _least_squares(
    x: Tensor, y: Tensor, lr: float, kappa_hat: float, rows: int, steps: int, seed: int
) -> tuple[float, bool]:
    """Return the last loss over the first, inf above 1e12, and whether the optimiser warned."""
    w = nn.Parameter(torch.zeros(x.shape[1], dtype=torch.float64))
    optimiser = AcceleratedGradient([w], lr, kappa_hat)
    draws = seeds.generator(seed, "accelerated", "batches")

    def loss() -> Tensor:
        chosen = torch.randperm(len(x), generator=draws)[:rows] if rows < len(x) else slice(None)
        return (x[chosen] @ w - y[chosen]).square().mean() / 2

    def whole() -> float:
        with torch.no_grad():
            return float((x @ w - y).square().mean() / 2)

    first, closure = whole(), _closure(optimiser, loss)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimiser.step(closure)
            if not whole() < 1e12 * first:
                return math.inf, bool(seen)
    with optimiser.eval_params():
        return whole() / first, bool(seen)
