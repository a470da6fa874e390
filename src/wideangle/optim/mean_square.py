"""The exact mean-square rate of SGD, Nesterov's method and MaSS on a linear model with a solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import root_scalar
from torch import Tensor

from wideangle.errors import InputError
from wideangle.optim._mass_parameters import MassParameters

__all__ = [
    "critical_momentum",
    "decoupled_mean_square_rate",
    "expected_error",
    "gaussian_mean_square_rate",
    "mean_square_rate",
]

MOST_RANK = 16
Parameters = MassParameters | tuple[float, float, float]
Values = Tensor | np.ndarray | Sequence[float]


@dataclass(frozen=True)
class _Update:
    """The update of (u, w) on one direction of curvature h: (A - c e_1^T h) (u, w)^T."""

    free: np.ndarray
    pull: np.ndarray

    def at(self, curvature: float) -> np.ndarray:
        """Return the 2 x 2 matrix at one curvature."""
        matrix = self.free.copy()
        matrix[:, 0] -= curvature * self.pull
        return matrix


def _update(parameters: Parameters) -> _Update:
    if isinstance(parameters, MassParameters):
        eta1, eta2, gamma = parameters.eta1, parameters.eta2, parameters.gamma
    else:
        if len(parameters) != 3:
            raise InputError(f"parameters are {parameters}; give MassParameters or (eta1, eta2, gamma)")
        eta1, eta2, gamma = (float(value) for value in parameters)
    if not (math.isfinite(eta1) and eta1 > 0 and math.isfinite(eta2) and 0 <= gamma < 1):
        raise InputError(
            f"(eta1, eta2, gamma) = ({eta1}, {eta2}, {gamma}); eta1 must be positive, eta2 finite, "
            "gamma in [0, 1) (0 is SGD)"
        )
    return _Update(np.array([[1 + gamma, -gamma], [1.0, 0.0]]), np.array([(1 + gamma) * eta1 - eta2, eta1]))


def _noise_share(batch: int, samples: int | None = None) -> float:
    """Return the share of one sample's noise that a batch keeps: 1/m, or (n - m) / (m (n - 1))."""
    if batch < 1 or (samples is not None and batch > samples):
        raise InputError(f"batch size is {batch}; it must be at least 1 and, without replacement, at most n")
    if samples is None:
        return 1.0 / batch
    return (samples - batch) / (batch * (samples - 1)) if samples > 1 else 0.0


