"""The slow twin: the tangent kernel from the explicit Jacobian, one backward pass per sample and output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wideangle.kernel._model import OutputPick, batch_size, batches, copied, logits, select_parameters, take

__all__ = ["jacobian", "jacobian_kernel"]


def jacobian(model: nn.Module, x: Any, *, output: OutputPick = None, params: Any = None) -> Tensor:
    """Return the Jacobian of the logits, shape (n, C, P), by plain backward passes.

    J[i, c, :] = d f_c(x_i) / d w

    Cost: n C backward passes and n C P numbers of memory; it exists to check everything else.

    Args:
        model: any module whose output for a sample does not depend on the others.
        x: samples as for `tangent_kernel`.
        output: which part of the model's return value holds the logits.
        params: which parameters, as for `tangent_kernel`.

    Example:
        >>> model = nn.Linear(3, 2, bias=False)
        >>> jacobian(model, torch.ones(4, 3)).shape
        torch.Size([4, 2, 6])
    """
    chosen = select_parameters(model, params)
    named = dict(model.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in named.items()}
    rows: list[Tensor] = []
    try:
        for name in chosen:
            named[name].requires_grad_(True)
        wanted = [named[name] for name in chosen]
        for batch in batches(x, wanted[0].device):
            for i in range(batch_size(batch)):
                one = copied(take(batch, slice(i, i + 1)))
                with torch.enable_grad():
                    raw = model(**one) if isinstance(one, dict) else model(one)
                    z = logits(raw, output, 1)[0]
                rows.append(torch.stack([_gradient(z[c], wanted) for c in range(len(z))]))
    finally:
        for name, flag in flags.items():
            named[name].requires_grad_(flag)
    return torch.stack(rows)


def _gradient(value: Tensor, wanted: list[nn.Parameter]) -> Tensor:
    parts = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(wanted, parts, strict=True)]
    )


def jacobian_kernel(
    model: nn.Module,
    x1: Any,
    x2: Any = None,
    *,
    output: OutputPick = None,
    params: Any = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return the full tangent kernel J J'^T, shape (n1, C, n2, C), from explicit Jacobians.

    K[i,c,j,d] = sum_p J1[i,c,p] J2[j,d,p]

    Args:
        model: as for `jacobian`.
        x1: first samples.
        x2: second samples; `x1` where left out.
        output: as for `jacobian`.
        params: as for `jacobian`.
        dtype: precision of the sum over parameters.

    Example:
        >>> model = nn.Linear(3, 2, bias=False)
        >>> jacobian_kernel(model, torch.ones(4, 3))[0, 0, 1, 0].item()
        3.0
    """
    first = jacobian(model, x1, output=output, params=params).to(dtype)
    second = first if x2 is None else jacobian(model, x2, output=output, params=params).to(dtype)
    return torch.einsum("icp,jdp->icjd", first, second)
