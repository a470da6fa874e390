"""From measured constants to decisions: step size and batch size, each with its evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wideangle.errors import InputError
from wideangle.optim.constants import Constants
from wideangle.plan import Decision
from wideangle.result import Result

__all__ = ["StepChoice", "choose_batch", "recommend"]


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
    """Return the batch size with the most progress a second, and all that were tried.

    maximise (1 / L_m) / seconds(m) over m = powers of two up to n, and n itself

    Up to the critical batch L1 / L the step grows with m, beyond it hardly; the time of a step grows with
    m only once the machine is busy. Both are measured, so the answer is the machine's as well.

    Args:
        constants: the measured constants.
        seconds: batch size -> seconds of one training step on this machine.

    Example:
        >>> c = Constants("mse", 64, 1, smoothness=1.0, sample_smoothness=4.0)
        >>> choose_batch(c, lambda m: 1.0 + m)[0].batch
        2
    """
    n = constants.samples
    sizes = [m for m in (2**k for k in range(n.bit_length())) if m < n] + [n]
    tried = [StepChoice(m, 1.0 / constants.batch_smoothness(m), seconds(m)) for m in sizes]
    return max(tried, key=lambda choice: choice.speed), tried


def recommend(constants: Constants, batch: int | None = None) -> tuple[Decision, Decision]:
    """Return the decisions on step size and batch size.

    step = 1 / L_m, half the critical step of the batch's own curvature bound

    Args:
        constants: the measured constants.
        batch: m; the whole set (full-batch descent) where left out.

    Raises:
        InputError: the batch is not within 1..n.

    Example:
        >>> step, batch = recommend(Constants("mse", 64, 1, smoothness=2.0, sample_smoothness=4.0))
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
