"""The exact constants of a least-squares problem, from its data or from a kernel's Gram matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from wideangle.errors import InputError, NumericsError
from wideangle.losses import hessian_factor
from wideangle.optim.constants import Constants

__all__ = ["constants_from_data", "constants_from_gram"]


def constants_from_data(x: Any, *, loss: str = "half_mean", floor: float | None = None) -> Constants:
    """Return the exact constants of linear regression on the rows of x, with any targets.

        H = s (1/n) sum_i x_i x_i^T,   L = lambda_max(H),   mu = lambda_min+(H),   z_i = H^(-1/2) x_i sqrt(s)
        L1 = lambda_max((s/n) sum_i |x_i|^2 z_i z_i^T),   kappa_tilde = lambda_max((1/n) sum_i |z_i|^2 z_i z_i^T)

    s = n c is what the loss's scale contributes, c of `wideangle.losses.hessian_factor` with one output: 1 for
    1/(2n) sum r^2, the paper's, 2 for the mean of r^2, n for 1/2 sum r^2 (whose batches are then
    understood as n/m times the batch's sum). Everything lives on the range of H: directions that no sample
    has do not move. kappa_tilde = n exactly where the rows are independent, and it lies between rank(H)
    and n always.

    Cost: a singular value decomposition, O(n d min(n, d)), and one of rank(H) size.

    Args:
        x: (n, d) rows, finite.
        loss: one of `wideangle.losses.SQUARED_LOSSES`.
        floor: eigenvalues of H below `floor` times the largest count as zero; max(n, d) eps of float64 by default.

    Returns:
        `Constants` with `mu_kind` "exact" and the rank.

    Raises:
        InputError: x is not a matrix of finite numbers, or the loss is unknown.
        NumericsError: every row is zero.

    Example:
        >>> c = constants_from_data([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> c.smoothness, round(c.mu, 4), round(c.sample_smoothness, 4), round(c.kappa_tilde, 4)
        (3.0, 0.6667, 9.0, 3.0)

    Reference: Liu, Belkin 2020, Section 3; the smallest constants for which its two inequalities hold.
    """
    rows = _matrix("x", x)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    level = max(rows.shape) * np.finfo(np.float64).eps if floor is None else floor
    return _constants(left, np.square(singular), np.square(rows).sum(1), level, loss)


def constants_from_gram(gram: Any, *, loss: str = "half_mean", floor: float | None = None) -> Constants:
    """Return the exact constants of kernel regression with the Gram matrix K of n samples.

        H has the eigenvalues of s K / n;   L1 = s lambda_max(U^T diag(K_ii) U)
        kappa_tilde = lambda_max(U^T diag(n sum_j U_ij^2) U),   U = eigenvectors of K that count

    What `constants_from_data` returns for features with x_i . x_j = K_ij. For k(x, x) = 1 and s = 1: L1 = 1,
    and kappa_tilde = n where K has full rank.

    Cost: an eigendecomposition of K.

    Args:
        gram: (n, n), symmetric and positive semi-definite.
        loss: one of `wideangle.losses.SQUARED_LOSSES`.
        floor: eigenvalues below `floor` times the largest count as zero; n eps of float64 by default. Give
            1e-6 or more for a K computed in float32: below that its eigenvalues are noise.

    Raises:
        InputError: K is not square, symmetric, finite and positive semi-definite.
        NumericsError: K is zero.

    Example:
        >>> c = constants_from_gram([[1.0, 0.5], [0.5, 1.0]])
        >>> c.smoothness, c.mu, round(c.sample_smoothness, 9), round(c.kappa_tilde, 9)
        (0.75, 0.25, 1.0, 2.0)

    Reference: Liu, Belkin 2020, Section 3, in the features of the kernel.
    """
    k = _matrix("gram", gram)
    if k.shape[0] != k.shape[1]:
        raise InputError(f"gram has shape {k.shape}; a Gram matrix is square")
    skew = float(np.abs(k - k.T).max())
    if skew > 1e-5 * max(float(np.abs(k).max()), np.finfo(np.float64).tiny):
        raise InputError(f"gram is not symmetric: entries differ from their mirror by up to {skew:.3g}")
    values, vectors = np.linalg.eigh((k + k.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    level = len(k) * np.finfo(np.float64).eps if floor is None else floor
    if values[-1] < -max(level, 1e-6) * abs(values[0]):
        raise InputError(
            f"gram has the eigenvalue {values[-1]:.3g} beside {values[0]:.3g}; it must be positive semi-definite"
        )
    return _constants(vectors, values, np.diagonal(k), level, loss)


def _constants(u: np.ndarray, values: np.ndarray, squared: np.ndarray, floor: float, loss: str) -> Constants:
    """Constants from the left singular vectors of the data, their squared singular values and |x_i|^2."""
    n = len(u)
    scale = n * hessian_factor(loss, n, 1)
    if not (len(values) and values[0] > 0):
        raise NumericsError("every sample is zero: there is no direction in which the loss is curved")
    if not 0 <= floor < 1:
        raise InputError(f"floor is {floor}; it must lie in [0, 1)")
    counts = values > floor * values[0]
    u, values = u[:, counts], values[counts]
    leverage = n * np.square(u).sum(1)
    hardest = np.linalg.eigvalsh((u.T * squared) @ u)[-1] if len(values) else 0.0
    kappa_tilde = np.linalg.eigvalsh((u.T * leverage) @ u)[-1]
    return Constants(
        loss=loss,
        samples=n,
        outputs=1,
        smoothness=float(scale * values[0] / n),
        sample_smoothness=float(scale * hardest),
        top_vector=u[:, 0].copy(),
        mu=float(scale * values[-1] / n),
        mu_kind="exact",
        kappa_tilde=min(float(kappa_tilde), float(n)),
        rank=len(values),
    )


def _matrix(name: str, given: Any) -> np.ndarray:
    array = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} holds {array.dtype}; give real numbers") from error
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name} has shape {array.shape}; give a matrix, one row a sample")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds nan or infinite values; remove those samples first")
    return array
