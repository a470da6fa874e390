"""The claims of `aiming` on networks: theta against width, SGD at its step, and an LSTM."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from wideangle import seeds
from wideangle.curvature import (
    LandscapeMonitor,
    LossHessian,
    aiming_along,
    eigenpairs,
    hessian_bound,
    pl_ratio,
)
from wideangle.curvature.landscape import aiming_bound, exit_probability, gauss_newton_solution, sgd_step
from wideangle.document import Figure, Series, Table
from wideangle.kernel import factors
from wideangle.papers._descents import State, descent, state_of, tanh_net, two_digits
from wideangle.papers._frame import Finding, Setting, SkippedError, absent

WIDTHS = [20, 100, 400, 1600]


def _thetas(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> tuple[list[float], list[float], list[float]]:
    """Return theta along a descent towards the final iterate and towards Gauss-Newton solutions.

    The third list has the lowest curvature of the loss, over lambda_max(K), at the start and halfway.
    """
    top = pl_ratio(net, x, y).lambda_max or 1.0
    run = descent(net, x, y, 1 / (1.5 * top), steps, 10)
    final = aiming_along(net, x, y, run.states)
    nearest = aiming_along(net, x, y, run.states, "gauss_newton")
    # the final iterate is no solution: only states well above its loss count
    clear = [v >= final.margin * final.target_loss for v in final.losses]
    kept = [t for t, c in zip(final.thetas, clear, strict=True) if t is not None and c]
    lowest = []
    for state in (run.states[0], run.states[len(run.states) // 2]):
        net.load_state_dict(state)
        lowest.append(_lowest(net, x, y) / top)
    return kept, [t for t in nearest.thetas if t is not None], lowest


def _half_squares(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().sum() / 2


def _lowest(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the smallest eigenvalue of the loss Hessian, from above: a value of v^T H v with |v| = 1."""
    hessian = LossHessian(net, _half_squares, x, y, reduction="sum")
    return float(eigenpairs(hessian, 1, "smallest", tolerance=1e-4).values[0])


def against_width(setting: Setting) -> Finding:
    """Aiming without convexity: theta >= 1.5 for m >= 400, |theta - 2| shrinks with width, some curvature < 0."""
    cells, missing, kept, bent = [], [], {}, []
    for name in ("digits", "mnist") if setting.size != "smoke" else ("digits",):
        for seed in setting.seeds[: 1 if name != "digits" and setting.size == "cpu" else None]:
            try:
                x, y = two_digits(setting, 40, seed, name)
            except SkippedError:
                missing.append(name)
                break
            for width in WIDTHS:
                net = tanh_net(x.shape[1], width, seed)
                final, nearest, curved = _thetas(net, x, y, setting.pick(1000, 2500, 20000))
                row = [min(final), max(final), min(nearest), max(nearest)]
                kept.setdefault((name, width), []).append(row)
                bent.append(max(curved))
                cells.append([name, seed, width, *row, *curved])
    holds, lines = max(bent) < -1e-9, []
    for name in sorted({name for name, _ in kept}):
        far = [max(max(abs(v - 2) for v in row[2:]) for row in kept[name, m]) for m in WIDTHS]
        low = [min(min(row) for row in kept[name, m]) for m in WIDTHS]
        holds &= all(v >= 1.5 for m, v in zip(WIDTHS, low, strict=True) if m >= 400)
        holds &= far[-1] < far[0] and far[-1] < far[1]
        lines.append(Series(name, [float(m) for m in WIDTHS], far))
    wide = [c for c in cells if c[2] == 1600]
    narrow = [c for c in cells if c[2] == 20]
    heads = ["data", "seed", "m", "final, min", "final, max", "Gauss-Newton, min", "Gauss-Newton, max"]
    heads += ["lowest curvature at the start", "halfway"]
    return Finding(
        holds,
        "; ".join(
            f"{c[0]} m = {c[2]}: {c[3]:.2f} to {c[4]:.2f} (final), {c[5]:.2f} to {c[6]:.2f} (Gauss-Newton)"
            for c in (narrow[0], wide[0])
        )
        + f"; lowest curvature over lambda_max(K) {min(bent):.1e} to {max(bent):.1e}",
        "holds where theta >= 1.5 for m >= 400 with both stand-ins, and the largest |theta - 2| (Gauss-Newton) at "
        "m = 1600 is below those at 20 and 100, and the loss Hessian has an eigenvalue below -1e-9 lambda_max(K) at "
        "the start and at the middle look of every descent: not convex; min and max along a descent, for the final "
        f"iterate over states with at least 100 times its loss. {absent(sorted(set(missing)))}",
        setting.seeds,
        figures=[Figure("Distance of theta from 2", "width m", "max |theta - 2|", lines, True, True)],
        tables=[Table("Aiming along gradient descent, 40 zeros and ones, one tanh layer", heads, cells)],
        headline=f"Aiming on a tanh net of width 1600: theta from {min(c[5] for c in wide):.2f} to "
        f"{max(c[6] for c in wide):.2f} (2 for least squares).",
    )


