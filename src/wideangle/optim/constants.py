"""The constants that decide step and batch: L of the whole loss, L1 of the hardest sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from wideangle.curvature.ggn import ggn_blocks, ggn_top_eigenpair
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._factors import Factors
from wideangle.losses import hessian_factor
from wideangle.optim._mass_parameters import MassParameters, optimal_parameters
from wideangle.result import Result

__all__ = ["Constants", "constants_of", "critical_step", "measure_constants"]


def critical_step(lambda_max: float, *, loss: str = "mse", samples: int, outputs: int) -> float:
    """Return the step above which gradient descent on the linearised model diverges.

    eta_crit = 2 / (c lambda_max),  c = 1 (half_sum), 2/n (mean), 1/n (half_mean), 2/(nC) (mse)

    Args:
        lambda_max: largest eigenvalue of the full tangent kernel (nC x nC), never of the trace kernel,
            whose largest eigenvalue is up to C times larger.
        loss: one of `wideangle.losses.SQUARED_LOSSES`.
        samples: n.
        outputs: C.

    Raises:
        InputError: lambda_max is not positive and finite, or the loss is unknown.

    Example:
        >>> critical_step(4.0, loss="half_sum", samples=10, outputs=1)
        0.5

    Reference: Lee et al. 2019, Section 2 (the linearised model); see `wideangle.losses.hessian_factor`.
    """
    if not (np.isfinite(lambda_max) and lambda_max > 0):
        raise InputError(f"lambda_max is {lambda_max}; it must be positive and finite")
    return 2.0 / (hessian_factor(loss, samples, outputs) * lambda_max)


@dataclass(frozen=True)
class Constants(Result):
    """The curvature constants of a loss at one point: what step, momentum and batch size follow from.

        L = lambda_max(H),   mu = its smallest eigenvalue that counts
        E[A_i^2] <= L1 H,   E[A_i H^+ A_i] <= kappa_tilde H

    with A_i the (Gauss-Newton) Hessian of one sample's loss and H = E[A_i]. `smoothness` is L,
    `sample_smoothness` L1 (for networks its upper bound max_i lambda_max(A_i)); L <= L1. `mu` is None where
    it was not measured; `mu_kind` says what it is: "exact", "upper bound" (a subsample's), or "" .
    `kappa_tilde` is the statistical condition number, exactly `samples` where the samples' features are
    independent. `samples` is n, what batches are drawn from; `looked_at` how many were measured (0: all), and
    `smoothness_interval` then brackets L; `rank` is that of H where the constants are exact. `top_vector` is
    the eigenvector of L in output space, (nC,).

    Reference: Liu, Belkin 2020, Section 3 (L, mu, L1, kappa_tilde and their batch forms).
    """

    loss: str = "mse"
    samples: int = 0
    outputs: int = 0
    smoothness: float = 0.0
    sample_smoothness: float = 0.0
    residual: float = 0.0
    top_vector: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    mu: float | None = None
    mu_kind: str = ""
    kappa_tilde: float | None = None
    rank: int = 0
    looked_at: int = 0
    smoothness_interval: list[float] = field(default_factory=list)

    @property
    def critical_step(self) -> float:
        """2 / L: gradient descent on the linearised model is stable below it."""
        return 2.0 / self.smoothness

    @property
    def critical_batch(self) -> float:
        """L1 / L: up to about this batch size the step may grow in proportion to the batch."""
        return self.sample_smoothness / self.smoothness

    @property
    def critical_batches(self) -> tuple[float, float]:
        """m1 = min(L1/L, kappa_tilde) and m2 = max(L1/L, kappa_tilde): where the gain of MaSS changes.

        Up to m1 its rate grows as m, up to m2 as sqrt(m), beyond it is that of the full batch.
        """
        pair = sorted((self.critical_batch, self._needed("kappa_tilde")))
        return pair[0], pair[1]

    def share(self, batch: int, replacement: bool = False) -> float:
        """Return a, the weight of one sample's constant in a batch's: 1/m, or (n - m) / (m (n - 1)).

        Args:
            batch: m, 1 to n (any size with replacement).
            replacement: samples are drawn with replacement; else a batch holds none twice.

        Raises:
            InputError: the batch is not within 1..n.
        """
        n = self.samples
        if batch < 1 or (batch > n and not replacement):
            raise InputError(f"batch size {batch} of {n} samples; it must be between 1 and {n}")
        if replacement:
            return 1.0 / batch
        return (n - batch) / (batch * (n - 1)) if n > 1 else 0.0

    def batch_smoothness(self, batch: int, replacement: bool = False) -> float:
        """Return L_m = a L1 + (1 - a) L, a = `share(batch)`: L at m = n without replacement, L1 at m = 1."""
        share = self.share(batch, replacement)
        return share * self.sample_smoothness + (1.0 - share) * self.smoothness

    def batch_kappa_tilde(self, batch: int, replacement: bool = False) -> float:
        """Return kappa_tilde_m = a kappa_tilde + (1 - a): 1 for the full batch without replacement."""
        share = self.share(batch, replacement)
        return share * self._needed("kappa_tilde") + (1.0 - share)

    def kappa(self, batch: int, replacement: bool = False) -> float:
        """Return kappa_m = L_m / mu."""
        return self.batch_smoothness(batch, replacement) / self._needed("mu")

    def mass(self, batch: int, replacement: bool = False) -> MassParameters:
        """Return the optimal parameters of MaSS for a batch size, see `optimal_parameters`.

        Raises:
            InputError: mu or kappa_tilde was not measured, or the batch is not within 1..n.
        """
        kappa, kappa_tilde = self.kappa(batch, replacement), self.batch_kappa_tilde(batch, replacement)
        return optimal_parameters(self.batch_smoothness(batch, replacement), kappa, kappa_tilde)

    def speed_up(self, batch: int, replacement: bool = False) -> float:
        """Return sqrt(kappa_m / kappa_tilde_m): the rate of MaSS over that of SGD, at least 1."""
        return math.sqrt(self.kappa(batch, replacement) / self.batch_kappa_tilde(batch, replacement))

    def _needed(self, name: str) -> float:
        value = getattr(self, name)
        if value is None:
            raise InputError(
                f"{name} was not measured for these constants; use constants_from_data or constants_from_gram, "
                "or give it with dataclasses.replace"
            )
        return float(value)


def measure_constants(
    factors: Factors, logits: Tensor, loss: str = "mse", *, samples: int | None = None
) -> Constants:
    """Return L and L1 of a mean loss, measured through the factor cache.

    L = lambda_max((1/n) S^T K S),  L1 = max_i lambda_max(S_i^T K_ii S_i),  S: `ggn.output_root`

    For "mse" (torch.nn.MSELoss) L = (2/(nC)) lambda_max(K). L1 is an upper bound of the smallest constant
    for which E[A_i^2] <= L1 H holds. kappa_tilde = n by identity where the samples' features are independent,
    as they are in an over-parameterised model without repeated samples; it is a bound everywhere else.

    The factors may be those of a subsample of `samples`: then L gets an interval of two standard errors of the
    mean of one sample's share q_i = n lambda |v_i|^2 of it, and L1 is what was seen (with 95 %
    confidence at most a share 3/n of all samples lies above it).

    Cost: about 20 products with K, and the n diagonal blocks.

    Args:
        factors: the factor cache with all outputs.
        logits: the model's outputs (n, C) at the same weights.
        loss: "mse" or "cross-entropy".
        samples: how many samples batches are drawn from, where the factors are those of some of them.

    Raises:
        InputError: the logits do not fit, the loss is unknown, or `samples` is less than those measured.
        NumericsError: the curvature is zero or not finite (a model that does not react to its weights).
        ConvergenceError: the top eigenvalue was not found to tolerance.

    Example:
        >>> from wideangle.kernel import factors
        >>> model, x = torch.nn.Linear(3, 2, bias=False), torch.eye(3)
        >>> constants = measure_constants(factors(model, x), model(x))
        >>> round(constants.critical_step, 4), round(constants.critical_batch, 4)
        (6.0, 3.0)

    Reference: Ma, Bassily, Belkin 2018 (batch size under interpolation); Liu, Belkin 2020 (L1, L).
    """
    count = factors.samples
    total = count if samples is None else samples
    if total < count:
        raise InputError(f"samples={total}, but {count} were measured; give the size of the whole set")
    top = ggn_top_eigenpair(factors, logits, loss)
    value = float(top.values[0])
    blocks = ggn_blocks(factors, logits, loss)
    hardest = float(torch.linalg.eigvalsh(blocks)[:, -1].max())
    if not (np.isfinite(value) and np.isfinite(hardest) and value > 0):
        raise NumericsError(
            f"the curvature of the {loss} loss is {value:.3g}: the outputs do not react to the selected parameters, or "
            f"the loss is saturated (largest output {float(logits.detach().abs().max()):.3g}); scale the weights down"
        )
    found = constants_of(loss, factors.outputs, value, hardest, top.vectors[:, 0], count=count, total=total)
    return replace(found, residual=float(top.residuals[0]) / value)


def constants_of(
    loss: str, outputs: int, top: float, hardest: float, vector: np.ndarray, *, count: int, total: int
) -> Constants:
    """Return the constants of `total` samples from L, L1 and the top vector (count C,) of `count` of them."""
    return Constants(
        loss=loss,
        samples=total,
        outputs=outputs,
        smoothness=top,
        sample_smoothness=max(hardest, top),
        top_vector=vector,
        kappa_tilde=float(total),
        looked_at=0 if total == count else count,
        smoothness_interval=[] if total == count else _interval(top, vector.reshape(count, -1)),
    )


def _interval(value: float, vector: np.ndarray) -> list[float]:
    """Return L -+ two standard errors of the mean of each sample's share of it."""
    shares = len(vector) * value * np.square(vector).sum(axis=1)
    error = 2.0 * float(shares.std(ddof=1)) / math.sqrt(len(shares))
    return [max(value - error, 0.0), value + error]
