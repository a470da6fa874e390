"""One forward pass that remembers, per layer, its inputs and a handle on the gradient of its outputs.

The layout is found by a probe on a few samples: which parameters a layer's rule accounts for completely.
The probe compares, for a random direction of the first sample's logits, the gradient the rules predict with
the one autograd gives. A parameter used anywhere else (tied weights, a bare functional call, a layer that
mixes samples) fails it and goes to the exact generic fallback; so does a layer whose first dimension is
not the sample. Hooks return a copy of the layer's output, so an in-place activation behind it cannot
overwrite what was remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._builders import builder_for
from wideangle.kernel._cover import Call, Cover
from wideangle.kernel._model import (
    Batch,
    OutputPick,
    batch_size,
    call,
    copied,
    explained,
    logits,
    plain_attention,
    take,
)
from wideangle.kernel.layers import rule_for

__all__ = ["Layout", "Reroute", "agrees", "arrange", "fits", "gradient_of", "rounding", "run"]

_PROBE_SAMPLES = 4


@dataclass(frozen=True)
class Layout:
    """Which parameters of a model are handled by a layer's rule and which by the generic fallback."""

    model: nn.Module
    output: OutputPick
    outputs: int
    covers: tuple[Cover, ...]
    fallback: tuple[str, ...]
    activation_bytes: int
    parameters: dict[str, Tensor] = field(repr=False)
    positions: dict[str, int] = field(default_factory=dict)
    precision: torch.dtype = torch.float64  # the coarsest on the way from the weights to the logits

    @property
    def dtype(self) -> torch.dtype:
        """The precision the model computes in."""
        return next(p.dtype for p in self.parameters.values() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """The device the model lies on."""
        return next(iter(self.parameters.values())).device

    def shape(self, name: str) -> torch.Size:
        """The shape of a parameter."""
        return self.parameters[name].shape


class Reroute(Exception):  # noqa: N818 - a message between two functions, not an error
    """A later batch used a layer in a way its rule does not cover: these parameters need the fallback."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        super().__init__(", ".join(names))


@contextmanager
def _recording(covers: tuple[Cover, ...]) -> Iterator[dict[str, list[Call]]]:
    calls: dict[str, list[Call]] = {cover.name: [] for cover in covers}

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
            a = args[0] if args else next(iter(kwargs.values()))
            if not isinstance(out, Tensor) or not isinstance(a, Tensor):
                return out
            z = out if out.requires_grad else out.detach().requires_grad_()
            calls[name].append(Call(a.detach(), z))
            return z.clone()

        return hook

    with ExitStack() as stack:
        for cover in covers:
            handle = cover.module.register_forward_hook(hook_for(cover.name), with_kwargs=True)
            stack.callback(handle.remove)
        yield calls


def run(
    layout: Layout, batch: Batch, parameters: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, list[Call]]]:
    """Return the logits (b, C) with their graph, and the calls of every covered layer."""
    samples = batch_size(batch)
    state = layout.parameters if parameters is None else parameters
    own = copied(batch)  # a model may change its input in place
    with torch.enable_grad(), plain_attention(), _recording(layout.covers) as calls:
        z = logits(call(layout.model, state, own), layout.output, samples)
    return z, calls


def _candidates(model: nn.Module, chosen: list[str]) -> tuple[Cover, ...]:
    names = {id(parameter): name for name, parameter in model.named_parameters() if name in chosen}
    covers = []
    for name, module in model.named_modules():
        rule = rule_for(module)
        if rule is None or not set(module._parameters) <= {"weight", "bias"}:
            continue
        found: dict[str, str | None] = {"weight": None, "bias": None}
        for local, parameter in module._parameters.items():
            full = names.get(id(parameter))
            if full is not None and full.rpartition(".")[2] == local:
                found[local] = full
        if found["weight"] or found["bias"]:
            covers.append(Cover(name, module, rule, found["weight"], found["bias"]))
    return tuple(covers)


def _unshared(covers: Iterable[Cover], calls: Mapping[str, list[Call]]) -> Iterator[Cover]:
    """Leave a parameter of several layers to the only one that was called, or to none; the order is kept."""
    covers = list(covers)
    holders = Counter(name for cover in covers for name in cover.names)
    users = Counter(name for cover in covers if calls[cover.name] for name in cover.names)
    for cover in covers:
        own = {n for n in cover.names if holders[n] == 1 or (calls[cover.name] and users[n] == 1)}
        weight, bias = (name if name in own else None for name in (cover.weight, cover.bias))
        yield replace(cover, weight=weight, bias=bias)


def fits(cover: Cover, calls: list[Call], samples: int) -> bool:
    """True where every call has the sample along its first dimension, as the rule needs."""
    least = 1 if cover.rule.lookup else 2
    return all(
        one.a.dim() >= least and one.a.shape[0] == samples and one.z.shape[0] == samples for one in calls
    )


def arrange(model: nn.Module, batch: Batch, output: OutputPick, chosen: list[str]) -> Layout:
    """Return the layout of a model, found by a probe on the first samples of `batch`.

    Raises:
        InputError: the output of a sample depends on the other samples, or is random.
        NumericsError: the model returns non-finite numbers.
    """
    probe = take(batch, slice(0, _PROBE_SAMPLES))
    samples = batch_size(probe)
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    covers = _candidates(model, chosen)
    layout = Layout(model, output, 1, covers, (), 0, {n: p.detach() for n, p in parameters.items()})
    leaves_by_name = {
        name: p.detach().requires_grad_() if name in chosen else p.detach() for name, p in parameters.items()
    }
    with explained(probe):
        z, calls = run(layout, probe, leaves_by_name)
    if not bool(torch.isfinite(z).all()):
        raise NumericsError("the model returns non-finite numbers; scale its inputs or re-initialise it")
    layout = replace(layout, precision=_coarsest(z))
    _check_uncoupled(layout, probe, z)
    direction = torch.linspace(0.7, 1.3, z.shape[1], device=device, dtype=z.dtype)
    leaves = [one.z for uses in calls.values() for one in uses]
    wanted = [leaves_by_name[name] for name in chosen]
    with torch.enable_grad():
        first, last = (z[0] * direction).sum(), (z[-1] * direction).sum()
    gradients = gradient_of(first, leaves + wanted)
    by_call = iter(gradients[: len(leaves)])
    by_call_last = iter(gradient_of(last, leaves))
    _check_no_hidden_use(model, first)
    by_name = dict(zip(chosen, gradients[len(leaves) :], strict=True))
    kept, positions = [], {}
    for cover in _unshared(covers, calls):
        uses = calls[cover.name]
        deltas, others = [next(by_call) for _ in uses], [next(by_call_last) for _ in uses]
        apart = samples == 1 or (_only_row(deltas, 0) and _only_row(others, samples - 1))
        if cover.names and apart and _accounts_for(cover, uses, deltas, by_name, samples, layout.precision):
            kept.append(cover)
            positions[cover.name] = _positions(cover, uses)
    covered = {name for cover in kept for name in cover.names}
    activation = sum(one.z.nbytes + one.a.nbytes for uses in calls.values() for one in uses) // samples
    return replace(
        layout,
        outputs=z.shape[1],
        covers=tuple(kept),
        fallback=tuple(name for name in chosen if name not in covered),
        activation_bytes=activation,
        positions=positions,
    )


def gradient_of(value: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of a scalar, None where it does not depend on an input; the graph is kept."""
    if not inputs or not value.requires_grad:
        return (None,) * len(inputs)
    return torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)


