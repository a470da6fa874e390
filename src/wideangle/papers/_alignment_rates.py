"""The claims of `alignment` about rates: what a power-law spectrum makes of the loss and of the steps."""

from __future__ import annotations

import math

import numpy as np

from wideangle.document import Table
from wideangle.kernel.alignment import residual_alignment
from wideangle.kernel.convergence import loss_curve, power_law, steps_to
from wideangle.kernel.spectrum import Spectrum
from wideangle.papers._alignment_bounds import digits, spectrum_of, start
from wideangle.papers._frame import Finding, Setting

_MODES = 1_000_000  # enough that the end of the spectrum does not show at the steps used


class _Identity:
    """Eigenvectors of a diagonal kernel: the product with a target is the target."""

    @property
    def T(self) -> _Identity:  # noqa: N802 - numpy's name
        """The identity again."""
        return self

    def __matmul__(self, target: np.ndarray) -> np.ndarray:
        return target


def power_spectrum(q: float, size: int = _MODES) -> Spectrum:
    """Return the spectrum i^-q of a diagonal kernel, without decomposing it."""
    values = np.arange(1, size + 1, dtype=float) ** -q
    found = Spectrum(
        eigenvalues=values,
        resolution=0.0,
        rank=len(values),
        rank_deficient=False,
        condition_number=float(values[0] / values[-1]),
        effective_rank=float(values.sum() ** 2 / (values**2).sum()),
    )
    found.__dict__["_vectors"] = _Identity()
    return found


def power_law_rate(setting: Setting) -> Finding:
    """tr[(I - eta K)^(2t) K] falls like (1/q) Gamma(1 - 1/q) (2 eta t)^(-(q-1)/q)."""
    cells, off, factor = [], 0.0, 0.0
    for q in (1.5, 2.0, 3.0):
        spectrum = power_spectrum(q)
        t = np.array([100.0, 1000.0]) if q < 2 else np.array([300.0, 3000.0])
        trace = 2 * loss_curve(spectrum, np.sqrt(spectrum.eigenvalues), 1.0, t)
        slope = float(np.diff(np.log(trace))[0] / np.diff(np.log(t))[0])
        formula = math.gamma(1 - 1 / q) / q * (2 * t[1]) ** (-(q - 1) / q)
        cells.append([q, -(q - 1) / q, slope, formula, float(trace[1])])
        off = max(off, abs(slope + (q - 1) / q))
        factor = max(factor, abs(float(trace[1]) / float(formula) - 1))
    return Finding(
        off < 0.02 and factor < 0.1,
        ", ".join(f"q = {c[0]:g}: {c[2]:.3f} for {c[1]:.3f}" for c in cells)
        + f"; the factor within {factor:.1%}",
        "holds within 0.02 and 10 %; so T_eps ~ eps^(-q / (q - 1))",
        tables=[
            Table("Decay of tr[(I - eta K)^(2t) K]", ["q", "-(q-1)/q", "slope", "formula", "trace"], cells)
        ],
    )


def _steps(q: float) -> list[float]:
    """Return the steps to 10 %, 1 % of the trace's start."""
    spectrum = power_spectrum(q)
    roots = np.sqrt(spectrum.eigenvalues)
    first = float(loss_curve(spectrum, roots, 1.0, [0])[0])
    return [steps_to(spectrum, roots, 1.0, first * eps) for eps in (0.1, 0.01)]


def corrected_rate(setting: Setting) -> Finding:
    """A power law: log T_eps = q / (q - 1) log(1 / eps): a factor of ten in eps costs a factor 10^(q / (q - 1))."""
    cells = [
        [q, *steps, math.log10(steps[1] / steps[0]), q / (q - 1)] for q in (2.0, 3.0) for steps in [_steps(q)]
    ]
    off = max(abs(c[3] / c[4] - 1) for c in cells)
    return Finding(
        off < 0.1,
        "; ".join(
            f"q = {c[0]:g}: {c[1]:,.0f} and {c[2]:,.0f} steps to 10 % and 1 %, exponent {c[3]:.2f} for {c[4]:.2f}"
            for c in cells
        ),
        "holds within 10 %",
        tables=[
            Table("Steps to a share of the trace", ["q", "10 %", "1 %", "exponent", "q / (q - 1)"], cells)
        ],
    )


def printed_rate(setting: Setting) -> Finding:
    """T_eps = O(log(1/eps) / (q - 1)) as printed: the steps would double from 10 % to 1 %."""
    steps = _steps(2.0)
    ratio = steps[1] / steps[0]
    return Finding(
        ratio < 4,
        f"q = 2: {steps[0]:,.0f} steps to 10 % of the trace, {steps[1]:,.0f} to 1 %: a factor {ratio:.0f}, where the "
        "printed form gives 2",
        "holds below twice the printed factor; read as a statement on log T_eps it is right (the claim before)",
    )


def digits_rate(setting: Setting) -> Finding:
    """On digits: the decay exponent from the spectrum's power law and the residual's slope, against the curve's."""
    cells = []
    for seed in setting.at_least(3):
        x, y = digits(setting, seed)
        for depth in (1, 4):
            spectrum = spectrum_of(setting, depth, seed)
            residual = start(x, depth, 10, seed) - y
            slope = residual_alignment(spectrum, residual, 15, permutations=0).slope
            law = power_law(spectrum, first=3, alignment=slope)
            step = 1 / float(spectrum.eigenvalues[0])
            t = np.array([30.0, 1000.0])
            measured = -float(
                np.diff(np.log(loss_curve(spectrum, residual, step, t)))[0] / np.diff(np.log(t))[0]
            )
            cells.append([depth, seed, law.exponent, law.r_squared, slope, law.decay_exponent, measured])
    off = max(abs(c[5] / c[6] - 1) for c in cells)
    return Finding(
        off < 0.25,
        "; ".join(
            f"L = {c[0]}: q = {c[2]:.2f}, slope {c[4]:.2f}, decay {c[6]:.2f} for {c[5]:.2f}"
            for c in cells[:2]
        ),
        f"t = 30 to 1,000 at 1 / lambda_1; largest deviation {off:.0%}, holds within 25 %",
        setting.at_least(3),
        tables=[
            Table(
                "Decay of the loss on digits",
                ["L", "seed", "q", "R^2 of the power law", "residual slope s", "s - 1/q", "measured"],
                cells,
            )
        ],
    )
