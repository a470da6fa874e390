"""The claims of `mass` about kernel regression: a race of equal passes over digits and an MNIST subset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from wideangle import seeds
from wideangle.document import Figure, Series, Table
from wideangle.optim import Constants, MassParameters, constants_from_gram
from wideangle.papers._frame import Finding, Setting, SkippedError, absent

BATCHES = (1, 8, 64)
FAMILIES = ("SGD", "Nesterov", "MaSS")
DIVERGED = 1e3
PASSES = 30
KEPT = {  # another draw of digits, 1000 samples, 30 passes
    "SGD": (4.3e-3, 1.3e-2, 5.3e-2),
    "Nesterov 0.9": (math.inf, math.inf, 8.4e-3),
    "Nesterov 0.9, step / 10": (3.8e-3, 1.3e-2, 5.4e-2),
    "MaSS (0.05, 3)": (math.inf, 3.1e-3, 2.1e-2),
    "MaSS (0.05, 12)": (3.5e-3, 9.8e-3, 4.5e-2),
    "MaSS, theory": (2.2e-3, 4.5e-3, 2.4e-2),
}


@dataclass(frozen=True)
class Problem:
    """Gaussian-kernel regression on one-hot labels: Gram matrices of train and test, and the constants."""

    name: str
    gram: np.ndarray
    cross: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    constants: Constants


@dataclass(frozen=True)
class Race:
    """Squared error summed over outputs after each pass, and test accuracy, one entry a method."""

    methods: dict[str, MassParameters]
    errors: np.ndarray
    accuracy: np.ndarray
    steps: int

    def last(self, name: str) -> float:
        """Return the error after the last pass, infinite where the run diverged."""
        error = float(self.errors[-1, list(self.methods).index(name)])
        return error if error < DIVERGED else math.inf

    def best(self, family: str) -> tuple[float, str]:
        """Return the smallest last error among the settings of "SGD", "Nesterov" or "MaSS", and which it is."""
        return min((self.last(name), name) for name in self.methods if name.startswith(family))


def _gaussian_kernel(a: torch.Tensor, b: torch.Tensor, bandwidth: float) -> np.ndarray:
    return torch.exp(-torch.cdist(a, b).square() / (2 * bandwidth**2)).numpy()


def samples(setting: Setting, name: str, n: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return n samples as float64 rows with their labels; digits are drawn from both of its splits."""
    if name != "digits":
        found = setting.load(name, n, seed=seed)
        return found.x.flatten(1).double(), found.y.numpy()
    parts = [setting.load(name, None), setting.load(name, None, split="test")]
    order = torch.randperm(sum(map(len, parts)), generator=seeds.generator(seed, "papers", "all digits"))[:n]
    x, y = torch.cat([p.x for p in parts])[order], torch.cat([p.y for p in parts])[order]
    return x.flatten(1).double(), y.numpy()


def problem(setting: Setting, name: str, n: int, tests: int, seed: int) -> Problem:
    """Return n training and `tests` test samples in a Gaussian kernel (digits: bandwidth 2, MNIST: 5)."""

    def make() -> Problem:
        x, y = samples(setting, name, n + tests, seed)
        bandwidth = 2.0 if name == "digits" else 5.0
        gram = _gaussian_kernel(x[:n], x[:n], bandwidth)
        gram = (gram + gram.T) / 2
        np.fill_diagonal(gram, 1.0)
        cross = _gaussian_kernel(x[n:], x[:n], bandwidth)
        return Problem(name, gram, cross, np.eye(10)[y[:n]], y[n:], constants_from_gram(gram))

    return setting.once(("mass kernel", name, n, tests, seed), make)


def entrants(constants: Constants, m: int) -> dict[str, MassParameters]:
    """Return the methods of the race: three settings of SGD, of Nesterov and of MaSS; step 1 / L_m if not said."""
    step, alpha = 1 / constants.batch_smoothness(m), (1 - 0.9) / (1 + 0.9)
    return {
        "SGD": MassParameters(step, 1.0, 1.0),
        "SGD, step x 1.5": MassParameters(1.5 * step, 1.0, 1.0),
        "SGD, step x 1.9": MassParameters(1.9 * step, 1.0, 1.0),
        "Nesterov 0.9": MassParameters(step, alpha, 1.0),
        "Nesterov 0.9, step / 3": MassParameters(step / 3, alpha, 1.0),
        "Nesterov 0.9, step / 10": MassParameters(step / 10, alpha, 1.0),
        "MaSS (0.05, 3)": MassParameters(step, 0.05, 3.0),
        "MaSS (0.05, 12)": MassParameters(step, 0.05, 12.0),
        "MaSS, theory": constants.mass(m),
    }


