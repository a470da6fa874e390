"""Label-NTK Alignments and A Tighter Convergence Bound in the NTK Regime (arXiv 2605.25275), claim by claim."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wideangle import seeds
from wideangle.document import Figure, Series, Table
from wideangle.kernel import eigenpairs, infinite
from wideangle.kernel.alignment import Alignment, label_alignment, residual_alignment
from wideangle.kernel.convergence import (
    generalization_bound,
    loss_bound_lambda_min,
    loss_bound_trace,
    loss_curve,
    steps_to,
    time_grid,
)
from wideangle.kernel.spectrum import Spectrum
from wideangle.papers._dynamics import finite_network, predicted_against_measured, recursion
from wideangle.papers._frame import Finding, Paper, Setting, Statement

__all__ = ["PAPER"]

DYNAMICS, BOUNDS, ALIGNED, RATES, TEST = (
    "Residual dynamics",
    "Convergence bounds",
    "Alignment",
    "Rates of a power-law spectrum",
    "Generalisation",
)


_MODES = 1_000_000  # of the power laws: enough that the cut-off does not show at the steps used


def digits(setting: Setting, n: int) -> tuple[Tensor, Tensor]:
    """Return unit-norm digits and one-hot labels."""
    found = setting.load("digits", n)
    x = found.x.flatten(1).double()
    return x / x.norm(dim=1, keepdim=True), found.one_hot(torch.float64)


def spectra(setting: Setting, x: Tensor) -> dict[int, Spectrum]:
    """Return the spectra of the infinitely wide ReLU kernels of depth 1 and 4."""
    return {depth: eigenpairs(infinite.ntk(x, depth)) for depth in (1, 4)}


def start(spectrum_depth: int, x: Tensor, outputs: int, seed: int) -> Tensor:
    """Return one draw of the outputs of an infinitely wide network at initialisation, (n, outputs)."""
    sigma = infinite.nngp(x, spectrum_depth)
    values, vectors = torch.linalg.eigh(sigma)
    draws = seeds.generator(seed, "alignment", "start", spectrum_depth)
    noise = torch.randn(len(x), outputs, generator=draws, dtype=torch.float64)
    return vectors @ (values.clamp_min(0).sqrt()[:, None] * noise)


def rigorous_bound(setting: Setting) -> Finding:
    """Exact curve under the full-spectrum bound with c = max b_i / lambda_i, all t, several residuals."""
    x, y = digits(setting, setting.pick(300, 1000, 1000))
    times = time_grid(100_000)
    worst, figures = 0.0, []
    for depth, spectrum in spectra(setting, x).items():
        step = 1 / float(spectrum.eigenvalues[0])
        for seed in setting.seeds:
            residual = start(depth, x, 10, seed) - y
            curves = {
                "exact": loss_curve(spectrum, residual, step, times),
                "full spectrum, rigorous": loss_bound_trace(spectrum, residual, step, times),
                "full spectrum, fitted": loss_bound_trace(spectrum, residual, step, times, constant="fitted"),
                "smallest eigenvalue": loss_bound_lambda_min(spectrum, residual, step, times),
            }
            bound = np.maximum(curves["full spectrum, rigorous"], 1e-300)
            worst = max(worst, float((curves["exact"] / bound).max()))
            if seed == setting.seeds[0]:
                figures.append(_bounds_figure(depth, times, curves))
    return Finding(
        worst <= 1 + 1e-9,
        f"largest loss / bound over all steps up to 100,000: {worst:.3f}",
        seeds=setting.seeds,
        figures=figures,
    )


def _bounds_figure(depth: int, times: np.ndarray, curves: dict[str, np.ndarray]) -> Figure:
    shown = [float(max(t, 0.8)) for t in times]
    floor = float(curves["exact"][0]) * 1e-8
    return Figure(
        title=f"Loss and its bounds, digits, infinitely wide ReLU network of depth {depth}",
        x_label="step",
        y_label="loss",
        x_log=True,
        y_log=True,
        series=[
            Series(
                name,
                shown,
                [float(v) if v > floor else None for v in values],
                "line" if name == "exact" else "dashed",
            )
            for name, values in curves.items()
        ],
        caption="The bound by the smallest eigenvalue stays nearly flat; the full spectrum follows the loss.",
    )


def tighter(setting: Setting) -> Finding:
    """The full-spectrum bound lies far below the classic one late in training."""
    x, y = digits(setting, setting.pick(300, 1000, 1000))
    cells = []
    for depth, spectrum in spectra(setting, x).items():
        step = 1 / float(spectrum.eigenvalues[0])
        for t in (1_000, 10_000):
            rows = [
                [
                    float(curve(spectrum, start(depth, x, 10, seed) - y, step, [t])[0])
                    for curve in (loss_curve, loss_bound_trace, loss_bound_lambda_min)
                ]
                for seed in setting.seeds
            ]
            exact, trace, classic = np.mean(rows, axis=0)
            cells.append([depth, t, exact, trace, classic, classic / trace])
    late = {cell[0]: cell[-1] for cell in cells if cell[1] == 10_000}
    return Finding(
        all(ratio > 1 for ratio in late.values()) and late[4] > 3,
        f"at t = 10,000 the classic bound is {late[1]:.1f} times larger at depth 1, {late[4]:.1f} times at depth 4",
        "holds where it is larger at both depths and over 3 times at depth 4",
        setting.seeds,
        tables=[Table("Loss and bounds", ["depth", "t", "exact", "rigorous", "classic", "ratio"], cells)],
    )


def fitted_bound(setting: Setting) -> Finding:
    """The constant fitted at t = 0 gives a bound, as the paper's curves suggest."""
    x, y = digits(setting, setting.pick(300, 1000, 1000))
    times = time_grid(20_000)
    worst = {}
    for depth, spectrum in spectra(setting, x).items():
        step = 1 / float(spectrum.eigenvalues[0])
        fitted = loss_bound_trace(spectrum, -y, step, times, constant="fitted")
        worst[depth] = float((loss_curve(spectrum, -y, step, times) / fitted).max())
    return Finding(
        max(worst.values()) <= 1 + 1e-9,
        f"largest loss / fitted curve, residual -y: {worst[1]:.2f} at depth 1, {worst[4]:.2f} at depth 4",
        "only c = max b_i / lambda_i is a bound; the fitted one follows the shape",
    )


