"""How the labels, or the residual, are spread over the eigenvectors of a kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from wideangle import seeds
from wideangle.errors import InputError
from wideangle.kernel.spectrum import Spectrum, project
from wideangle.result import Result

__all__ = ["Alignment", "label_alignment", "residual_alignment"]

Array = np.ndarray
_PER_BIN = 5  # fewer modes say too little about a mean of squares
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Alignment(Result):
    """The power with which a target's energy per mode follows the eigenvalues, beside a permuted control.

    energy ~ eigenvalue^slope; slope 0 is a target that ignores the kernel, and permuted labels show it.
    [low, high] is the 95 % interval of the regression over the bins. `modes_for_90` is the number of
    leading modes that hold 90 % of the energy. `unresolved_share` is the share of the energy in modes
    below the resolution of the spectrum: no step size ever fits it.
    """

    kind: str = "labels"
    slope: float = 0.0
    low: float = 0.0
    high: float = 0.0
    control_slope: float | None = None
    control_spread: float | None = None
    permutations: int = 0
    modes_for_90: int = 0
    control_modes_for_90: float | None = None
    unresolved_share: float = 0.0
    modes_used: int = 0
    modes_left_out: int = 0
    centred: bool = False
    outputs: int = 1
    bin_eigenvalue: list[float] = field(default_factory=list, repr=False)
    bin_energy: list[float] = field(default_factory=list, repr=False)
    bin_count: list[int] = field(default_factory=list, repr=False)

    @property
    def above_control(self) -> bool:
        """True where the whole interval lies over the permuted slopes (mean plus two spreads)."""
        if self.control_slope is None or self.control_spread is None:
            return False
        return self.low > self.control_slope + 2 * self.control_spread


def label_alignment(
    spectrum: Spectrum,
    y: Any,
    bins: int = 20,
    *,
    permutations: int = 20,
    generator: torch.Generator | None = None,
    centre: bool = True,
    drop_top: int = 0,
    below: float | None = None,
) -> Alignment:
    """Return the slope of label energy against eigenvalue, with its interval and a permuted-label control.

        a_i = mean_c (v_i . y_c)^2,    log(mean a in a bin) = slope log(lambda) + const

    Modes above the resolution are put into `bins` bins of equal width in log(lambda); bins with fewer
    than 5 modes are left out (squares of single coefficients are chi-square noise); the energies of a
    bin are averaged first and the logarithm taken then; one least-squares line through the bins, each
    counting once. The interval is that of the regression (Student t, bins - 2 degrees of freedom). The
    control repeats it with the samples permuted. Cost: n^2 C multiply-adds for each permutation.

    Args:
        spectrum: of the kernel, with its vectors.
        y: integer labels (n,), made one-hot over the values that occur; or real targets (n,), (n, C), or
            (n C,) for a full kernel.
        bins: number of bins over the range of log(lambda).
        permutations: how many permuted targets make the control; 0 leaves it out.
        generator: draws the permutations; by default a fresh one with a fixed seed.
        centre: subtract each output's mean, so that the constant direction, which tells nothing about
            the labels and sits in the top mode, does not count.
        drop_top: number of leading modes to leave out.
        below: only modes with an eigenvalue up to this one.

    Returns:
        An `Alignment`.

    Raises:
        InputError: sizes do not match, a non-finite target, constant labels, or fewer than three bins
            with 5 modes (take more samples or fewer bins).

    Example:
        >>> from wideangle.kernel.spectrum import eigenpairs
        >>> scales = torch.logspace(0, -3, 200, dtype=torch.float64)
        >>> round(label_alignment(eigenpairs(torch.diag(scales)), scales, centre=False).slope, 1)
        2.0

    Reference: Marreddy & Liu 2026 (arXiv 2605.25275), label-NTK alignment (slope 2 in the paper; on
    digits 1.2 at one hidden layer and 1.8 at four). Differs from the paper in using one kernel of all
    samples where the paper averages over batches of 100.
    """
    return _alignment("labels", spectrum, y, bins, permutations, generator, centre, drop_top, below)


def residual_alignment(
    spectrum: Spectrum,
    residual: Any,
    bins: int = 20,
    *,
    permutations: int = 20,
    generator: torch.Generator | None = None,
    centre: bool = False,
    drop_top: int = 0,
    below: float | None = None,
) -> Alignment:
    """Return the slope of residual energy against eigenvalue, with its interval and a permuted control.

        b_i = mean_c (v_i . r_c)^2,    log(mean b in a bin) = slope log(lambda) + const

    At initialisation E b_i <= lambda_i + a_i (see `kernel.nngp`). After t steps b_i has shrunk by
    (1 - step c lambda_i)^(2 t): the slope of r_0 survives on modes with step c lambda_i t << 1 only, so
    give `below` = 0.1 / (step c t). Cost and binning as for `label_alignment`.

    Args:
        spectrum: of the kernel, with its vectors.
        residual: f - y, of shape (n,), (n, C), or (n C,) for a full kernel; real.
        bins: as for `label_alignment`.
        permutations: as for `label_alignment`.
        generator: as for `label_alignment`.
        centre: subtract each output's mean.
        drop_top: number of leading modes to leave out.
        below: only modes with an eigenvalue up to this one.

    Returns:
        An `Alignment`.

    Raises:
        InputError: as for `label_alignment`.

    Example:
        >>> from wideangle.kernel.spectrum import eigenpairs
        >>> scales = torch.logspace(0, -3, 200, dtype=torch.float64)
        >>> round(residual_alignment(eigenpairs(torch.diag(scales)), scales.sqrt()).slope, 1)
        1.0

    Reference: Marreddy & Liu 2026 (arXiv 2605.25275), residual-NTK alignment (slope 1 in the paper).
    """
    return _alignment("residual", spectrum, residual, bins, permutations, generator, centre, drop_top, below)


def _alignment(
    kind: str,
    spectrum: Spectrum,
    target: Any,
    bins: int,
    permutations: int,
    generator: torch.Generator | None,
    centre: bool,
    drop_top: int,
    below: float | None,
) -> Alignment:
    columns = _by_sample(spectrum, target, labels=kind == "labels")
    if centre:
        columns = columns - columns.mean(0)
    if not np.abs(columns).max() > 0:
        raise InputError(f"the target is {'constant' if centre else 'zero'}; there is nothing to align")
    energy = _energies(spectrum, columns)
    binned = _binning(spectrum, energy, bins, drop_top, below)
    fit = _line(binned, energy, spectrum.eigenvalues)
    control = _control(spectrum, columns, binned, permutations, generator)
    resolved = spectrum.resolved > 0
    return Alignment(
        kind=kind,
        slope=fit[0],
        low=fit[0] - fit[1],
        high=fit[0] + fit[1],
        modes_for_90=_leading(energy),
        unresolved_share=float(energy[~resolved].sum() / energy.sum()),
        modes_used=sum(len(index) for index in binned),
        modes_left_out=spectrum.size - sum(len(index) for index in binned),
        centred=centre,
        outputs=columns.shape[1],
        bin_eigenvalue=[float(np.exp(np.log(spectrum.eigenvalues[index]).mean())) for index in binned],
        bin_energy=[float(energy[index].mean()) for index in binned],
        bin_count=[len(index) for index in binned],
        **control,
    )


def _by_sample(spectrum: Spectrum, target: Any, labels: bool) -> Array:
    """Return the target as (n, C), one row a sample."""
    values = torch.as_tensor(target).detach().cpu()
    if values.dim() == 1 and labels and not values.is_floating_point():
        kinds, index = torch.unique(values, return_inverse=True)
        values = torch.nn.functional.one_hot(index, len(kinds))
    elif values.dim() == 1 and spectrum.outputs > 1 and len(values) == spectrum.size:
        values = values.reshape(spectrum.samples, spectrum.outputs)
    if values.dim() == 1:
        values = values[:, None]
    wanted = (spectrum.samples, spectrum.outputs if spectrum.outputs > 1 else values.shape[-1])
    if values.dim() != 2 or tuple(values.shape) != wanted:
        raise InputError(
            f"a target of shape {tuple(torch.as_tensor(target).shape)} does not fit a kernel of "
            f"{spectrum.samples} samples and {spectrum.outputs} outputs"
        )
    if not bool(torch.isfinite(values.double()).all()):
        raise InputError("the target has non-finite entries; drop those samples")
    return values.double().numpy()


def _energies(spectrum: Spectrum, columns: Array) -> Array:
    return (project(spectrum, columns) ** 2).mean(1)


def _binning(spectrum: Spectrum, energy: Array, bins: int, drop_top: int, below: float | None) -> list[Array]:
    """Return the modes of each bin that is kept, largest eigenvalues first."""
    if bins < 3 or drop_top < 0:
        raise InputError(f"bins must be 3 or more and drop_top zero or more, got {bins} and {drop_top}")
    use = spectrum.resolved > 0
    use[:drop_top] = False
    if below is not None:
        use &= spectrum.eigenvalues <= below
    modes = np.flatnonzero(use)
    kept: list[Array] = []
    if len(modes):
        log = np.log(spectrum.eigenvalues[modes])
        edges = np.linspace(log.min(), log.max(), bins + 1)
        place = np.clip(np.searchsorted(edges, log, side="right") - 1, 0, bins - 1)
        noise = (spectrum.size * np.finfo(float).eps) ** 2 * energy.sum()  # of a projection that is zero
        groups = [modes[place == b] for b in reversed(range(bins))]
        kept = [g for g in groups if len(g) >= _PER_BIN and energy[g].mean() > noise]
    if len(kept) < 3:
        raise InputError(
            f"a slope needs three bins with {_PER_BIN} modes or more each; {len(kept)} of {bins} have them "
            f"({len(modes)} of {spectrum.size} modes are in range); take more samples or fewer bins"
        )
    return kept


def _line(binned: list[Array], energy: Array, eigenvalues: Array) -> tuple[float, float]:
    """Return the slope over the bins and the half-width of its interval."""
    from scipy.stats import t

    x = np.array([np.log(eigenvalues[index]).mean() for index in binned])
    e = np.log(np.maximum([energy[index].mean() for index in binned], np.finfo(float).tiny))
    x, e = x - x.mean(), e - e.mean()
    slope = float(x @ e / (x @ x))
    left = float(((e - slope * x) ** 2).sum()) / (len(x) - 2)
    return slope, float(t.ppf((1 + _CONFIDENCE) / 2, len(x) - 2) * np.sqrt(left / (x @ x)))


def _leading(energy: Array) -> int:
    """Return the number of leading modes that hold 90 % of the energy."""
    return int(np.searchsorted(np.cumsum(energy), 0.9 * energy.sum()) + 1)


def _control(
    spectrum: Spectrum,
    columns: Array,
    binned: list[Array],
    permutations: int,
    generator: torch.Generator | None,
) -> dict[str, Any]:
    """Return the control fields of an `Alignment`; the bins are those of the true target."""
    if permutations == 0:
        return {}
    if permutations < 2:
        raise InputError(f"the control needs two permutations or more (or 0 for none), got {permutations}")
    draws = generator or seeds.generator(0, "kernel", "alignment")
    slopes, leading = [], []
    for _ in range(permutations):
        order = torch.randperm(len(columns), generator=draws, device=draws.device).cpu().numpy()
        energy = _energies(spectrum, columns[order])
        slopes.append(_line(binned, energy, spectrum.eigenvalues)[0])
        leading.append(_leading(energy))
    return {
        "control_slope": float(np.mean(slopes)),
        "control_spread": float(np.std(slopes, ddof=1)),
        "permutations": permutations,
        "control_modes_for_90": float(np.mean(leading)),
    }
