"""The accelerated methods on linear operators: quadratics and kernel regression, with their residuals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wideangle.errors import InputError, NumericsError
from wideangle.kernel.lanczos import KernelOperator, lanczos_eigenpairs, top_eigenpairs
from wideangle.kernel.spectrum import as_matrix
from wideangle.optim._accelerated_factors import Method, checked_method, one_kappa_hat
from wideangle.optim._accelerated_products import Product, product_of
from wideangle.optim._accelerated_steps import Coefficients
from wideangle.optim._given import number, one_number
from wideangle.result import Result

__all__ = ["AcceleratedRun", "kernel_regression", "solve_quadratic"]

Watch = Callable[[int, Tensor], None]
_TURNS = 100  # products to find the eigenvalue that made a residual grow
_MARGIN = 1.01  # on the largest eigenvalue that Lanczos found


@dataclass(frozen=True)
class AcceleratedRun(Result):
    """The solution after the last step, and the residual norms on the way.

    `solution` is w_T, shaped like b; `residuals[t]` holds |b - H w_t| for each column; `reached` is None
    where no tolerance was asked for. `smoothness` is the L that was used.
    """

    method: str = "nesterov"
    kappa_hat: float = 1.0
    smoothness: float = 0.0
    steps: int = 0
    reached: bool | None = None
    relative_residual: float = math.nan
    residuals: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    solution: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)


def solve_quadratic(
    matvec: Any,
    b: Any,
    smoothness: float,
    kappa_hat: float,
    method: str = "nesterov",
    *,
    steps: int,
    start: Any = None,
    tolerance: float | None = None,
    watch: Watch | None = None,
) -> AcceleratedRun:
    """Return w_T of an accelerated method on f(w) = 1/2 w^T H w - b^T w, that is, on H w = b.

    The updates of the module `accelerated` with L = `smoothness`. For every w_0 and t the residual is

        b - H w_t = e_t(H / L) (b - H w_0),   e_t: `residual_polynomial`

    Where H is singular, components of w in its null space stay where they started if b has none there.
    The columns of a block are solved side by side. Cost: T + 1 products with H, and four vectors.

    Args:
        matvec: H, symmetric and positive semi-definite, (p, p): a matrix, an operator with `@` or
            `.product`, or a function v -> H v on tensors of b's shape.
        b: (p,) or (p, k); integers become float64. Computed in the precision of b, or of a matrix H if finer.
        smoothness: L, an upper bound of H's largest eigenvalue. Power iteration and Lanczos give lower
            bounds: multiply by 1.01 to 1.05. Heavy ball and Chebyshev diverge above L (1 + 1/kappa_hat).
        kappa_hat: as for `convergence_factor`; it need not be H's condition number.
        method: as for `convergence_factor`.
        steps: T, at least 0.
        start: w_0, shaped like b; zero where left out.
        tolerance: stop where |b - H w_t| <= tolerance |b| in every column; not reaching it is no error.
        watch: called as watch(t, b - H w_t) for t = 0..T, with a tensor shaped like b.

    Returns:
        An `AcceleratedRun`.

    Raises:
        InputError: shapes that do not fit, a matrix that is not symmetric or is sparse, smoothness not
            positive, kappa_hat below 1, an unknown method.
        NumericsError: the residual grew beyond what an L that is an upper bound allows, (2t + 1) for heavy
            ball and 1 for the others; the message gives the eigenvalue met. Or a non-finite product. H is not
            searched for negative eigenvalues: one is noticed only once its residual has grown.

    Example:
        >>> H = torch.diag(torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64))
        >>> run = solve_quadratic(H, torch.ones(3), smoothness=1.0, kappa_hat=100.0, steps=200, tolerance=1e-6)
        >>> run.reached, run.steps, run.solution.round(3).tolist()
        (True, 153, [1.0, 10.0, 100.0])

    Reference: Nesterov 2004, section 2.2 (constant momentum); Polyak 1964; Golub, Varga 1961 (Chebyshev);
    with kappa_hat free as in Liu, Belkin 2018 (arXiv 1802.10235).
    """
    kind = checked_method(method)
    assumed = one_kappa_hat(kappa_hat, kind)
    bound = _checked_smoothness(smoothness)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
        raise InputError(f"steps is {steps!r}; it must be a whole number, at least 0")
    if tolerance is not None and not number(tolerance, "tolerance") > 0:
        raise InputError(f"tolerance is {tolerance}; the relative residual to stop at must be positive")
    target = _right_side(b, matvec)
    product = product_of(matvec, target)
    first = _start(start, target)
    with torch.no_grad():
        return _Solver(product, target, bound, assumed, kind, tolerance, watch).run(first, int(steps))


class _Solver:
    def __init__(
        self,
        product: Product,
        b: Tensor,
        smoothness: float,
        kappa_hat: float,
        method: Method,
        tolerance: float | None,
        watch: Watch | None,
    ):
        self.product, self.b = product, b
        self.smoothness, self.kappa_hat = smoothness, kappa_hat
        self.method: Method = method
        self.tolerance, self.watch = tolerance, watch
        self.norms: list[Tensor] = []
        self.size = self.parts = _norms(b)

    def run(self, w: Tensor, steps: int) -> AcceleratedRun:
        """Return the run of so many steps from w."""
        coefficients = Coefficients(self.kappa_hat, self.method)
        self.parts = torch.maximum(
            self.size, self.smoothness * _norms(w)
        )  # what the first residual is made of
        before, residual, t, reached = w, None, 0, False
        for t in range(steps + 1):
            a, c = coefficients.next()
            ahead = self.method == "nesterov"
            point = w + a * (w - before) if ahead else w
            slope = self.b - self.product(point)
            # residuals are affine in w: at w_t from those at the point and at w_{t-1}
            now = slope if residual is None or not ahead else (slope + a * residual) / (1 + a)
            reached = self._looked_at(t, now, residual)
            residual = now
            if reached or t == steps:
                break
            move = slope * (c / self.smoothness)
            w, before = (point + move if ahead else w + a * (w - before) + move), w
        norms = torch.stack(self.norms).double().cpu().numpy()
        return AcceleratedRun(
            method=self.method,
            kappa_hat=self.kappa_hat,
            smoothness=self.smoothness,
            steps=t,
            reached=None if self.tolerance is None else reached,
            relative_residual=float((self.norms[-1] / self._scale()).max()),
            residuals=norms,
            solution=w.double().cpu().numpy(),
        )

    def _scale(self) -> Tensor:
        """Return |b| of each column, the first residual where b is zero, 1 where that is too."""
        scale = torch.where(self.size > 0, self.size, self.norms[0])
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    def _looked_at(self, t: int, residual: Tensor, before: Tensor | None) -> bool:
        """Record a residual, refuse one that has grown, and say whether the tolerance is reached."""
        norms = _norms(residual)
        self.norms.append(norms)
        rounding = math.sqrt(torch.finfo(norms.dtype).eps)
        size = torch.maximum(self.norms[0], rounding * self.parts).clamp_min(torch.finfo(norms.dtype).tiny)
        growth = norms / size
        allowed = 2 * (2 * t + 1 if self.method == "heavy_ball" else 1)
        if not bool((growth <= allowed).all()):
            raise NumericsError(self._why(t, growth, residual, before))
        if self.watch is not None:
            self.watch(t, residual)
        return self.tolerance is not None and bool((norms <= self.tolerance * self._scale()).all())

    def _why(self, t: int, growth: Tensor, residual: Tensor, before: Tensor | None) -> str:
        """Return what a residual that grew says about L, measured along its direction."""
        direction = residual if bool(torch.isfinite(residual).all()) else before
        if direction is None or t == 0:
            return (
                "the first residual b - H w_0 is not finite; check H, b and the start for non-finite numbers"
            )
        worst = int(torch.where(torch.isfinite(growth), growth, torch.inf).argmax())
        grown = f"the residual grew by {float(growth[worst]):.3g} in {t} steps of {self.method}"
        columns = direction.reshape(len(direction), -1)
        unit = torch.zeros_like(columns)
        unit[:, worst] = columns[:, worst] / columns[:, worst].abs().max()  # its square may overflow
        met = self._quotient(unit.reshape(direction.shape))
        if met < 0:
            return f"{grown}: H has an eigenvalue of at most {met:.6g}; it must be positive semi-definite"
        if not met <= self.smoothness * (1 + 1e-6):
            return (
                f"{grown}: smoothness is {self.smoothness:.6g}, but a Rayleigh quotient of the residual shows an "
                f"eigenvalue of at least {met:.6g}; L must be an upper bound of all: give at least {1.05 * met:.6g}"
            )
        return (
            f"{grown}, though its Rayleigh quotients ({met:.6g}) are within smoothness = {self.smoothness:.6g}: the "
            "operator is not symmetric, not linear or not the same at every call"
        )

    def _quotient(self, v: Tensor) -> float:
        """Return the Rayleigh quotient along v; v is turned towards the largest eigenvalue until it shows one > L."""
        met = math.nan
        for _ in range(_TURNS):
            v = v / torch.linalg.vector_norm(v)
            ahead = self.product(v)
            met = float((v * ahead).sum())
            if not 0 <= met <= self.smoothness * (1 + 1e-6) or not bool(ahead.any()):
                break
            v = ahead / ahead.abs().max()
        return met


def kernel_regression(
    kernel: Any,
    y: Any,
    kappa_hat: float,
    method: str = "nesterov",
    *,
    steps: int,
    smoothness: float | None = None,
    start: Any = None,
    tolerance: float | None = None,
    watch: Watch | None = None,
) -> AcceleratedRun:
    """Return the coefficients alpha_T of kernel regression, K alpha = y, by an accelerated method.

    f_t(x) = sum_i k(x, x_i) alpha_{t,i},   residual y - K alpha_t = e_t(K / L) (y - K alpha_0)

    Gradient descent in the function space on the half sum of squares, accelerated; stopped early it
    regularises, the cut-off being L / kappa_hat. The residual in the eigen-direction v_i is
    e_t(lambda_i / L) (v_i . y): take it in `watch`. Cost: T + 1 products with K, and some 20 to find L.

    Args:
        kernel: K, (n, n), or a full one (n, C, n, C): matrix, array or operator as for `solve_quadratic`.
        y: targets (n,) or (n, C); for a full kernel (n C,).
        kappa_hat: as for `solve_quadratic`.
        method: as for `solve_quadratic`.
        steps: T.
        smoothness: L; left out, 1.01 times the largest eigenvalue plus its residual, by Lanczos.
        start: alpha_0; zero where left out.
        tolerance: as for `solve_quadratic`.
        watch: as for `solve_quadratic`.

    Returns:
        An `AcceleratedRun`; `solution` holds alpha_T.

    Raises:
        InputError: as for `solve_quadratic`.
        NumericsError: as for `solve_quadratic`.
        ConvergenceError: no L was given and Lanczos did not find it.

    Example:
        >>> x = torch.linspace(0, 1, 20, dtype=torch.float64)
        >>> K = torch.exp(-torch.cdist(x[:, None], x[:, None]))
        >>> run = kernel_regression(K, torch.sin(6 * x), kappa_hat=1e3, steps=100)
        >>> bool(run.relative_residual < 1e-2)
        True

    Reference: as for `solve_quadratic`.
    """
    if isinstance(kernel, np.ndarray) or (torch.is_tensor(kernel) and kernel.layout is torch.strided):
        kernel = as_matrix(kernel)
    target = _right_side(y, kernel)
    if smoothness is None:
        smoothness = _measured_smoothness(kernel, target)
    return solve_quadratic(
        kernel,
        target,
        smoothness,
        kappa_hat,
        method,
        steps=steps,
        start=start,
        tolerance=tolerance,
        watch=watch,
    )


def _measured_smoothness(kernel: Any, y: Tensor) -> float:
    if isinstance(kernel, KernelOperator):
        top = top_eigenpairs(kernel)
    else:
        product, width = product_of(kernel, y), y[0].numel()

        def one(vector: Tensor) -> Tensor:
            block = torch.zeros(len(y), width, dtype=y.dtype, device=y.device)
            block[:, 0] = vector
            return product(block.reshape(y.shape)).reshape(len(y), width)[:, 0]

        top = lanczos_eigenpairs(one, len(y), device=y.device, dtype=y.dtype)
    return _MARGIN * float(top.values[0] + top.residuals[0])


def _checked_smoothness(smoothness: float) -> float:
    smoothness = one_number(smoothness, "smoothness")
    if not (math.isfinite(smoothness) and smoothness > 0):
        raise InputError(
            f"smoothness is {smoothness}; it must be positive and finite: an upper bound of the largest eigenvalue"
        )
    return smoothness


def _norms(block: Tensor) -> Tensor:
    return torch.linalg.vector_norm(block.reshape(len(block), -1), dim=0)


def _right_side(b: Any, matvec: Any) -> Tensor:
    """Return b as a floating-point vector or block: in the finer precision of b and a matrix, on its device."""
    target = _tensor(b, "b")
    if target.is_complex() or target.dim() not in (1, 2) or target.numel() == 0:
        raise InputError(
            f"b has shape {tuple(target.shape)} {target.dtype}; give a real (p,) vector or a (p, k) block"
        )
    if not target.is_floating_point():
        target = target.double()
    if not bool(torch.isfinite(target).all()):
        raise InputError(f"b has {int((~torch.isfinite(target)).sum())} non-finite entries")
    if torch.is_tensor(matvec) and matvec.is_floating_point():
        return target.to(matvec.device, torch.promote_types(target.dtype, matvec.dtype))
    return target.double() if isinstance(matvec, np.ndarray) else target


def _tensor(values: Any, what: str) -> Tensor:
    if torch.is_tensor(values):
        return values.detach()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is {values!r:.80}; give a tensor or an array of numbers") from error


def _start(start: Any, b: Tensor) -> Tensor:
    if start is None:
        return torch.zeros_like(b)
    first = _tensor(start, "start")
    if first.is_complex():
        raise InputError(f"start is {first.dtype}; give real numbers")
    first = first.to(b.device, b.dtype)
    if first.shape != b.shape:
        raise InputError(f"start has shape {tuple(first.shape)}, b {tuple(b.shape)}; they must be equal")
    if not bool(torch.isfinite(first).all()):
        raise InputError(f"start has {int((~torch.isfinite(first)).sum())} non-finite entries")
    return first.clone()
