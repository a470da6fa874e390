"""The Hessian norm of a model's outputs: what decides how near a model is to its linear expansion."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.curvature._chunks import as_batch
from wideangle.curvature._norm import SpectralNorm, spectral_norm
from wideangle.curvature._operator import refuse_random
from wideangle.curvature._trace import kinks
from wideangle.curvature.hessian import OutputHessian
from wideangle.errors import InputError
from wideangle.kernel._model import Batch, OutputPick, batch_size, check_model, take
from wideangle.progress import track
from wideangle.result import Provenance, Result
from wideangle.seeds import generator

__all__ = ["HessianNorm", "hessian_norm"]


@dataclass(frozen=True)
class HessianNorm(Result):
    """Norms of the Hessians of a model's outputs, `values`[i, c] = |grad^2 f_c(x_i)|, and their largest.

    `gradient_norms`[i, c] = |grad f_c(x_i)| at the weights themselves. `ratio` is the largest of
    values / gradient_norms^2: it does not change when the output is scaled together with its inverse in the
    loss, as |H| alone does. With radius > 0, `values` are the largest over the points looked at, at most the
    supremum over the ball, and `center` are those at the weights. `probability` is that of the least
    certain norm; `residual` the largest relative to its value.
    """

    value: float = 0.0
    ratio: float = 0.0
    radius: float = 0.0
    points: int = 1
    certified: bool = False
    residual: float = 0.0
    probability: float = 0.0
    products: int = 0
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    center: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    gradient_norms: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)


def hessian_norm(
    model: nn.Module,
    x: Batch,
    radius: float = 0.0,
    *,
    outputs: int | list[int] | None = None,
    output: OutputPick = None,
    params: Any = None,
    tolerance: float = 1e-2,
    confidence: float = 0.99,
    points: int = 3,
    allow_kinks: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> HessianNorm:
    """Return the spectral norm of the Hessian of every output at every sample, at a point or on a ball.

        values[i, c] = max over points w' of |grad^2 f_c(x_i; w')|_2,   |w' - w| = radius or 0

    On a ball the points are w, w + R u, w - R u (u the gradient's direction of that output and sample),
    w + R h, w - R h (h the top eigenvector there), then random ones: `points` beside the centre. A sample
    of a ball gives a lower bound of the supremum, never a certificate (see `curvature.landscape`).

    Cost: for each sample, output and point some 25 products of about two backward passes of one sample
    each: give a few samples. Memory: 30 vectors of p float64 numbers.

    Args:
        model: any module without active dropout, smooth in its weights.
        x: n inputs, a tensor or a dict of tensors.
        radius: R, distance in the space of weights; 0 measures at the weights.
        outputs: the number of an output, or several; None takes all.
        output: which part of a tuple, dict or ModelOutput holds the outputs.
        params: parameters to differentiate by: None for all that require a gradient, names, a predicate.
        tolerance: relative residual of each norm.
        confidence: see `spectral_norm`.
        points: points on the sphere beside the centre, for radius > 0.
        allow_kinks: measure a model with kinks all the same (right for ReLU^2, whose slope has none).
        seed: of the random starts and points.
        dtype: compute in this type; None keeps the model's.

    Returns:
        A `HessianNorm`.

    Raises:
        InputError: activations with kinks (ReLU), whose Hessian misses what the kinks add; dropout or
            BatchNorm in train mode; a negative radius; outputs that are not there.
        ConvergenceError: a norm did not reach the tolerance.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
        >>> for parameter in model.parameters():
        ...     _ = nn.init.zeros_(parameter)
        >>> round(hessian_norm(model, torch.tensor([[2.0]], dtype=torch.float64)).value, 6)
        2.0

    Reference: Liu, Zhu and Belkin 2020 (arXiv 2010.01092), Section 3: |H| = O(1/sqrt(m)) on a ball for wide
    nets with a linear output.
    """
    if not (math.isfinite(radius) and radius >= 0):
        raise InputError(f"radius must be zero or positive and finite, got {radius}")
    if radius > 0 and points < 1:
        raise InputError(f"points={points}; a ball needs at least one point beside its centre")
    refuse_random(model)
    check_model(model)
    x = as_batch(x, next(model.parameters()).dtype)
    if not allow_kinks:
        _refuse_kinks(model, x)
    options = {"output": output, "params": params, "dtype": dtype}
    settings = {"tolerance": tolerance, "confidence": confidence, "seed": seed}
    samples = batch_size(x)
    if samples == 0:
        raise InputError("x holds no samples")
    wanted = _numbers(model, take(x, slice(0, 1)), outputs, options)
    shape = (samples, len(wanted))
    values, center, slopes = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    found: list[SpectralNorm] = []
    cells = [(i, k) for i in range(samples) for k in range(len(wanted))]
    for i, k in track(cells, "Hessian norms"):
        one = take(x, slice(i, i + 1))
        here = OutputHessian(model, one, wanted[k], **options)
        gradient = here.gradient().double()
        norms = [spectral_norm(here, **settings)]
        if radius > 0:
            noise = generator(seed, "hessian norm", i, k)
            for step in _steps(gradient, norms[0], points, noise):
                there = OutputHessian(model, one, wanted[k], **options)
                there.move(radius * step)
                norms.append(spectral_norm(there, **settings))
        slopes[i, k], center[i, k] = float(gradient.norm()), norms[0].value
        values[i, k] = max(norm.value for norm in norms)
        found += norms
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(values > 0, values / slopes**2, 0.0)
    return HessianNorm(
        value=float(values.max()),
        ratio=float(ratio.max()),
        radius=radius,
        points=1 + (points if radius > 0 else 0),
        residual=max(norm.residual / norm.value if norm.value else 0.0 for norm in found),
        probability=min(norm.probability for norm in found),
        products=sum(norm.products for norm in found),
        values=values,
        center=center,
        gradient_norms=slopes,
        provenance=Provenance.here(seed=seed),
    )


def _refuse_kinks(model: nn.Module, x: Batch) -> None:
    names = kinks(model, take(x, slice(0, 1)))
    if names:
        have = "has kinks" if len(names) == 1 else "have kinks"
        raise InputError(
            f"{', '.join(names)} {have}: the Hessian is undefined there and misses what they add elsewhere, so its "
            "norm says nothing about linearity; use linearity_gap, or a smooth activation"
        )


def _numbers(
    model: nn.Module, one: Batch, outputs: int | list[int] | None, options: dict[str, Any]
) -> list[int]:
    """Return the numbers of the outputs to look at."""
    width = OutputHessian(model, one, 0, **options).outputs(one)
    wanted = (
        list(range(width)) if outputs is None else [outputs] if isinstance(outputs, int) else list(outputs)
    )
    bad = [number for number in wanted if not 0 <= number < width]
    if bad or not wanted:
        raise InputError(f"outputs={outputs} but the model has {width} outputs, numbered from 0")
    return wanted


def _steps(gradient: Tensor, norm: SpectralNorm, points: int, noise: torch.Generator) -> Iterator[Tensor]:
    """Give `points` unit vectors: along the gradient, along the top eigenvector, then random ones."""
    top = torch.as_tensor(norm.vector).to(gradient)
    known = [gradient, -gradient, top, -top]
    for number in range(points):
        vector = known[number] if number < len(known) else None
        if vector is None or float(vector.norm()) == 0:
            vector = torch.randn(len(gradient), generator=noise, dtype=torch.float64).to(gradient)
        yield vector / vector.norm()
