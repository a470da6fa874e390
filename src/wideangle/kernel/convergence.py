"""The loss curve of gradient descent on the linearised model, and bounds on it, from the spectrum.

The loss is (c/2) sum r^2 (`losses.hessian_factor` gives c) and one step of size `step` multiplies the
residual by I - step c K. Modes at or below the resolution of the spectrum count as zero: they keep
their energy for ever, which is the floor of the curve. Everything here costs modes x times; times may
be as large as a float holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from wideangle.errors import InputError
from wideangle.kernel._curves import Curve, log_factors
from wideangle.kernel.spectrum import Spectrum, eigenpairs, project
from wideangle.losses import hessian_factor
from wideangle.result import Result

__all__ = [
    "PowerLaw",
    "Prediction",
    "critical_step",
    "generalization_bound",
    "loss_bound_lambda_min",
    "loss_bound_trace",
    "loss_curve",
    "power_law",
    "predict",
    "residual_energies",
    "steps_to",
    "time_grid",
    "trace_constant",
]

Array = np.ndarray
Constant = Literal["rigorous", "fitted"]


def residual_energies(spectrum: Spectrum, residual: Any) -> Array:
    """Return the energy of the residual in each mode, summed over its columns.

        b_i = sum_c (v_i . r_c)^2,    sum_i b_i = |r|^2

    Cost: n^2 multiply-adds a column.

    Args:
        spectrum: with its vectors.
        residual: f - y, shapes as for `spectrum.project`.

    Returns:
        float64 array (size,), in the order of the eigenvalues.

    Raises:
        InputError: as for `spectrum.project`.

    Example:
        >>> residual_energies(eigenpairs(np.diag([2.0, 1.0])), [3.0, 1.0]).tolist()
        [9.0, 1.0]
    """
    return (project(spectrum, residual) ** 2).sum(1)


def critical_step(spectrum: Spectrum, c: float = 1.0) -> float:
    """Return the step size above which gradient descent on the linearised model diverges.

        2 / (c lambda_1)

    Args:
        spectrum: of the full kernel. (A trace kernel's lambda_1 is up to C times larger; that of
            K_trace / C only stands in for it.)
        c: constant of the loss, `losses.hessian_factor`.

    Returns:
        The critical step, inf for a kernel of zeros.

    Raises:
        InputError: c is not positive.

    Example:
        >>> critical_step(eigenpairs(np.diag([4.0, 1.0])))
        0.5
    """
    _check_positive(c=c)
    top = float(spectrum.resolved[0])
    return 2 / (c * top) if top > 0 else math.inf


def loss_curve(spectrum: Spectrum, residual: Any, step: float, steps: Any, c: float = 1.0) -> Array:
    """Return the exact loss of the linearised model after each number of steps.

        L(t) = (c/2) sum_i (1 - step c lambda_i)^(2t) b_i

    Evaluated through logarithms (log1p), so that huge t and tiny rates keep their digits. Above the
    critical step it diverges; a value too large for a float is inf.

    Args:
        spectrum: with its vectors.
        residual: f - y at t = 0, shapes as for `residual_energies`.
        step: learning rate.
        steps: numbers of steps t >= 0, any shape.
        c: constant of the loss.

    Returns:
        float64 array of the shape of `steps`.

    Raises:
        InputError: sizes do not match, a step or c that is not positive, a negative t.

    Example:
        >>> loss_curve(eigenpairs(np.diag([1.0, 0.5])), [1.0, 1.0], step=1.0, steps=[0, 1]).tolist()
        [1.0, 0.125]

    Reference: gradient descent on a quadratic; Marreddy & Liu 2026 (arXiv 2605.25275) start from it.
    """
    return _exact(spectrum, residual_energies(spectrum, residual), step, c).at(_times(steps))


def trace_constant(spectrum: Spectrum, residual: Any, constant: Constant = "rigorous") -> float:
    """Return the constant C of the full-spectrum bound, C lambda_i >= b_i or on average.

        rigorous: C = max_i b_i / lambda_i          fitted: C = sum_i b_i / sum_i lambda_i

    over the modes above the resolution.

    Args:
        spectrum: with its vectors.
        residual: f - y, shapes as for `residual_energies`.
        constant: "rigorous" or "fitted".

    Returns:
        C >= 0.

    Raises:
        InputError: sizes do not match, or another constant.

    Example:
        >>> trace_constant(eigenpairs(np.diag([2.0, 1.0])), [2.0, 1.0])
        2.0
    """
    return _constant(spectrum, residual_energies(spectrum, residual), constant)


def loss_bound_trace(
    spectrum: Spectrum,
    residual: Any,
    step: float,
    steps: Any,
    c: float = 1.0,
    *,
    constant: Constant = "rigorous",
) -> Array:
    """Return the full-spectrum bound on the loss of the linearised model.

        L(t) <= (c/2) C tr[(I - step c K)^(2t) K] + (c/2) sum_{lambda_i = 0} b_i

    With constant="rigorous", C = max b_i / lambda_i, it holds for every t, residual and step. With
    "fitted", C = sum b / sum lambda, it starts at the true loss and follows its shape but is **not a
    bound**: on digits (one hidden layer) the true loss is twice as large after 1,000 steps.

    Args:
        spectrum: with its vectors.
        residual: f - y at t = 0.
        step: learning rate.
        steps: numbers of steps t >= 0, any shape.
        c: constant of the loss.
        constant: "rigorous" or "fitted".

    Returns:
        float64 array of the shape of `steps`.

    Raises:
        InputError: as for `loss_curve`, or another constant.

    Example:
        >>> loss_bound_trace(eigenpairs(np.diag([1.0, 0.5])), [1.0, 0.5], 1.0, [0, 1]).tolist()
        [0.75, 0.0625]

    Reference: Marreddy & Liu 2026 (arXiv 2605.25275), full-spectrum bound. Differs from the paper in
    stating the constants, and in the second term, which appears where K is singular.
    """
    energies = residual_energies(spectrum, residual)
    return _trace(spectrum, energies, step, c, constant).at(_times(steps))


def loss_bound_lambda_min(
    spectrum: Spectrum, residual: Any, step: float, steps: Any, c: float = 1.0
) -> Array:
    """Return the classic bound on the loss, from the slowest mode alone.

        L(t) <= (c/2) |r|^2 max_i |1 - step c lambda_i|^(2t)

    For step <= 2 / (c (lambda_1 + lambda_n)) that is (1 - step c lambda_n)^(2t); for a singular kernel
    the bound is flat.

    Args:
        spectrum: with its vectors.
        residual: f - y at t = 0.
        step: learning rate.
        steps: numbers of steps t >= 0, any shape.
        c: constant of the loss.

    Returns:
        float64 array of the shape of `steps`.

    Raises:
        InputError: as for `loss_curve`.

    Example:
        >>> loss_bound_lambda_min(eigenpairs(np.diag([1.0, 0.5])), [1.0, 1.0], 1.0, [0, 1]).tolist()
        [1.0, 0.25]

    Reference: Du et al. 2019, Theorem 4.1 (rate of the smallest eigenvalue). Differs in taking the
    largest factor over all modes, so that it also holds for steps up to and above the critical one.
    """
    return _slowest(spectrum, residual_energies(spectrum, residual), step, c).at(_times(steps))


def steps_to(spectrum: Spectrum, residual: Any, step: float, target: float, c: float = 1.0) -> float:
    """Return the number of steps after which the exact curve is at or below a target loss.

        min { t in {0, 1, 2, ...} : L(t) <= target }

    By bisection: the curve falls for step < 2 / (c lambda_1), and is convex in t otherwise. Cost: about
    one hundred evaluations of one point.

    Args:
        spectrum: with its vectors.
        residual: f - y at t = 0.
        step: learning rate.
        target: loss, in the units of `loss_curve`.
        c: constant of the loss.

    Returns:
        An integer-valued float; inf where the target is never reached (below the floor, or the loss
        turns before it).

    Raises:
        InputError: as for `loss_curve`.

    Example:
        >>> steps_to(eigenpairs(np.diag([0.5])), [1.0], step=1.0, target=0.01)
        3.0
    """
    return _exact(spectrum, residual_energies(spectrum, residual), step, c).first_below(target)


def time_grid(steps: int, points: int = 400) -> Array:
    """Return numbers of steps from 0 to `steps`: all of them, or `points` evenly spaced in log t.

        t = 0, 1, ..., steps    or    t = 0 and round(steps^(k / points)), k = 0 ... points

    Args:
        steps: the last one, zero or more.
        points: at most about so many, two or more.

    Returns:
        Increasing whole numbers, float64.

    Raises:
        InputError: a negative `steps`, or fewer than two points.

    Example:
        >>> time_grid(3).tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    if steps < 0 or points < 2:
        raise InputError(f"steps must be zero or more and points two or more, got {steps} and {points}")
    if steps <= points:
        return np.arange(steps + 1, dtype=float)
    return np.unique(np.concatenate([[0.0], np.round(float(steps) ** np.linspace(0, 1, points + 1))]))