def _check_no_hidden_use(model: nn.Module, value: Tensor) -> None:
    """Refuse a model that reaches a parameter by a way round its modules, where no copy can take its place."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in zip(named, gradient_of(value, list(named.values())), strict=True):
        if gradient is not None:
            raise InputError(
                f"parameter {name!r} is also used through a reference that is no attribute of a module (a list or "
                "a closure), which cannot be followed; store it as a module attribute or in a ParameterList"
            )


def _coarsest(z: Tensor) -> torch.dtype:
    """Return the coarsest precision in the graph of `z`: models round some steps more coarsely than the rest."""
    found, seen, queue = {z.dtype}, set(), [z.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found |= {entry.dtype for entry in getattr(node, "_input_metadata", ())}
        queue += [before for before, _ in node.next_functions]
    return max((kind for kind in found if kind.is_floating_point), key=rounding)


def rounding(precision: torch.dtype) -> float:
    """How far two ways of computing the same numbers may lie apart."""
    return {torch.float64: 1e-8, torch.float32: 1e-3}.get(precision, 0.1)


def agrees(predicted: Tensor, actual: Tensor | None, total: float, precision: torch.dtype) -> bool:
    """True where a predicted gradient equals autograd's, up to rounding on the scale of all gradients."""
    tolerance = rounding(precision)
    actual = torch.zeros_like(predicted) if actual is None else actual
    return bool((predicted - actual).norm() <= tolerance * actual.norm() + tolerance * 1e-3 * total)