def _rows_in_range(x: Tensor, gram: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the samples (n, r) in the eigenbasis of H = x^T x / n, its eigenvalues, and the basis (d, r)."""
    data = torch.as_tensor(x).detach().double().cpu().numpy()
    if data.ndim != 2 or min(data.shape) < 1:
        raise InputError(f"x must be (n, d) with n, d >= 1, got {data.shape}")
    if not np.isfinite(data).all():
        raise InputError("x holds values that are not finite; remove those samples")
    if gram:
        if data.shape[0] != data.shape[1] or not np.allclose(data, data.T, rtol=1e-8, atol=0):
            raise InputError(f"a Gram matrix must be square and symmetric, got shape {data.shape}")
        values, left = np.linalg.eigh(data)
        if values[0] < -1e-8 * max(values[-1], 0.0):
            raise InputError(f"the Gram matrix has the eigenvalue {values[0]:.3g}; it must not be negative")
        data = left * np.sqrt(np.clip(values, 0.0, None))
    _, singular, right = np.linalg.svd(data, full_matrices=False)
    # a Gram matrix holds squares: what is resolved of the singular values is the root of that of doubles
    floor = singular[0] * (1e-7 if gram else max(data.shape) * 1e-15)
    kept = singular > floor
    if not kept.any():
        raise InputError("x is zero; there is no direction whose rate could be given")
    if kept.sum() > MOST_RANK:
        raise InputError(
            f"x has rank {int(kept.sum())}, and the exact operator is a dense matrix of "
            f"{_symmetric(2 * int(kept.sum()))} rows; it is made up to rank {MOST_RANK}: take fewer samples or "
            "features, or `gaussian_mean_square_rate` on the eigenvalues"
        )
    basis = right[kept].T
    return data @ basis, singular[kept] ** 2 / len(data), basis


def _symmetric(size: int) -> int:
    return size * (size + 1) // 2


class _Operator:
    """The map S -> E[M S M^T] of the second moment S (2r, 2r) of (u, w) over one step, samples given.

    E[M S M^T] = Mbar S Mbar^T + (c c^T) (x) share (E[z z^T S_uu z z^T] - H S_uu H)
    """

    def __init__(self, rows: np.ndarray, curvature: np.ndarray, update: _Update, share: float) -> None:
        n, r = rows.shape
        self.rank = r
        self.mean = np.kron(update.free, np.eye(r))
        self.mean[:, :r] -= np.kron(update.pull[:, None], np.diag(curvature))
        self.outer = np.outer(update.pull, update.pull)
        products = (rows[:, :, None] * rows[:, None, :]).reshape(n, r * r)
        plain = np.kron(np.diag(curvature), np.diag(curvature))
        self.noise = share * (products.T @ products / n - plain)

    def __call__(self, moment: np.ndarray) -> np.ndarray:
        """Return the second moment one step later; leading axes are many moments."""
        r = self.rank
        flat = moment[..., :r, :r].reshape(*moment.shape[:-2], r * r) @ self.noise.T
        noise = flat.reshape(*moment.shape[:-2], r, r)
        return self.mean @ moment @ self.mean.T + np.kron(self.outer, noise)

    def matrix(self) -> np.ndarray:
        """Return the map on symmetric S, rows and columns the entries (i <= j), off-diagonals once."""
        size = 2 * self.rank
        i, j = np.triu_indices(size)
        units = np.zeros((len(i), size, size))
        units[np.arange(len(i)), i, j] = units[np.arange(len(i)), j, i] = 1.0
        return np.stack([self(unit)[i, j] for unit in units], axis=1)


def _operator(
    x: Tensor, parameters: Parameters, batch: int, replacement: bool, gram: bool
) -> tuple[_Operator, np.ndarray]:
    rows, curvature, basis = _rows_in_range(x, gram)
    share = _noise_share(batch, None if replacement else len(rows))
    return _Operator(rows, curvature, _update(parameters), share), basis


def _radius(matrix: np.ndarray) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def mean_square_rate(
    x: Tensor, parameters: Parameters, batch: int = 1, *, replacement: bool = True, gram: bool = False
) -> float:
    """Return the factor a step by which E|w_t - w*|^2 shrinks in the long run, exact; above 1 it diverges.

        rho(E[M (x) M]),   M = [[(1 + gamma) I - ((1 + gamma) eta1 - eta2) H_m, -gamma I], [I - eta1 H_m, 0]]

    for the loss (1/2n) sum_i (x_i . w - y_i)^2 with a solution w*, H_m = (1/m) sum_batch x_i x_i^T, on the
    range of H = E[x x^T]. The whole range of the family: gamma = 0 is SGD, eta2 = 0 Nesterov's method.

    This is the second moment. Single runs can do better than it: they converge almost surely up to a larger
    momentum, while rare runs that explode carry the mean.

    Cost: one eigenvalue problem of r (2 r + 1) rows, r the rank of x: 0.1 s at r = 10.

    Args:
        x: samples (n, d) of rank r <= 16, or their Gram matrix (n, n) with `gram=True`.
        parameters: `MassParameters`, or (eta1, eta2, gamma).
        batch: m, the samples of a step.
        replacement: whether a batch may hold a sample twice (the setting of the theory).
        gram: x holds the inner products of the samples.

    Raises:
        InputError: data that are not finite, zero or of a rank above 16; a batch that does not fit.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> mean_square_rate(x, (0.25, 0.0, 0.0))  # SGD: 1 - eta h (2 - eta |x|^2) of the slower direction
        0.78125

    Reference: Liu, Belkin 2020, who bound it by 1 - 1/sqrt(kappa_m kappa_tilde_m); here it is exact.
    """
    operator, _ = _operator(x, parameters, batch, replacement, gram)
    return _radius(operator.matrix())


def expected_error(
    x: Tensor,
    start: Tensor,
    parameters: Parameters,
    steps: int,
    batch: int = 1,
    *,
    replacement: bool = True,
) -> np.ndarray:
    """Return E|w_t - w*|^2 for t = 0 to steps, exact, w* being the solution nearest to the start.

        S_{t+1} = E[M S_t M^T],   S_0 = (e, e) (e, e)^T,   e = w_0 - w* on the range of H

    Cost: steps r^4.

    Args:
        x: samples (n, d) of rank r <= 16.
        start: w_0 - w* (d,); what of it lies outside the range of x is left out (no step changes it).
        parameters: `MassParameters`, or (eta1, eta2, gamma).
        steps: T.
        batch: m, the samples of a step.
        replacement: whether a batch may hold a sample twice.

    Returns:
        The T + 1 expectations, float64.

    Raises:
        InputError: as `mean_square_rate`, or a start of the wrong length.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> expected_error(x, torch.tensor([1.0, 0.0]), (0.25, 0.0, 0.0), 2).tolist()
        [1.0, 0.78125, 0.6103515625]

    Reference: Liu, Belkin 2020 (bounded there by 2 (1 - alpha)^t |w_0 - w*|^2).
    """
    operator, basis = _operator(x, parameters, batch, replacement, gram=False)
    displacement = torch.as_tensor(start).detach().double().cpu().numpy()
    if displacement.shape != (len(basis),) or not np.isfinite(displacement).all():
        raise InputError(f"start must be finite and of shape ({len(basis)},), got {displacement.shape}")
    if steps < 0:
        raise InputError(f"steps is {steps}; it must not be negative")
    inside = displacement @ basis
    state = np.concatenate([inside, inside])
    moment, r = np.outer(state, state), operator.rank
    errors = [float(np.trace(moment[r:, r:]))]
    for _ in range(steps):
        moment = operator(moment)
        errors.append(float(np.trace(moment[r:, r:])))
    return np.array(errors)


def _blocks(curvature: np.ndarray, noise: np.ndarray, update: _Update) -> np.ndarray:
    """Return the (d, 3, 3) maps of (E u^2, E u w, E w^2) of each direction, `noise` added to E u^2 of it."""
    maps = np.empty((len(curvature), 3, 3))
    i, j = np.triu_indices(2)
    for k, (value, extra) in enumerate(zip(curvature, noise, strict=True)):
        step = update.at(float(value))
        for column, (a, b) in enumerate(zip(i, j, strict=True)):
            unit = np.zeros((2, 2))
            unit[a, b] = unit[b, a] = 1.0
            after = step @ unit @ step.T
            if (a, b) == (0, 0):
                after = after + extra * np.outer(update.pull, update.pull)
            maps[k, :, column] = after[i, j]
    return maps


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(root_scalar(function, bracket=(low, high), method="brentq", xtol=1e-14, rtol=1e-14).root)


def _positive(values: Values, name: str) -> np.ndarray:
    array = torch.as_tensor(values).detach().double().cpu().numpy()
    if array.ndim != 1 or not len(array) or not (np.isfinite(array).all() and (array > 0).all()):
        raise InputError(f"{name} must be one row of positive, finite numbers; leave out directions of zero")
    return array


def gaussian_mean_square_rate(eigenvalues: Values, parameters: Parameters, batch: int = 1) -> float:
    """Return the mean-square rate for x ~ N(0, H), exact at any dimension.

    E[x x^T S x x^T] = 2 H S H + tr(H S) H keeps diagonal moments diagonal: d maps of (E u^2, E u w, E w^2),
    coupled by one trace. The rate z solves

        sum_i lambda_i e_1^T (z - B_i)^{-1} (c_1^2, c_1 c_2, c_2^2)^T lambda_i / m = 1

    above the radii of the 3 x 3 maps B_i, c = ((1 + gamma) eta1 - eta2, eta1).

    Cost: about 60 solves of d systems of size 3; d = 200 takes milliseconds.

    Args:
        eigenvalues: of H, (d,), all positive.
        parameters: `MassParameters`, or (eta1, eta2, gamma).
        batch: m, the samples of a step, drawn afresh.

    Raises:
        InputError: an eigenvalue that is not positive; parameters or batch out of range.

    Example:
        >>> round(gaussian_mean_square_rate(torch.tensor([1.0]), (0.1, 0.0, 0.0)), 6)  # 1 - 2 eta + 3 eta^2
        0.83

    Reference: derived; L1 = 2 L + tr H and kappa_tilde = d + 2 for such data. Liu, Belkin 2020 bound the rate.
    """
    curvature, update = _positive(eigenvalues, "eigenvalues"), _update(parameters)
    share = _noise_share(batch)
    maps = _blocks(curvature, share * curvature**2, update)
    alone = float(np.abs(np.linalg.eigvals(maps)).max())
    first, second = update.pull
    entering = np.array([first * first, first * second, second * second])
    weights = share * curvature**2

    def coupled(rate: float) -> float:
        answers = np.linalg.solve(
            rate * np.eye(3) - maps, np.broadcast_to(entering, (len(maps), 3))[..., None]
        )
        return float(weights @ answers[:, 0, 0]) - 1.0

    high = 2 * alone
    while coupled(high) > 0:
        high = 2 * high
    # the sum falls from +infinity at the largest radius, where it is rounding error first
    for exponent in range(-14, 1):
        low = alone * (1 + 10.0**exponent)
        if coupled(low) > 0:
            return _root(coupled, low, high)
    return alone


def decoupled_mean_square_rate(
    eigenvalues: Values,
    fourth_moments: Values,
    parameters: Parameters,
    batch: int = 1,
) -> float:
    """Return the mean-square rate for samples that each lie along one axis, exact.

    The largest radius of d maps of (E u^2, E u w, E w^2), as each direction is a problem of its own.

    Cost: d eigenvalue problems of size 3.

    Args:
        eigenvalues: lambda_i = E x_i^2 (d,), all positive.
        fourth_moments: q_i = E x_i^4 (d,), at least lambda_i^2; L1 = max q_i / lambda_i.
        parameters: `MassParameters`, or (eta1, eta2, gamma).
        batch: m, the samples of a step, drawn afresh.

    Raises:
        InputError: moments that no data have; parameters or batch out of range.

    Example:
        >>> round(decoupled_mean_square_rate([1.0], [6.0], (1 / 6, 0.0, 0.9)), 3)  # Nesterov's method at 1 / L1
        1.377

    Reference: Liu, Belkin 2020, the component-decoupled model: eigenvalues s_i^2, fourth moments
    6 s_i^4.
    """
    curvature, fourth = _positive(eigenvalues, "eigenvalues"), _positive(fourth_moments, "fourth_moments")
    if curvature.shape != fourth.shape or (fourth < curvature**2 * (1 - 1e-12)).any():
        raise InputError(
            f"fourth_moments {fourth.shape} must be as many as eigenvalues {curvature.shape}, each at least "
            "the square of its eigenvalue"
        )
    noise = _noise_share(batch) * (fourth - curvature**2)
    return float(np.abs(np.linalg.eigvals(_blocks(curvature, noise, _update(parameters)))).max())


def critical_momentum(eigenvalue: float, fourth_moment: float, step: float, batch: int = 1) -> float:
    """Return the momentum from which Nesterov's method with `step` diverges in mean square on one axis.

    The smallest gamma in (0, 1) with mean-square rate 1; 1.0 where it converges for every gamma below 1. With
    d = 1 - gamma, s = eta lambda, v = eta^2 (q - lambda^2) / m, the map of (E u^2, E u w, E w^2) has

        det(I - B) = 4 s^2 - 3 s^3 - (2 + 3 s) v + (4 s - 9 s^2 + 5 s^3 + (1 + 5 s) v) d - 2 s ((1 - s)^2 + v) d^2

    which is concave and positive at d = 1: it has a zero, and one, where it is negative at d = 0, that is
    where the noise v is above (4 s^2 - 3 s^3) / (2 + 3 s), for small steps where q > (1 + 2 m) lambda^2.

    Cost: an eigenvalue problem of size 3.

    Args:
        eigenvalue: lambda = E x^2 of the axis.
        fourth_moment: q = E x^4.
        step: eta, below 2 / L_m, L_m = (q / lambda + (m - 1) lambda) / m.
        batch: m, the samples of a step.

    Raises:
        InputError: the method diverges without momentum already; moments that no data have.

    Example:
        >>> round(critical_momentum(1.0, 6.0, 1 / 6), 3)
        0.564

    Reference: Liu, Belkin 2020; the number is derived.
    """
    if decoupled_mean_square_rate([eigenvalue], [fourth_moment], (step, 0.0, 0.0), batch) >= 1:
        raise InputError(f"step {step:.4g} diverges without momentum already; it must be below 2 / L_m")
    s, noise = step * eigenvalue, _noise_share(batch) * (fourth_moment - eigenvalue**2) * step**2
    constant = s * s * (4 - 3 * s) - noise * (2 + 3 * s)
    if constant >= 0:
        return 1.0
    slope = s * (4 - 9 * s + 5 * s * s) + noise * (1 + 5 * s)
    bend = 2 * s * ((1 - s) ** 2 + noise)
    return 1 + 2 * constant / (slope + math.sqrt(slope**2 + 4 * bend * constant))
