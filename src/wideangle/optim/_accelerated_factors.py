"""Closed forms of Nesterov, heavy ball and Chebyshev with a free condition number: factors, polynomials, worst case.

Both kinds of momentum share one angle: with a = sqrt(kappa_hat (1 - s)) and b = sqrt(|1 - kappa_hat s|) it is
asinh(b / sqrt(kappa_hat - 1)) below the cut-off s = 1 / kappa_hat and atan(b / a) above it.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from wideangle.errors import InputError
from wideangle.names import unknown_name
from wideangle.optim._given import one_number

__all__ = [
    "Method",
    "as_array",
    "checked_kappa_hat",
    "checked_method",
    "convergence_factor",
    "cut_off",
    "momentum_of",
    "one_kappa_hat",
    "residual_polynomial",
    "worst_case",
]

Array = np.ndarray
Method = Literal["nesterov", "heavy_ball", "chebyshev"]
_ROUNDING = 1e-9  # an eigenvalue that much above L is L, rounded
_EPS = float(np.finfo(float).eps)


def as_array(values: Any, what: str) -> Array:
    """Return numbers, tensors or arrays as float64; raise an InputError where they are none or not finite."""
    try:
        # a Python float goes through numpy: torch would make it float32
        found = (
            values.detach().cpu() if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))
        )
        if found.is_complex() or found.dtype == torch.bool:
            raise TypeError(f"{found.dtype}")
        array = found.to(torch.float64).numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be real numbers, a tensor or an array; got {values!r:.80}") from error
    if not np.isfinite(array).all():
        raise InputError(f"{what} has {int((~np.isfinite(array)).sum())} of {array.size} entries not finite")
    return array


def checked_method(method: str) -> Method:
    """Return the method, or raise an InputError that names the three."""
    if method not in get_args(Method):
        raise unknown_name("method", method, get_args(Method))
    return method  # type: ignore[return-value]


def checked_kappa_hat(kappa_hat: Any, method: str) -> Array:
    """Return kappa_hat as an array, or raise an InputError."""
    values = as_array(kappa_hat, "kappa_hat")
    least = float(values.min()) if values.size else 1.0
    if least < 1:
        raise InputError(
            f"kappa_hat is {least:.6g}; a condition number is at least 1 (1 is gradient descent), the inverse of one "
            "is not meant"
        )
    if checked_method(method) == "chebyshev" and least == 1:
        raise InputError(
            "kappa_hat is 1: Chebyshev's interval [L / kappa_hat, L] has no length; take kappa_hat > 1, or 'nesterov' "
            "or 'heavy_ball', which are gradient descent there"
        )
    return values


def one_kappa_hat(kappa_hat: Any, method: str) -> float:
    """Return kappa_hat as a float, or raise an InputError where it is not one number."""
    values = checked_kappa_hat(kappa_hat, method)
    if values.size != 1:
        raise InputError(f"kappa_hat has shape {values.shape}; give one number")
    return float(values.item())


def momentum_of(kappa_hat: Any) -> Array:
    """Return gamma = (k - 1) / (k + 1), k = sqrt(kappa_hat), without loss of digits near 1."""
    k = np.sqrt(kappa_hat)
    return (np.asarray(kappa_hat) - 1) / (k + 1) ** 2


def _shares(s: Any) -> Array:
    values = as_array(s, "s")
    if values.size and not (values.min() >= 0 and values.max() <= 1 + _ROUNDING):
        low, high = float(values.min()), float(values.max())
        raise InputError(
            f"s = lambda / L goes from {low:.6g} to {high:.6g}; it must lie in [0, 1], L being an upper bound of the "
            "eigenvalues"
        )
    return np.minimum(values, 1.0)


class _Roots(NamedTuple):
    """What follows from (s, kappa_hat): below the cut-off or not, the angle, 1 - z for both real roots."""

    below: Array
    angle: Array
    gap: Array  # 1 - z1, the slow root; used below the cut-off only
    other: Array  # 1 - z2
    log_gamma: Array


def _roots(s: Array, kappa_hat: Array, method: Method) -> _Roots:
    """Return the roots of the two-term recurrence of each direction; all arrays of one shape."""
    k = np.sqrt(kappa_hat)
    rest = 1 - kappa_hat * s
    rest = np.where(np.abs(rest) <= 4 * _EPS, 0.0, rest)  # at the cut-off itself
    below = rest >= 0
    a, b = np.sqrt(kappa_hat * (1 - s)), np.sqrt(np.abs(rest))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_gamma = np.where(kappa_hat < 9, np.log(momentum_of(kappa_hat)), np.log1p(-2 / (k + 1)))
        flat = np.arcsinh(b / np.sqrt(kappa_hat - 1))
        angle = np.where(below, np.where(kappa_hat > 1, flat, np.inf), np.arctan2(b, a))
        if method == "nesterov":
            root = np.sqrt((1 - s) * np.where(below, rest, 0.0))
            other = (s * k + 1 + root) / (k + 1)
            product = s  # (1 - z1)(1 - z2)
        else:
            angle = 2 * angle
            other = np.where(kappa_hat > 1, -np.expm1(log_gamma - np.where(below, angle, 0.0)), 1.0)
            product = 4 * kappa_hat * s / (k + 1) ** 2
        return _Roots(below, angle, np.minimum(product / other, 1.0), other, log_gamma)


def _gap(s: Array, kappa_hat: Array, method: Method) -> Array:
    """Return 1 - r(s), with its digits where it is small."""
    roots = _roots(s, kappa_hat, method)
    with np.errstate(divide="ignore", invalid="ignore"):
        if method == "nesterov":
            above = -np.expm1((roots.log_gamma + np.log1p(-s)) / 2)
        else:
            above = 2 / (np.sqrt(kappa_hat) + 1)
    return np.where(roots.below, roots.gap, above)


def convergence_factor(s: Any, kappa_hat: Any, method: str = "nesterov") -> Array:
    """Return the asymptotic factor r(s) a step of the error in a direction of eigenvalue lambda = s L.

    With k = sqrt(kappa_hat), gamma = (k - 1) / (k + 1), x = (1 + 1/kappa_hat - 2s) / (1 - 1/kappa_hat):

        nesterov                s >= 1/kappa_hat: r = sqrt(gamma (1 - s))
                                s <  1/kappa_hat: r = [(1 - s) k + sqrt((1 - s)(1 - s kappa_hat))] / (k + 1)
        heavy_ball, chebyshev   s >= 1/kappa_hat: r = gamma
                                s <  1/kappa_hat: r = gamma (x + sqrt(x^2 - 1))

    Below the cut-off 1 - r >= (k + 1)/2 s (nesterov) and >= k s (the others), against s for gradient
    descent, which kappa_hat = 1 is: a kappa_hat too small still converges in every direction. Cost: a few
    elementary functions an entry.

    Args:
        s: lambda / L in [0, 1], any shape; 0 stands still, r = 1.
        kappa_hat: the condition number assumed, at least 1 (chebyshev: above 1); broadcasts with s.
        method: "nesterov", "heavy_ball" or "chebyshev".

    Returns:
        float64, of the broadcast shape.

    Raises:
        InputError: s outside [0, 1], kappa_hat below 1, an unknown method.

    Example:
        >>> float(convergence_factor(0.01, 100.0))  # at the cut-off: 1 - 1 / sqrt(kappa_hat)
        0.9
        >>> round(float(convergence_factor(0.5, 100.0, "heavy_ball")), 6)
        0.818182

    Reference: Liu, Belkin 2018 (arXiv 1802.10235) analyse accelerated methods by eigenvalue with a free
    condition number; the forms here are derived from the recurrences.
    """
    return 1 - _gap_of(s, kappa_hat, method)


def _gap_of(s: Any, kappa_hat: Any, method: str) -> Array:
    kind = checked_method(method)
    shares, assumed = np.broadcast_arrays(_shares(s), checked_kappa_hat(kappa_hat, kind))
    return _gap(shares, assumed, kind)


def worst_case(kappa: Any, kappa_hat: Any, method: str = "nesterov") -> Array:
    """Return 1 - r of the slowest direction where the condition number is kappa and kappa_hat was assumed.

        1 - max_{1/kappa <= s <= 1} r(s) = 1 - r(1/kappa)

    kappa_hat < kappa: at least (k + 1) / (2 kappa) (nesterov) or k / kappa (the others), k = sqrt(kappa_hat);
    kappa_hat = kappa: 1/k (nesterov), 2 / (k + 1); kappa_hat > kappa: 1 - sqrt(gamma (1 - 1/kappa)), about
    1/k, and 2 / (k + 1). As a function of kappa_hat it rises up to kappa and falls from there. The factor is
    that of the error's norm; the loss has its square. Cost: as for `convergence_factor`.

    Args:
        kappa: the true condition number, at least 1.
        kappa_hat: the one assumed; broadcasts with kappa.
        method: as for `convergence_factor`.

    Raises:
        InputError: a condition number below 1, an unknown method.

    Example:
        >>> [round(float(worst_case(1e4, guess)), 5) for guess in (1.0, 1e2, 1e4, 1e6)]
        [0.0001, 0.00055, 0.01, 0.00105]

    Reference: as for `convergence_factor`.
    """
    true = as_array(kappa, "kappa")
    if true.size and true.min() < 1:
        raise InputError(f"kappa is {float(true.min()):.6g}; a condition number is at least 1")
    return _gap_of(1 / true, kappa_hat, method)


def cut_off(smoothness: float, kappa_hat: float) -> float:
    """Return the eigenvalue below which directions are hardly fitted, lambda_c = L / kappa_hat.

    After t >> sqrt(kappa_hat) steps the directions above it are fitted and those far below it are not: the
    smaller kappa_hat, the stronger the regularisation by early stopping.

    Args:
        smoothness: L, above 0.
        kappa_hat: at least 1.

    Raises:
        InputError: either is out of its range.

    Example:
        >>> cut_off(2.0, 100.0)
        0.02
    """
    bound = one_number(smoothness, "smoothness")
    if not (np.isfinite(bound) and bound > 0):
        raise InputError(f"smoothness is {bound}; it must be positive and finite")
    return bound / one_kappa_hat(kappa_hat, "nesterov")


def residual_polynomial(s: Any, t: Any, kappa_hat: Any, method: str = "nesterov") -> Array:
    """Return e_t(s): what t steps leave of the error in a direction of eigenvalue lambda = s L.

    With c = sqrt(gamma (1 - s)), y = (1 + gamma) sqrt(1 - s) / (2 sqrt(gamma)), x as in `convergence_factor`
    and Chebyshev's polynomials T, U:

        nesterov     e_t = c^t U_t(y) - c^(t+1) U_{t-1}(y)
        heavy_ball   e_t = gamma^t [U_t(x) - gamma U_{t-1}(x)]
        chebyshev    e_t = T_t(x) / T_t((kappa_hat + 1) / (kappa_hat - 1))

    so that w_t - w* = e_t(H / L) (w_0 - w*), e_0 = 1, e_t(0) = 1. Evaluated from angles and logarithms: no
    overflow whatever t, and below the cut-off as sums of positive terms. Cost: a few elementary functions
    an entry.

    Args:
        s: lambda / L in [0, 1].
        t: whole numbers of steps, at least 0; broadcasts with s.
        kappa_hat: as for `convergence_factor`.
        method: as for `convergence_factor`.

    Returns:
        float64, of the broadcast shape.

    Raises:
        InputError: as for `convergence_factor`, or a t that is no number of steps.

    Example:
        >>> residual_polynomial(0.25, [0, 1, 2], 1.0).tolist()  # gradient descent: (1 - s)^t
        [1.0, 0.75, 0.5625]
        >>> bool(abs(residual_polynomial(1e-3, 10**9, 1e4, "chebyshev")) < 1e-300)
        True

    Reference: as for `convergence_factor`.
    """
    kind = checked_method(method)
    steps = as_array(t, "t")
    if steps.size and not (steps.min() >= 0 and (steps == np.floor(steps)).all()):
        raise InputError(f"t holds {float(steps.min()):.6g} or a fraction; it counts steps: 0, 1, 2, ...")
    assumed = checked_kappa_hat(kappa_hat, kind)
    shares, times, assumed = np.broadcast_arrays(_shares(s), steps, assumed)
    return _polynomial(shares, times, assumed, kind)


def _polynomial(s: Array, t: Array, kappa_hat: Array, method: Method) -> Array:
    roots = _roots(s, kappa_hat, method)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        slow, fast = _real_roots(roots, t, method), _turning_roots(roots, s, t, method)
    return np.where(t == 0, 1.0, np.where(roots.below, slow, fast))


def _real_roots(roots: _Roots, t: Array, method: Method) -> Array:
    """Below the cut-off: z1^t [(1 - z2) (1 - q^t) / (1 - q) + q^t] with q = z2 / z1 = exp(-2 angle)."""
    log_q = -2 * np.where(roots.below, roots.angle, 1.0)
    decay = np.exp(t * np.log1p(-roots.gap))
    if method == "chebyshev":
        return decay * (1 + np.exp(t * log_q)) / (1 + np.exp(2 * t * roots.log_gamma))
    ratio = np.where(log_q == 0, t, np.expm1(t * log_q) / np.expm1(log_q))
    return decay * (roots.other * ratio + np.exp(t * log_q))


def _turning_roots(roots: _Roots, s: Array, t: Array, method: Method) -> Array:
    """Above the cut-off: a pair of complex roots, modulus r."""
    angle = np.where(roots.below, 1.0, roots.angle)
    modulus = roots.log_gamma if method != "nesterov" else (roots.log_gamma + np.log1p(-s)) / 2
    decay = np.exp(t * modulus)
    if method == "chebyshev":
        return 2 * decay * np.cos(t * angle) / (1 + np.exp(2 * t * roots.log_gamma))
    return decay * (_second_kind(t, angle) - np.exp(modulus) * _second_kind(t - 1, angle))


def _second_kind(n: Array, angle: Array) -> Array:
    """Return U_n(cos angle) = sin((n + 1) angle) / sin(angle), from the nearer end of [0, pi]."""
    turned = angle > np.pi / 2
    small = np.where(turned, np.pi - angle, angle)
    plain = np.where(small == 0, n + 1, np.sin((n + 1) * small) / np.sin(small))
    return np.where(turned & (n % 2 == 1), -plain, plain)