def lower_bound(setting: Setting) -> Finding:
    """The bound theta >= 2 - epsilon dist / sqrt(alpha), epsilon a certified bound of the Hessian on the way."""
    worst, cells = math.inf, []
    for seed in setting.at_least(3):
        x, y = two_digits(setting, 10, seed)
        for width in (400, 6400):
            net = tanh_net(x.shape[1], width, seed)
            y_near = net(x).detach() + 0.3 * y
            found = aiming_along(net, x, y_near, [state_of(net)], "gauss_newton")
            theta, distance, growth = found.thetas[0], found.distances[0], found.growths[0]
            assert theta is not None
            assert distance is not None
            assert growth is not None
            epsilon = float(hessian_bound(net, x, distance).max())
            low = aiming_bound(epsilon, distance, growth)
            worst = min(worst, theta - low)
            cells.append([seed, width, epsilon, distance, growth, low, theta])
    heads = ["seed", "m", "epsilon", "distance", "alpha", "bound", "theta"]
    return Finding(
        worst >= 0,
        "; ".join(f"m = {c[1]}: {c[6]:.3f} >= {c[5]:.2f}" for c in cells[:2]),
        "10 digits, targets 0.3 off the outputs; the solution is the Gauss-Newton one and the growth that seen from "
        "here, for which the inequality is exact; a bound below 0 is true and says nothing",
        setting.at_least(3),
        tables=[Table("The bound of a nearly linear model", heads, cells)],
    )


