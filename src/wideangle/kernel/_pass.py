"""A model made ready for its factor pass, and the pass over one chunk of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._builders import builder_for
from wideangle.kernel._capture import Layout, Reroute, agrees, arrange, fits, gradient_of, run
from wideangle.kernel._cover import Call
from wideangle.kernel._fallback import fallback_structure
from wideangle.kernel._model import Batch, OutputPick, batch_size, check_model, explained, select_parameters
from wideangle.kernel._structures import Structure, joined
from wideangle.kernel.cost import BLOCK, Method, choose_methods, chunk_size
from wideangle.seeds import generator

__all__ = [
    "Chunk",
    "Outputs",
    "Setting",
    "collect_chunk",
    "cotangents_for",
    "device_of",
    "prepare",
    "random_outputs",
    "with_reroutes",
]

Outputs = Literal["full", "trace", "sum"] | int | Sequence[int] | Tensor
MOST_OUTPUTS = 2048


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

    def fits(self, other: Setting) -> bool:
        """True where factors of both can be multiplied: the same parameters, shapes and outputs."""
        mine, theirs = (
            [(n, s.layout.shape(n)) for c in s.layout.covers for n in c.names]
            + [(n, s.layout.shape(n)) for n in s.layout.fallback]
            for s in (self, other)
        )
        return mine == theirs and torch.equal(self.cotangents, other.cotangents)


@dataclass(frozen=True)
class Chunk:
    """The structures of one chunk of samples, by layer name; None for a layer that was not called."""

    samples: int
    structures: dict[str, Structure | None]

    def part(self, rows: slice) -> Chunk:
        """Return the structures of some of the samples, sharing memory."""
        cut = {name: None if s is None else s.part(rows) for name, s in self.structures.items()}
        return Chunk(len(range(self.samples)[rows]), cut)

    @staticmethod
    def joined(parts: list[Chunk]) -> Chunk | None:
        """Return several chunks as one, or None where a layer comes in different forms."""
        found: dict[str, Structure | None] = {}
        for name in parts[0].structures:
            held = [part.structures[name] for part in parts]
            if all(one is None for one in held):
                found[name] = None
                continue
            there = [one for one in held if one is not None]
            whole = joined(there) if len(there) == len(held) else None
            if whole is None:
                return None
            found[name] = whole
        return Chunk(sum(part.samples for part in parts), found)

    def own(self) -> Chunk:
        """Return the structures with memory of their own."""
        return Chunk(self.samples, {n: None if s is None else s.own() for n, s in self.structures.items()})

    def to(self, dtype: torch.dtype) -> Chunk:
        """Return the structures in another precision."""
        return Chunk(
            self.samples, {n: None if s is None else s.to(dtype) for n, s in self.structures.items()}
        )


def cotangents_for(outputs: Outputs, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the rows of combinations of logits to differentiate, (R, C): all, their sum, some, or those given.

    Raises:
        InputError: an output's number is out of range, the word is unknown, rows that do not fit, or "full"
            or "trace" with more than `MOST_OUTPUTS` logits.
    """
    if isinstance(outputs, np.ndarray):
        outputs = torch.as_tensor(outputs)
    if isinstance(outputs, np.integer):
        outputs = int(outputs)
    if isinstance(outputs, Tensor) and outputs.is_floating_point():
        finite = outputs.dim() == 2 and len(outputs) > 0 and bool(torch.isfinite(outputs).all())
        if not finite or outputs.shape[1] != count:
            raise InputError(
                f"outputs is a tensor of shape {tuple(outputs.shape)}; rows of combinations must be finite and of "
                f"shape (R, {count})"
            )
        return outputs.detach().to(device, dtype)
    if isinstance(outputs, str):
        return _named_rows(outputs, count, dtype, device)
    chosen: list[int] = []
    if isinstance(outputs, int) and not isinstance(outputs, bool):
        chosen = [outputs]
    elif isinstance(outputs, Sequence) or (isinstance(outputs, Tensor) and outputs.dim() == 1):
        listed = outputs.tolist() if isinstance(outputs, Tensor) else list(outputs)
        whole = all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in listed)
        chosen = [int(one) for one in listed] if whole else []
    if not chosen:
        raise InputError(
            f"outputs is {outputs!r}; choose 'full', 'trace', 'sum', the number of one output, several numbers, or "
            "rows (R, C) such as kernel.random_outputs gives"
        )
    rows = torch.zeros(len(chosen), count, dtype=dtype, device=device)
    for row, one in enumerate(chosen):
        if not -count <= one < count:
            raise InputError(f"outputs={one}, but the model has {count} outputs (0 to {count - 1})")
        rows[row, one] = 1.0
    return rows


