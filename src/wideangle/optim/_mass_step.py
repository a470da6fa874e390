"""The update of MaSS on lists of tensors: a plain loop, a multi-tensor form and torch's fused kernel."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from wideangle.errors import InputError

__all__ = ["by_kind", "first_non_finite", "mass", "momentum", "share"]

_AT_ONCE = {"cuda": 1 << 25}
_PLAIN = {Tensor, torch.nn.Parameter}


def mass(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: list[Tensor],
    *,
    lr: float | Tensor,
    alpha: float,
    kappa_tilde: float,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    masters: Sequence[Tensor] | None = None,
) -> None:
    """Change `params` and `buffers` in place by one step of MaSS; returns nothing.

        c <- gamma c + s g,   u <- u - lr (g + gamma c),   w = u + lr gamma c
        gamma = (1 - alpha) / (1 + alpha),   s = (1/kappa_tilde - alpha) / (1 - alpha)

    u is the parameter, c its buffer (zeros at the start), g the gradient at u. In the variables of the paper
    c = b / gamma with b = (w - u) / lr, and s = 1 - eta2 / (gamma eta1). So scaled, c is the momentum buffer
    of torch.optim.SGD(nesterov=True) with dampening 1 - s, bit for bit where kappa_tilde = 1.

    Cost: eleven reads and writes of a tensor of the parameters' size, as SGD with Nesterov momentum; five
    with `fused`. The gradients are left as they are.

    Args:
        params: tensors u of any shapes, real and strided.
        grads: a gradient for each.
        buffers: c for each; with `differentiable` the entries of the list are replaced, not changed.
        lr: step; a number or a tensor of one element.
        alpha: in (0, 1]; 1 only with kappa_tilde = 1, where no momentum is left.
        kappa_tilde: at least 1.
        weight_decay: g <- g + weight_decay u, before both uses of g.
        decoupled_weight_decay: instead u <- (1 - lr weight_decay) u before the step.
        maximize: g <- -g, before weight decay.
        foreach: the multi-tensor form; False is the plain loop. None: on CUDA the multi-tensor form, on the
            CPU `fused` where it applies, else the loop.
        fused: torch's fused SGD kernel, one pass over memory. It needs contiguous tensors of one type each.
        capturable: lr is not to be a constant of what is captured or compiled. A tensor is read on the host
            only where it lies there, with this option not while torch.compile traces.
        differentiable: autograd passes through the step; the plain loop.
        masters: the weights of higher precision that the step acts on; `params` get rounded copies.

    Raises:
        InputError: `fused=True` for tensors that the kernel would read wrongly.

    Example:
        >>> u, c = torch.tensor([1.0]), torch.tensor([0.0])
        >>> for _ in range(2):
        ...     mass([u], [u.clone()], [c], lr=0.1, alpha=0.5, kappa_tilde=1.0)
        >>> [round(x, 4) for x in (u.item(), c.item())]
        [0.74, 1.2]

    Reference: Liu, Belkin 2020, Algorithm 1, rewritten with one buffer; the paper stores w beside u.
    """
    if isinstance(lr, Tensor) and not differentiable and _readable(lr, capturable):
        lr = lr.item()
    numbers = (momentum(alpha), share(alpha, kappa_tilde), weight_decay, decoupled_weight_decay, maximize)
    forms = (foreach, fused, differentiable)
    if masters is None:
        _step(params, grads, buffers, lr, numbers, forms)
        return
    for part in _batches(masters):
        weights = masters[part]
        converted = [grad.to(weight.dtype) for grad, weight in zip(grads[part], weights, strict=True)]
        _step(weights, converted, buffers[part], lr, numbers, forms)
        for param, weight in zip(params[part], weights, strict=True):
            if param is not weight:
                param.copy_(weight)


def _readable(lr: Tensor, capturable: bool) -> bool:
    return lr.is_cpu and not (capturable and torch.compiler.is_compiling())


def momentum(alpha: float) -> float:
    """Return gamma = (1 - alpha) / (1 + alpha)."""
    return (1 - alpha) / (1 + alpha)


def share(alpha: float, kappa_tilde: float) -> float:
    """Return s, the share of each gradient that enters the buffer; 0 without momentum (alpha = 1)."""
    return 0.0 if alpha == 1 else (1 / kappa_tilde - alpha) / (1 - alpha)


def _step(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: list[Tensor],
    lr: float | Tensor,
    numbers: tuple[float, float, float, bool, bool],
    forms: tuple[bool | None, bool | None, bool],
) -> None:
    gamma, weight, weight_decay, decoupled, maximize = numbers
    way = _way(weights, grads, buffers, *forms)
    if decoupled and weight_decay != 0:
        _decay(weights, lr, weight_decay, way is _loop)
        weight_decay = 0.0
    options = {"differentiable": forms[-1]} if way is _loop else {}
    way(weights, grads, buffers, lr, gamma, weight, weight_decay, maximize, **options)


def _batches(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Slices of the list of some million elements: what the gradients in higher precision take at a time."""
    start, held = 0, 0
    for i, tensor in enumerate(tensors):
        held += tensor.numel()
        if held >= _AT_ONCE.get(tensor.device.type, 1 << 20):
            yield slice(start, i + 1)
            start, held = i + 1, 0
    if start < len(tensors):
        yield slice(start, len(tensors))


