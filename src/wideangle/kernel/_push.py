"""The product J v of a function of named parameters: forward mode, or two backward passes without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from wideangle.errors import InputError
from wideangle.kernel._model import OutputPick, _pick, plain_attention

__all__ = ["Mode", "Named", "pick_tensor", "push_forward"]

Named = dict[str, Tensor]
Mode = Literal["auto", "forward", "reverse"]


def push_forward(
    function: Callable[[Named], Tensor], point: Named, direction: Named, mode: Mode = "auto"
) -> tuple[Tensor, Tensor, Mode]:
    """Return (function(point), J(point) direction, the mode that worked).

        J v = d/dt f(w0 + t v) at t = 0         (forward)
        J v = d/du <J^T u, v>                   (reverse: linear in u, so its derivative is J v)

    The product can be differentiated with respect to `direction`. Cost: about 2 forward passes
    (forward), or 1 forward and 2 backward passes (reverse); memory of one backward pass.

    Raises:
        InputError: an unknown mode. Errors of the function itself pass through.
    """
    if mode not in ("auto", "forward", "reverse"):
        raise InputError(f"unknown mode {mode!r}; choose auto, forward or reverse")
    if mode == "reverse":
        return *_reverse(function, point, direction), "reverse"
    try:
        return *_forward(function, point, direction), "forward"
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        if mode == "forward":
            raise
    return *_reverse(function, point, direction), "reverse"


def _forward(function: Callable[[Named], Tensor], point: Named, direction: Named) -> tuple[Tensor, Tensor]:
    with plain_attention():
        pair = torch.func.jvp(function, (point,), (direction,))
    return pair[0], pair[1]


def _reverse(function: Callable[[Named], Tensor], point: Named, direction: Named) -> tuple[Tensor, Tensor]:
    wanted = torch.is_grad_enabled()
    with torch.enable_grad(), plain_attention():
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in point.items()}
        value = function(leaves)
        weights = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(
            value, list(leaves.values()), weights, create_graph=True, allow_unused=True
        )
        terms = [(g * v).sum() for g, v in zip(pulled, direction.values(), strict=True) if g is not None]
        if not terms or not (total := torch.stack(terms).sum()).requires_grad:
            return value.detach(), torch.zeros_like(value)
        (product,) = torch.autograd.grad(total, weights, create_graph=True)
    return value.detach(), product if wanted else product.detach()


def pick_tensor(raw: Any, output: OutputPick) -> Tensor:
    """Return the tensor `output` names within what a model returned, in the shape it has there.

    Raises:
        InputError: a tuple, dict or ModelOutput without `output=`, or a part that is not there.
    """
    if not isinstance(raw, Tensor) and output is not None:
        raw = _pick(raw, output)
    elif callable(output):
        raw = output(raw)
    if not isinstance(raw, Tensor):
        raise InputError(
            f"the model returns a {type(raw).__name__}, not a tensor; say which part to take, "
            "for example output=0 or output='logits' (--output on the command line)"
        )
    return raw