def _only_row(deltas: Sequence[Tensor | None], row: int) -> bool:
    """True where the gradient of sample `row` is zero in all other rows: the first dimension is the sample."""
    for delta in deltas:
        if delta is not None and (delta.dim() == 0 or row >= delta.shape[0]):
            return False
        if delta is not None and bool((delta[:row] != 0).any() | (delta[row + 1 :] != 0).any()):
            return False
    return True


def _positions(cover: Cover, uses: list[Call]) -> int:
    if cover.rule.cotangents is None:
        return 1
    return sum(cover.rule.cotangents(cover.module, one.z.detach()[:1]).shape[2] for one in uses)


def _check_uncoupled(layout: Layout, probe: Batch, z: Tensor) -> None:
    """Refuse a model whose output for a sample changes from call to call, or with its company."""
    same = torch.arange(batch_size(probe), device=z.device)
    _check_same(layout, probe, z, same, "from one call to the next; it is random (switch dropout off)")
    company = "with the other samples of its batch; it is batch-coupled (BatchNorm: call model.eval())"
    for rows in (torch.zeros_like(same), same.flip(0)):
        _check_same(layout, probe, z[rows], rows, company)


def _check_same(layout: Layout, probe: Batch, expected: Tensor, rows: Tensor, reason: str) -> None:
    with torch.enable_grad(), plain_attention():  # a model may differentiate inside its forward pass
        raw = call(layout.model, layout.parameters, take(probe, rows))
    again = logits(raw, layout.output, len(rows)).detach()
    tolerance = min(rounding(layout.precision), 2e-2)
    change = (again - expected.detach()).abs().max()
    # a change that is no number (statistics of equal samples divided by zero) is a change too
    if not bool(change <= tolerance * expected.detach().abs().max().clamp_min(1e-12)):
        raise InputError(
            f"the model's output for a sample changes by {float(change):.3g} {reason}, so it has no tangent "
            "kernel"
        )


def _accounts_for(
    cover: Cover,
    uses: list[Call],
    deltas: Sequence[Tensor | None],
    gradients: Mapping[str, Tensor | None],
    samples: int,
    precision: torch.dtype,
) -> bool:
    """True where the rule reproduces autograd's gradient of the probe for every parameter of the layer."""
    if not fits(cover, uses, samples):
        return False
    shapes = tuple(cover.module._parameters[n.rpartition(".")[2]].shape for n in cover.names)  # type: ignore[union-attr]
    if not uses:
        return all(gradients[name] is None for name in cover.names)
    builder = builder_for(cover, shapes, uses, samples, 1, explicit=False)
    builder.add(0, deltas)
    structure = builder.finish()
    ones = torch.ones(1, samples, 1, dtype=uses[0].z.dtype, device=uses[0].z.device)
    total = max((float(g.norm()) for g in gradients.values() if g is not None), default=0.0)
    return all(
        agrees(predicted[0], gradients[name], total, precision)
        for name, predicted in zip(cover.names, structure.pull(ones), strict=True)
    )