def _alignments(setting: Setting) -> tuple[list[tuple[str, int, Alignment, Alignment]], list[str]]:
    rows = []
    sets, missing = setting.sets(setting.pick(300, 1000, 1000))
    for found in sets:
        x = found.x.flatten(1).double()
        x, y = x / x.norm(dim=1, keepdim=True), found.one_hot(torch.float64)
        for depth, spectrum in spectra(setting, x).items():
            draws = seeds.generator(setting.seed, "permuted", depth)
            labels = label_alignment(spectrum, y, 15, generator=draws)
            residual = residual_alignment(
                spectrum, start(depth, x, y.shape[1], setting.seed) - y, 15, generator=draws
            )
            rows.append((found.name, depth, labels, residual))
    return rows, missing


def _slopes(setting: Setting, which: int, wanted: float) -> Finding:
    rows, missing = _alignments(setting)
    cells, inside = [], True
    for row in rows:
        found: Alignment = row[which]  # type: ignore[assignment]
        inside &= found.low <= wanted <= found.high
        cells.append([row[0], row[1], found.slope, found.low, found.high, found.control_slope])
    heads = ["data", "depth", "slope", "low", "high", "permuted"]
    return Finding(
        inside,
        "; ".join(f"{c[0]} L={c[1]}: {c[2]:.2f} [{c[3]:.2f}, {c[4]:.2f}]" for c in cells),
        f"holds where every 95 % interval contains {wanted:g}"
        + (f"; not there: {', '.join(missing)}" if missing else ""),
        [setting.seed],
        figures=[_alignment_figure(rows, which)],
        tables=[Table("Slopes of log energy against log eigenvalue", heads, cells)],
    )


def _alignment_figure(rows: list[tuple[str, int, Alignment, Alignment]], which: int) -> Figure:
    series = []
    for row in rows:
        found: Alignment = row[which]  # type: ignore[assignment]
        if row[1] == 4:
            series.append(Series(row[0], found.bin_eigenvalue, list(found.bin_energy), "points"))
    name = "labels" if which == 2 else "residual at the start"
    return Figure(
        title=f"Energy of the {name} in the kernel's modes, depth 4",
        x_label="eigenvalue",
        y_label="mean energy a mode",
        x_log=True,
        y_log=True,
        series=series,
        caption="Binned by eigenvalue, averaged, then the logarithm taken.",
    )


