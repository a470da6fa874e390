"""What each layer type contributes: how its input and its output gradient enter the weight gradient.

A rule turns one call of a module into positions and cotangents (weights shared over positions), or into
the per-sample gradient itself (normalisation layers). Everything without a rule goes through the exact
generic fallback, so adding a rule only makes things faster, never different. Layers of other libraries are
known by their names, without importing them; like every rule, theirs is checked against autograd.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["Rule", "rule_for"]


@dataclass(frozen=True)
class Rule:
    """How one layer type enters the tangent kernel.

    `positions(module, a)` gives (g, b, T, K) from the layer's input, `cotangents(module, dz)` gives
    (g, b, T, O) from the gradient of its output; for `lookup` the positions are token ids, and a `transposed`
    weight is (K, O). A rule with `gradient` instead returns the per-sample gradients of (weight, bias) directly.
    """

    positions: Callable[[nn.Module, Tensor], Tensor] | None = None
    cotangents: Callable[[nn.Module, Tensor], Tensor] | None = None
    gradient: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    lookup: bool = False
    transposed: bool = False


def _linear_positions(module: nn.Module, a: Tensor) -> Tensor:
    return a.reshape(1, a.shape[0], -1, a.shape[-1])


def _linear_cotangents(module: nn.Module, dz: Tensor) -> Tensor:
    return dz.reshape(1, dz.shape[0], -1, dz.shape[-1])


def _conv_positions(module: nn.Module, a: Tensor) -> Tensor:
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    pad = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if any(pad):
        a = F.pad(a, pad, mode=mode)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if isinstance(module, nn.Conv1d):
        a, kernel, stride, dilation = a.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    patches = F.unfold(a, kernel, dilation=dilation, stride=stride)
    return patches.unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2)


def _conv_cotangents(module: nn.Module, dz: Tensor) -> Tensor:
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    return dz.flatten(2).unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2)


def _embedding_positions(module: nn.Module, tokens: Tensor) -> Tensor:
    assert isinstance(module, nn.Embedding)
    flat = tokens.reshape(1, tokens.shape[0], -1, 1)
    if module.padding_idx is not None:
        flat = torch.where(flat == module.padding_idx, torch.full_like(flat, -1), flat)
    return flat


def _sum_to(per_sample: Tensor, shape: torch.Size, channel_first: bool) -> Tensor:
    """Sum (b, ...) over positions so that (b, *shape) is left."""
    if channel_first:
        return per_sample.flatten(2).sum(2) if per_sample.dim() > 2 else per_sample
    extra = per_sample.dim() - 1 - len(shape)
    return per_sample.sum(tuple(range(1, 1 + extra))) if extra else per_sample


def _norm_gradient(normalised: Callable[[nn.Module, Tensor], Tensor], channel_first: bool):
    def gradient(module: nn.Module, a: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
        own = module.weight if module.weight is not None else module.bias
        assert isinstance(own, Tensor)
        shape = own.shape
        scale = _sum_to(dz * normalised(module, a), shape, channel_first)
        return scale, _sum_to(dz, shape, channel_first)

    return gradient


def _layer_norm(module: nn.Module, a: Tensor) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    return F.layer_norm(a, module.normalized_shape, None, None, module.eps)


def _rms_norm(module: nn.Module, a: Tensor) -> Tensor:
    assert isinstance(module, nn.RMSNorm)
    return F.rms_norm(a, module.normalized_shape, None, module.eps)


def _group_norm(module: nn.Module, a: Tensor) -> Tensor:
    assert isinstance(module, nn.GroupNorm)
    return F.group_norm(a, module.num_groups, None, None, module.eps)


def _batch_norm(module: nn.Module, a: Tensor) -> Tensor:
    assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    return F.batch_norm(a, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)


def _at_weight(module: nn.Module, value: float, a: Tensor) -> Tensor:
    """Return a layer's output with `value` for all of its weight; the layer and its hooks are left alone."""
    bare = copy.copy(module)
    weight = module._parameters["weight"]
    assert weight is not None
    bare.__dict__["_parameters"] = {"weight": torch.full_like(weight, value)}
    bare.__dict__["_buffers"] = {n: b if b is None else b.clone() for n, b in module._buffers.items()}
    return bare.forward(a.clone())


@torch.no_grad()
def _foreign_gradient(module: nn.Module, a: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of a weight that enters linearly: w * n(x) and (1 + w) * n(x) alike."""
    weight = module._parameters["weight"]
    assert weight is not None
    factor = dz * (_at_weight(module, 1.0, a) - _at_weight(module, 0.0, a))
    if factor.shape[-1:] != weight.shape:  # it scales another dimension: autograd will not agree with zeros
        factor = factor.new_zeros(len(a), *weight.shape)
    scale = _sum_to(factor, weight.shape, channel_first=False)
    return scale, scale.new_zeros(scale.shape)


_LINEAR = Rule(_linear_positions, _linear_cotangents)
_CONV = Rule(_conv_positions, _conv_cotangents)
_TRANSPOSED_LINEAR = Rule(_linear_positions, _linear_cotangents, transposed=True)
_FOREIGN_NORM = Rule(gradient=_foreign_gradient)
_BATCH_NORM = Rule(gradient=_norm_gradient(_batch_norm, channel_first=True))

_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _LINEAR,
    nn.Conv1d: _CONV,
    nn.Conv2d: _CONV,
    nn.Embedding: Rule(_embedding_positions, _linear_cotangents, lookup=True),
    nn.LayerNorm: Rule(gradient=_norm_gradient(_layer_norm, channel_first=False)),
    nn.RMSNorm: Rule(gradient=_norm_gradient(_rms_norm, channel_first=False)),
    nn.GroupNorm: Rule(gradient=_norm_gradient(_group_norm, channel_first=True)),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
}


def rule_for(module: nn.Module) -> Rule | None:
    """Return the rule of a module, or None where only the generic fallback is exact.

    A subclass counts as its base only while it keeps the base's `forward`.
    """
    for base, rule in _RULES.items():
        if isinstance(module, base) and type(module).forward is base.forward:
            return rule
    return _foreign_rule(module)


def _foreign_rule(module: nn.Module) -> Rule | None:
    """Return the rule of a layer as model libraries write their own: GPT-2's Conv1D, norms that only scale."""
    name = type(module).__name__
    dimensions = {local: p.dim() for local, p in module._parameters.items() if p is not None}
    known = type(module).__module__.partition(".")[0] == "transformers"
    if known and name == "Conv1D" and dimensions == {"weight": 2, "bias": 1}:  # x @ weight + bias
        return _TRANSPOSED_LINEAR
    if name.endswith("Norm") and dimensions == {"weight": 1}:  # RMSNorm under its many names
        alone = len(inspect.signature(type(module).forward).parameters) == 2
        return _FOREIGN_NORM if alone else None
    return None
