"""Uniform conditioning: a mu that holds on a whole ball around the weights, certified or estimated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wideangle.curvature._hessian_norm import hessian_norm
from wideangle.curvature._landscape_rates import pl_gradient_step, solution_radius, uniform_pl
from wideangle.curvature._pl import Extremes, kernel_extremes
from wideangle.curvature._problem import Problem
from wideangle.curvature._smooth import HessianSup, chain, off
from wideangle.curvature._trace import kinks
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._model import OutputPick, take
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["UniformConditioning", "hessian_bound", "uniform_conditioning"]

_GRID = [1.15**k for k in range(60)]


@dataclass(frozen=True)
class UniformConditioning(Result):
    """The mu with lambda_min(K(w)) >= mu on the ball |w - w_0| <= `radius`, and what follows from it.

    `certified` is True only where there is a mu and it is proven: `mu` is None where nothing positive is left,
    and `reason` says why. With `method` "analytic", `hessian`, `lipschitz` and `smoothness` are upper bounds on
    the whole ball; with "sampled" they are the largest values at `points` weights, lower bounds of the
    suprema, and mu is an estimate. `lambda_0` is a lower bound of lambda_min(K(w_0)): rounding in the
    gradients (as measured, `factor_error`) and the solver is taken off; None where none is known. `mu_paper`
    is what the paper's inequality gives, `mu` the larger of it and of the singular-value form.
    `kernel_change` bounds |K(w) - K(w_0)|_2; `lambda_seen` is the smallest such bound at the sampled points.

    With y: `residual` = |F(w_0) - y|, `solution_radius` the radius the paper needs, `solution_inside` whether
    that is at most `radius` (then, if certified, a solution exists in the ball and gradient descent on
    L = 1/2 |F - y|^2 with `step` finds it, L <= `rate`^t L_0).
    """

    mu: float | None = None
    certified: bool = False
    reason: str = ""
    radius: float = 0.0
    lambda_0: float | None = None
    hessian: float | None = None
    lipschitz: float | None = None
    smoothness: float | None = None
    mu_paper: float | None = None
    kernel_change: float | None = None
    lambda_seen: float | None = None
    points: int = 0
    method: str = "analytic"
    equations: int = 0
    residual: float | None = None
    solution_radius: float | None = None
    solution_inside: bool | None = None
    step: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class _Ball:
    """What is known on a ball: sup of the Hessian norm, of |J|, and the Lipschitz constant of J."""

    radius: float
    hessian: float
    lipschitz: float
    smoothness: float


def hessian_bound(model: nn.Module, x: Any, radius: float = 0.0) -> Tensor:
    """Return upper bounds of the Hessian norms of a smooth fully connected net, on a whole ball of weights.

        bound[i, c] >= sup over |w - w_0| <= radius of |grad^2_w f_c(x_i; w)|_2

    One hidden layer: the Hessian is block diagonal over the units, and the bound is

        max_j (A_j + sqrt(A_j^2 + 4 B_j^2)) / 2,   A_j = k_2 (|v_cj| + R) a''_j s^2,   B_j = k_2 a'_j s

    with a', a'' the largest derivatives of the activation within reach, s^2 = k_1^2 |x|^2 (+ 1 with biases)
    and k the layers' input factors; at radius 0 it is the exact norm. More layers: the second derivative
    along a direction is a sum over layers of backward signals times squared forward signals; each is
    followed from its value at w_0 over the ball, backward ones by their largest entry. Exact up to rounding
    (a factor 1 + 1e-9 is added). Softplus is taken as log(1 + e^z): torch's is z above `threshold`, 20 or more
    here, which is off by 2.1e-9 at most in value and slope.

    Cost: one forward pass, one backward pass an output, the spectral norm of every weight matrix.

    Args:
        model: a `nets.MLP` with linear output or a Sequential of Flatten, Linear and smooth activations
            (tanh, erf, sigmoid, softplus, SiLU, GELU, identity).
        x: n inputs, a tensor or an iterable of tensors.
        radius: R, of the ball in the space of all weights and biases; 0 is the point itself.

    Returns:
        The bounds, (n, C), float64.

    Raises:
        InputError: a model of another form or whose outputs are not those of its layers, an activation with
            kinks, a negative radius or one at which the bounds overflow.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> hessian_bound(net, torch.ones(4, 2), 0.5).shape
        torch.Size([4, 1])

    Reference: Liu, Zhu & Belkin 2020 (arXiv 2010.01092), section 3, where the Hessian is bounded by the
    largest entry of the backward signal; the constants are worked out here.
    """
    if not (math.isfinite(radius) and radius >= 0):
        raise InputError(f"radius={radius} must be zero or more and finite")
    problem = Problem(model, x, None)
    _refuse_kinks(problem)
    found = _analytic(problem)
    if isinstance(found, str):
        raise InputError(f"{found}; hessian_norm measures the Hessian at points of any smooth model")
    values = found.values(radius)
    _refuse_overflow(radius, float(values.max()))
    return values


def _refuse_overflow(radius: float, *numbers: float) -> None:
    """Refuse a radius at which bounds are not finite."""
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(
            f"radius={radius:g} is too large: what is bounded on that ball overflows; give a smaller radius"
        )


def _refuse_kinks(problem: Problem) -> None:
    """Refuse activations whose second derivative does not exist everywhere."""
    item = problem.items[0]
    used = kinks(problem.model, take(item, slice(0, 1)))
    if used:
        raise InputError(
            f"the model uses {', '.join(used)}: its Hessian is undefined at the kinks and misses what "
            "they add, so no Hessian bounds its kernel; measure wideangle.curvature.linearity_gap instead, or "
            "use a smooth activation"
        )


def _analytic(problem: Problem) -> HessianSup | str:
    layers = chain(problem.model)
    if isinstance(layers, str):
        return layers
    if problem.output is not None or not all(isinstance(item, Tensor) for item in problem.items):
        return "the bound needs a tensor in and a tensor out"
    x = torch.cat([item.flatten(1) for item in problem.items if isinstance(item, Tensor)]).double()
    flattens = not isinstance(problem.model, nn.Sequential) or isinstance(problem.model[0], nn.Flatten)
    if x.shape[1] != layers[0].weight.shape[1] or (problem.items[0].ndim > 2 and not flattens):  # type: ignore[union-attr]
        return "the first layer is applied to parts of a sample"
    if off(layers, x, problem.values()):
        return "the model's outputs are not those of its layers in order"
    return HessianSup(layers, x)


def uniform_conditioning(
    model: nn.Module,
    x: Any,
    y: Any = None,
    radius: float | None = 1.0,
    *,
    method: Literal["auto", "analytic", "sampled"] = "auto",
    points: int = 5,
    seed: int = 0,
    params: Any = None,
    output: OutputPick = None,
    dtype: torch.dtype | None = torch.float64,
    dense_limit: int = 4096,
) -> UniformConditioning:
    """Return a mu with lambda_min(K(w)) >= mu on a whole ball, certified where the Hessian can be bounded.

        mu >= lambda_0 - 2 L_F sqrt(N) H R                                 the paper's inequality
        mu >= (sqrt(lambda_0) - beta_F R)^2,  where the bracket is > 0      by singular values of J
        H = sup |grad^2 f_ic|,  beta_F = (sum_ic sup |grad^2 f_ic|^2)^(1/2),  L_F = |J(w_0)|_2 + beta_F R

    N = n C equations; the larger mu is taken. "analytic" has H from `hessian_bound`: a proof, up to
    rounding. "sampled" has the largest values at w_0 and at `points` - 1 weights on the sphere (for H along
    each output's gradient and top eigenvector first, see `hessian_norm`): an estimate, never a proof.
    "auto" takes the proof where the model's form allows it and says in `reason` where it does not. The
    tangent kernel at one point says nothing about a ball by itself. lambda_0 and L_F have the rounding of J
    taken off and added, (sigma -+ e)^2 with e = 4 eps |J|_F of `dtype` and what the solver leaves; the proof is
    of the model and data as cast to `dtype`, and not given where a softplus may pass its threshold.

    Cost: `kernel_extremes` at w_0 and `hessian_bound`; sampled, at each point the Hessian norm of every
    sample and output and the kernel's extreme eigenvalues.

    Args:
        model: a smooth model; analytic for what `hessian_bound` takes.
        x: n inputs.
        y: n targets, for the radius, step and rate of descent; may be left out.
        radius: R > 0, a distance in the space of the parameters that move. None (analytic, with y) takes
            the smallest ball of a grid in which a solution is certified to exist; where there is none, the
            smallest ball that could hold one, and `reason` says so.
        method: "auto", "analytic" or "sampled".
        points: weights looked at by "sampled", 2 or more.
        seed: of the sampled weights.
        params: parameters that move; all that require a gradient where left out.
        output: which part of a tuple, dict or ModelOutput is the output.
        dtype: compute in this type; None keeps the model's.
        dense_limit: as for `kernel_extremes`.

    Returns:
        A `UniformConditioning`.

    Raises:
        InputError: activations with kinks (their Hessian is undefined), a radius that is not positive,
            one at which the bounds overflow, "analytic" for a model of another form, a radius of None
            without y.
        NumericsError: the model is not finite at the sampled weights.

    Example:
        >>> from wideangle import nets
        >>> net = nets.MLP(4, 1, width=512, depth=1, activation="tanh")
        >>> found = uniform_conditioning(net, torch.eye(4), radius=0.01)
        >>> found.certified, 0 < found.mu < found.lambda_0
        (True, True)

    Reference: Liu, Zhu & Belkin 2022 (arXiv 2003.00307), Hessian control of the tangent kernel and local
    PL*; differs in that every constant is explicit, and in the second inequality, which is tighter.
    """
    if radius is not None and not (math.isfinite(radius) and radius > 0):
        raise InputError(f"radius={radius} must be positive and finite; a single point is pl_ratio's")
    if radius is None and (y is None or method == "sampled"):
        raise InputError("radius=None searches for the ball of a solution: it needs y and an analytic bound")
    if method not in ("auto", "analytic", "sampled"):
        raise InputError(f"unknown method {method!r}; choose auto, analytic or sampled")
    if points < 2:
        raise InputError(f"points={points} must be at least 2: the weights and one beside them")
    problem = Problem(model, x, y, params=params, output=output, dtype=dtype)
    _refuse_kinks(problem)
    bound = _analytic(problem) if method != "sampled" else "sampled values were asked for"
    if isinstance(bound, str) and (method == "analytic" or radius is None):
        raise InputError(f"{bound}: no certificate; method='sampled' with a radius gives an estimate")
    centre = kernel_extremes(problem.cache(), problem.parameters, dense_limit=dense_limit)
    residual = None if y is None else float(problem.residual().double().norm())
    provenance = Provenance.here(seed=seed, device=str(problem.device))
    if isinstance(bound, HessianSup):
        reach = [radius] if radius is not None else _radii(centre, residual or 0.0)
        tried = []
        for distance in reach:
            ball, why = _proven(bound, centre, distance), bound.jumps(distance)
            tried.append(_conclude(ball, centre, residual, "analytic", why, provenance))
            if radius is not None or (tried[-1].solution_inside and tried[-1].certified):
                return tried[-1]
            if tried[-1].mu is None:  # and none on any larger ball
                break
        why = f"no ball of radius {reach[0]:.3g} or more is certified to hold a solution"
        return replace(tried[0], reason=f"{why}; {tried[0].reason}" if tried[0].reason else why)
    assert radius is not None
    try:
        ball, seen = _sampled(problem, centre, radius, points, seed, dense_limit)
    except NumericsError as error:
        raise NumericsError(f"at weights at distance radius={radius:g}: {error}") from error
    why = f"{bound}: largest values at {points} sampled weights, so mu is an estimate and no bound"
    return _conclude(ball, centre, residual, "sampled", why, provenance, seen, points)


def _radii(centre: Extremes, residual: float) -> list[float]:
    """Radii to try: from the least the paper's bound could ask for, upwards."""
    least = 2 * math.sqrt(centre.largest) * residual / centre.smallest if centre.smallest else 1.0
    return [max(least, 1e-9) * factor for factor in _GRID]


def _proven(bound: HessianSup, centre: Extremes, radius: float) -> _Ball:
    values = bound.values(radius)
    lipschitz = math.sqrt(centre.largest_high) + float(values.norm()) * radius
    return _ball(radius, values, lipschitz, centre.equations)


def _ball(radius: float, values: Tensor, lipschitz: float, equations: int) -> _Ball:
    largest, smoothness = float(values.max()), float(values.norm())
    _refuse_overflow(radius, lipschitz * smoothness * radius, lipschitz * largest * radius * equations)
    return _Ball(radius, largest, lipschitz, smoothness)


def _sampled(
    problem: Problem, centre: Extremes, radius: float, points: int, seed: int, dense_limit: int
) -> tuple[_Ball, float | None]:
    """Return the largest values at w_0 and on the sphere, and the smallest lambda_min seen there."""
    start = problem.now()
    steepest, least = math.sqrt(centre.largest), _lower(centre)
    for k in range(1, points):
        problem.place({name: start[name] + part for name, part in _draw(start, radius, seed, k).items()})
        ends = kernel_extremes(problem.cache(), problem.parameters, dense_limit=dense_limit)
        steepest = max(steepest, math.sqrt(ends.largest))
        lower = _lower(ends)
        least = None if least is None or lower is None else min(least, lower)
    problem.place(start)
    options = {"output": problem.output, "params": problem.names, "seed": seed}
    tables = [
        torch.as_tensor(hessian_norm(problem.model, item, radius, points=points - 1, **options).values)
        for item in problem.items
    ]
    values = torch.cat(tables).double()
    return _ball(radius, values, steepest, centre.equations), least


def _lower(ends: Extremes) -> float | None:
    """Return the lower bound of the smallest eigenvalue, None where only an upper one is known."""
    return None if ends.smallest is None else ends.smallest_low


def _draw(start: dict[str, Tensor], radius: float, seed: int, k: int) -> dict[str, Tensor]:
    draws = generator(seed, "uniform conditioning", k)
    noise = {n: torch.randn(w.shape, generator=draws, dtype=torch.float64).to(w) for n, w in start.items()}
    size = math.sqrt(sum(float(part.double().square().sum()) for part in noise.values()))
    return {name: part * (radius / size) for name, part in noise.items()}


def _conclude(
    ball: _Ball,
    centre: Extremes,
    residual: float | None,
    method: Literal["analytic", "sampled"],
    why: str,
    provenance: Provenance,
    seen: float | None = None,
    points: int = 0,
) -> UniformConditioning:
    known = {
        "radius": ball.radius,
        "lambda_0": _lower(centre),
        "hessian": ball.hessian,
        "lipschitz": ball.lipschitz,
        "smoothness": ball.smoothness,
        "kernel_change": (math.sqrt(centre.largest_high) + ball.lipschitz) * ball.smoothness * ball.radius,
        "lambda_seen": seen,
        "points": points,
        "method": method,
        "equations": centre.equations,
        "residual": residual,
        "provenance": provenance,
    }
    if not centre.smallest:
        return UniformConditioning(mu=None, reason=f"no mu: {centre.verdict}", **known)
    if not centre.smallest_low:
        why = f"no mu: the smallest eigenvalue, {centre.smallest:.3g}, is not above what rounding leaves"
        return UniformConditioning(mu=None, reason=f"{why}; compute in float64", **known)
    start = math.sqrt(centre.smallest_low)
    root = start - ball.smoothness * ball.radius
    paper = uniform_pl(
        centre.smallest_low,
        lipschitz=ball.lipschitz,
        hessian=ball.hessian,
        equations=centre.equations,
        radius=ball.radius,
    )
    mu = max(paper, root**2 if root > 0 else 0.0)
    if not mu > 0:
        fits = start / ball.smoothness
        reason = (
            f"no mu: on a ball of radius {ball.radius:g} the Jacobian may change by "
            f"{ball.smoothness * ball.radius:.3g}, above sqrt(lambda_0) = {start:.3g}; a "
            f"radius below about {fits:.2g}, or a wider net, is needed"
        )
        return UniformConditioning(mu=None, mu_paper=paper, reason=reason, **known)
    known["certified"] = method == "analytic" and not why
    if residual is None:
        return UniformConditioning(mu=mu, mu_paper=paper, reason=why, **known)
    needed = solution_radius(residual, lipschitz=ball.lipschitz, mu=mu)
    step = pl_gradient_step(residual, lipschitz=ball.lipschitz, smoothness=ball.smoothness)
    return UniformConditioning(
        mu=mu,
        mu_paper=paper,
        reason=why,
        solution_radius=needed,
        solution_inside=needed <= ball.radius,
        step=step,
        rate=1 - step * mu,
        **known,
    )
