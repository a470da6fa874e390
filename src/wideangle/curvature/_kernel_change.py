"""How far the tangent kernel moves along a trajectory of weights, and the bound that the Hessian gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.errors import InputError
from wideangle.kernel import tangent_kernel
from wideangle.kernel._model import OutputPick, select_parameters
from wideangle.progress import track
from wideangle.result import Provenance, Result

__all__ = ["KernelChange", "kernel_change", "kernel_change_bound"]

_ORDERS: dict[str, Any] = {"fro": "fro", "spectral": 2}


@dataclass(frozen=True)
class KernelChange(Result):
    """The kernel along a trajectory: `changes` = |K_t - K_0| / |K_0|, and their largest.

    `absolute` are the |K_t - K_0|, `distances` the |w_t - w_0| over the parameters differentiated by.
    """

    largest: float = 0.0
    start: float = 0.0
    norm: str = "fro"
    changes: list[float] = field(default_factory=list)
    absolute: list[float] = field(default_factory=list, repr=False)
    distances: list[float] = field(default_factory=list)


def kernel_change(
    model: nn.Module,
    x: Any,
    trajectory: Iterable[nn.Module | Mapping[str, Tensor]],
    *,
    norm: Literal["fro", "spectral"] = "fro",
    output: OutputPick = None,
    params: Any = None,
    max_memory: int | None = None,
) -> KernelChange:
    """Return how far the tangent kernel moves from that of `model` along a trajectory.

        changes[t] = |K(w_t) - K(w_0)| / |K(w_0)|,   K the full kernel of all samples and outputs, float64

    Below about 0.1 training follows the linear expansion; a change that does not fall with width says that
    the model does not become linear. Cost: one kernel a state; memory two matrices (nC, nC).

    Args:
        model: the model at w_0, in eval mode; left as it is.
        x: n inputs, as for `tangent_kernel`.
        trajectory: modules or state dicts of the same model, in order, taken one by one: a generator may yield
            the same module as it trains.
        norm: "fro" (Frobenius) or "spectral" (largest singular value).
        output: which part of a tuple, dict or ModelOutput holds the logits.
        params: parameters to differentiate by; all that require a gradient where left out.
        max_memory: bytes, as for `tangent_kernel`.

    Returns:
        A `KernelChange`.

    Raises:
        InputError: an empty trajectory, a state of another model, an unknown norm; as `tangent_kernel`.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> kernel_change(model, torch.eye(2), [nn.Linear(2, 1, bias=False)]).largest
        0.0

    Reference: Liu, Zhu and Belkin 2020 (arXiv 2010.01092), Section 3. The paper does not say which norm it
    plots; Frobenius is taken here.
    """
    if norm not in _ORDERS:
        raise InputError(f"unknown norm {norm!r}; choose fro or spectral")
    order, options = _ORDERS[norm], {"output": output, "params": params, "max_memory": max_memory}
    chosen = select_parameters(model, params)
    first = _matrix(model, x, options)
    size = float(torch.linalg.matrix_norm(first, ord=order))
    absolute, distances = [], []
    for state in track(trajectory, "kernels"):
        other = _at(model, state)
        absolute.append(float(torch.linalg.matrix_norm(_matrix(other, x, options) - first, ord=order)))
        distances.append(_distance(model, other, chosen))
    if not absolute:
        raise InputError("the trajectory is empty; give at least one state dict or module")
    changes = [value / size if size else math.inf if value else 0.0 for value in absolute]
    return KernelChange(
        largest=max(changes),
        start=size,
        norm=norm,
        changes=changes,
        absolute=absolute,
        distances=distances,
        provenance=Provenance.here(device=str(first.device)),
    )


def _matrix(model: nn.Module, x: Any, options: dict[str, Any]) -> Tensor:
    kernel = tangent_kernel(model, x, **options)
    return kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)


def _at(model: nn.Module, state: nn.Module | Mapping[str, Tensor]) -> nn.Module:
    try:
        other = copy.deepcopy(model)
    except RuntimeError as error:
        raise InputError(
            f"the {type(model).__name__} cannot be copied ({error}); remove old-style weight_norm"
        ) from error
    try:
        other.load_state_dict(state.state_dict() if isinstance(state, nn.Module) else state)
    except (RuntimeError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        raise InputError(f"a state of the trajectory is not one of this model ({text})") from error
    return other


def _distance(one: nn.Module, other: nn.Module, names: list[str]) -> float:
    with torch.no_grad():
        steps = [(other.get_parameter(n) - one.get_parameter(n)).double().square().sum() for n in names]
    return math.sqrt(sum(float(step) for step in steps))


def kernel_change_bound(
    gradient_norms: np.ndarray | Tensor | list[float],
    hessian_sup: np.ndarray | Tensor | list[float],
    radius: float,
) -> np.ndarray:
    """Return the bound of the Hessian on the change of every kernel entry within a ball.

        |K_xz(w) - K_xz(w_0)| <= R S_x |g_z| + R S_z |g_x| + R^2 S_x S_z   for |w - w_0| <= R = radius

    since grad f(w) - grad f(w_0) is the integral of the Hessian along the way.

    Args:
        gradient_norms: |g_x| = |grad f(w_0; x)| for each row of the kernel, (N,).
        hessian_sup: S_x, the supremum of |grad^2 f(w; x)| over the ball, (N,). A value found by sampling makes
            the bound an estimate.
        radius: R.

    Returns:
        An (N, N) array.

    Raises:
        InputError: lengths that differ, negative numbers.

    Example:
        >>> kernel_change_bound([1.0, 1.0], [0.1, 0.0], radius=2.0).round(6).tolist()
        [[0.44, 0.2], [0.2, 0.0]]

    Reference: derived; Liu, Zhu and Belkin 2020 (arXiv 2010.01092), Section 3, states the order O(R sup |H|).
    """
    slopes = np.asarray(gradient_norms, dtype=np.float64).reshape(-1)
    sup = np.asarray(hessian_sup, dtype=np.float64).reshape(-1)
    if slopes.shape != sup.shape:
        raise InputError(f"{len(slopes)} gradient norms and {len(sup)} Hessian norms; give one each a row")
    if not (radius >= 0 and (slopes >= 0).all() and (sup >= 0).all()):
        raise InputError("gradient norms, Hessian norms and radius must be numbers, none of them negative")
    cross = radius * np.outer(sup, slopes)
    return cross + cross.T + radius**2 * np.outer(sup, sup)
