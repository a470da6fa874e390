"""The claims of `mass` about kernel regression: a race of equal passes over digits and an MNIST subset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from wideangle import seeds
from wideangle.document import Figure, Series, Table
from wideangle.optim import Constants, MassParameters, constants_from_gram
from wideangle.papers._frame import Finding, Setting

BATCHES = (1, 8, 64)
KEPT = {  # digits, 1000 samples, 30 passes: SGD, Nesterov .9, Nesterov .9 at eta/10, MaSS(3), MaSS(12), MaSS theory
    1: (4.3e-3, math.inf, 3.8e-3, math.inf, 3.5e-3, 2.2e-3),
    8: (1.3e-2, math.inf, 1.3e-2, 3.1e-3, 9.8e-3, 4.5e-3),
    64: (5.3e-2, 8.4e-3, 5.4e-2, 2.1e-2, 4.5e-2, 2.4e-2),
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

    def last(self, name: str) -> float:
        """Return the error after the last pass; infinite where the run diverged."""
        return float(self.errors[-1, list(self.methods).index(name)])


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
    """Return the methods of the race: two settings of SGD, of Nesterov and of MaSS by rule, one from theory."""
    step = 1 / constants.batch_smoothness(m)
    alpha = 0.1 / 1.9
    return {
        "SGD": MassParameters(step, 1.0, 1.0),
        "SGD, 1.5 step": MassParameters(1.5 * step, 1.0, 1.0),
        "Nesterov 0.9": MassParameters(step, alpha, 1.0),
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
    columns = {key: np.repeat([getattr(p, key) for p in methods.values()], outputs) for key in ("eta1", "gamma")}
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
            w = u - buffer
            squares = np.square(data.gram @ w - targets).reshape(n, count, outputs).sum(2).mean(0)
            errors.append(np.where(np.isfinite(squares), squares, np.inf))
        guesses = (data.cross @ w).reshape(len(data.labels), count, outputs)
    right = (np.nan_to_num(guesses).argmax(2) == data.labels[:, None]).mean(0)
    return Race(methods, np.array(errors), right)
