"""The spectrum of a curvature operator as a whole, by random vectors: its trace and its density."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wideangle.curvature._lanczos import Space
from wideangle.curvature._norm import SymmetricOperator
from wideangle.errors import InputError, NumericsError
from wideangle.progress import track
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["SpectralDensity", "TraceEstimate", "spectral_density", "trace"]


@dataclass(frozen=True)
class TraceEstimate(Result):
    """An estimate of a trace with its standard error over the random vectors, from `products` products."""

    value: float = 0.0
    error: float = 0.0
    products: int = 0


def trace(operator: SymmetricOperator, products: int = 90, *, seed: int = 0) -> TraceEstimate:
    """Return an estimate of the trace of a symmetric operator, and its standard error.

        tr H = tr(Q^T H Q) + mean over g of g^T (I - Q Q^T) H (I - Q Q^T) g

    Q is an orthonormal basis of H S for a random S: it takes the large eigenvalues out, and the random signs g
    average over what is left. A third of the products each for H S, H Q and the g.

    Cost: `products` products and 2/3 as many vectors of p float64 numbers; with as many products as
    parameters the diagonal is summed exactly.

    Args:
        operator: a `LossHessian`, `OutputHessian`, `GaussNewton`, or anything with size, device, dtype and
            product(vector).
        products: how many products to spend, at least 6.
        seed: of S and g.

    Returns:
        A `TraceEstimate`.

    Raises:
        InputError: fewer than 6 products.
        NumericsError: a product was not finite.

    Example:
        >>> from wideangle.curvature import LossHessian
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> trace(LossHessian(model, "mse", torch.eye(2), torch.zeros(2, 1))).value
        2.0

    Reference: Meyer, Musco, Musco, Woodruff 2021, "Hutch++", Algorithm 1.
    """
    if products < 6:
        raise InputError(f"products={products}; the estimate needs at least 6")
    size, device = operator.size, operator.device
    if size <= products:
        exact = sum(float(_checked(operator, unit)[i]) for i, unit in enumerate(_units(size, device)))
        return TraceEstimate(value=exact, products=size, provenance=_origin(operator, seed))
    third = products // 3
    draws = generator(seed, "curvature", "trace")
    sketch = torch.stack([_checked(operator, v) for v in _signs(third, size, draws).to(device)], dim=1)
    basis = torch.linalg.qr(sketch)[0]
    inside = sum(float(q @ _checked(operator, q)) for q in basis.T)
    rest = _signs(third, size, draws).to(device)
    rest = rest - (rest @ basis) @ basis.T
    samples = [float(g @ _checked(operator, g)) for g in rest]
    return TraceEstimate(
        value=inside + math.fsum(samples) / third,
        error=float(np.std(samples, ddof=1)) / math.sqrt(third),
        products=3 * third,
        provenance=_origin(operator, seed),
    )


@dataclass(frozen=True)
class SpectralDensity(Result):
    """The spectral density of a p x p matrix as weighted points: a share `weights`[j] of p lies near `nodes`[j].

    `nodes` are in rising order; the weights sum to 1. The extreme nodes are Ritz values: inside the spectrum,
    and close to its ends.
    """

    size: int = 0
    products: int = 0
    lowest: float = 0.0
    highest: float = 0.0
    nodes: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)

    def mass(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Return the share of eigenvalues estimated to lie in [low, high]."""
        inside = (self.nodes >= low) & (self.nodes <= high)
        return float(self.weights[inside].sum())

    def smooth(self, grid: np.ndarray, width: float) -> np.ndarray:
        """Return the density on a grid, each point spread by a Gaussian of standard deviation `width`."""
        if not width > 0:
            raise InputError(f"width must be positive, got {width}")
        distance = (np.asarray(grid, dtype=np.float64)[:, None] - self.nodes) / width
        bells = np.exp(-0.5 * distance**2) / (width * math.sqrt(2 * math.pi))
        return bells @ self.weights


def spectral_density(
    operator: SymmetricOperator, steps: int = 80, *, vectors: int = 1, seed: int = 0
) -> SpectralDensity:
    """Return the spectral density of a symmetric operator by stochastic Lanczos quadrature.

        density(t) = 1/p sum_i delta(t - lambda_i)  ~  mean over v of sum_j tau_j^2 delta(t - theta_j)

    theta_j are the Ritz values of `steps` Lanczos steps from a random v, tau_j the first components of their
    vectors in the basis. Lanczos is reorthogonalised fully, so no Ritz value is a ghost.

    Cost: steps * vectors products, and `steps` vectors of p numbers.

    Args:
        operator: a `LossHessian`, `OutputHessian`, `GaussNewton`, or anything with size, device, dtype and
            product(vector).
        steps: Lanczos steps a vector.
        vectors: random vectors averaged over; one is enough for large p.
        seed: of the vectors.

    Returns:
        A `SpectralDensity`.

    Raises:
        InputError: steps or vectors below 1.
        NumericsError: a product was not finite.

    Example:
        >>> from wideangle.curvature import LossHessian
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> spectral_density(LossHessian(model, "mse", x, torch.zeros(2, 1))).nodes.round(3).tolist()
        [1.0, 4.0]

    Reference: Ubaru, Chen, Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature",
    Algorithm 1; Ghorbani, Krishnan, Xiao 2019 for Hessians of networks.
    """
    if steps < 1 or vectors < 1:
        raise InputError(f"steps={steps} and vectors={vectors} must be at least 1")
    size, count = operator.size, 0
    nodes, weights = [], []
    for number in track(range(vectors), "spectral density"):
        draws = generator(seed, "curvature", "density", number)
        space = Space(size, torch.zeros(1, dtype=operator.dtype, device=operator.device), min(steps, size))
        direction = torch.randn(size, generator=draws, dtype=torch.float64)
        direction = direction.to(operator.device, operator.dtype)
        direction = direction / direction.norm()
        for _ in range(len(space.rows)):
            rest, length = space.grow(direction, operator.product(direction))
            count += 1
            if length <= 10 * torch.finfo(operator.dtype).eps * space.scale():
                break
            direction = rest / length
        values, coefficients = space.ritz()
        nodes.append(values)
        weights.append(coefficients[0] ** 2 / vectors)
    found, shares = np.concatenate(nodes), np.concatenate(weights)
    order = np.argsort(found)
    return SpectralDensity(
        size=size,
        products=count,
        lowest=float(found.min()),
        highest=float(found.max()),
        nodes=found[order],
        weights=shares[order],
        provenance=_origin(operator, seed),
    )


def _origin(operator: SymmetricOperator, seed: int) -> Provenance:
    return Provenance.here(seed=seed, device=str(operator.device))


def _units(size: int, device: torch.device) -> Tensor:
    return torch.eye(size, dtype=torch.float64, device=device)


def _signs(count: int, size: int, draws: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count, size), generator=draws).double() * 2 - 1


def _checked(operator: SymmetricOperator, vector: Tensor) -> Tensor:
    image = operator.product(vector)
    if not bool(torch.isfinite(image).all()):
        raise NumericsError(
            "a product with the curvature holds non-finite numbers; compute in float64 (dtype=torch.float64), "
            "or check the weights and the loss for overflow"
        )
    return image
