"""The PL* condition: its ratio at a point and along a path, and the extreme eigenvalues of the kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.curvature._problem import Problem, State, floor, squared
from wideangle.errors import InputError
from wideangle.kernel._factors import Factors
from wideangle.kernel._model import OutputPick
from wideangle.kernel.cost import memory_limit
from wideangle.kernel.interval import condition_interval
from wideangle.kernel.spectrum import factor_error
from wideangle.result import Provenance, Result

__all__ = ["Extremes", "PLPath", "PLRatio", "kernel_extremes", "pl_along", "pl_ratio"]

_WORK = 1e11  # multiply-adds of the singular values: seconds
_ROWS = 1024  # equations up to which the Jacobian's singular values are taken


@dataclass(frozen=True)
class Extremes(Result):
    """The extreme eigenvalues of the full tangent kernel K (nC x nC), and what is known of the smallest.

    `smallest` is None where only the upper bound `smallest_high` is known; 0 where K is singular to the
    resolution, then `rank` is below `equations` where it was counted. `verdict` says why. `smallest_low` and
    `smallest_high` hold the smallest eigenvalue with what rounding may have done to it, and `largest_high` is
    above the largest: with e = `factor_error` of J's dtype plus the solver's, (sigma -+ e)^2.
    """

    largest: float = 0.0
    smallest: float | None = None
    smallest_high: float = 0.0
    rank: int | None = None
    equations: int = 0
    parameters: int = 0
    method: str = ""
    verdict: str = ""
    smallest_low: float = 0.0
    largest_high: float = math.inf


@dataclass(frozen=True)
class PLRatio(Result):
    """The PL* ratio at one point: `ratio` = |grad L|^2 / (2 L), an upper bound of mu on any set around it.

    `identity_error` is the relative distance of |grad L|^2 and c^2 r^T K r, None where K was not formed.
    `required` is False where the loss is below `epsilon`: relaxed PL* asks nothing there. `lambda_min` and
    `lambda_max` are of K (see `Extremes`): c lambda_min <= ratio <= c lambda_max, c = `factor` of the loss.
    """

    ratio: float = 0.0
    loss: float = 0.0
    gradient_norm: float = 0.0
    lambda_min: float | None = None
    lambda_max: float | None = None
    identity_error: float | None = None
    factor: float = 1.0
    convention: str = "half_sum"
    epsilon: float = 0.0
    required: bool = True
    rank_deficient: bool | None = None
    verdict: str = ""
    extremes: Extremes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PLPath(Result):
    """The PL* ratio along a path of weights; `constant` = its minimum where the loss is at least `epsilon`.

    `constant` is the largest mu for which PL* (relaxed by `epsilon`) holds at the states looked at: an upper
    bound of mu on any ball that holds them, never a lower one. An entry of `ratios` is None where the loss
    is 0 to rounding: PL* holds there whatever mu. `distances` are from the first state, over the parameters
    that move (`params`) and no others, as are the gradients and K. `lambda_min` has an entry a state where it
    was asked for.
    """

    constant: float | None = None
    losses: list[float] = field(default_factory=list)
    ratios: list[float | None] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    lambda_min: list[float | None] = field(default_factory=list)
    epsilon: float = 0.0
    convention: str = "half_sum"


def kernel_extremes(cache: Factors, parameters: int, *, dense_limit: int = 4096) -> Extremes:
    """Return the extreme eigenvalues of a kernel from its factors, and whether it is singular.

        K = J J^T, J (nC x p);   lambda_min = sigma_min(J)^2,   0 where p < nC

    Up to 1,024 equations whose Jacobian is small enough, by its singular values in float64: an eigenvalue
    counts as 0 where sigma <= max(eps max(nC, p) sigma_max, 4 eps_J |J|_F), what the solver and the precision
    of J leave, far below what K's own rounding does. Up to `dense_limit` by the eigenvalues of K: `smallest` is
    the lower end of `condition_interval`. `smallest_low` is a lower bound either way. Above it there is only an
    upper bound, and `smallest` is None.

    Cost: (nC)^2 p multiply-adds and nC p numbers; or 4/3 (nC)^3 and (nC)^2 numbers; or 200 products with K.

    Args:
        cache: the factors with all outputs.
        parameters: p, the numbers the factors differentiate by.
        dense_limit: the largest nC for which K is formed.

    Raises:
        ConvergenceError: above the limit, the largest eigenvalue was not found.
        NumericsError: the kernel is not finite.

    Example:
        >>> from wideangle.kernel import factors
        >>> net, x = nn.Linear(2, 1, bias=False).double(), torch.ones(2, 2, dtype=torch.float64)
        >>> kernel_extremes(factors(net, x), 2).verdict
        'rank deficient: rank 1 of 2 equations (equal or dependent samples)'

    Reference: Liu, Zhu & Belkin 2022 (arXiv 2003.00307), section 3: mu is the smallest eigenvalue of K.
    """
    size = cache.samples * cache.outputs
    room = 3 * size * parameters * 8
    quick = size**2 * parameters <= _WORK
    if size <= _ROWS and quick and room <= memory_limit(None, cache.device):
        return _by_jacobian(cache, parameters)
    found = condition_interval(cache, dense_limit=dense_limit)
    few = parameters < size
    singular = few or (found.method == "dense" and not found.resolved)
    verdict = _few(parameters, size) if few else f"smallest eigenvalue {found.verdict}"
    if found.method != "dense" and not few:
        verdict += f": {size} equations are above dense_limit={dense_limit}, so there is no lower bound"
    error = factor_error(size * found.largest, cache.dtype)
    high = max(found.largest + found.resolution, (math.sqrt(found.largest) + error) ** 2)
    return Extremes(
        largest=found.largest,
        smallest_low=0.0 if few else found.smallest_low,
        largest_high=high,
        smallest=0.0 if singular else found.smallest_low if found.resolved else None,
        smallest_high=0.0 if few else found.smallest_high,
        equations=size,
        parameters=parameters,
        method=found.method,
        verdict=verdict,
    )


def _few(parameters: int, equations: int) -> str:
    return f"rank deficient: {parameters} parameters for {equations} equations"


def _by_jacobian(cache: Factors, parameters: int) -> Extremes:
    J = rows_of(cache).double()
    # of a wide J the triangular factor first: the same singular values, several times faster
    values = torch.linalg.svdvals(torch.linalg.qr(J.T, mode="r").R if J.shape[1] > 2 * len(J) else J)
    top, size = float(values[0]), len(J)
    solver = torch.finfo(torch.float64).eps * max(size, parameters) * top
    gradients = factor_error(float(J.square().sum()), cache.dtype)
    rank, error = int((values > max(solver, gradients)).sum()), solver + gradients
    smallest = float(values[-1]) ** 2 if rank == size else 0.0
    verdict = "positive definite"
    if parameters < size:
        verdict = _few(parameters, size)
    elif rank < size:
        verdict = f"rank deficient: rank {rank} of {size} equations (equal or dependent samples)"
    return Extremes(
        largest=top**2,
        smallest=smallest,
        smallest_low=max(float(values[-1]) - error, 0.0) ** 2 if rank == size else 0.0,
        smallest_high=(float(values[-1]) + error) ** 2 if parameters >= size else 0.0,
        largest_high=(top + error) ** 2,
        rank=rank,
        equations=size,
        parameters=parameters,
        method="singular values",
        verdict=verdict,
    )


def rows_of(cache: Factors) -> Tensor:
    """Return the Jacobian (nC, p) from the factors; parameters no output reads are left out."""
    size = cache.samples * cache.outputs
    unit = torch.eye(size, dtype=cache.dtype, device=cache.device)
    pulled = cache.pull(unit.view(size, cache.samples, cache.outputs))
    return torch.cat([piece.reshape(size, -1) for piece in pulled.values()], dim=1)


def pl_ratio(
    model: nn.Module,
    x: Any,
    y: Any,
    *,
    epsilon: float = 0.0,
    spectrum: bool = True,
    loss: str = "half_sum",
    params: Any = None,
    output: OutputPick = None,
    dtype: torch.dtype | None = torch.float64,
    dense_limit: int = 4096,
) -> PLRatio:
    """Return the ratio of the PL* condition at the model's weights, and the kernel's extreme eigenvalues.

        ratio = |grad L|^2 / (2 L) = c r^T K r / |r|^2,   L = (c/2) |r|^2,   r = F(w) - y (nC numbers)

    c = 1 for "half_sum", the paper's loss. L obeys mu-PL* on a set where ratio >= mu at all its points, so
    one ratio bounds mu from above only; c lambda_min(K) is the mu that holds whatever y is. Relaxed PL*
    (PL*_epsilon) asks for this only where L >= epsilon.

    Cost: a forward and a backward pass on all data in `dtype`; with `spectrum` one factor pass and
    `kernel_extremes`. The model is copied.

    Args:
        model: any module whose outputs do not depend on the other samples.
        x: n inputs: a tensor, a dict of tensors, or an iterable of batches.
        y: n targets, numbers (n, C) or class labels taken as one-hot rows.
        epsilon: the loss below which relaxed PL* asks nothing.
        spectrum: measure lambda_min and lambda_max and check the identity.
        loss: the convention of L, one of `wideangle.losses.SQUARED_LOSSES`.
        params: parameters that move; all that require a gradient where left out.
        output: which part of a tuple, dict or ModelOutput is the output.
        dtype: compute in this type; None keeps the model's. float32 does not resolve a lambda_min below
            about 1e-6 lambda_max.
        dense_limit: as for `kernel_extremes`.

    Returns:
        A `PLRatio`.

    Raises:
        InputError: not a squared loss, dropout or BatchNorm in train mode, targets that do not fit, a
            negative epsilon.
        NumericsError: the loss is 0 to rounding (the ratio is 0/0), or the outputs are not finite.

    Example:
        >>> net = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> found = pl_ratio(net, x, torch.ones(2, 1))
        >>> round(found.lambda_min, 6), round(found.lambda_max, 6), 1 <= found.ratio <= 9
        (1.0, 9.0, True)

    Reference: Liu, Zhu & Belkin 2022 (arXiv 2003.00307), definition of PL* and its link to the tangent
    kernel; differs in that other squared losses are allowed, which multiply mu by c.
    """
    if not epsilon >= 0:
        raise InputError(f"epsilon={epsilon} must be zero or more")
    problem = Problem(model, x, y, params=params, output=output, dtype=dtype, loss=loss)
    value, ratio, square, residual = _measured(problem)
    problem.positive(value, "the PL* ratio")
    assert ratio is not None
    ends, error = None, None
    if spectrum:
        cache = problem.cache()
        ends = kernel_extremes(cache, problem.parameters, dense_limit=dense_limit)
        quadratic = problem.factor**2 * float((residual * (cache @ residual)).sum())
        error = abs(square - quadratic) / max(square, quadratic, math.ulp(0.0))
    return PLRatio(
        ratio=ratio,
        loss=value,
        gradient_norm=math.sqrt(square),
        lambda_min=None if ends is None else ends.smallest,
        lambda_max=None if ends is None else ends.largest,
        identity_error=error,
        factor=problem.factor,
        convention=loss,
        epsilon=epsilon,
        required=value >= epsilon,
        rank_deficient=None if ends is None or ends.smallest is None else ends.smallest == 0.0,
        verdict="the spectrum was not asked for" if ends is None else ends.verdict,
        extremes=ends,
        provenance=Provenance.here(device=str(problem.device)),
    )


def _measured(problem: Problem) -> tuple[float, float | None, float, Tensor]:
    """Return the loss, the ratio (None at a solution), |grad L|^2 and the residual."""
    residual, gradient = problem.slope()
    value, square = problem.loss_of(residual), squared(gradient)
    return value, square / (2 * value) if value >= floor(problem.dtype) else None, square, residual


def pl_along(
    model: nn.Module,
    x: Any,
    y: Any,
    states: Iterable[State],
    *,
    epsilon: float = 0.0,
    spectrum: bool = False,
    loss: str = "half_sum",
    params: Any = None,
    output: OutputPick = None,
    dtype: torch.dtype | None = torch.float64,
    dense_limit: int = 4096,
) -> PLPath:
    """Return the PL* ratio at every state of a path, and the largest mu that holds at all of them.

        constant = min over states with L >= epsilon of |grad L|^2 / (2 L)

    Cost: that of `pl_ratio` for each state; one copy of the model.

    Args:
        model: the module the states belong to.
        x: n inputs.
        y: n targets.
        states: state dicts or modules, in order. Every parameter and buffer they have is loaded, so that
            frozen layers and running statistics are as in the state; what one lacks is as in `model`.
        epsilon: the loss below which relaxed PL* asks nothing.
        spectrum: measure lambda_min of the kernel at every state.
        loss: the convention of L, as for `pl_ratio`.
        params: parameters that move: gradients, kernel and distances are of these; all that require a
            gradient in `model` where left out.
        output: which part of a tuple, dict or ModelOutput is the output.
        dtype: compute in this type; None keeps the model's.
        dense_limit: as for `kernel_extremes`.

    Returns:
        A `PLPath`; `constant` is None where every loss is below epsilon or 0 to rounding.

    Raises:
        InputError: as for `pl_ratio`; no state, or one of another model.

    Example:
        >>> net, x = nn.Linear(2, 1, bias=False).double(), torch.eye(2, dtype=torch.float64)
        >>> states = [{"weight": k * torch.ones(1, 2)} for k in range(3)]
        >>> path = pl_along(net, x, torch.ones(2, 1), states)
        >>> path.losses, path.ratios, path.constant
        ([1.0, 0.0, 1.0], [1.0, None, 1.0], 1.0)

    Reference: Liu, Zhu & Belkin 2022 (arXiv 2003.00307): PL* on a set; a path is a part of it only.
    """
    if not epsilon >= 0:
        raise InputError(f"epsilon={epsilon} must be zero or more")
    problem = Problem(model, x, y, params=params, output=output, dtype=dtype, loss=loss)
    start: dict[str, Tensor] | None = None
    losses, ratios, distances, smallest = [], [], [], []
    for state in states:
        problem.load(state)
        here = problem.now()
        start = here if start is None else start
        value, ratio, _, _ = _measured(problem)
        losses.append(value)
        ratios.append(ratio)
        distances.append(math.sqrt(squared({name: here[name] - start[name] for name in start})))
        if spectrum:
            ends = kernel_extremes(problem.cache(), problem.parameters, dense_limit=dense_limit)
            smallest.append(ends.smallest)
    if not losses:
        raise InputError("states is empty; give at least one state dict")
    counted = [r for v, r in zip(losses, ratios, strict=True) if r is not None and v >= epsilon]
    return PLPath(
        constant=min(counted, default=None),
        losses=losses,
        ratios=ratios,
        distances=distances,
        lambda_min=smallest,
        epsilon=epsilon,
        convention=loss,
        provenance=Provenance.here(device=str(problem.device)),
    )