def _batch(n: int, m: int, draws: torch.Generator) -> np.ndarray:
    """Return m different samples, drawn afresh: what the theory takes a batch to be, which an epoch's are not."""
    if m == 1:
        return torch.randint(0, n, (1,), generator=draws).numpy()
    return torch.randperm(n, generator=draws)[:m].numpy()


def race(data: Problem, methods: dict[str, MassParameters], m: int, passes: int, seed: int) -> Race:
    """Run all methods on the same batches of m different samples, in the coefficients of the kernel.

    The gradient of a batch moves its own coefficients by (f(x_B) - y_B) / m.
    """
    n, outputs = data.targets.shape
    count = len(methods)
    columns = {
        key: np.repeat([getattr(p, key) for p in methods.values()], outputs) for key in ("eta1", "gamma")
    }
    into = np.repeat([p.gamma * p.eta1 - p.eta2 for p in methods.values()], outputs)
    targets = np.tile(data.targets, (1, count))
    u = np.zeros((n, count * outputs))
    buffer = np.zeros_like(u)
    draws, errors = seeds.generator(seed, "papers", "mass", "kernel", m), []
    with np.errstate(all="ignore"):
        for _ in range(passes):
            for _ in range(n // m):
                batch = _batch(n, m, draws)
                gradient = (data.gram[batch] @ u - targets[batch]) / m
                buffer *= columns["gamma"]
                buffer[batch] -= into * gradient
                u[batch] -= columns["eta1"] * gradient
                u += buffer
            squares = np.square(data.gram @ (u - buffer) - targets).reshape(n, count, outputs).sum(2).mean(0)
            errors.append(np.where(np.isfinite(squares), squares, np.inf))
        guesses = (data.cross @ (u - buffer)).reshape(len(data.labels), count, outputs)
    right = (np.nan_to_num(guesses).argmax(2) == data.labels[:, None]).mean(0)
    return Race(methods, np.array(errors), right, passes * (n // m))


def race_problem(setting: Setting, name: str, seed: int) -> Problem:
    """Return the problem of the races on a data set at this size."""
    n = 1000 if name == "digits" else setting.pick(300, 1000, 4000)
    return problem(setting, name, n, 797 if name == "digits" else 1000, seed)


def races(setting: Setting, name: str) -> list[dict[int, Race]]:
    """Return the races of every seed, by batch size."""

    def make() -> list[dict[int, Race]]:
        found = []
        for seed in setting.seeds:
            data = race_problem(setting, name, seed)
            found.append({m: race(data, entrants(data.constants, m), m, PASSES, seed) for m in BATCHES})
        return found

    return setting.once(("mass races", name), make)


def _methods(found: list[dict[int, Race]]) -> list[str]:
    return list(found[0][BATCHES[0]].methods)


def _table(name: str, found: list[dict[int, Race]]) -> Table:
    cells = []
    for place, method in enumerate(_methods(found)):
        row: list[object] = [method]
        for m in BATCHES:
            errors = [by_batch[m].last(method) for by_batch in found]
            scores = [float(by_batch[m].accuracy[place]) for by_batch in found]
            row += [
                float(np.median(errors)),
                float(np.median(scores)) if np.median(errors) < DIVERGED else None,
            ]
        cells.append(row)
    heads = ["method"]
    for m in BATCHES:
        heads += [f"error, m = {m}", f"accuracy, m = {m}"]
    if name == "digits":
        cells = [row + list(KEPT.get(row[0], (None,) * 3)) for row in cells]
        heads += [f"kept error, m = {m}" for m in BATCHES]
    return Table(
        f"Squared training error and test accuracy after {PASSES} passes, {name}",
        heads,
        cells,
        "median over seeds",
    )


def _figure(name: str, found: list[dict[int, Race]]) -> Figure:
    first, passes = found[0][8], [float(t) for t in range(1, PASSES + 1)]
    series = []
    for family in FAMILIES:
        best = first.best(family)[1]
        curve = first.errors[:, list(first.methods).index(best)]
        series.append(Series(best, passes, [float(v) for v in curve]))
    return Figure(
        title=f"Kernel regression on {name}, batches of 8",
        x_label="passes over the data",
        y_label="squared training error",
        y_log=True,
        series=series,
        caption="The best of three settings of each method.",
    )


def _medians(found: list[dict[int, Race]], m: int) -> dict[str, tuple[float, str]]:
    """Return for each family the smallest median over seeds of its settings, and which setting it is."""
    best = {}
    for family in FAMILIES:
        names = [name for name in _methods(found) if name.startswith(family)]
        best[family] = min((float(np.median([r[m].last(name) for r in found])), name) for name in names)
    return best


def _ahead(setting: Setting, name: str, batches: tuple[int, ...]) -> tuple[bool, str, list[dict[int, Race]]]:
    found, words, holds = races(setting, name), [], True
    for m in batches:
        best = _medians(found, m)
        holds &= best["MaSS"][0] < min(best["SGD"][0], best["Nesterov"][0])
        words.append(
            f"m = {m}: " + ", ".join(f"{setting_name} {error:.2g}" for error, setting_name in best.values())
        )
    return holds, "; ".join(words), found


EFFORT = "squared training error, median over seeds; the best of three settings of each method; same batches for all"


def digits_small_batches(setting: Setting) -> Finding:
    """Kernel regression on digits, batches of 1 and 8: MaSS ahead of SGD and Nesterov."""
    holds, words, found = _ahead(setting, "digits", (1, 8))
    return Finding(
        holds,
        words,
        EFFORT,
        setting.seeds,
        figures=[_figure("digits", found)],
        tables=[_table("digits", found)],
    )


def mnist_small_batches(setting: Setting) -> Finding:
    """Kernel regression on a subset of MNIST, batches of 1 and 8: MaSS ahead of SGD and Nesterov."""
    holds, words, found = _ahead(setting, "mnist", (1, 8))
    return Finding(
        holds,
        words,
        EFFORT,
        setting.seeds,
        figures=[_figure("mnist", found)],
        tables=[_table("mnist", found)],
    )


def every_batch(setting: Setting) -> Finding:
    """MaSS ahead of SGD and Nesterov at every batch size."""
    holds, words, _ = _ahead(setting, "digits", (64,))
    return Finding(
        holds,
        words,
        EFFORT + "; at large batches kappa_tilde_m tends to 1 and plain Nesterov is what theory asks for",
        setting.seeds,
    )


def one_setting(setting: Setting) -> Finding:
    """The setting alpha = 0.05, kappa_tilde = 3 serves every batch size."""
    found = races(setting, "digits")
    errors = {m: max(r[m].last("MaSS (0.05, 3)") for r in found) for m in BATCHES}
    wanted = {m: found[0][m].methods["MaSS, theory"] for m in BATCHES}
    return Finding(
        all(math.isfinite(error) for error in errors.values()),
        ", ".join(f"m = {m}: {'diverges' if math.isinf(e) else f'{e:.2g}'}" for m, e in errors.items()),
        "largest error over seeds; theory's kappa_tilde: "
        + ", ".join(f"{p.kappa_tilde:.3g} at m = {m}" for m, p in wanted.items())
        + ": it has to rise as the batch falls",
        setting.seeds,
    )


def no_search(setting: Setting) -> Finding:
    """The parameters of theory, unsearched, are ahead of SGD and Nesterov at three settings each, m = 1 and 8."""
    words, missing, holds = [], [], True
    sets = ["digits"] if setting.size == "smoke" else ["digits", "mnist"]
    for name in sets:
        try:
            found = races(setting, name)
        except SkippedError:
            missing.append(name)
            continue
        for m in (1, 8):
            best = _medians(found, m)
            ours = float(np.median([r[m].last("MaSS, theory") for r in found]))
            rival = min(best["SGD"], best["Nesterov"])
            parameters = found[0][m].methods["MaSS, theory"]
            reach = parameters.alpha * found[0][m].steps
            holds &= ours < rival[0]
            words.append(
                f"{name}, m = {m}: {ours:.2g} against {rival[0]:.2g} ({rival[1]}), alpha T = {reach:.2g}"
            )
    return Finding(
        holds,
        "; ".join(words),
        "theory takes the smallest eigenvalue, which T steps reach only where alpha T is well above 1; what counts "
        f"before that is the eigenvalue within reach. {absent(missing)}",
        setting.seeds,
    )
