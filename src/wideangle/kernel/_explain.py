"""The plan of a kernel before it is computed: method, multiply-adds and bytes of every layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from wideangle.kernel._factors import TILE
from wideangle.kernel._model import OutputPick, batch_size, batches, largest
from wideangle.kernel._pass import Outputs, Setting, device_of, prepare
from wideangle.kernel._structures import Kind
from wideangle.kernel.cost import HELD, Machine, layer_bytes, machine, memory_limit, sample_bytes, work
from wideangle.result import Provenance, Result

__all__ = ["Explanation", "explain"]

_COLUMNS = ("layer", "type", "positions", "parameters", "method", "to form", "Gram", "memory")


@dataclass(frozen=True)
class Explanation(Result):
    """How a kernel would be computed; nothing was run but a probe on four samples.

    `layers` has one row a layer: name, type, positions, parameters, method, multiply-adds of the factors
    beyond the backward passes, multiply-adds of the Gram matrix, bytes of factors. `fallback` names the
    parameters without a rule; `seconds` is products and bytes by the machine's measured rates, without the
    forward and backward passes.
    """

    kind: str = "full"
    samples: int = 0
    outputs: int = 0
    layers: list[list[Any]] = field(default_factory=list, repr=False)
    fallback: list[str] = field(default_factory=list)
    backward_passes: int = 0
    samples_a_pass: int = 0
    samples_a_tile: int = 0
    multiply_adds: float = 0.0
    factor_bytes: float = 0.0
    result_bytes: float = 0.0
    memory_limit: float = 0.0
    fits: bool = True
    seconds: float = 0.0

    def __str__(self) -> str:
        cells: list[list[str]] = [list(_COLUMNS)]
        for name, kind, positions, parameters, method, factors, gram, held in self.layers:
            numbers = [_count(factors), _count(gram), _bytes(held)]
            cells.append([name, kind, f"{positions:,}", f"{parameters:,}", method, *numbers])
        widths = [max(len(row[k]) for row in cells) for k in range(len(_COLUMNS))]
        lines = [
            "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        where = (
            "kept at once" if self.fits else f"more than {_bytes(self.memory_limit)}: blocks, passed again"
        )
        shown = ", ".join(self.fallback[:6]) + (" ..." if len(self.fallback) > 6 else "")
        lines += [
            "",
            '"to form" and "Gram" are multiply-adds: of per-sample gradients, and of the kernel from the factors.',
            f"{self.kind} kernel of {self.samples:,} samples and {self.outputs:,} outputs: {_bytes(self.result_bytes)}",
            f"  backward passes   {self.backward_passes:,} of {self.samples_a_pass} samples each, one a logit and pass",
            f"  multiply-adds     {_count(self.multiply_adds)} beyond them, in tiles of {self.samples_a_tile} samples",
            f"  factors           {_bytes(self.factor_bytes)}, {where}",
            f"  fallback          {shown or 'none: every parameter has a rule'}",
            f"  time              about {self.seconds:.2g} s for these products, without the passes",
        ]
        return "\n".join(lines)


@torch.inference_mode(False)
def explain(
    model: nn.Module,
    x: Any,
    *,
    outputs: Outputs = "full",
    output: OutputPick = None,
    params: Any = None,
    max_memory: int | None = None,
) -> Explanation:
    """Return how the tangent kernel of a model on some data would be computed, without computing it.

    "factorised" keeps a layer's inputs and output gradients, "per-sample" its per-sample gradients,
    "fallback" per-sample Jacobians by the generic way. The choice is by multiply-adds and bytes moved
    (`wideangle.kernel.cost`), in the exchange rate that a micro-benchmark of this machine found. A layer just
    below a linear head may turn out C times cheaper when its gradients are seen.

    Cost: a probe on four samples and 30 ms of benchmark, once a process.

    Args:
        model: any module.
        x: the n inputs of the kernel.
        outputs: as for `tangent_kernel`.
        output: which part of a tuple, dict or ModelOutput holds the logits.
        params: parameters to differentiate by.
        max_memory: bytes for factors and result; a quarter of the free memory where left out.

    Raises:
        InputError: as for `tangent_kernel`, but a kernel that does not fit is explained all the same.

    Example:
        >>> plan = explain(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(6, 3))
        >>> [row[4] for row in plan.layers], plan.fallback
        (['factorised', 'factorised'], [])
    """
    device = device_of(model)
    items, limit = batches(x, device), memory_limit(max_memory, device)
    samples = sum(batch_size(item) for item in items)
    setting = prepare(
        model,
        largest(items),
        samples,
        outputs=outputs,
        output=output,
        params=params,
        limit=limit,
        needs_factors=False,
    )
    kind: Kind = "trace" if isinstance(outputs, str) and outputs == "trace" else "full"
    return _explained(setting, samples, kind, limit, machine(device, setting.layout.dtype))


def _explained(setting: Setting, samples: int, kind: Kind, limit: int, rates: Machine) -> Explanation:
    layout, outputs = setting.layout, setting.outputs
    rows: list[list[Any]] = []
    moved = 0.0
    for cover in layout.covers:
        method = setting.methods[cover.name]
        cost = work(cover, layout, method, samples, outputs, kind == "trace")
        moved += cost.moved
        parameters = sum(layout.shape(name).numel() for name in cover.names)
        held = samples * layer_bytes(cover, layout, method, outputs)
        positions = max(1, layout.positions[cover.name])
        kinds = type(cover.module).__name__
        rows.append(
            [cover.name or kinds, kinds, positions, parameters, method, cost.factors, cost.gram, held]
        )
    for name in layout.fallback:
        count = layout.shape(name).numel()
        gram = samples**2 / 2 * count * (outputs if kind == "trace" else outputs**2)
        held = samples * outputs * count * layout.dtype.itemsize
        rows.append([name, "parameter", 1, count, "fallback", 0.0, gram, held])
    total = sum(row[5] + row[6] for row in rows)
    wide = 1 if kind == "trace" else outputs**2
    need = samples * sample_bytes(layout, setting.methods, outputs)
    return Explanation(
        kind=kind,
        samples=samples,
        outputs=outputs,
        layers=rows,
        fallback=list(layout.fallback),
        backward_passes=outputs * -(-samples // setting.chunk),
        samples_a_pass=min(setting.chunk, samples),
        samples_a_tile=min(TILE[kind], samples),
        multiply_adds=total,
        factor_bytes=need,
        result_bytes=samples**2 * wide * 8,
        memory_limit=limit,
        fits=need <= HELD * (limit - samples**2 * wide * 8),
        seconds=total / rates.multiply_adds + moved / rates.bytes,
        provenance=Provenance.here(device=str(layout.device)),
    )


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    for unit, size in (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"
