"""From measured constants to decisions: step size and batch size, each with its evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wideangle.errors import InputError
from wideangle.optim.constants import Constants
from wideangle.plan import Decision
from wideangle.result import Result

__all__ = ["StepChoice", "choose_batch", "choose_step"]

LEAST_BATCH = 16


@dataclass(frozen=True)
class StepChoice(Result):
    """A batch size with its safe step, the measured seconds a step, and the progress a second they give."""

    batch: int = 0
    step: float = 0.0
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Step size over seconds a step: how fast the well-conditioned directions shrink."""
        return self.step / self.seconds if self.seconds > 0 else 0.0


def choose_batch(
    constants: Constants, seconds: Callable[[int], float]
) -> tuple[StepChoice, list[StepChoice]]:
    """Return the batch size to take, and all that were looked at with their measured speed.

    the smallest power of two m >= 16 with L_m <= 5/4 L: a step at least 4/5 of the full-batch one; else n

    Up to the critical batch L1 / L the step grows with m, beyond it hardly. The choice follows from the
    constants alone, so it repeats; the seconds are shown beside it. Below 16, the fixed cost of a step
    and the noise of batch statistics count for more than what the constants say.

    Args:
        constants: the measured constants.
        seconds: batch size -> seconds of one training step on this machine.

    Example:
        >>> c = Constants("mse", 512, 1, smoothness=1.0, sample_smoothness=9.0)
        >>> choose_batch(c, lambda m: 1.0)[0].batch
        32
    """
    n = constants.samples
    sizes = [m for m in (2**k for k in range(n.bit_length())) if m < n] + [n]
    tried = [StepChoice(m, 1.0 / constants.batch_smoothness(m), seconds(m)) for m in sizes]
    least = 0.8 / constants.smoothness
    return next(c for c in tried if c.batch == n or (c.batch >= LEAST_BATCH and c.step >= least)), tried


def choose_step(constants: Constants, batch: int | None = None) -> tuple[Decision, Decision]:
    """Return the decisions on step size and batch size.

    step = 1 / L_m, half the critical step of the batch's own curvature bound

    Args:
        constants: the measured constants.
        batch: m; the whole set (full-batch descent) where left out.

    Raises:
        InputError: the batch is not within 1..n.

    Example:
        >>> step, batch = choose_step(Constants("mse", 64, 1, smoothness=2.0, sample_smoothness=4.0))
        >>> step.value, batch.value
        (0.5, 64)
    """
    n = constants.samples
    m = n if batch is None else batch
    if not 1 <= m <= n:
        raise InputError(f"batch size {m} of {n} samples; it must be between 1 and {n}")
    smoothness = constants.batch_smoothness(m)
    kind = "Gauss-Newton matrix" if constants.loss == "cross-entropy" else "c x full tangent kernel"
    evidence = (
        f"1 / L_m with L_m = {smoothness:.4g} at batch {m}: L = {constants.smoothness:.4g} (largest "
        f"eigenvalue of the {kind}), L1 = {constants.sample_smoothness:.4g} (largest of one sample)"
    )
    size = f"critical batch L1 / L = {constants.critical_batch:.3g}; {m} of {n} samples a step"
    return Decision(1.0 / smoothness, "a step", evidence), Decision(m, "samples", size)
