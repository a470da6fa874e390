"""The loss curve of gradient descent on the linearised model, and bounds on it, from the spectrum.

The loss is (c/2) sum r^2 (`losses.hessian_factor` gives c) and one step of size `step` multiplies the
residual by I - step c K. Modes at or below the resolution of the spectrum count as zero: they keep
their energy for ever, which is the floor of the curve. Everything here costs modes x times; times may
be as large as a float holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from wideangle.errors import InputError
from wideangle.kernel._curves import (
    Array,
    Constant,
    as_times,
    bound_constant,
    exact_curve,
    slowest_curve,
    time_grid,
    trace_curve,
)
from wideangle.kernel._rates import PowerLaw, generalization_bound, power_law
from wideangle.kernel.spectrum import Spectrum, project
from wideangle.losses import hessian_factor
from wideangle.result import Result

__all__ = [
    "PowerLaw",
    "Prediction",
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
        >>> from wideangle.kernel.spectrum import eigenpairs
        >>> residual_energies(eigenpairs(torch.diag(torch.tensor([2.0, 1.0]))), [3.0, 1.0]).tolist()
        [9.0, 1.0]
    """
    return (project(spectrum, residual) ** 2).sum(1)


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
        >>> from wideangle.kernel.spectrum import eigenpairs
        >>> spectrum = eigenpairs(torch.diag(torch.tensor([1.0, 0.5])))
        >>> loss_curve(spectrum, [1.0, 1.0], step=1.0, steps=[0, 1]).tolist()
        [1.0, 0.125]

    Reference: gradient descent on a quadratic; Marreddy & Liu 2026 (arXiv 2605.25275) start from it.
    """
    return exact_curve(spectrum, residual_energies(spectrum, residual), step, c).at(as_times(steps))


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
        >>> from wideangle.kernel.spectrum import eigenpairs
        >>> trace_constant(eigenpairs(torch.diag(torch.tensor([2.0, 1.0]))), [2.0, 1.0])
        2.0
    """
    return bound_constant(spectrum, residual_energies(spectrum, residual), constant)


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
    bound**: on digits (one hidden layer) the true loss can be twice as large after 1,000 steps.

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
        >>> from wideangle.kernel.spectrum import eigenpairs
        >>> spectrum = eigenpairs(torch.diag(torch.tensor([1.0, 0.5])))
        >>> loss_bound_trace(spectrum, [1.0, 0.5], step=1.0, steps=[0, 1]).tolist()
        [0.75, 0.0625]

    Reference: Marreddy & Liu 2026 (arXiv 2605.25275), full-spectrum bound. Differs from the paper in
    stating the constants, and in the second term, which appears where K is singular.
    """
    energies = residual_energies(spectrum, residual)
    return trace_curve(spectrum, energies, step, c, constant).at(as_times(steps))


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
        >>> from wideangle.kernel.spectrum import eigenpairs
        >>> spectrum = eigenpairs(torch.diag(torch.tensor([1.0, 0.5])))
        >>> loss_bound_lambda_min(spectrum, [1.0, 1.0], step=1.0, steps=[0, 1]).tolist()
        [1.0, 0.25]

    Reference: Du et al. 2019, Theorem 4.1 (rate of the smallest eigenvalue). Differs in taking the
    largest factor over all modes, so that it also holds for steps up to and above the critical one.
    """
    return slowest_curve(spectrum, residual_energies(spectrum, residual), step, c).at(as_times(steps))


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
        >>> from wideangle.kernel.spectrum import eigenpairs
        >>> steps_to(eigenpairs(torch.diag(torch.tensor([0.5]))), [1.0], step=1.0, target=0.01)
        3.0
    """
    return exact_curve(spectrum, residual_energies(spectrum, residual), step, c).first_below(target)


@dataclass(frozen=True)
class Prediction(Result):
    """What gradient descent on the linearised model will do to a squared loss.

    `steps_to_target` holds the steps predicted by the exact curve and by each bound; inf is never.
    `turning_step` is the step with the smallest loss where the step size is too large, inf otherwise.
    `floor` is the loss that stays: energy in modes below the resolution.
    """

    loss: str
    c: float
    step: float
    critical_step: float
    diverges: bool
    turning_step: float
    initial_loss: float
    floor: float
    target: float
    steps_to_target: dict[str, float]
    rigorous_constant: float
    fitted_constant: float
    times: list[float] = field(default_factory=list, repr=False)
    exact: list[float] = field(default_factory=list, repr=False)
    bound_rigorous: list[float] = field(default_factory=list, repr=False)
    bound_fitted: list[float] = field(default_factory=list, repr=False)
    bound_lambda_min: list[float] = field(default_factory=list, repr=False)
    warnings: list[str] = field(default_factory=list)


def predict(
    spectrum: Spectrum,
    residual: Any,
    step: float,
    steps: int | Sequence[float],
    *,
    loss: str = "half_sum",
    target: float | None = None,
) -> Prediction:
    """Return the predicted loss curve with its three bounds, the steps to a target loss, and warnings.

        L(t) = (c/2) sum_i (1 - step c lambda_i)^(2t) b_i,    c = hessian_factor(loss, n, C)

    beside `loss_bound_trace` with both constants and `loss_bound_lambda_min`. For the kernel
    K_trace / C pass the residual as (n, C): each output is then given that one kernel, an approximation
    (exact where the outputs' kernels agree, as at infinite width). Cost: n^2 C multiply-adds for the
    projection, then modes x times.

    Args:
        spectrum: with its vectors; of the full kernel, of a one-output kernel, or of K_trace / C.
        residual: f - y at t = 0, (n,) or (n, C); (n C,) only where `spectrum.outputs` is C.
        step: learning rate.
        steps: the last step (the times are then `time_grid(steps)`), or the times themselves.
        loss: one of `losses.SQUARED_LOSSES`; all losses here are in its units.
        target: the loss to reach; by default 1 % of the initial one.

    Returns:
        A `Prediction`.

    Raises:
        InputError: sizes do not match, an unknown loss, a step that is not positive, a negative target.

    Example:
        >>> from wideangle.kernel.spectrum import eigenpairs
        >>> curve = predict(eigenpairs(torch.diag(torch.tensor([1.0, 0.5]))), [1.0, 1.0], step=1.0, steps=10)
        >>> curve.steps_to_target["exact"], curve.diverges
        (3.0, False)

    Reference: Marreddy & Liu 2026 (arXiv 2605.25275), figures 1 and 4.
    """
    shape = tuple(torch.as_tensor(residual).shape)
    c = hessian_factor(loss, spectrum.samples, shape[1] if len(shape) == 2 else spectrum.outputs)
    energies = residual_energies(spectrum, residual)
    exact = exact_curve(spectrum, energies, step, c)
    curves = {
        "exact": exact,
        "rigorous": trace_curve(spectrum, energies, step, c, "rigorous"),
        "fitted": trace_curve(spectrum, energies, step, c, "fitted"),
        "lambda_min": slowest_curve(spectrum, energies, step, c),
    }
    times = time_grid(steps) if isinstance(steps, int) else as_times(steps)
    initial = exact.one(0.0)
    goal = 0.01 * initial if target is None else float(target)
    if not goal >= 0:
        raise InputError(f"the target loss must be zero or more, got {target}")
    top = float(spectrum.resolved[0])
    critical = 2 / (c * top) if top > 0 else math.inf
    values = {name: curve.at(times).tolist() for name, curve in curves.items()}
    result = Prediction(
        loss=loss,
        c=c,
        step=float(step),
        critical_step=critical,
        diverges=step > critical,
        turning_step=exact.turning_step(),
        initial_loss=initial,
        floor=exact.floor,
        target=goal,
        steps_to_target={name: curve.first_below(goal) for name, curve in curves.items()},
        rigorous_constant=bound_constant(spectrum, energies, "rigorous"),
        fitted_constant=bound_constant(spectrum, energies, "fitted"),
        times=times.tolist(),
        exact=values["exact"],
        bound_rigorous=values["rigorous"],
        bound_fitted=values["fitted"],
        bound_lambda_min=values["lambda_min"],
    )
    shared = spectrum.outputs == 1 and len(shape) == 2 and shape[1] > 1
    return replace(result, warnings=_warnings(result, spectrum, shared))


def _warnings(result: Prediction, spectrum: Spectrum, shared: bool) -> list[str]:
    found = []
    if result.diverges:
        turn = (
            f"the loss is smallest at step {result.turning_step:.0f} and grows from there"
            if math.isfinite(result.turning_step)
            else "only rounding feeds the diverging modes"
        )
        found.append(f"step {result.step:.4g} is above the critical {result.critical_step:.4g}: {turn}")
    if spectrum.rank_deficient:
        found.append(
            f"{spectrum.size - spectrum.rank} of {spectrum.size} modes are below the resolution: the loss "
            f"stays above {result.floor:.4g}, and the lambda_min bound is flat"
        )
    if result.target < result.floor:
        found.append(
            f"the target {result.target:.4g} is below the floor {result.floor:.4g}; it is never reached"
        )
    if shared:
        found.append("one kernel stands in for every output: take the critical step from the full kernel")
    return found