def label_slope(setting: Setting) -> Finding:
    """(v_i . y)^2 grows like lambda_i^2."""
    return _slopes(setting, 2, 2.0)


def residual_slope(setting: Setting) -> Finding:
    """(v_i . r_0)^2 grows like lambda_i."""
    return _slopes(setting, 3, 1.0)


def above_control(setting: Setting) -> Finding:
    """Labels are aligned, permuted ones are not, and depth aligns more."""
    rows, missing = _alignments(setting)
    cells = [
        [r[0], r[1], r[2].slope, r[2].control_slope, r[2].control_spread, r[2].modes_for_90] for r in rows
    ]
    control = max(abs(float(c[3])) for c in cells)
    above = all(r[2].above_control for r in rows)
    deeper = all(a[2].slope < b[2].slope for a, b in zip(rows[::2], rows[1::2], strict=True))
    heads = ["data", "depth", "slope", "permuted", "spread", "modes for 90 %"]
    return Finding(
        above and deeper and control < 0.15,
        f"slopes {min(c[2] for c in cells):.2f} to {max(c[2] for c in cells):.2f}, permuted within {control:.2f} of 0; "
        f"larger at depth 4 than at depth 1: {deeper}",
        f"not there: {', '.join(missing)}" if missing else "",
        [setting.seed],
        tables=[Table("Label slopes beside permuted labels", heads, cells)],
    )


def start_energy(setting: Setting) -> Finding:
    """E (v_i . f_0)^2 = v_i . Sigma v_i <= lambda_i."""
    x, _ = digits(setting, setting.pick(300, 1000, 1000))
    ratios = {}
    for depth, spectrum in spectra(setting, x).items():
        vectors = torch.as_tensor(spectrum.vectors)
        energy = torch.einsum("im,ij,jm->m", vectors, infinite.nngp(x, depth), vectors).numpy()
        keep = spectrum.resolved > 0
        ratios[depth] = float((energy[keep] / spectrum.eigenvalues[keep]).max())
    return Finding(
        max(ratios.values()) <= 1,
        f"largest ratio {ratios[1]:.2f} at depth 1, {ratios[4]:.2f} at depth 4",
        "since the NNGP kernel is the last layer's part of the tangent kernel",
    )


def power_law_rate(setting: Setting) -> Finding:
    """tr[(I - step K)^(2t) K] falls like t^(-(q-1)/q); so log T_eps = q/(q-1) log(1/eps)."""
    cells, off = [], 0.0
    for q in (1.5, 2.0, 3.0):
        spectrum = _power_law(q, _MODES)
        ones = np.sqrt(spectrum.eigenvalues)
        t = np.array([100.0, 1000.0]) if q < 2 else np.array([300.0, 3000.0])
        curve = loss_curve(spectrum, ones, 1.0, t)
        slope = float(np.diff(np.log(curve))[0] / np.diff(np.log(t))[0])
        expected = -(q - 1) / q
        cells.append([q, expected, slope])
        off = max(off, abs(slope - expected))
    return Finding(
        off < 0.02,
        ", ".join(f"q = {c[0]:g}: {c[2]:.3f} for {c[1]:.3f}" for c in cells),
        "holds within 0.02",
        tables=[Table("Decay exponents", ["q", "-(q-1)/q", "measured"], cells)],
    )


def _power_law(q: float, size: int) -> Spectrum:
    values = np.arange(1, size + 1, dtype=float) ** -q
    return _diagonal(values)


def _diagonal(values: np.ndarray) -> Spectrum:
    """Return the spectrum of a diagonal kernel without decomposing it."""
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


class _Identity:
    """Eigenvectors of a diagonal kernel: the product with a target is the target."""

    @property
    def T(self) -> _Identity:  # noqa: N802 - numpy's name
        """The identity again."""
        return self

    def __matmul__(self, target: np.ndarray) -> np.ndarray:
        return target


