"""The sharpness: the largest eigenvalue of a loss Hessian, with its vector and its residual."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.curvature._lanczos import Which, top_pair
from wideangle.curvature._operator import LossFunction
from wideangle.curvature.hessian import LossHessian
from wideangle.errors import ConvergenceError, InputError
from wideangle.kernel._model import Batch
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["Sharpness", "sharpness"]


@dataclass(frozen=True)
class Sharpness(Result):
    """The top eigenvalue of a loss Hessian, its unit vector, and the residual |H v - value v|.

    Some eigenvalue lies within `residual` of `value`. For `which` = "largest" the value is at most the
    largest eigenvalue. `critical_step` = 2/value is the largest stable step of gradient descent on the
    quadratic model of the loss.
    """

    value: float = 0.0
    residual: float = 0.0
    converged: bool = True
    products: int = 0
    which: str = "largest"
    vector: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)

    @property
    def critical_step(self) -> float:
        """Return 2/value, or infinity where no eigenvalue is positive."""
        return 2.0 / self.value if self.value > 0 else float("inf")


def sharpness(
    model: nn.Module,
    loss_fn: str | LossFunction,
    x: Batch,
    y: Any,
    *,
    start: Any = None,
    tolerance: float = 1e-2,
    max_products: int = 300,
    which: Which = "largest",
    strict: bool = True,
    seed: int = 0,
    **options: Any,
) -> Sharpness:
    """Return the largest eigenvalue of the loss Hessian, its vector and the residual reached.

        value = max over |v| = 1 of v^T H v,   H the Hessian of L(w) = loss_fn(model(x; w), y)

    The largest in the algebraic sense: for an indefinite H a negative eigenvalue of larger magnitude is
    not it (`which="magnitude"` takes that one, with its sign). Thick-restart Lanczos, stopped when
    |H v - value v| <= tolerance |value|. With the vector of an earlier call as `start`, following the
    sharpness along a run takes about 8 to 12 products a call.

    Cost: one forward pass and 10 to 40 times two backward passes; memory of the graph plus 24 vectors
    of p numbers.

    Args:
        model: any module, taken in the mode it is in (see `LossHessian`).
        loss_fn: "mse", "cross-entropy", or a function (output, y) -> scalar.
        x: n inputs, a tensor or a dict of tensors.
        y: n targets.
        start: a flat vector of p numbers near the eigenvector: an earlier result's `vector`; the gradient
            where left out. Either is blended with random numbers.
        tolerance: relative residual to reach.
        max_products: products with H allowed.
        which: "largest" (algebraic) or "magnitude".
        strict: raise where the tolerance is not reached; else the result says `converged=False`.
        seed: of these random numbers.
        **options: params, output, chunk, reduction, dtype, max_memory, group of `LossHessian`.

    Returns:
        A `Sharpness`.

    Raises:
        InputError: as `LossHessian`; a start of another length or not finite.
        ConvergenceError: `strict` and the residual stayed above the tolerance.
        NumericsError: a product was not finite.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> round(sharpness(model, "mse", x, torch.zeros(2, 1), tolerance=1e-6).value, 4)
        4.0

    Reference: Wu and Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems".
    """
    if which not in ("largest", "magnitude"):
        raise InputError(f"unknown which={which!r}; choose largest or magnitude")
    if not (tolerance > 0 and max_products >= 1):
        raise InputError(f"tolerance={tolerance} must be positive and max_products={max_products} at least 1")
    operator = LossHessian(model, loss_fn, x, y, **options)
    noise = torch.randn(operator.size, generator=generator(seed, "sharpness"), dtype=torch.float64)
    pair = top_pair(
        operator.product,
        _start(start, operator),
        noise.to(operator.device, operator.dtype),
        tolerance=tolerance,
        max_products=max_products,
        which=which,
        rounding=10 * torch.finfo(operator.dtype).eps,
    )
    if strict and not pair.converged:
        raise ConvergenceError(
            f"after {pair.products} products the top eigenvalue is {pair.value:.6g} with residual "
            f"{pair.residual:.2g}, above tolerance {tolerance:g} of it; raise max_products or tolerance"
        )
    return Sharpness(
        value=pair.value,
        residual=pair.residual,
        converged=pair.converged,
        products=pair.products,
        which=which,
        vector=pair.vector.cpu().numpy(),
        provenance=Provenance.here(seed=seed, device=str(operator.device)),
    )


def _start(start: Any, operator: LossHessian) -> Tensor:
    """Return the vector to start from: the one given, or the gradient, which leans towards the top of the spectrum."""
    if start is None:
        gradient = operator.gradient()
        usable = bool(torch.isfinite(gradient).all()) and float(gradient.norm()) > 0
        return gradient if usable else torch.ones_like(gradient)
    given = torch.as_tensor(start).detach().reshape(-1)
    if given.numel() != operator.size:
        raise InputError(f"start holds {given.numel()} numbers; the model has {operator.size} parameters")
    if not bool(torch.isfinite(given).all()) or float(given.norm()) == 0:
        raise InputError("start must be finite and not zero; leave it out to start from the gradient")
    return given.to(operator.device, operator.dtype)
