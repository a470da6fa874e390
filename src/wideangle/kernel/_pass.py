"""A model made ready for its factor pass, and the pass over one chunk of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._builders import builder_for
from wideangle.kernel._capture import Layout, Reroute, arrange, fits, run
from wideangle.kernel._fallback import fallback_structure
from wideangle.kernel._model import Batch, OutputPick, batch_size, check_model, select_parameters
from wideangle.kernel._structures import Structure
from wideangle.kernel.cost import Method, choose_methods, chunk_size

__all__ = [
    "Chunk",
    "Outputs",
    "Setting",
    "collect_chunk",
    "cotangents_for",
    "device_of",
    "prepare",
    "with_reroutes",
]

Outputs = Literal["full", "trace", "sum"] | int


@dataclass(frozen=True)
class Setting:
    """A model made ready: its layout, the logits (rows of `cotangents`), the methods and the chunk size."""

    layout: Layout
    cotangents: Tensor  # (R, C)
    methods: dict[str, Method]
    chunk: int

    @property
    def outputs(self) -> int:
        """How many combinations of logits are differentiated."""
        return len(self.cotangents)


@dataclass(frozen=True)
class Chunk:
    """The structures of one chunk of samples, by layer name; None for a layer that was not called."""

    samples: int
    structures: dict[str, Structure | None]


def cotangents_for(outputs: Outputs, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the rows of combinations of logits to differentiate: all, their sum, or one.

    Raises:
        InputError: the output's number is out of range, or the word is unknown.
    """
    if isinstance(outputs, bool) or not isinstance(outputs, (str, int)):
        raise InputError(f"outputs is {outputs!r}; choose 'full', 'trace', 'sum' or the number of one output")
    if isinstance(outputs, int):
        if not -count <= outputs < count:
            raise InputError(f"outputs={outputs}, but the model has {count} outputs (0 to {count - 1})")
        return torch.eye(count, dtype=dtype, device=device)[outputs][None]
    if outputs == "sum":
        return torch.ones(1, count, dtype=dtype, device=device)
    if outputs in ("full", "trace"):
        return torch.eye(count, dtype=dtype, device=device)
    raise InputError(f"outputs is {outputs!r}; choose 'full', 'trace', 'sum' or the number of one output")


def prepare(
    model: nn.Module,
    first: Batch,
    samples: int,
    *,
    outputs: Outputs,
    output: OutputPick,
    params: Any,
    limit: int,
    rerouted: tuple[str, ...] = (),
) -> Setting:
    """Return a model made ready for its factor pass: checked, probed, with a method for every layer."""
    check_model(model)
    layout = arrange(model, first, output, select_parameters(model, params))
    if rerouted:
        covers = tuple(c for c in layout.covers if not set(c.names) & set(rerouted))
        layout = replace(layout, covers=covers, fallback=layout.fallback + rerouted)
    cotangents = cotangents_for(outputs, layout.outputs, layout.dtype, layout.device)
    trace = outputs != "full"
    methods = choose_methods(layout, samples, len(cotangents), trace, limit)
    chunk = chunk_size(layout, methods, len(cotangents), limit, trace)
    return Setting(layout, cotangents, methods, chunk)


def collect_chunk(setting: Setting, batch: Batch) -> Chunk:
    layout, rows = setting.layout, setting.cotangents
    samples = batch_size(batch)
    structures: dict[str, Structure | None] = {}
    if layout.covers:
        z, calls = run(layout, batch)
        if not bool(torch.isfinite(z).all()):
            raise NumericsError("the model returns non-finite numbers for some samples; scale its inputs")
        astray = [n for c in layout.covers if not fits(c, calls[c.name], samples) for n in c.names]
        if astray:
            raise Reroute(tuple(astray))
        builders = {
            c.name: builder_for(
                c,
                tuple(layout.shape(n) for n in c.names),
                calls[c.name],
                samples,
                len(rows),
                explicit=setting.methods[c.name] == "per-sample",
            )
            for c in layout.covers
            if calls[c.name]
        }
        leaves = [one.z for name in builders for one in calls[name]]
        for r, cotangent in enumerate(rows):
            last = r == len(rows) - 1
            deltas = iter(
                torch.autograd.grad(
                    z, leaves, cotangent.expand_as(z), retain_graph=not last, allow_unused=True
                )
            )
            for name, builder in builders.items():
                builder.add(r, [next(deltas) for _ in calls[name]])
        structures = {c.name: None for c in layout.covers}
        structures.update({name: builder.finish() for name, builder in builders.items()})
    if layout.fallback:
        structures["(other)"] = fallback_structure(layout, batch, rows)
    return Chunk(samples, structures)


def with_reroutes(work: Callable[[tuple[str, ...]], Any]) -> Any:
    """Run `work(rerouted)`, again with more parameters in the fallback when a batch asks for it."""
    rerouted: tuple[str, ...] = ()
    while True:
        try:
            return work(rerouted)
        except Reroute as message:
            rerouted += message.names


def device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError(f"the model ({type(model).__name__}) has no parameters, so it has no tangent kernel")
    return parameter.device