def printed_rate(setting: Setting) -> Finding:
    """T_eps = O(log(1/eps) / (q - 1)) as printed: steps would grow by a constant for each factor of eps."""
    spectrum = _power_law(2.0, _MODES)
    ones = np.sqrt(spectrum.eigenvalues)
    first = float(loss_curve(spectrum, ones, 1.0, [0])[0])
    steps = [steps_to(spectrum, ones, 1.0, first * eps) for eps in (0.1, 0.01)]
    ratio = (steps[1]) / steps[0]
    return Finding(
        ratio < 3,
        f"q = 2: {steps[0]:,.0f} steps to 10 % of the loss, {steps[1]:,.0f} to 1 %: a factor {ratio:.0f}, where the "
        "printed form gives 2 and its reading as log T_eps gives 100",
        "read it as a statement on log T_eps",
    )


def generalisation(setting: Setting) -> Finding:
    """The aligned bound against Arora's and the measured test error, parity labels on digits."""
    n = setting.pick(300, 1000, 1000)
    train, test = setting.load("digits", n), setting.load("digits", 300, split="test")
    x, z = (
        s.x.flatten(1).double() / s.x.flatten(1).double().norm(dim=1, keepdim=True) for s in (train, test)
    )
    order = torch.randperm(n, generator=seeds.generator(setting.seed, "permute"))
    cells = []
    for name, labels in (("parity", train.y), ("permuted parity", train.y[order])):
        y = (labels % 2).double() * 2 - 1
        # Arora et al. use a kernel half the size of ours: sigma = ReLU without the factor two
        kernel = infinite.ntk(x, 1, trainable="first") / 2
        cross = infinite.ntk(z, 1, trainable="first", z=x) / 2
        guess = cross @ torch.linalg.solve(kernel, y)
        error = float((guess.sign() != (test.y % 2).double() * 2 - 1).double().mean())
        arora, aligned = (generalization_bound(kernel, y, kind) for kind in ("arora", "aligned"))
        cells.append([name, arora, aligned, error, "vacuous" if min(arora, aligned) > 1 else "informative"])
    true = cells[0]
    words = [
        f"{kind} {v:.3g}{' (vacuous)' if v > 1 else ''}"
        for kind, v in (("Arora", true[1]), ("aligned", true[2]))
    ]
    return Finding(
        float(true[2]) < float(true[1]) and float(true[3]) <= float(true[2]),
        f"parity: {words[0]}, {words[1]}, test error {true[3]:.3f}; permuted labels: Arora {cells[1][1]:.3g}, aligned "
        f"{cells[1][2]:.3g}, test error {cells[1][3]:.2f}",
        "the aligned form depends on |y| alone, so it presupposes alignment and cannot tell permuted labels",
        [setting.seed],
        tables=[Table("Bounds and test error", ["labels", "Arora", "aligned", "test error", ""], cells)],
    )


PAPER = Paper(
    "alignment",
    "Label-NTK alignments",
    "Marreddy, Liu, arXiv 2605.25275",
    (
        Statement(
            "residual recursion", DYNAMICS, "r_{t+1} = (I - eta K) r_t on the linearised model", recursion
        ),
        Statement("finite network", DYNAMICS, "in the NTK regime the network follows it", finite_network),
        Statement(
            "predicted against measured",
            DYNAMICS,
            "Figures 1, 4: the predicted curve is close to training, MLP and CNN",
            predicted_against_measured,
        ),
        Statement("full-spectrum bound", BOUNDS, "L(w_t) <= c/2 tr[(I - eta K)^2t K]", rigorous_bound),
        Statement("tighter than lambda_min", BOUNDS, "Figure 1: the classic bound is nearly flat", tighter),
        Statement(
            "fitted constant bounds", BOUNDS, "curves normalised at t = 0 bound the loss", fitted_bound, False
        ),
        Statement("label slope 2", ALIGNED, "(v_i . y)^2 ~ lambda_i^2", label_slope, False),
        Statement("residual slope 1", ALIGNED, "(v_i . r_t)^2 ~ lambda_i", residual_slope, False),
        Statement("alignment above control", ALIGNED, "labels are aligned with the kernel", above_control),
        Statement("energy of the start", ALIGNED, "E (v_i . f_0)^2 <= lambda_i", start_energy),
        Statement("power-law decay", RATES, "log T_eps = q / (q - 1) log(1/eps), corrected", power_law_rate),
        Statement("T_eps as printed", RATES, "T_eps = O(log(1/eps) / (q - 1))", printed_rate, False),
        Statement(
            "generalisation", TEST, "tr K / n in place of y K^-1 y / n is a better bound", generalisation
        ),
    ),
)
