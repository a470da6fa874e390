"""Forecast of MaSS, Nesterov's method and SGD on a quadratic with gradient noise: the second moments, step by step.

In an eigen-direction of curvature lambda_i the distance u_i from the minimum and the buffer b_i obey

    g = lambda u + xi,   b' = gamma b + tau g,   u' = u - lr (g + b'),   w = u + lr b,   tau = the gain

with noise xi that vanishes with the loss, as it does under interpolation:

    E[xi_i^2] = a lambda_i sum_j M_ij lambda_j E[u_j^2],   M_ij = n sum_k (v_ki . v_kj)^2

a = the weight of one sample in a batch (1/m, or (n - m)/(m (n - 1)) without replacement), v_ki the part of sample k
in eigenvector i, one number an output. E[u^2], E[u b], E[b^2] follow a linear recursion that only this couples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wideangle.errors import InputError
from wideangle.optim._mass_parameters import MassParameters

__all__ = ["Quadratic", "forecast"]

BINS = 48
FLOOR = 1e-12  # of the loss at the start: below it is rounding
HUGE = 1e6  # of the loss at the start: above it a setting has diverged


@dataclass(frozen=True)
class Quadratic:
    """A loss near its minimum: curvatures, the share of the loss in each direction, and how noise couples them.

    `energies` are (1/2) lambda d^2, so their sum is the loss; `coupling[i, j]` is lambda_i M_ij, the noise in
    direction i for each unit of 2 x the loss in direction j, (k, k).
    """

    curvatures: np.ndarray
    energies: np.ndarray
    coupling: np.ndarray

    @property
    def loss(self) -> float:
        """The loss at the start."""
        return float(self.energies.sum())

    def binned(self, bins: int = BINS) -> Quadratic:
        """Return the same with directions of nearly equal curvature put together.

        A bin's curvature, and the noise its loss makes, are means weighted by energy; energies and the noise
        received are sums.
        """
        if len(self.curvatures) <= bins:
            return self
        edges = np.geomspace(self.curvatures.min(), self.curvatures.max() * (1 + 1e-9), bins + 1)
        place = np.clip(np.searchsorted(edges, self.curvatures, side="right") - 1, 0, bins - 1)
        member = np.zeros((bins, len(place)))
        member[place, np.arange(len(place))] = 1.0
        member = member[member.any(axis=1)]
        share = member * (self.energies + 1e-12 * self.loss / len(self.energies))
        share /= share.sum(axis=1, keepdims=True)
        coupling = member @ self.coupling @ share.T
        return Quadratic(share @ self.curvatures, member @ self.energies, coupling)

    def scaled(self, factor: float) -> Quadratic:
        """Return the same loss with every curvature `factor` times as large."""
        return Quadratic(self.curvatures * factor, self.energies, self.coupling * factor)


def quadratic(curvatures: np.ndarray, energies: np.ndarray, alike: np.ndarray | float) -> Quadratic:
    """Return the quadratic of single directions; those without curvature are left out: they do not move.

    Args:
        curvatures: lambda, (k,).
        energies: (1/2) lambda d^2, (k,).
        alike: M, (k, k), or one number for all: 1 for residuals that have nothing to do with the features.
    """
    keep = curvatures > 1e-12 * curvatures.max()
    m = np.broadcast_to(alike, (len(curvatures), len(curvatures)))[np.ix_(keep, keep)]
    return Quadratic(curvatures[keep], energies[keep], curvatures[keep][:, None] * m)


def forecast(
    problem: Quadratic, settings: Sequence[MassParameters], share: float, steps: int | Sequence[int]
) -> np.ndarray:
    """Return the expected loss of each setting after each number of steps, shape (settings, steps).

    Args:
        problem: the quadratic; `binned()` first where it has thousands of directions.
        settings: parameters of MaSS; alpha kappa_tilde = 1 is SGD, kappa_tilde = 1 Nesterov's method.
        share: a, the weight of one sample in a batch (0: the full gradient).
        steps: at which steps; the loss is that of the iterate w. inf where it exceeds 1e6 times the start, and
            at least 1e-12 times the start: less is rounding.

    Cost: a few operations on (settings x bins) numbers a step.

    Raises:
        InputError: no settings, or a negative step or share.

    Example:
        >>> flat = quadratic(np.array([1.0, 0.1]), np.array([0.5, 0.5]), alike=1.0)
        >>> forecast(flat, [MassParameters(1.0, 1.0, 1.0)], share=0.0, steps=[0, 1]).round(4).tolist()
        [[1.0, 0.405]]

    Reference: derived from Liu, Belkin 2020, Algorithm 1, with the noise of an interpolating linear model; exact in the
    diagonal of the second moments.
    """
    wanted = [steps] if isinstance(steps, int) else list(steps)
    if not settings or not wanted or min(wanted) < 0 or share < 0:
        raise InputError(
            f"{len(settings)} settings, steps {wanted}, share {share}: give settings and counts from 0"
        )
    lr, gamma, tau = (
        np.array([getattr(p, name) for p in settings])[:, None] for name in ("lr", "gamma", "gain")
    )
    bend = problem.curvatures[None, :]
    uu_b, ub_b, bu, bb = 1 - lr * bend * (1 + tau), -lr * gamma + 0 * bend, tau * bend, gamma + 0 * bend
    kick_u, kick_b = -lr * (1 + tau), tau
    uu = np.broadcast_to(2 * problem.energies / problem.curvatures, uu_b.shape).copy()
    ub, b2 = np.zeros_like(uu), np.zeros_like(uu)
    noise = share * problem.coupling.T
    found = np.full((len(settings), len(wanted)), np.inf)
    alive = np.ones(len(settings), dtype=bool)
    columns: dict[int, list[int]] = {}
    for column, step in enumerate(wanted):
        columns.setdefault(step, []).append(column)
    for step in range(max(wanted) + 1):
        if step in columns:
            loss = (bend * (uu + 2 * lr * ub + lr**2 * b2)).sum(1) / 2
            found[:, columns[step]] = np.where(alive, np.maximum(loss, FLOOR * problem.loss), np.inf)[:, None]
        force = (bend * uu) @ noise
        uu, ub, b2 = (
            uu_b**2 * uu + 2 * uu_b * ub_b * ub + ub_b**2 * b2 + kick_u**2 * force,
            uu_b * bu * uu + (uu_b * bb + ub_b * bu) * ub + ub_b * bb * b2 + kick_u * kick_b * force,
            bu**2 * uu + 2 * bu * bb * ub + bb**2 * b2 + kick_b**2 * force,
        )
        alive &= (bend * uu).sum(1) / 2 < HUGE * problem.loss
        if not alive.all():
            uu[~alive], ub[~alive], b2[~alive] = 0.0, 0.0, 0.0
    return found
