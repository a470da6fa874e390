"""The condition number to assume for a number of steps: what a spectrum predicts, and the best of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize

from wideangle.errors import InputError, NumericsError
from wideangle.kernel.spectrum import Spectrum
from wideangle.optim._accelerated_factors import (
    Method,
    as_array,
    checked_method,
    one_kappa_hat,
    residual_polynomial,
)
from wideangle.optim._given import one_number, whole

__all__ = ["best_kappa_hat", "predicted_loss"]

Array = np.ndarray
_NEGATIVE = 1e-6  # of the largest eigenvalue: rounding of a float32 spectrum
_PER_DECADE = 24  # points of the first look
_MOST_STEPS = 10**15  # what the polynomials are checked up to
_REFINED = 8  # local minima that are looked into


class _Directions:
    """Eigenvalues over L with the energy of the loss in each, those without energy left out."""

    def __init__(self, spectrum: Any, coefficients: Any, smoothness: float | None):
        values = spectrum.resolved if isinstance(spectrum, Spectrum) else as_array(spectrum, "spectrum")
        values = np.asarray(values, float).reshape(-1)
        top = float(values.max()) if values.size else 0.0
        if top <= 0:
            raise InputError(
                f"the spectrum's largest of {values.size} eigenvalues is {top}; it must be positive"
            )
        if values.min() < -_NEGATIVE * top:
            raise InputError(
                f"the spectrum goes from {values.min():.4g} to {top:.4g}; the loss is not convex, and eigenvalues "
                "must be zero or more (up to rounding, 1e-6 of the largest)"
            )
        bound = top if smoothness is None else one_number(smoothness, "smoothness")
        if not (math.isfinite(bound) and bound * (1 + 1e-9) >= top):
            raise InputError(
                f"smoothness is {bound:.6g}, the largest eigenvalue {top:.6g}; L must be an upper bound of it"
            )
        values = np.maximum(values, 0.0)
        if coefficients is None:
            energies = values / top
        else:
            energies = as_array(coefficients, "coefficients").reshape(-1)
            if energies.shape != values.shape:
                raise InputError(
                    f"{len(energies)} coefficients for {len(values)} eigenvalues; give one for each, in their order"
                )
            if energies.min() < 0:
                raise InputError(f"a coefficient is {energies.min():.4g}; energies are zero or more")
        self.unit = top if coefficients is None else 1.0
        carry = energies > 0
        self.shares = np.minimum(values[carry] / bound, 1.0)
        self.energies = energies[carry]

    def loss(self, t: float, kappa_hat: float, method: Method) -> float:
        """Return 1/2 sum_i c_i e_t(s_i)^2."""
        left = residual_polynomial(self.shares, t, kappa_hat, method)
        with np.errstate(over="ignore"):
            loss = self.unit * float((self.energies / 2) @ (left * left))
        if not math.isfinite(loss):
            raise NumericsError(
                f"the loss after {t:g} steps is above the largest float64; scale the spectrum down"
            )
        return loss


def _checked_steps(steps: Any) -> int:
    found = whole(steps, "steps")
    if found > _MOST_STEPS:
        raise InputError(f"steps is {found:.3g}; it must be at most {_MOST_STEPS:.0e}")
    return found


def predicted_loss(
    spectrum: Any,
    steps: Any,
    kappa_hat: float,
    method: str = "nesterov",
    coefficients: Any = None,
    *,
    smoothness: float | None = None,
) -> Array:
    """Return the loss that is left of a quadratic after each number of steps.

        loss(t) = 1/2 sum_i c_i e_t(lambda_i / L)^2,    loss(0) = 1/2 sum_i c_i

    c_i is the energy of the residual in direction i: (v_i . r_0)^2 summed over outputs for a kernel
    (`wideangle.kernel.convergence.residual_energies`), lambda_i (v_i . (w_0 - w*))^2 in weight space. Left
    out, c_i = lambda_i: errors of the weights alike in all directions. kappa_hat = 1 is gradient descent
    with the step 1 / L. Cost: a few elementary functions for each eigenvalue and number of steps.

    Args:
        spectrum: eigenvalues in any order, zeros allowed, or a `Spectrum` (unresolved ones count as zero).
        steps: numbers of steps t >= 0, any shape.
        kappa_hat: as for `convergence_factor`.
        method: as for `convergence_factor`.
        coefficients: c_i >= 0, in the order of the eigenvalues.
        smoothness: L; the largest eigenvalue where left out.

    Returns:
        float64, of the shape of `steps`.

    Raises:
        InputError: an eigenvalue that is negative or not finite, coefficients that do not fit, a smoothness
            below the largest eigenvalue, kappa_hat below 1, an unknown method.
        NumericsError: a loss above the largest float64.

    Example:
        >>> predicted_loss([1.0, 0.5, 0.0], [0, 1], kappa_hat=1.0, coefficients=[2.0, 4.0, 1.0]).tolist()
        [3.5, 1.0]

    Reference: Liu, Belkin 2018 (arXiv 1802.10235), analysis by eigenvalue.
    """
    kind = checked_method(method)
    assumed = one_kappa_hat(kappa_hat, kind)
    directions = _Directions(spectrum, coefficients, smoothness)
    times = as_array(steps, "steps")
    values = [directions.loss(t, assumed, kind) for t in times.reshape(-1)]
    return np.array(values, float).reshape(times.shape)


def best_kappa_hat(
    spectrum: Any,
    steps: int,
    method: str = "nesterov",
    coefficients: Any = None,
    *,
    smoothness: float | None = None,
) -> float:
    """Return the condition number to assume that leaves the smallest predicted loss after `steps` steps.

        argmin over 1 <= kappa_hat <= 10^6 (steps + 1)^2 of 1/2 sum_i c_i e_t(lambda_i / L)^2,   t = steps

    At the upper end sqrt(kappa_hat) is a thousand times the number of steps: hardly anything changes above.
    The minimised function can have many local minima: a grid of 24 points a decade in kappa_hat, then
    Brent's method around the 8 best. Of equally good ones (within 1e-9) the smallest is returned; 1.0 says
    that gradient descent is best. The loss and that of gradient descent: `predicted_loss` with this
    kappa_hat and with 1.

    Cost: some 300 to 500 evaluations of all eigenvalues: 0.2 s for 1,000, 15 s for 100,000 on one core.

    Args:
        spectrum: as for `predicted_loss`.
        steps: t, at least 1.
        method: as for `convergence_factor`; for chebyshev kappa_hat is at least 1.001.
        coefficients: as for `predicted_loss`; c_i = lambda_i where left out.
        smoothness: as for `predicted_loss`.

    Raises:
        InputError: as for `predicted_loss`, or `steps` is no whole number from 1 to 10^15.

    Example:
        >>> spectrum = 1.0 / np.arange(1, 1001) ** 2
        >>> guess = best_kappa_hat(spectrum, 100)
        >>> descent, best = (predicted_loss(spectrum, [100], k)[0] for k in (1.0, guess))
        >>> 1e2 < guess < 1e5, bool(best < descent / 3)
        (True, True)

    Reference: Liu, Belkin 2018 (arXiv 1802.10235): the condition number as a free parameter; that it is
    chosen by the predicted loss is not in the paper.
    """
    kind, t = checked_method(method), _checked_steps(steps)
    directions = _Directions(spectrum, coefficients, smoothness)
    if not directions.energies.size or not directions.shares.any():
        return 1.0 if kind != "chebyshev" else 1.001  # nothing that any of them could shrink

    def objective(log_kappa: float) -> float:
        return math.log(max(directions.loss(t, math.exp(log_kappa), kind), 1e-300))

    points = _first_look(t, kind)
    return math.exp(_lowest(objective, points))


def _first_look(t: int, method: Method) -> Array:
    """Return points in log kappa_hat, evenly from the least to where the momentum is next to 1."""
    low, high = math.log(1.001) if method == "chebyshev" else 0.0, math.log(1e6 * (t + 1) ** 2)
    return np.linspace(low, high, max(64, round(_PER_DECADE * (high - low) / math.log(10))))


def _lowest(objective: Callable[[float], float], points: Array) -> float:
    """Return the smallest of the (equally) best points, the local minima among `points` looked into."""
    values = [objective(float(point)) for point in points]
    around = [math.inf, *values, math.inf]
    valleys = [i for i in range(len(values)) if around[i] >= values[i] <= around[i + 2]]
    found = list(zip(points.tolist(), values, strict=True))
    for i in sorted(valleys, key=lambda i: values[i])[:_REFINED]:
        ends = float(points[max(i - 1, 0)]), float(points[min(i + 1, len(points) - 1)])
        result: Any = optimize.minimize_scalar(
            objective, bounds=ends, method="bounded", options={"xatol": 1e-9}
        )
        found.append((float(result.x), float(result.fun)))
    least = min(value for _, value in found)
    return min(point for point, value in found if value <= least + 1e-9)