def sgd_on_a_net(setting: Setting) -> Finding:
    """SGD on single samples with eta = theta / (2 beta): E dist^2 falls at the rate, few runs leave the tube."""
    width, runs = setting.pick(400, 1000, 4000), setting.pick(12, 20, 100)
    steps, cells, holds = setting.pick(600, 2000, 20000), [], True
    lines: list[Series] = []
    for seed in setting.seeds:
        x, y = two_digits(setting, 8, seed)
        net = tanh_net(x.shape[1], width, seed)
        y = net(x).detach() + 0.5 * y
        start = state_of(net)
        looks = [0, steps // 8, steps // 4, steps // 2, steps]
        home = gauss_newton_solution(net, x, y).weights
        beta = _hardest(net, x)
        first = aiming_along(net, x, y, [start], "gauss_newton")
        eta = sgd_step(min(first.thetas[0] or 0.0, 2.0), beta)
        all_states, far, wild, blown = [], [], [], math.nan
        for k in range(runs):
            for size, farthest in ((eta, far), (8 * eta, wild)):
                net.load_state_dict(start)
                draws = seeds.generator(seed, "aiming", "sgd", k)
                states, most = _sgd(net, x, y, size, looks, draws, home)
                farthest.append(most)
                if farthest is far:
                    all_states.append(states)
            blown = float(
                (net(x).detach() - y).square().mean() / (y - y.mean()).square().mean().clamp_min(1e-9)
            )
        net.load_state_dict(start)
        # the constants that hold on the paths, each state to its own solution
        paths = [aiming_along(net, x, y, states, "gauss_newton") for states in all_states]
        theta = min(t for p in paths for t in p.thetas if t is not None)
        alpha = min(a for p in paths for a in p.growths if a is not None)
        hardest = beta
        for state in (state for states in all_states for state in states):
            net.load_state_dict(state)
            hardest = max(hardest, _hardest(net, x))
        squares = np.array([[0.0 if d is None else d**2 for d in p.distances] for p in paths])
        rate = 1 - eta * alpha * (theta - hardest * eta)
        bound = squares[0, 0] * rate ** np.array(looks)
        mean, error = squares.mean(0), squares.std(0) / math.sqrt(runs)
        away = _apart(start, home)
        tube = 1.5 * away
        left, control = (float(np.mean(np.array(most) > tube)) for most in (far, wild))
        allowed = exit_probability(away, tube)
        holds &= bool((mean - 3 * error <= bound).all()) and left <= allowed < control
        holds &= theta > 0 and rate < 1
        cells.append([seed, theta, alpha, hardest, eta, mean[-1] / squares[0, 0], bound[-1] / squares[0, 0]])
        cells[-1] += [left, allowed, control, blown]
        at = [float(t) for t in looks]
        lines = [Series("mean over runs", at, mean.tolist()), Series("bound", at, bound.tolist(), "dashed")]
    heads = ["seed", "theta", "alpha", "beta", "eta", "dist^2 left", "bound", "runs that left the tube"]
    heads += ["allowed", "runs that left at 8 eta", "error left at 8 eta"]
    return Finding(
        holds,
        "; ".join(
            f"seed {c[0]}: {c[5]:.2g} of dist^2 left after {steps} steps, bound {c[6]:.2g}; {c[7]:.0%} of the runs "
            f"left the tube ({c[8]:.0%} allowed), {c[9]:.0%} at 8 eta"
            for c in cells
        ),
        f"8 digits, width {width}, {runs} runs, one sample a step; theta, alpha and beta are the worst at the looks; "
        "dist to each state's own Gauss-Newton solution, within three standard errors; the tube is 1.5 times as wide "
        "as the start is far, checked after every step by the distance to the solution next to the start; "
        "the control, 8 eta, must leave it in more runs than are allowed",
        setting.seeds,
        figures=[Figure("Squared distance to the solutions under SGD", "step", "dist^2", lines, False, True)],
        tables=[Table("SGD at theta / (2 beta) on a wide net", heads, cells)],
    )


def _hardest(net: nn.Module, x: Tensor) -> float:
    """Return max_i |grad f_i|^2: the smoothness of 1/2 (f_i - y_i)^2 at a solution."""
    return float(factors(net, x).diagonal().max())


def _sgd(
    net: nn.Module, x: Tensor, y: Tensor, eta: float, looks: list[int], draws: torch.Generator, home: State
) -> tuple[list[State], float]:
    """Run SGD on 1/2 (f_i - y_i)^2, one sample a step, in place.

    Returns the states at `looks`, and the largest distance from `home` after any step.
    """
    goal, far = [home[name] for name, _ in net.named_parameters()], 0.0
    rows = torch.randint(0, len(x), (looks[-1],), generator=draws).tolist()
    parameters, states = list(net.parameters()), []
    for t in range(looks[-1] + 1):
        apart = sum(float((p.detach() - g).square().sum()) for p, g in zip(parameters, goal, strict=True))
        far = max(far, math.sqrt(apart) if math.isfinite(apart) else math.inf)
        if t in looks:
            states.append(state_of(net))
        if t == looks[-1]:
            break
        i = rows[t]
        loss = (net(x[i : i + 1]) - y[i]).square().sum() / 2
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data.sub_(gradient, alpha=eta)
    return states, far


class CharacterLSTM(nn.Module):
    """One LSTM layer on one-hot characters; scores of the next character after the last one."""

    def __init__(self, characters: int, hidden: int, draws: torch.Generator):
        super().__init__()
        self.characters = characters
        self.lstm = nn.LSTM(characters, hidden, batch_first=True)
        self.head = nn.Linear(hidden, characters)
        bound = 1 / math.sqrt(hidden)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=draws)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (n, characters) for token rows (n, length)."""
        one_hot = nn.functional.one_hot(x, self.characters).to(self.head.weight.dtype)
        return self.head(self.lstm(one_hot)[0][:, -1])


def windows(text: str, n: int, length: int, draws: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Return n windows of a text as rows of character numbers, the next characters, and how many there are."""
    letters = sorted(set(text))
    numbers = torch.tensor([letters.index(c) for c in text])
    starts = torch.randint(0, len(text) - length, (n,), generator=draws)
    x = torch.stack([numbers[s : s + length] for s in starts.tolist()])
    return x, numbers[starts + length], len(letters)


def _text(setting: Setting) -> str:
    from wideangle.data._folder import data_root, read_checked
    from wideangle.data.text import FILE, parse_tab
    from wideangle.errors import InputError

    try:
        folder = data_root(setting.data_root, "reuters-r8", FILE)
        documents = parse_tab(*read_checked(folder, FILE.format(split="train"), "reuters-r8", FILE, None))
    except InputError as error:
        raise SkippedError(str(error)) from error
    return " ".join(" ".join(words) for _, words in documents[:400])


def lstm(setting: Setting) -> Finding:
    """Aiming of an LSTM towards its final iterate; Islamov et al. report negative values early in training."""
    return lstm_on(setting, _text(setting))


