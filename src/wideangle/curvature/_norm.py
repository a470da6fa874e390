"""The spectral norm of an indefinite operator, with a probability that nothing larger was missed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wideangle.curvature._lanczos import top_pair
from wideangle.errors import ConvergenceError, InputError
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["SpectralNorm", "SymmetricOperator", "lanczos_steps", "spectral_norm"]

_LARGEST_BASIS = 400


class SymmetricOperator(Protocol):
    """What the spectral functions take: anything that multiplies a flat vector by a symmetric matrix."""

    @property
    def size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def product(self, vector: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class SpectralNorm(Result):
    """The norm of a symmetric matrix: `value` = |`signed`|, the eigenvalue of largest magnitude found.

    Some eigenvalue lies within `residual` of `signed`, and the norm is at least `value`. With probability
    at least `probability`, over the random start, it is at most (1 + `slack`) `value`.
    """

    value: float = 0.0
    signed: float = 0.0
    residual: float = 0.0
    probability: float = 0.0
    slack: float = 0.1
    products: int = 0
    converged: bool = True
    vector: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)


def lanczos_steps(size: int, slack: float, confidence: float) -> int:
    """Return the Lanczos steps k after which both ends of a spectrum are known well enough.

        k >= 1/2 + ln(2 * 1.648 sqrt(p) / (1 - confidence)) / (2 sqrt(e)),   e = slack / (2 + 2 slack)

    From a start uniform on the sphere, k steps miss an end of the spectrum by more than e times its width
    with probability at most 1.648 sqrt(p) exp(-sqrt(e) (2k - 1)); a space of Krylov type does not see a
    shift, so this holds for indefinite matrices and both ends. With both within e times the width, the norm
    is at most (1 + slack) times the largest |Ritz value|.

    Args:
        size: p, the order of the matrix.
        slack: relative error allowed.
        confidence: probability wanted, below 1.

    Example:
        >>> lanczos_steps(1_000_000, slack=0.1, confidence=0.99)
        31

    Reference: Kuczynski and Wozniakowski 1992, "Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start", Theorem 4.2 (positive semi-definite; extended here by the shift).
    """
    if confidence <= 0:
        return 1
    steps = 0.5 + math.log(3.296 * math.sqrt(size) / (1 - confidence)) / (2 * math.sqrt(_share(slack)))
    return max(1, math.ceil(steps))


def _share(slack: float) -> float:
    return slack / (2 + 2 * slack)


def _probability(size: int, slack: float, steps: int) -> float:
    missed = 3.296 * math.sqrt(size) * math.exp(-math.sqrt(_share(slack)) * (2 * steps - 1))
    return max(0.0, 1.0 - missed)


def spectral_norm(
    operator: SymmetricOperator,
    *,
    tolerance: float = 1e-2,
    confidence: float = 0.99,
    slack: float = 0.1,
    max_products: int = 300,
    strict: bool = True,
    seed: int = 0,
) -> SpectralNorm:
    """Return the spectral norm |H| of a symmetric, maybe indefinite operator, and how sure it is.

        value = max over |v| = 1 of |v^T H v|

    Lanczos with full reorthogonalisation from a random start, which sees both ends of the spectrum; it
    stops when |H v - signed v| <= tolerance value and the steps reach `lanczos_steps`. Power iteration on H
    does not converge where the two ends are of similar size, and says nothing about what it missed.

    Cost: usually 20 to 35 products and as many vectors of p numbers; with confidence=0 as many as the
    residual takes (8 to 15).

    Args:
        operator: a `LossHessian`, `OutputHessian`, `GaussNewton`, or anything with size, device, dtype and
            product(vector).
        tolerance: relative residual to reach.
        confidence: probability with which nothing above (1 + slack) value is missed; 0 asks for none.
        slack: see confidence.
        max_products: products allowed.
        strict: raise where tolerance or confidence is not reached; else the result says how far it came.
        seed: of the random start.

    Returns:
        A `SpectralNorm`.

    Raises:
        InputError: confidence outside [0, 1), slack, tolerance not positive.
        ConvergenceError: `strict`, and the residual stayed above the tolerance, or the products were too few
            for the confidence.
        NumericsError: a product was not finite.

    Example:
        >>> from wideangle.curvature import OutputHessian
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
        >>> found = spectral_norm(OutputHessian(model, torch.tensor([[3.0]])))
        >>> round(found.value, 4), found.probability
        (3.0, 1.0)

    Reference: Kuczynski and Wozniakowski 1992 for the probability.
    """
    if not 0 <= confidence < 1:
        raise InputError(f"confidence must be in [0, 1), got {confidence}; certainty is not to be had")
    for name, number in (("slack", slack), ("tolerance", tolerance), ("max_products", max_products)):
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"{name} must be positive, got {number}")
    size = operator.size
    steps = min(lanczos_steps(size, slack, confidence), size, _LARGEST_BASIS, max_products)
    noise = torch.randn(size, generator=generator(seed, "spectral norm"), dtype=torch.float64)
    noise = noise.to(operator.device, operator.dtype)
    pair = top_pair(
        operator.product,
        noise,
        noise,
        tolerance=tolerance,
        max_products=max_products,
        which="magnitude",
        rounding=10 * torch.finfo(operator.dtype).eps,
        least=max(steps, 8),
    )
    unrestarted = min(pair.products, max(24, steps))
    probability = 1.0 if pair.exhausted else _probability(size, slack, unrestarted)
    if strict and probability < confidence:
        raise ConvergenceError(
            f"after {pair.products} products the probability that nothing above {1 + slack:g} times "
            f"{abs(pair.value):.4g} was missed is {probability:.3g}, below "
            f"confidence {confidence:g}; raise max_products or slack"
        )
    if strict and not pair.converged:
        raise ConvergenceError(
            f"after {pair.products} products the norm is {abs(pair.value):.6g} with residual "
            f"{pair.residual:.2g}, above tolerance {tolerance:g} of it; raise max_products or tolerance"
        )
    return SpectralNorm(
        value=abs(pair.value),
        signed=pair.value,
        residual=pair.residual,
        probability=probability,
        slack=slack,
        products=pair.products,
        converged=pair.converged,
        vector=pair.vector.cpu().numpy(),
        provenance=Provenance.here(seed=seed, device=str(operator.device)),
    )
