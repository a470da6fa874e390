"""Beyond the claims of `mass`: parameters for a number of steps, from the spectrum and without a run."""

from __future__ import annotations

import math

import numpy as np

from wideangle.document import Table
from wideangle.optim import MassParameters
from wideangle.optim._forecast import forecast, quadratic
from wideangle.papers import _mass_kernel as kernel
from wideangle.papers._frame import Finding, Setting, SkippedError, absent

BINS = 24
UNCORRELATED = 1.0  # M of squared residuals that do not depend on the sample, k(x, x) = 1


def settings(step: float) -> list[MassParameters]:
    """Return the settings looked at: alpha from 1e-4 to 1/2, kappa_tilde from 1 (Nesterov) to 1/alpha (SGD)."""
    alphas = np.geomspace(1e-4, 0.5, 10).tolist()
    return [
        MassParameters(step, alpha, kappa_tilde)
        for alpha in alphas
        for kappa_tilde in np.geomspace(1.0, 1.0 / alpha, 6).tolist()
    ]


def for_budget(data: kernel.Problem, m: int, steps: int) -> tuple[MassParameters, float]:
    """Return the setting whose forecast after `steps` is least, and the forecast of its squared error.

    The forecast follows the second moments on the spectrum of K / n, with the energy of the targets in each
    direction; step 1 / L_m.
    """
    n = len(data.targets)
    values, vectors = np.linalg.eigh(data.gram)
    energies = np.square(vectors.T @ data.targets).sum(1) / (2 * n)
    seen = quadratic(values / n, energies, UNCORRELATED).binned(BINS)
    tried = settings(1 / data.constants.batch_smoothness(m))
    losses = forecast(seen, tried, data.constants.share(m), steps)[:, 0]
    place = int(np.argmin(losses))
    return tried[place], 2 * float(losses[place])


def without_a_run(setting: Setting) -> Finding:
    """Parameters from the spectrum for the steps there are: ahead of all nine settings, at every batch size."""
    batches = (8, 64) if setting.size == "smoke" else kernel.BATCHES
    cells, missing = [], []
    for name in ["digits"] if setting.size == "smoke" else ["digits", "mnist"]:
        try:
            found = kernel.races(setting, name)
        except SkippedError:
            missing.append(name)
            continue
        for seed, by_batch in zip(setting.seeds, found, strict=True):
            data = kernel.race_problem(setting, name, seed)
            for m in batches:
                p, expected = for_budget(data, m, by_batch[m].steps)
                ours = kernel.race(data, {"budget": p}, m, kernel.PASSES, seed).last("budget")
                rival = min(by_batch[m].best(family) for family in kernel.FAMILIES)
                cells.append([name, m, seed, p.alpha, p.kappa_tilde, expected, ours, *rival])
    ratios = [cell[6] / cell[7] for cell in cells]
    off = [abs(math.log(cell[6] / cell[5])) for cell in cells]
    firsts = [cell for cell in cells if cell[2] == setting.seed]
    heads = ["data", "m", "seed", "alpha", "kappa_tilde", "forecast", "measured", "best of nine", "which"]
    return Finding(
        max(ratios) < 1,
        "; ".join(f"{c[0]}, m = {c[1]}: {c[6]:.2g} against {c[7]:.2g} ({c[8]})" for c in firsts)
        + f"; {min(ratios):.2g} to {max(ratios):.2g} times the best of nine",
        f"no trial run; forecasts within a factor {math.exp(max(off)):.2g}; what T steps reach takes the place of the "
        f"smallest eigenvalue, and kappa_tilde falls to 1 as the batch grows. {absent(missing)}",
        setting.seeds,
        tables=[Table("Parameters for the budget, squared training error", heads, cells)],
        headline=f"Kernel regression: parameters forecast from the spectrum for {kernel.PASSES} passes, without a run, "
        f"reach {min(ratios):.2g} to {max(ratios):.2g} times the error of the best of nine settings.",
    )
