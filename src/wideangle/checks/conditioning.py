"""Section 2, the kernel: its spectrum, its condition number, and how far apart it sees the samples."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from wideangle.checks._study import FULL_KERNEL_LIMIT, Study
from wideangle.document import Figure, Section, Series
from wideangle.errors import InputError
from wideangle.kernel.angles import gradient_angles, input_angles, min_angle
from wideangle.kernel.spectrum import Spectrum, eigenpairs

__all__ = ["run"]

_DEGREES = 180.0 / np.pi


def run(study: Study) -> Section:
    """Return the spectrum of K_trace / C (and of the full kernel where it fits) and the smallest angles."""
    diagonal = study.trace.diagonal()
    silent = (diagonal <= 0).nonzero().flatten()
    if len(silent):
        raise InputError(
            f"{len(silent)} of {study.samples} samples have a gradient of zero (first: sample {int(silent[0])}), "
            "such as rows of zeros in a model without biases; remove them"
        )
    spectrum = study.spectrum
    values: dict[str, object] = {
        "kernel": "K_trace / C (mean over outputs), n x n",
        "largest eigenvalue": float(spectrum.eigenvalues[0]),
        "smallest resolved eigenvalue": _smallest(spectrum),
        "condition number": spectrum.condition_number,
        "rank": f"{spectrum.rank} of {spectrum.size}",
        "effective rank": spectrum.effective_rank,
    }
    if study.fits_full:
        full = study.full_spectrum
        values["full kernel, largest"] = float(full.eigenvalues[0])
        values["full kernel, condition"] = full.condition_number
        values["full kernel, rank"] = f"{full.rank} of {full.size}"
    notes = []
    if not study.fits_full:
        notes.append(
            f"The full kernel ({study.samples * study.outputs} x {study.samples * study.outputs}) is not decomposed "
            f"(limit {FULL_KERNEL_LIMIT}); its largest eigenvalue stands under step size."
        )
    angles, inputs = _angles(study, values, notes)
    study.sentences["kernel"] = _sentence(study, spectrum, angles, inputs)
    return Section(
        summary=study.sentences["kernel"],
        values=values,
        notes=notes,
        figures=[_figure(study, spectrum)],
    )


def _smallest(spectrum: Spectrum) -> float:
    return float(spectrum.eigenvalues[spectrum.rank - 1])


def _flat(study: Study) -> Tensor | None:
    """Return the inputs as vectors, where they are numbers."""
    x = study.x if isinstance(study.x, Tensor) else None
    return None if x is None or not x.is_floating_point() else x.flatten(1).double().cpu()


def _angles(study: Study, values: dict[str, object], notes: list[str]) -> tuple[float, float | None]:
    gradient = float(min_angle(gradient_angles(study.trace)).angle) * _DEGREES
    values["smallest gradient angle [degrees]"] = gradient
    x = _flat(study)
    if x is None:
        notes.append(
            "The inputs are no vectors of numbers, so their angles and a linear model's do not apply."
        )
        return gradient, None
    zero = int((x.norm(dim=1) == 0).sum())
    if zero:
        notes.append(f"{zero} inputs are all zero and have no angle; the input angles are left out.")
        return gradient, None
    inputs = float(min_angle(input_angles(x)).angle) * _DEGREES
    values["smallest input angle = a linear network's [degrees]"] = inputs
    values["linear network, condition number"] = eigenpairs(x @ x.T, vectors=False).condition_number
    return gradient, inputs


def _sentence(study: Study, spectrum: Spectrum, angle: float, inputs: float | None) -> str:
    if spectrum.rank_deficient:
        kappa = (
            f"K_trace / C is rank-deficient ({spectrum.rank} of {spectrum.size} directions can be learned; "
            f"{_duplicates(study)})"
        )
    else:
        kappa = (
            f"K_trace / C has condition number {_count(spectrum.condition_number)} and effective rank "
            f"{spectrum.effective_rank:.3g}{_full(study)}"
        )
    apart = ""
    if inputs is not None:
        close = math.isclose(angle, inputs, rel_tol=1e-3, abs_tol=1e-3)
        word = "as far as" if close else "wider than" if angle > inputs else "narrower than"
        apart = f"; the closest pair is {angle:.2g} degrees apart in gradients, {word} the {inputs:.2g} of the inputs"
    return f"{kappa}{apart}"


def _full(study: Study) -> str:
    """Name the full kernel's condition number where it is known: that one rules the slowest modes."""
    if not study.fits_full or study.outputs == 1 or study.full_spectrum.rank_deficient:
        return ""
    return f" (the full kernel {_count(study.full_spectrum.condition_number)})"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def _duplicates(study: Study) -> str:
    if not isinstance(study.x, Tensor):
        return "the kernel does not tell some samples apart"
    x = study.x.flatten(1)
    copies = len(x) - len(torch.unique(x, dim=0))
    return f"{copies} duplicated samples" if copies else "no sample is duplicated"


def _figure(study: Study, spectrum: Spectrum) -> Figure:
    index = np.unique(np.geomspace(1, spectrum.size, 80).astype(int))
    series = [_series(f"{study.name} (K_trace / C)", spectrum, index)]
    x = _flat(study)
    if x is not None:
        linear = eigenpairs(x @ x.T * float(study.trace.trace() / (x * x).sum()), vectors=False)
        series.append(_series("linear network, same trace", linear, index, "dashed"))
    return Figure(
        title="Spectrum of the tangent kernel",
        x_label="mode",
        y_label="eigenvalue",
        x_log=True,
        y_log=True,
        series=series,
        caption="Each eigenvalue is the speed at which gradient descent learns its mode; a flatter curve "
        "trains more evenly. Modes below the resolution are left out.",
    )


def _series(name: str, spectrum: Spectrum, index: np.ndarray, style: str = "line") -> Series:
    values = [float(spectrum.eigenvalues[i - 1]) if i <= spectrum.rank else None for i in index]
    return Series(name, [float(i) for i in index], values, style)  # type: ignore[arg-type]
