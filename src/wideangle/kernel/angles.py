"""Angles between inputs and between gradient features, and what depth does to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wideangle.errors import InputError
from wideangle.kernel._duals import angle_of
from wideangle.kernel._pairs import as_rows, norms_and_directions, pair_angles
from wideangle.kernel.infinite import Trainable, by_depth, kappa_limit
from wideangle.kernel.spectrum import as_matrix, condition_number
from wideangle.progress import track
from wideangle.result import Result

__all__ = [
    "ClosestPair",
    "SeparationReport",
    "gradient_angles",
    "input_angles",
    "min_angle",
    "separation_report",
]


class ClosestPair(NamedTuple):
    """The smallest angle, in radians, and the two rows it lies between."""

    angle: float
    first: int
    second: int


@dataclass(frozen=True)
class SeparationReport(Result):
    """How well a data set is separated, at the input and in the gradients of infinitely wide nets.

    Angles are in radians, the smallest over all pairs, one entry a depth; condition numbers are those
    of the tangent kernel. A linear net has the input's angle and condition number at every depth.
    """

    samples: int
    features: int
    normalized: bool
    depths: list[int]
    input_angle: float
    closest_rows: list[int]
    relu_angle: list[float]
    first_layer_angle: list[float]
    linear_condition: float
    relu_condition: list[float]
    first_layer_condition: list[float]
    condition_limit: float
    zero_rows: int = 0
    parallel_pairs: int = 0
    opposite_pairs: int = 0
    warnings: list[str] = field(default_factory=list)


def input_angles(x: Any, z: Any = None) -> Tensor:
    """Return the angles between samples, (n, n) or (n, m), accurate for nearly parallel ones.

        theta_ij = 2 atan2(|u_i - u_j|, |u_i + u_j|),   u_i = x_i / |x_i|

    Pairs whose cosine is within 1e-3 of +-1 are computed from the differences u_i - u_j, the others from
    the cosine: the absolute error is about 1e-15 throughout. Cost: n m d multiply-adds, and as much
    again for each such pair; two (n, m) matrices.

    Args:
        x: samples (n, ...), flattened to (n, d); real, finite, no zero row.
        z: second samples; `x` where left out.

    Returns:
        Radians, float64, on the device of x.

    Raises:
        InputError: misshaped or non-finite samples, or a zero row.

    Example:
        >>> input_angles(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))[0, 1]
        tensor(0.7854, dtype=torch.float64)

    Reference: Kahan 2006 (how futile are mindless assessments of roundoff), the angle formula.
    """
    units = []
    for name, samples in (("x", x), ("z", z)):
        if samples is not None:
            norms, u = norms_and_directions(as_rows(samples, name))
            _refuse_zero(norms, name)
            units.append(u)
    if len({u.shape[1] for u in units}) > 1:
        raise InputError(f"x and z have different numbers of features, {[u.shape[1] for u in units]}")
    return pair_angles(*units)


def gradient_angles(K: Any) -> Tensor:
    """Return the angles between gradient features from their tangent kernel, (n, n) or (n C, n C).

        cos(phi_ij) = K_ij / sqrt(K_ii K_jj),
        1 - cos(phi_ij) = (|g_i - g_j|^2 - (|g_i| - |g_j|)^2) / (2 |g_i| |g_j|),
        |g_i - g_j|^2 = K_ii + K_jj - 2 K_ij

    A kernel's entries carry rounding of size eps, so an angle is good to about eps / phi, and angles
    below sqrt(eps) are not told from zero: 1e-7 rad for float64, 4e-4 rad for a float32 kernel. Where
    that matters use `input_angles` and `infinite.gradient_angle`, which do not go through a kernel.
    Cost: a few passes over n^2 entries.

    Args:
        K: kernel, (n, n) or (n, C, n, C). A trace kernel gives the angle between stacked gradients of
            all outputs, a full kernel one between the gradients of every (sample, output) pair.

    Returns:
        Radians, float64, zero diagonal.

    Raises:
        InputError: not a kernel, or a sample whose gradient is zero.
        NumericsError: a non-finite entry.

    Example:
        >>> gradient_angles(torch.tensor([[1.0, 0.0], [0.0, 4.0]])).tolist()[0]
        [0.0, 1.5707963267948966]

    Reference: Liu & Hui 2023 (arXiv 2305.08813), section 3, model-gradient angle.
    """
    kernel = as_matrix(K).to(torch.float64)
    squares = kernel.diagonal()
    if bool((squares < 0).any()):
        raise InputError(f"a kernel has no negative diagonal entry, got {float(squares.min()):.4g}")
    norms = squares.sqrt()
    _refuse_zero(norms, "the kernel's diagonal")
    gap = (squares[:, None] - squares[None, :]) / (norms[:, None] + norms[None, :])  # |g_i| - |g_j|
    apart = squares[:, None] + squares[None, :] - (kernel + kernel.T) - gap**2
    deficit = torch.clamp(apart / (2 * norms[:, None] * norms[None, :]), 0, 2)
    angles = 2 * torch.atan2(deficit.sqrt(), (2 - deficit).sqrt())
    return angles.fill_diagonal_(0.0)


def min_angle(angles: Tensor) -> ClosestPair:
    """Return the smallest angle between two different samples, and which they are.

        min over i < j of angles[i, j]

    Cost: one pass over n^2 entries.

    Args:
        angles: square, as from `input_angles` or `gradient_angles`.

    Returns:
        A `ClosestPair` (angle, first, second) with first < second.

    Raises:
        InputError: not square, or fewer than two samples.

    Example:
        >>> min_angle(torch.tensor([[0.0, 0.3], [0.3, 0.0]], dtype=torch.float64))
        ClosestPair(angle=0.3, first=0, second=1)
    """
    if angles.dim() != 2 or angles.shape[0] != angles.shape[1] or len(angles) < 2:
        raise InputError(f"the smallest angle needs an (n, n) matrix with n >= 2, got {tuple(angles.shape)}")
    lower = torch.ones_like(angles, dtype=torch.bool).tril()
    place = int(torch.where(lower, math.inf, angles).argmin())
    first, second = divmod(place, len(angles))
    return ClosestPair(float(angles[first, second]), first, second)


def separation_report(
    x: Any, depths: Sequence[int] = range(11), *, normalize: bool = True
) -> SeparationReport:
    """Return smallest angle and condition number of infinitely wide ReLU and linear nets over depth.

        phi_min(L) = min_{i<j} gradient_angle(theta_ij, L),   kappa(L) = lambda_max / lambda_min of ntk(x, L)

    for ReLU with all layers trained, ReLU with only the first trained, and the linear net (whose angles
    and kappa are those of the Gram matrix at every depth). With only the first layer trained kappa never
    rises with depth (Schur product theorem); with all trained it falls where pairs are nearly parallel
    and can rise where they are well separated, which `warnings` tells. Cost: two eigenvalue problems of
    4/3 n^3 a depth; about fifteen (n, n) matrices.

    Args:
        x: samples (n, ...), flattened to (n, d), n >= 2 after zero rows are left out.
        depths: numbers of hidden layers.
        normalize: scale every sample to unit norm first; otherwise the norms dominate kappa.

    Returns:
        A `SeparationReport`.

    Raises:
        InputError: misshaped or non-finite samples, fewer than two non-zero ones, a bad depth.

    Example:
        >>> separation_report(torch.eye(50), depths=[1]).relu_condition[0] > 10     # worse than linear's 1
        True

    Reference: Liu & Hui 2023 (arXiv 2305.08813), Theorems 4.2, F.1 and figure 3. Differs from the paper,
    which says that ReLU always lowers kappa: with all layers trained it does so only for close pairs.
    """
    wanted = sorted(set(depths))
    if not wanted or wanted[0] < 0:
        raise InputError(f"depths are numbers of hidden layers of zero or more, got {list(depths)}")
    norms, units = norms_and_directions(as_rows(x))
    present = (norms > 0).nonzero().squeeze(1)
    if len(present) < 2:
        raise InputError(f"separation needs two or more non-zero samples, got {len(present)}")
    units = units[present]
    lengths = torch.ones_like(norms[present]) if normalize else norms[present]
    theta = pair_angles(units)
    closest = min_angle(theta)
    scale = lengths[:, None] * lengths[None, :]
    relu = _over_depth(theta, scale, wanted, "all")
    first_layer = _over_depth(theta, scale, wanted, "first")
    parallel, opposite = _degenerate_pairs(theta, torch.as_tensor(x).dtype)
    report = SeparationReport(
        samples=len(units),
        features=units.shape[1],
        normalized=normalize,
        depths=wanted,
        input_angle=closest.angle,
        closest_rows=[int(present[closest.first]), int(present[closest.second])],
        relu_angle=[angle for angle, _ in relu],
        first_layer_angle=[angle for angle, _ in first_layer],
        linear_condition=condition_number(scale * (units @ units.T)),
        relu_condition=[kappa for _, kappa in relu],
        first_layer_condition=[kappa for _, kappa in first_layer],
        condition_limit=kappa_limit(len(units)),
        zero_rows=len(norms) - len(units),
        parallel_pairs=parallel,
        opposite_pairs=opposite,
    )
    return replace(report, warnings=_warnings(report, float(lengths.max() / lengths.min())))


def _over_depth(
    theta: Tensor, scale: Tensor, depths: list[int], trainable: Trainable
) -> list[tuple[float, float]]:
    """Return the smallest gradient angle and the condition number at each depth."""
    one = torch.ones((), dtype=theta.dtype, device=theta.device)
    states = islice(by_depth(theta, one, one, "relu", trainable), depths[-1] + 1)
    found = []
    for depth, state in enumerate(track(states, f"depth ({trainable})", total=depths[-1] + 1)):
        if depth in depths:
            kappa = condition_number(scale * (state.t_i * state.t_j).sqrt() * (1 - state.gap))
            found.append((min_angle(angle_of(state.gap)).angle, kappa))
    return found


def _degenerate_pairs(theta: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """Return the number of pairs that are parallel, and opposite, within the rounding of the data."""
    tolerance = 4 * torch.finfo(dtype if dtype.is_floating_point else theta.dtype).eps
    upper = torch.triu(torch.ones_like(theta, dtype=torch.bool), 1)
    return int((upper & (theta < tolerance)).sum()), int((upper & (math.pi - theta < tolerance)).sum())


def _warnings(report: SeparationReport, norm_range: float) -> list[str]:
    found = []
    rows = f"rows {report.closest_rows[0]} and {report.closest_rows[1]}"
    if report.zero_rows:
        found.append(f"zero rows left out: {report.zero_rows}; a net without biases is constant there")
    if report.parallel_pairs:
        found.append(
            f"parallel or duplicated pairs of samples: {report.parallel_pairs} (such as {rows}); without "
            "biases the kernel is singular at every depth: drop one of each"
        )
    if report.opposite_pairs:
        found.append(
            f"opposite pairs of samples: {report.opposite_pairs}; the linear net cannot tell them apart, "
            "ReLU with a hidden layer can"
        )
    if norm_range > 3:
        found.append(f"norms differ by a factor of {norm_range:.3g} and dominate kappa; scale to unit norm")
    worse = [
        (depth, kappa)
        for depth, kappa in zip(report.depths, report.relu_condition, strict=True)
        if kappa > report.linear_condition * (1 + 1e-9)
    ]
    if worse:
        depth, kappa = worse[0]
        found.append(
            f"already well separated ({math.degrees(report.input_angle):.3g} degrees or more): ReLU raises "
            f"kappa from {report.linear_condition:.4g} (linear) to {kappa:.4g} at depth {depth}"
        )
    return found


def _refuse_zero(norms: Tensor, name: str) -> None:
    zero = (norms == 0).nonzero().flatten().tolist()
    if zero:
        raise InputError(
            f"{name} has {len(zero)} zero rows (first: {zero[0]}); zero makes no angle, drop them"
        )