def lstm_on(setting: Setting, text: str) -> Finding:
    """Train the LSTM on a text and report aiming along the way; holds where it is positive throughout."""
    n, steps = setting.pick(64, 64, 2000), setting.pick(300, 3000, 20000)
    cells, lines = [], []
    for seed in setting.seeds:
        for name, rate in (("Adam", 0.01), ("momentum", 0.5)):
            draws = seeds.generator(seed, "aiming", "lstm")
            x, labels, characters = windows(text, n, 12, draws)
            net = CharacterLSTM(characters, 32, draws)
            y = nn.functional.one_hot(labels, characters).float()
            weights = list(net.parameters())
            optimizer: torch.optim.Optimizer = (
                torch.optim.Adam(weights, lr=rate)
                if name == "Adam"
                else torch.optim.SGD(weights, lr=rate, momentum=0.9)
            )
            every = max(1, steps // 100)
            with LandscapeMonitor(net, x, y, every=every, keep=128, dtype=None) as monitor:
                for _ in range(steps):
                    optimizer.zero_grad()
                    ((net(x) - y).square().sum() / (2 * n)).backward()
                    optimizer.step()
                    monitor.update()
            found = monitor.result
            assert found is not None
            pairs = [(t, th) for t, th in zip(found.steps, found.thetas, strict=True) if th is not None]
            floor = found.margin * found.losses[-1]
            losses = dict(zip(found.steps, found.losses, strict=True))
            negative = [t for t, th in pairs if th <= 0 and losses[t] >= floor]
            where = f"{negative[0]} to {negative[-1]}" if negative else ""
            ratios = [r for r in found.pl_ratios if r is not None]
            lines.append(
                Series(f"{name}, seed {seed}", [float(t) for t, _ in pairs], [th for _, th in pairs])
            )
            row = [name, seed, found.smallest_theta, pairs[0][1], len(negative), found.clear]
            row += [where, min(th for _, th in pairs), len(pairs)]
            cells.append([*row, min(ratios), found.losses[0], found.losses[-1]])
    blank = [f"{c[0]}, seed {c[1]}" for c in cells if not c[5]]
    if blank:
        raise SkippedError(
            f"undecided: no look counts for {'; '.join(blank)}, whose final iterate is near no solution (its loss is "
            f"over a hundredth of that at every look after {steps} steps)"
        )
    known = [float(c[2]) for c in cells]
    heads = [
        "training",
        "seed",
        "smallest theta",
        "theta at the start",
        "looks with theta <= 0",
        "looks that count",
    ]
    heads += ["at steps", "smallest of all", "looks"]
    heads += ["smallest PL* ratio", "first loss", "last loss"]
    return Finding(
        min(known) > 0,
        "; ".join(f"{c[0]}, seed {c[1]}: theta from {c[2]:.2g}, {c[4]} of {c[5]} looks <= 0" for c in cells),
        f"{n} windows of 12 characters, 32 units, square loss on the one-hot next character, full batch; target the "
        "final iterate, which is no projection; looks with at least 100 times its loss count. Islamov et al. see "
        "violations in 3-layer LSTMs on word data",
        setting.seeds,
        figures=[Figure("Aiming of an LSTM towards its final iterate", "step", "theta", lines[:6])],
        tables=[Table("One LSTM layer of 32 units", heads, cells)],
    )


def solution_is_near(setting: Setting) -> Finding:
    """The Gauss-Newton point is a first-order projection: its excess over descent's solution falls with width."""
    cells, holds = [], True
    for seed in setting.seeds:
        x, y = two_digits(setting, 20, seed)
        for width in (100, 1600):
            net = tanh_net(x.shape[1], width, seed)
            start = state_of(net)
            solution = gauss_newton_solution(net, x, y)
            top = pl_ratio(net, x, y).lambda_max or 1.0
            run = descent(net, x, y, 1 / (1.5 * top), setting.pick(2000, 4000, 50000), 3, until=1e-8)
            net.load_state_dict(run.states[-1])
            end = gauss_newton_solution(net, x, y)  # descent leaves a little loss; both shall be solutions
            near, reached = _apart(start, solution.weights), _apart(start, end.weights)
            cells.append([seed, width, solution.steps, near, reached, run.losses[-1]])
        narrow, wide = (c[3] / c[4] - 1 for c in cells[-2:])
        holds &= wide < 0.05 and wide < narrow
    heads = [
        "seed",
        "m",
        "Gauss-Newton steps",
        "distance to its solution",
        "to that of descent",
        "descent's last loss",
    ]
    return Finding(
        holds,
        "; ".join(f"m = {c[1]}: {c[3]:.2f} against {c[4]:.2f}" for c in cells[:2]),
        "20 digits; holds where at m = 1600 the Gauss-Newton solution is less than 5 % farther than the one descent "
        "ends next to, and by less than at m = 100",
        setting.seeds,
        tables=[Table("How far the stand-ins are", heads, cells)],
    )


def _apart(a: State, b: State) -> float:
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in b))
