"""Loss conventions: the constant c of the loss Hessian H = c K, stated once for the whole library."""

from __future__ import annotations

from typing import Literal

from wideangle.errors import InputError

__all__ = ["SQUARED_LOSSES", "SquaredLoss", "hessian_factor"]

SquaredLoss = Literal["half_sum", "mean", "half_mean", "mse"]

SQUARED_LOSSES: dict[str, str] = {
    "half_sum": "1/2 sum_i |f_i - y_i|^2",
    "mean": "1/n sum_i |f_i - y_i|^2",
    "half_mean": "1/(2n) sum_i |f_i - y_i|^2",
    "mse": "1/(nC) sum_i |f_i - y_i|^2, torch.nn.MSELoss",
}


def hessian_factor(loss: str, samples: int, outputs: int) -> float:
    """Return c, so that a squared loss is (c/2) sum r^2 and its Gauss-Newton Hessian has the spectrum of c K.

    c = 1 (half_sum), 2/n (mean), 1/n (half_mean), 2/(nC) (mse)

    K is the full tangent kernel, nC x nC. Gradient descent on the linearised model is stable exactly
    for step < 2 / (c lambda_max(K)).

    Args:
        loss: one of `SQUARED_LOSSES`.
        samples: n.
        outputs: C.

    Returns:
        c > 0.

    Raises:
        InputError: the loss is none of the four, or a size is below one.

    Example:
        >>> hessian_factor("mse", samples=10, outputs=4)
        0.05
    """
    if samples < 1 or outputs < 1:
        raise InputError(f"samples and outputs must be at least 1, got {samples} and {outputs}")
    factors = {
        "half_sum": 1.0,
        "mean": 2.0 / samples,
        "half_mean": 1.0 / samples,
        "mse": 2.0 / (samples * outputs),
    }
    if loss not in factors:
        raise InputError(f"unknown squared loss {loss!r}; choose one of {', '.join(factors)}")
    return factors[loss]
