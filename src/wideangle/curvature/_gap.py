"""How far a model is from its linear expansion at a distance: the linearity gap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wideangle.curvature._chunks import as_batch
from wideangle.curvature._lanczos import top_pair
from wideangle.curvature._operator import refuse_random
from wideangle.curvature.hessian import OutputHessian
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._model import (
    Batch,
    OutputPick,
    batch_size,
    call,
    explained,
    logits,
    plain_attention,
    select_parameters,
)
from wideangle.kernel._push import Named, push_forward
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["Direction", "LinearityGap", "linearity_gap"]

Direction = Literal["gradient", "random", "top_hessian"]


@dataclass(frozen=True)
class LinearityGap(Result):
    """The distance between a model and its linear expansion, `radius` away from its weights.

    `gap` and `first_order` are root mean squares over samples and outputs of the remainder and of the
    first-order change R J u; `relative` = gap / first_order: well below 1, the model is nearly linear at
    this distance. `displacement` is R / |w0|; `rounding` what rounding alone makes of `relative`.
    """

    gap: float = 0.0
    relative: float = 0.0
    radius: float = 0.0
    first_order: float = 0.0
    change: float = 0.0
    displacement: float = 0.0
    rounding: float = 0.0
    direction: str = "gradient"
    samples: int = 0
    outputs: int = 0


class _Probe:
    """The model as a function of the chosen weights, (n, C) out; everything it touches is a copy."""

    def __init__(
        self, model: nn.Module, x: Batch, params: Any, output: OutputPick, dtype: torch.dtype | None
    ):
        chosen = select_parameters(model, params)
        self.dtype = dtype
        x = as_batch(x, model.get_parameter(chosen[0]).dtype)
        self.model, self.output, self.samples = model, output, batch_size(x)
        if self.samples == 0:
            raise InputError("x holds no samples")
        every = {name: self._cast(p.detach()) for name, p in model.named_parameters()}
        self.weights: Named = {name: every.pop(name).clone() for name in chosen}
        self.fixed = every
        device = next(iter(self.weights.values())).device
        self.x = (
            {k: self._cast(v.to(device)) for k, v in x.items()}
            if isinstance(x, dict)
            else self._cast(x.to(device))
        )

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if self.dtype is not None and tensor.is_floating_point() else tensor

    def __call__(self, weights: Named) -> Tensor:
        buffers = {name: self._cast(b).clone() for name, b in self.model.named_buffers()}
        with plain_attention(), explained(self.x):
            raw = call(self.model, {**buffers, **self.fixed, **weights}, self.x)
        return logits(raw, self.output, self.samples)

    def gradient(self, pull: Tensor) -> Named:
        """Return the gradient of sum(pull * f)."""
        with torch.enable_grad():
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in self.weights.items()}
            total = (self(leaves) * pull).sum()
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return {
            n: torch.zeros_like(w) if g is None else g
            for (n, w), g in zip(leaves.items(), found, strict=True)
        }


def linearity_gap(
    model: nn.Module,
    x: Batch,
    radius: float | None = None,
    direction: Direction | Tensor = "gradient",
    *,
    outputs: int | None = None,
    params: Any = None,
    output: OutputPick = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> LinearityGap:
    """Return how far the model is from its linear expansion at distance `radius` along a direction.

        gap = rms over (i, c) of f_c(w0 + R u; x_i) - f_c(w0; x_i) - R grad f_c(w0; x_i) . u
        relative = gap / rms of R grad f_c(w0; x_i) . u,     |u| = 1,  R = radius

    For one sample and one output this is |f(w0 + R u) - f(w0) - R grad f . u|. The gradient direction is
    that of s = 1/n sum_i sum_c e_c f_c(x_i), with e a random unit vector over the outputs (for one
    output, e = 1). A random direction says nothing: the gap along it vanishes with width for every net.

    Cost: one forward, one backward and one forward-mode pass, and a forward pass at w0 + R u;
    "top_hessian" adds 10 to 40 products with the Hessian of s.

    Args:
        model: any module without active dropout, taken in the mode it is in.
        x: n inputs, a tensor or a dict of tensors.
        radius: R, a distance between weight vectors (in the NTK parameterisation training moves them by
            about 1 to 3). None takes the distance at which the linear expansion changes the outputs by
            1 in the root mean square: a measure that does not depend on the parameterisation.
        direction: "gradient", "random", "top_hessian" (eigenvector of the Hessian of s with the largest
            |eigenvalue|), or a flat tensor of p numbers.
        outputs: measure one output only, by number; None takes all.
        params: parameters to move: None for all that require a gradient, or names, or a predicate.
        output: which part of a tuple, dict or ModelOutput is the output.
        seed: of e and of the random direction.
        dtype: compute in this type; None keeps the model's.

    Returns:
        A `LinearityGap`.

    Raises:
        InputError: a radius that is not positive, an unknown direction, dropout in train mode.
        NumericsError: the direction changes no output to first order, or the outputs are not finite.

    Example:
        >>> linear = torch.nn.Linear(3, 1).double()
        >>> linearity_gap(linear, torch.ones(2, 3, dtype=torch.float64), radius=3.0).relative < 1e-12
        True

    Reference: Liu, Zhu and Belkin 2020 (arXiv 2010.01092), Section 3: the remainder is at most
    R^2/2 times the largest Hessian norm in the ball. Differs from the paper in that several samples and
    outputs are taken together in the root mean square.
    """
    refuse_random(model)
    if radius is not None and not (math.isfinite(radius) and radius > 0):
        raise InputError(f"radius must be positive and finite, got {radius}")
    probe = _Probe(model, x, params, output, dtype)
    with torch.no_grad():
        before = probe(probe.weights)
    unit = _direction(probe, before, direction, outputs, seed)
    _, slope, _ = push_forward(probe, probe.weights, unit)
    reach = _rms(slope.detach(), outputs)
    if not (math.isfinite(reach) and reach > 0):
        raise NumericsError(
            f"along the {_name(direction)} direction the outputs change by {reach:g} to first order; the "
            "model may be dead or its weights not finite: try another x, or direction='random'"
        )
    distance = 1.0 / reach if radius is None else float(radius)
    with torch.no_grad():
        after = probe({name: w + distance * unit[name] for name, w in probe.weights.items()})
    gap = _rms(after - before - distance * slope.detach(), outputs)
    if not math.isfinite(gap):
        raise NumericsError(f"the outputs are not finite at distance {distance:g}; try a smaller radius")
    size = math.sqrt(sum(float(w.double().square().sum()) for w in probe.weights.values()))
    return LinearityGap(
        gap=gap,
        relative=gap / (distance * reach),
        radius=distance,
        first_order=distance * reach,
        change=_rms(after - before, outputs),
        displacement=distance / size if size else math.inf,
        rounding=2 * torch.finfo(before.dtype).eps * _rms(before, outputs) / (distance * reach),
        direction=_name(direction),
        samples=probe.samples,
        outputs=before.shape[1] if outputs is None else 1,
        provenance=Provenance.here(seed=seed, device=str(before.device)),
    )


def _name(direction: str | Tensor) -> str:
    return direction if isinstance(direction, str) else "given"


def _rms(table: Tensor, outputs: int | None) -> float:
    chosen = table if outputs is None else table[:, outputs]
    return float(chosen.double().square().mean().sqrt())


def _pull(before: Tensor, outputs: int | None, seed: int) -> Tensor:
    samples, width = before.shape
    if outputs is not None and not 0 <= outputs < width:
        raise InputError(f"outputs={outputs} but the model has {width} outputs, numbered from 0")
    if outputs is not None:
        mix = torch.zeros(width, dtype=torch.float64)
        mix[outputs] = 1.0
    elif width == 1:
        mix = torch.ones(1, dtype=torch.float64)
    else:
        mix = torch.randn(width, generator=generator(seed, "linearity", "mix"), dtype=torch.float64)
    return (mix / mix.norm() / samples).to(before).expand(samples, width)


def _direction(
    probe: _Probe, before: Tensor, direction: str | Tensor, outputs: int | None, seed: int
) -> Named:
    pull = _pull(before, outputs, seed)
    if isinstance(direction, str) and direction == "gradient":
        return _unit(probe.gradient(pull))
    size = sum(w.numel() for w in probe.weights.values())
    noise = torch.randn(size, generator=generator(seed, "linearity", "random"), dtype=torch.float64)
    if not isinstance(direction, str):
        if direction.numel() != size:
            raise InputError(f"direction holds {direction.numel()} numbers; {size} parameters are moved")
        return _unit(_split(direction.detach().reshape(-1), probe.weights))
    if direction == "random":
        return _unit(_split(noise, probe.weights))
    if direction == "top_hessian":
        return _unit(_split(_top(probe, pull, noise), probe.weights))
    raise InputError(
        f"unknown direction {direction!r}; choose gradient, random, top_hessian or a flat tensor"
    )


def _top(probe: _Probe, pull: Tensor, noise: Tensor) -> Tensor:
    hessian = OutputHessian(
        probe.model, probe.x, pull, output=probe.output, params=list(probe.weights), dtype=probe.dtype
    )
    noise = noise.to(hessian.device, hessian.dtype)
    rounding = 10 * torch.finfo(hessian.dtype).eps
    pair = top_pair(
        hessian.product, noise, noise, tolerance=1e-2, max_products=200, which="magnitude", rounding=rounding
    )
    if not pair.converged:
        raise NumericsError(
            f"the top Hessian direction has residual {pair.residual:.2g} at eigenvalue {pair.value:.3g} "
            f"after {pair.products} products; use direction='gradient'"
        )
    return pair.vector


def _split(vector: Tensor, like: Named) -> Named:
    pieces = vector.split([tensor.numel() for tensor in like.values()])
    return {name: piece.view_as(w).to(w) for (name, w), piece in zip(like.items(), pieces, strict=True)}


def _unit(pieces: Named) -> Named:
    norm = math.sqrt(sum(float(piece.double().square().sum()) for piece in pieces.values()))
    if not (math.isfinite(norm) and norm > 0):
        raise NumericsError(
            f"the direction has norm {norm:g}; the gradient of the outputs vanishes or is not finite: "
            "check the weights, or use direction='random'"
        )
    return {name: piece / norm for name, piece in pieces.items()}
