"""The constants that decide step and batch: L of the whole loss, L1 of the hardest sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wideangle.curvature.ggn import ggn_blocks, ggn_top_eigenpair
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._factors import Factors
from wideangle.losses import hessian_factor
from wideangle.result import Result

__all__ = ["Constants", "critical_step", "measure_constants"]


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
    """The curvature constants of a mean loss at one point, through its Gauss-Newton matrix.

    `smoothness` is L, the largest eigenvalue over all n samples; `sample_smoothness` is L1, the largest
    over single samples; L <= L1. `top_vector` is the eigenvector of L in output space, (nC,).
    """

    loss: str = "mse"
    samples: int = 0
    outputs: int = 0
    smoothness: float = 0.0
    sample_smoothness: float = 0.0
    residual: float = 0.0
    top_vector: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)

    @property
    def critical_step(self) -> float:
        """2 / L: gradient descent on the linearised model is stable below it."""
        return 2.0 / self.smoothness

    @property
    def critical_batch(self) -> float:
        """L1 / L: up to about this batch size the step may grow in proportion to the batch."""
        return self.sample_smoothness / self.smoothness

    def batch_smoothness(self, batch: int) -> float:
        """Return L_m = a L1 + (1 - a) L, a = (n - m) / (m (n - 1)): batches without replacement.

        Args:
            batch: m, 1 to n; m = n gives L, m = 1 gives L1.

        Raises:
            InputError: the batch is not within 1..n.
        """
        n = self.samples
        if not 1 <= batch <= n:
            raise InputError(f"batch size {batch} of {n} samples; it must be between 1 and {n}")
        share = (n - batch) / (batch * (n - 1)) if n > 1 else 0.0
        return share * self.sample_smoothness + (1.0 - share) * self.smoothness


def measure_constants(factors: Factors, logits: Tensor, loss: str = "mse") -> Constants:
    """Return L and L1 of a mean loss, measured through the factor cache.

    L = lambda_max((1/n) S^T K S),  L1 = max_i lambda_max(S_i^T K_ii S_i),  S: `ggn.output_root`

    For "mse" (torch.nn.MSELoss) L = (2/(nC)) lambda_max(K). L1 is an upper bound of the smallest constant
    for which E[|g_i|^2-weighted curvature] <= L1 H holds.

    Cost: about 20 products with K, and the n diagonal blocks.

    Args:
        factors: the factor cache with all outputs.
        logits: the model's outputs (n, C) at the same weights.
        loss: "mse" or "cross-entropy".

    Raises:
        InputError: the logits do not fit, or the loss is unknown.
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
    top = ggn_top_eigenpair(factors, logits, loss)
    value = float(top.values[0])
    blocks = ggn_blocks(factors, logits, loss)
    hardest = float(torch.linalg.eigvalsh(blocks)[:, -1].max())
    if not (np.isfinite(value) and np.isfinite(hardest) and value > 0):
        raise NumericsError(
            f"the curvature of the {loss} loss is {value:.3g}: the outputs do not react to the selected parameters, or "
            f"the loss is saturated (largest output {float(logits.detach().abs().max()):.3g}); scale the weights down"
        )
    return Constants(
        loss=loss,
        samples=factors.samples,
        outputs=factors.outputs,
        smoothness=value,
        sample_smoothness=max(hardest, value),
        residual=float(top.residuals[0]) / value,
        top_vector=top.vectors[:, 0],
    )