def _named_rows(outputs: str, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if outputs == "sum":
        return torch.ones(1, count, dtype=dtype, device=device)
    if outputs not in ("full", "trace"):
        raise InputError(f"outputs is {outputs!r}; choose 'full', 'trace', 'sum' or the number of one output")
    if count > MOST_OUTPUTS:
        raise InputError(
            f"the model has {count} outputs a sample, and {outputs!r} takes one backward pass for each; choose some "
            f"(outputs=[0, 5, 7]), or random ones (outputs=kernel.random_outputs({count}, 32))"
        )
    return torch.eye(count, dtype=dtype, device=device)


def random_outputs(count: int, rows: int, seed: int = 0) -> Tensor:
    """Return random combinations of C logits, (rows, C), for a model with too many to take each.

        entries +-1 / sqrt(rows):   E sum_r <J_i^T u_r, J_j^T u_r> = sum_c K[i, c, j, c]

    The trace kernel from `factors(model, x, outputs=random_outputs(C, r)).gram(kind="trace")` is unbiased;
    its variance falls as 1 / rows (twice the squared Frobenius norm of the symmetrised C x C block without
    its diagonal, over rows).

    Args:
        count: C.
        rows: how many combinations, each one backward pass.
        seed: of the signs.

    Raises:
        InputError: a count or a number of rows below 1.

    Example:
        >>> random_outputs(50000, 8).shape
        torch.Size([8, 50000])

    Reference: Hutchinson 1990 (trace estimation), over the outputs.
    """
    if count < 1 or rows < 1:
        raise InputError(f"count={count} and rows={rows} must be at least 1")
    signs = torch.randint(0, 2, (rows, count), generator=generator(seed, "kernel", "outputs"))
    return (2.0 * signs - 1.0) / rows**0.5


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
    needs_factors: bool = True,
    together: int = BLOCK,
) -> Setting:
    """Return a model made ready for its factor pass: checked, probed, with a method for every layer.

    `together` is how many samples' factors must fit `limit` at once, see `choose_methods`.

    Raises:
        InputError: as for `factors`; also where one sample's factors exceed `limit` and `needs_factors`.
    """
    check_model(model)
    layout = arrange(model, first, output, select_parameters(model, params))
    if rerouted:
        covers = tuple(c for c in layout.covers if not set(c.names) & set(rerouted))
        layout = replace(layout, covers=covers, fallback=layout.fallback + rerouted)
    cotangents = cotangents_for(outputs, layout.outputs, layout.dtype, layout.device)
    trace = isinstance(outputs, str) and outputs != "full"
    methods = choose_methods(layout, samples, len(cotangents), trace, limit, together)
    try:
        chunk = chunk_size(layout, methods, len(cotangents), limit)
    except InputError:
        if needs_factors:
            raise
        chunk = 1
    return Setting(layout, cotangents, methods, chunk)


def collect_chunk(setting: Setting, batch: Batch) -> Chunk:
    layout, rows = setting.layout, setting.cotangents
    samples = batch_size(batch)
    structures: dict[str, Structure | None] = {}
    if layout.covers:
        structures = _covered(setting, batch, samples)
    if layout.fallback:
        structures["(other)"] = fallback_structure(layout, batch, rows)
    return Chunk(samples, structures)


def _covered(setting: Setting, batch: Batch, samples: int) -> dict[str, Structure | None]:
    """Return the structures of the covered layers, checked against autograd on this very chunk."""
    layout = setting.layout
    mine = {name for cover in layout.covers for name in cover.names}
    given = {n: p.detach().requires_grad_() if n in mine else p for n, p in layout.parameters.items()}
    with explained(batch):
        z, calls = run(layout, batch, given)
    if not bool(torch.isfinite(z).all()):
        raise NumericsError("the model returns non-finite numbers for some samples; scale its inputs")
    astray = [n for c in layout.covers if not fits(c, calls[c.name], samples) for n in c.names]
    if astray:
        raise Reroute(tuple(astray))
    rows = setting.cotangents.to(z.dtype)
    weights = torch.randn(samples, len(rows), generator=generator(0, "factors", "check")).to(z)
    with torch.enable_grad():
        checked = (z * (weights @ rows)).sum()
    names = sorted(mine)
    expected = dict(zip(names, gradient_of(checked, [given[name] for name in names]), strict=True))
    structures = _structures(setting, z, rows, calls, samples)
    total = max((float(g.norm()) for g in expected.values() if g is not None), default=0.0)
    for cover in layout.covers:
        structure = structures[cover.name]
        if structure is None:
            wrong = any(expected[name] is not None for name in cover.names)
        else:
            predicted = structure.pull(weights[None])
            wrong = not all(
                agrees(p[0], expected[name], total, layout.precision)
                for name, p in zip(cover.names, predicted, strict=True)
            )
        if wrong:
            astray += cover.names
    if astray:
        raise Reroute(tuple(astray))
    return structures


def _structures(
    setting: Setting, z: Tensor, rows: Tensor, calls: dict[str, list[Call]], samples: int
) -> dict[str, Structure | None]:
    """Return what every covered layer contributes: one backward pass for each row of cotangents."""
    layout = setting.layout
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
    for r, row in enumerate(rows):
        with torch.enable_grad():
            value = (z * row).sum()
        deltas = iter(gradient_of(value, leaves))
        for name, builder in builders.items():
            builder.add(r, [next(deltas) for _ in calls[name]])
    structures: dict[str, Structure | None] = {c.name: None for c in layout.covers}
    for name in list(builders):  # each gives back its gradients when it is done
        structures[name] = builders.pop(name).finish()
    return structures


def with_reroutes(work: Callable[[tuple[str, ...]], Any]) -> Any:
    """Run `work(rerouted)`, again with more parameters in the fallback when a batch asks for it."""
    rerouted: tuple[str, ...] = ()
    while True:
        try:
            return work(rerouted)
        except Reroute as message:
            rerouted += message.names


def device_of(model: nn.Module) -> torch.device:
    """Return where a model lies.

    Raises:
        InputError: it is no module, has no parameters, or lies on no device that holds numbers.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError(f"the model ({type(model).__name__}) has no parameters, so it has no tangent kernel")
    if parameter.is_meta:
        raise InputError("the model lies on the meta device, which holds no numbers; load its weights first")
    return parameter.device
