"""Curvature of assemblies: the Hessian norm from the sub-models' own, and what keeps it from vanishing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from wideangle.curvature._hessian_norm import hessian_norm
from wideangle.curvature._neurons import (
    Diversity,
    NeuronNorms,
    gradient_diversity,
    preactivation_hessian_norms,
)
from wideangle.errors import InputError, NumericsError
from wideangle.kernel import tangent_kernel
from wideangle.kernel._model import Batch, call, logits
from wideangle.nets import Assembly
from wideangle.result import Provenance, Result

__all__ = [
    "AssemblyNorm",
    "Diversity",
    "Dominance",
    "NeuronNorms",
    "assembly_hessian_norm",
    "dominance",
    "gradient_diversity",
    "preactivation_hessian_norms",
]


@dataclass(frozen=True)
class AssemblyNorm(Result):
    """The Hessian norm of an assembly's outputs, |grad^2 f_c(x_i)|, and the way it was got.

    `method` is "blocks" (the largest over the sub-models, exact) or "lanczos" (the whole assembly at once),
    `reason` says why. `values` and `gradient_norms` are (n, C). `ratio` is the largest of values /
    gradient_norms^2. `block` is the number of the sub-model whose norm is the largest, None for "lanczos".
    """

    value: float = 0.0
    ratio: float = 0.0
    method: str = ""
    reason: str = ""
    block: int | None = None
    products: int = 0
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    gradient_norms: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)


@dataclass(frozen=True)
class Dominance(Result):
    """How the gradient of an assembly is shared out among its m sub-models.

    `shares` sum to 1; `largest` is the largest of them, `sub_model` its number; `effective` is the effective
    number of sub-models, from 1 (one dominates) to m (all equal).
    """

    largest: float = 0.0
    sub_model: int = 0
    effective: float = 0.0
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)


def assembly_hessian_norm(
    assembly: Assembly, x: Batch, *, tolerance: float = 1e-2, confidence: float = 0.99, seed: int = 0
) -> AssemblyNorm:
    """Return the Hessian norm of an assembly, from its sub-models where their weights are their own.

        |grad^2 f| = max_i |v_i| |grad^2 g_i| / s,    |grad f|^2 = sum_i v_i^2 |grad g_i|^2 / s^2

    exact, since the Hessian is block diagonal: one block a sub-model. A sub-model that is an assembly is
    taken apart in the same way. Where sub-models share trainable weights, or the coefficients are trained,
    there are cross blocks, and Lanczos runs on the whole assembly. The norms of the blocks themselves come
    from `hessian_norm`, to `tolerance`.

    Cost: for "blocks" one `hessian_norm` a sub-model, whose products cost one sub-model each.

    Args:
        assembly: an `Assembly` of models smooth in their weights.
        x: n inputs; a few.
        tolerance: as for `hessian_norm`, as are the others.
        confidence: that no larger eigenvalue was missed, for each norm.
        seed: of the random starts.

    Returns:
        An `AssemblyNorm`.

    Raises:
        InputError: not an assembly, nothing to train in it; as `hessian_norm`.
        ConvergenceError: a norm did not reach the tolerance.

    Example:
        >>> part = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))  # f = a b x
        >>> assembly = Assembly([part, nn.Linear(1, 1)], torch.tensor([3.0, 1.0]))
        >>> found = assembly_hessian_norm(assembly, torch.ones(1, 1))
        >>> round(found.value, 4), found.method, found.block  # 3 * 1 / sqrt(2)
        (2.1213, 'blocks', 0)

    Reference: Liu, Zhu and Belkin 2022 (arXiv 2203.05104) bound this norm by order; the exact form is
    derived here.
    """
    if not isinstance(assembly, Assembly):
        raise InputError(f"a {type(assembly).__name__} is no Assembly; use hessian_norm")
    if not any(parameter.requires_grad for parameter in assembly.parameters()):
        raise InputError("no parameter of the assembly requires a gradient, so there is no Hessian")
    settings = {"tolerance": tolerance, "confidence": confidence, "seed": seed}
    found = _norms(assembly, x, settings)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(found.slopes > 0, found.values / found.slopes**2, np.inf)
    return AssemblyNorm(
        value=float(found.values.max()),
        ratio=float(ratio.max()),
        method=found.method,
        reason=found.reason,
        block=found.block,
        products=found.products,
        values=found.values,
        gradient_norms=found.slopes,
        provenance=Provenance.here(seed=seed),
    )


@dataclass
class _Norms:
    """Hessian and gradient norms, (n, C) each, of one model."""

    values: np.ndarray
    slopes: np.ndarray
    products: int = 0
    method: str = "lanczos"
    reason: str = ""
    block: int | None = None


def _norms(model: nn.Module, x: Batch, settings: dict[str, Any]) -> _Norms:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        with torch.no_grad():
            n = len(x) if isinstance(x, torch.Tensor) else len(next(iter(x.values())))
            shape = tuple(logits(call(model, {}, x), None, n).shape)
        return _Norms(np.zeros(shape), np.zeros(shape))
    coupled = _coupling(model) if isinstance(model, Assembly) else "not an assembly"
    if coupled or not isinstance(model, Assembly):
        whole = hessian_norm(model, x, **settings)
        return _Norms(whole.values, whole.gradient_norms, whole.products, "lanczos", coupled)
    parts = [_norms(part, x, settings) for part in model.sub_models]
    sizes = model.coefficients.detach().double().abs().cpu().numpy()[:, None, None] / model.scale
    values = sizes * np.stack([part.values for part in parts])
    slopes = np.sqrt((sizes * np.stack([part.slopes for part in parts]) ** 2 * sizes).sum(0))
    return _Norms(
        values.max(0),
        slopes,
        sum(part.products for part in parts),
        "blocks",
        "no trainable weight is shared and the coefficients are fixed: the Hessian is block diagonal",
        int(values.reshape(len(parts), -1).max(1).argmax()),
    )


def _coupling(assembly: Assembly) -> str:
    """Return why the Hessian is not block diagonal, empty where it is."""
    if assembly.coefficients.requires_grad:
        return "the coefficients are trained"
    owners: dict[int, int] = {}
    for number, part in enumerate(assembly.sub_models):
        for name, parameter in part.named_parameters():
            owner = owners.setdefault(id(parameter), number)
            if parameter.requires_grad and owner != number:
                return f"sub-models {owner} and {number} share the trainable parameter {name!r}"
    return ""


def dominance(assembly: Assembly, x: Batch) -> Dominance:
    """Return how much each sub-model contributes to the gradient of an assembly.

        shares_i = v_i^2 |grad g_i|^2 / sum_j v_j^2 |grad g_j|^2,    effective = 1 / sum_i shares_i^2

    the squares summed over samples and outputs; where the coefficients are trained, |g_i|^2 is added to
    v_i^2 |grad g_i|^2. The Hessian of an assembly vanishes with the number of sub-models only if no share
    stays large: then the effective number grows with m.

    Cost: one tangent kernel of each sub-model on x; give a few samples.

    Args:
        assembly: an `Assembly`.
        x: n inputs, as for `tangent_kernel`.

    Returns:
        A `Dominance`.

    Raises:
        InputError: not an assembly; as `tangent_kernel`.
        NumericsError: no sub-model has a gradient.

    Example:
        >>> assembly = Assembly([nn.Linear(2, 1), nn.Linear(2, 1)], torch.tensor([3.0, 1.0]))
        >>> round(dominance(assembly, torch.ones(1, 2)).largest, 6)
        0.9

    Reference: Liu, Zhu and Belkin 2022 (arXiv 2203.05104): no sub-model may dominate. The shares are ours.
    """
    if not isinstance(assembly, Assembly):
        raise InputError(f"a {type(assembly).__name__} is no Assembly")
    squares = np.array([_squares(part, x) for part in assembly.sub_models])
    weights = squares * assembly.coefficients.detach().double().cpu().numpy() ** 2
    if assembly.coefficients.requires_grad:
        with torch.no_grad():
            outputs = [call(part, {}, x).double() for part in assembly.sub_models]
        weights += np.array([float(output.square().sum()) for output in outputs])
    total = float(weights.sum())
    if not (np.isfinite(total) and total > 0):
        raise NumericsError(
            f"the squared gradients of the sub-models add up to {total:g}; look at the weights"
        )
    shares = weights / total
    return Dominance(
        largest=float(shares.max()),
        sub_model=int(shares.argmax()),
        effective=float(1 / (shares**2).sum()),
        shares=shares,
        provenance=Provenance.here(),
    )


def _squares(part: nn.Module, x: Batch) -> float:
    """Return |grad g|^2 summed over samples and outputs."""
    if not any(parameter.requires_grad for parameter in part.parameters()):
        return 0.0
    kernel = tangent_kernel(part, x)
    return float(kernel.reshape(kernel.shape[0] * kernel.shape[1], -1).diagonal().sum())