def _way(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    foreach: bool | None,
    fused: bool | None,
    differentiable: bool,
) -> Callable[..., None]:
    """The form of the update: as asked for, else the fastest measured one that the tensors allow."""
    if differentiable:
        return _loop
    if fused:
        if not _fusible(weights, grads, buffers):
            raise InputError(
                "fused=True, but a parameter, its gradient or its buffer is not contiguous, or they differ in "
                "type; the kernel would mix up their entries. Leave `fused` at None or take foreach=True"
            )
        return _fused
    if foreach is not None:
        return _foreach if foreach else _loop
    if _PLAIN.issuperset(map(type, weights)) and all(tensor.is_cuda for tensor in weights):
        return _foreach
    if fused is None and _fusible(weights, grads, buffers) and not torch.compiler.is_compiling():
        return _fused
    return _loop


def _fusible(weights: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor]) -> bool:
    """Whether the fused kernel reads them rightly: it walks through memory, whatever the strides say."""
    if not _PLAIN.issuperset(map(type, weights)):
        return False
    for u, g, c in zip(weights, grads, buffers, strict=True):
        if not (u.is_contiguous() and g.is_contiguous() and c.is_contiguous()):
            return False
        if not (u.dtype is g.dtype is c.dtype and (u.is_cpu or u.is_cuda)):
            return False
    return True


def _decay(weights: Sequence[Tensor], lr: float | Tensor, weight_decay: float, loop: bool) -> None:
    keep = 1 - lr * weight_decay
    if loop:
        for u in weights:
            u.mul_(keep)
        return
    for part, _ in by_kind([weights]):
        torch._foreach_mul_(part[0], keep.to(part[0][0].device) if isinstance(keep, Tensor) else keep)


def _loop(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: list[Tensor],
    lr: float | Tensor,
    gamma: float,
    weight: float,
    weight_decay: float,
    maximize: bool,
    *,
    differentiable: bool = False,
) -> None:
    for i, (u, grad) in enumerate(zip(weights, grads, strict=True)):
        g = -grad if maximize else grad
        if weight_decay != 0:
            g = g.add(u, alpha=weight_decay)
        if differentiable:
            buffers[i] = buffers[i].mul(gamma).add(g, alpha=weight)
        else:
            buffers[i].mul_(gamma).add_(g, alpha=weight)
        if isinstance(lr, Tensor):
            u.sub_(g.add(buffers[i], alpha=gamma).mul(lr))
        else:
            u.add_(g, alpha=-lr).add_(buffers[i], alpha=-lr * gamma)


def _foreach(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    lr: float | Tensor,
    gamma: float,
    weight: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    for (u, g, c), kind in by_kind([weights, grads, buffers]):
        if maximize:
            g = torch._foreach_neg(g)
        if weight_decay != 0:
            g = torch._foreach_add(g, u, alpha=weight_decay)
        torch._foreach_mul_(c, gamma)
        torch._foreach_add_(c, g, alpha=weight)
        if isinstance(lr, Tensor):
            step = torch._foreach_add(g, c, alpha=gamma)
            torch._foreach_mul_(step, lr.to(kind[0]))
            torch._foreach_sub_(u, step)
        else:
            torch._foreach_add_(u, g, alpha=-lr)
            torch._foreach_add_(u, c, alpha=-lr * gamma)


def _fused(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    lr: float | Tensor,
    gamma: float,
    weight: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    for (u, g, c), kind in by_kind([weights, grads, buffers]):
        if gamma == 0:  # the kernel then takes no buffers
            torch._foreach_zero_(c)
        torch._fused_sgd_(
            u,
            g,
            c if gamma else [],
            weight_decay=weight_decay,
            momentum=gamma,
            lr=lr.to(kind[0]) if isinstance(lr, Tensor) else lr,
            dampening=1 - weight,
            nesterov=gamma != 0,
            maximize=maximize,
            is_first_step=False,
        )


def by_kind(lists: Sequence[Sequence[Tensor]]) -> list[tuple[list[Any], tuple[torch.device, torch.dtype]]]:
    """Return the lists in parts, each of one device and type (those of the first list), in order."""
    kinds = [(tensor.device, tensor.dtype) for tensor in lists[0]]
    if not kinds:
        return []
    if kinds.count(kinds[0]) == len(kinds):
        return [([list(tensors) for tensors in lists], kinds[0])]
    return [
        ([[t for t, k in zip(tensors, kinds, strict=True) if k == kind] for tensors in lists], kind)
        for kind in dict.fromkeys(kinds)
    ]


def first_non_finite(tensors: Sequence[Tensor]) -> int | None:
    """Return the index of the first tensor with a NaN or an infinity, or None; the host waits once a type.

    The kernel is that of torch's GradScaler, with the scale 1, which leaves every bit as it is.
    """
    plain = [tensor.detach() for tensor in tensors if tensor.is_contiguous()]
    finite = all(bool(tensor.isfinite().all()) for tensor in tensors if not tensor.is_contiguous())
    with torch.no_grad():
        for (part,), (device, _) in by_kind([plain]):
            found, scale = torch.zeros((), device=device), torch.ones((), device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(part, found, scale)
            finite = finite and not bool(found)
    if finite:
        return None
    return next(i for i, tensor in enumerate(tensors) if not bool(tensor.isfinite().all()))
