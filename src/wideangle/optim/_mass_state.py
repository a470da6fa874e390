"""What MaSS keeps between steps, buffers, masters and the last lr, and what acts on it: restart, retuning, w."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from wideangle.optim._mass_parameters import MassParameters
from wideangle.optim._mass_step import by_kind, momentum

__all__ = ["fresh", "iterates", "remember", "restart", "retuned", "started"]

States = Mapping[Tensor, dict[str, Any]]


def started(param: Tensor, precision: torch.dtype | None) -> dict[str, Any]:
    """Return the state of a parameter before its first step: a zero buffer, a master if precisions differ."""
    precision = precision or param.dtype
    state: dict[str, Any] = {
        "momentum_buffer": torch.zeros_like(
            param, dtype=precision, memory_format=torch.preserve_format, requires_grad=False
        )
    }
    if precision != param.dtype:
        state["master"] = param.detach().to(precision, copy=True)
    return state


def remember(group: dict[str, Any], key: str) -> None:
    """Keep the group's lr under `key`; a tensor is copied on its device."""
    lr, held = group["lr"], group.get(key)
    if not isinstance(lr, Tensor):
        group[key] = lr
    elif isinstance(held, Tensor):
        held.copy_(lr.detach())
    else:
        group[key] = lr.detach().clone()


def restart(group: dict[str, Any], states: States) -> None:
    """Zero the group's buffers where lr is below what it was at the last step; a tensor is not read."""
    lr, before, buffers = group["lr"], group.get("restart_below"), _buffers(group, states)
    if before is not None and buffers:
        if isinstance(lr, Tensor) or isinstance(before, Tensor):
            kept = torch.as_tensor(lr >= before)
            for (part,), (device, dtype) in by_kind([buffers]):
                torch._foreach_mul_(part, kept.to(device, dtype))
        elif lr < before:
            torch._foreach_zero_(buffers)
    remember(group, "restart_below")


def fresh(param: Tensor, state: dict[str, Any]) -> Tensor:
    """Return the weights to step on: the master, taken anew where it does not round to the parameter, or that."""
    if (master := state.get("master")) is None:
        return param
    held = param.detach()
    return master.copy_(torch.where(master.to(held.dtype) == held, master, held.to(master.dtype)))


def iterates(group: dict[str, Any], states: States) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter with its w = u + lr gamma c, lr that of the group's last step."""
    if (lr := group.get("last_lr")) is None:
        return
    gamma = momentum(group["alpha"])
    for param in dict.fromkeys(group["params"]):
        if state := states.get(param):
            u = fresh(param, state).detach()
            scale = lr.to(u.device) if isinstance(lr, Tensor) else lr
            yield param, u + state["momentum_buffer"].detach() * (scale * gamma)


def retuned(group: dict[str, Any], states: States, p: MassParameters, smoothness: float | None) -> None:
    """Give a group new parameters; its buffers c = b / gamma are rescaled so that b stays."""
    ratio = momentum(group["alpha"]) / momentum(p.alpha) if p.alpha < 1 else 0.0
    if ratio != 1 and (buffers := _buffers(group, states)):
        torch._foreach_mul_(buffers, ratio)
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(p.lr)
    else:
        group["lr"] = p.lr
    group.update(alpha=p.alpha, kappa_tilde=p.kappa_tilde, smoothness=smoothness)
    if "restart_below" in group:
        remember(group, "restart_below")


def _buffers(group: dict[str, Any], states: States) -> list[Tensor]:
    held = (states.get(param) for param in group["params"])
    return [state["momentum_buffer"] for state in held if state]
