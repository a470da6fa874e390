"""The three parameters of MaSS in both of their forms, and their optimal values for measured constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wideangle.errors import InputError

__all__ = ["MassParameters", "from_etas", "optimal_parameters"]


@dataclass(frozen=True)
class MassParameters:
    """The parameters of MaSS: `lr` (eta1), `alpha` and `kappa_tilde`; the rest follows from them.

        eta1 = lr,   gamma = (1 - alpha) / (1 + alpha),   eta2 = lr (1 - 1/kappa_tilde) / (1 + alpha)

    `kappa_tilde` = 1 is Nesterov's method, 1/`alpha` plain SGD; above that the momentum works against the
    gradient.

    Raises:
        InputError: lr not positive, alpha outside (0, 1], kappa_tilde below 1.

    Example:
        >>> p = MassParameters(lr=0.1, alpha=0.05, kappa_tilde=3.0)
        >>> round(p.gamma, 5), round(p.eta2 / p.eta1, 4), round(p.effective_step / p.lr, 2)
        (0.90476, 0.6349, 3.83)

    Reference: Liu, Belkin 2020, Algorithm 1 (eta1, eta2, gamma) and the authors' code (lr, alpha, kappa_tilde).
    """

    lr: float
    alpha: float
    kappa_tilde: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr is {self.lr}; it must be positive and finite")
        if not 0 < self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha}; it must lie in (0, 1], 1 being without momentum")
        if not (math.isfinite(self.kappa_tilde) and self.kappa_tilde >= 1):
            raise InputError(f"kappa_tilde is {self.kappa_tilde}; it must be at least 1 and finite")

    @property
    def eta1(self) -> float:
        """Step of the iterate w along the gradient."""
        return self.lr

    @property
    def gamma(self) -> float:
        """Momentum, (1 - alpha) / (1 + alpha)."""
        return (1 - self.alpha) / (1 + self.alpha)

    @property
    def eta2(self) -> float:
        """The compensation: how much of the gradient's step is taken back, below eta1."""
        return self.lr * (1 - 1 / self.kappa_tilde) / (1 + self.alpha)

    @property
    def delta(self) -> float:
        """Step of the slow iterate v, lr / (alpha kappa_tilde)."""
        return self.lr / (self.alpha * self.kappa_tilde)

    @property
    def effective_step(self) -> float:
        """What a steady gradient moves the weights a step, (lr + delta) / 2; lr for plain SGD."""
        return (self.lr + self.delta) / 2

    @property
    def gain(self) -> float:
        """(gamma eta1 - eta2) / eta1: the share of each gradient that enters the buffer.

        Positive exactly where alpha kappa_tilde < 1; 0 is plain SGD.
        """
        return (1 / self.kappa_tilde - self.alpha) / (1 + self.alpha)


def from_etas(eta1: float, eta2: float, gamma: float) -> MassParameters:
    """Return the parameters given as (eta1, eta2, gamma).

    alpha = (1 - gamma) / (1 + gamma),   kappa_tilde = 1 / (1 - (1 + alpha) eta2 / eta1)

    Args:
        eta1: step along the gradient, above 0.
        eta2: compensation, 0 (Nesterov) up to below eta1 / (1 + alpha).
        gamma: momentum, in (0, 1).

    Raises:
        InputError: gamma outside (0, 1), eta2 outside its range.

    Example:
        >>> from_etas(0.1, 0.06349206349206349, 0.9047619047619048).kappa_tilde.__round__(9)
        3.0
    """
    if not 0 < gamma < 1:
        raise InputError(f"gamma is {gamma}; it must lie in (0, 1), both ends excluded")
    if not (math.isfinite(eta1) and eta1 > 0):
        raise InputError(f"eta1 is {eta1}; it must be positive and finite")
    alpha = (1 - gamma) / (1 + gamma)
    share = (1 + alpha) * eta2 / eta1
    if not 0 <= share < 1:
        raise InputError(
            f"eta2 is {eta2} with eta1 = {eta1} and gamma = {gamma}; it must lie in [0, {eta1 / (1 + alpha):.4g})"
        )
    return MassParameters(eta1, alpha, 1 / (1 - share))


def optimal_parameters(smoothness: float, kappa: float, kappa_tilde: float) -> MassParameters:
    """Return the parameters that are optimal for a batch with the constants L_m, kappa_m, kappa_tilde_m.

    lr = 1 / L_m,   alpha = 1 / sqrt(kappa_m kappa_tilde_m)

    The mean-square rate is then 1 - alpha a step; plain SGD with 1 / L_m has 1 - 1 / kappa_m.

    Args:
        smoothness: L_m, in units of the loss over squared weights.
        kappa: kappa_m = L_m / mu, at least 1.
        kappa_tilde: kappa_tilde_m, between 1 and kappa_m.

    Raises:
        InputError: a constant is out of its range.

    Example:
        >>> p = optimal_parameters(2.0, 100.0, 4.0)
        >>> p.lr, p.alpha, p.kappa_tilde
        (0.5, 0.05, 4.0)

    Reference: Liu, Belkin 2020, Theorem 2.
    """
    if not (math.isfinite(smoothness) and smoothness > 0):
        raise InputError(f"smoothness L_m is {smoothness}; it must be positive and finite")
    if not (math.isfinite(kappa) and kappa >= 1):
        raise InputError(f"kappa_m is {kappa}; it must be at least 1 and finite")
    if not kappa_tilde <= kappa * (1 + 1e-9):
        raise InputError(
            f"kappa_tilde_m is {kappa_tilde} and kappa_m {kappa}; the first never exceeds the second"
        )
    return MassParameters(1.0 / smoothness, 1.0 / math.sqrt(kappa * kappa_tilde), kappa_tilde)
