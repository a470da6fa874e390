"""The factor cache: one pass over the data stores what the tangent kernel is made of.

Gram tiles, K v, the diagonal, cross-Grams and per-layer kernels all come from the same factors, which are
hundreds of times smaller than the Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._builders import builder_for
from wideangle.kernel._capture import Layout, Reroute, arrange, fits, run
from wideangle.kernel._fallback import fallback_structure
from wideangle.kernel._model import Batch, OutputPick, batch_size, batches, check_model, select_parameters, take
from wideangle.kernel._structures import Kind, Structure
from wideangle.kernel.cost import Method, choose_methods, chunk_size, memory_limit

__all__ = ["Factors", "Setting", "collect", "cotangents_for", "factors", "prepare"]

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


class Factors:
    """The factors of a tangent kernel: K = J J^T for n samples and C outputs, without J.

    Made by `wideangle.kernel.factors`. Everything is exact; products and tiles read the same cache.

    Attributes:
        samples: n.
        outputs: C, the number of logits (or combinations of logits) differentiated.
        layers: names of the layers that contribute, "(other)" being the generic fallback.
        fallback: the parameters that went through the generic fallback.
        methods: for every layer "factorised" or "per-sample".
    """

    def __init__(self, setting: Setting, chunks: list[Chunk]):
        self._setting = setting
        self._chunks = chunks
        self.samples = sum(chunk.samples for chunk in chunks)
        self.outputs = setting.outputs
        self.layers = tuple(chunks[0].structures)
        self.fallback = setting.layout.fallback
        self.methods = dict(setting.methods)
        self.dtype = setting.layout.dtype
        self.device = setting.layout.device

    def __repr__(self) -> str:
        return (
            f"Factors({self.samples} samples, {self.outputs} outputs, {len(self.layers)} layers, "
            f"{self.nbytes / 2**20:.1f} MiB, {len(self.fallback)} parameters in the fallback)"
        )

    @property
    def nbytes(self) -> int:
        """Bytes held by the cache."""
        return sum(s.nbytes for chunk in self._chunks for s in chunk.structures.values() if s is not None)

    def only(self, layers: str | Sequence[str]) -> Factors:
        """Return the factors of some layers; they share memory with these.

        Args:
            layers: one or several of `self.layers`.

        Raises:
            InputError: a name is not among `self.layers`.
        """
        names = [layers] if isinstance(layers, str) else list(layers)
        missing = [name for name in names if name not in self.layers]
        if missing:
            raise InputError(f"no layer {missing[0]!r}; there are {', '.join(self.layers)}")
        chunks = [replace(c, structures={n: c.structures[n] for n in names}) for c in self._chunks]
        return Factors(self._setting, chunks)

    def gram(
        self, other: Factors | None = None, *, kind: Kind = "full", dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Return the Gram matrix, (n, C, n', C) for "full" or (n, n') summed over outputs for "trace".

        K[i,c,j,d] = <J_ic, J'_jd>;  trace: sum_c K[i,c,j,c]

        Cost: tiles on and below the diagonal where `other` is left out, all tiles otherwise.

        Args:
            other: the second samples' factors, of the same model.
            kind: "full" or "trace".
            dtype: precision of the sums.

        Raises:
            InputError: the two factor sets differ in outputs or layers.
        """
        theirs = self if other is None else other
        if theirs.outputs != self.outputs or theirs.layers != self.layers:
            raise InputError(
                f"the two factor sets differ: {self.outputs} and {theirs.outputs} outputs, layers "
                f"{self.layers} and {theirs.layers}"
            )
        wide = (self.outputs,) if kind == "full" else ()
        result = torch.empty(
            self.samples, *wide, theirs.samples, *wide, dtype=dtype, device=self._setting.layout.device
        )
        columns_axis = len(wide) + 1
        for i, rows in enumerate(_spans(self._chunks)):
            for j, columns in enumerate(_spans(theirs._chunks)):
                if other is None and j > i:
                    continue
                tile = self._tile(self._chunks[i], theirs._chunks[j], kind, dtype)
                result[rows].narrow(columns_axis, columns.start, columns.stop - columns.start).copy_(tile)
                if other is None and j < i:
                    mirror = tile.permute(2, 3, 0, 1) if kind == "full" else tile.T
                    result[columns].narrow(columns_axis, rows.start, rows.stop - rows.start).copy_(mirror)
        return result

    def _tile(self, mine: Chunk, theirs: Chunk, kind: Kind, dtype: torch.dtype) -> Tensor:
        wide = (self.outputs,) if kind == "full" else ()
        total: Tensor | None = None
        for name in self.layers:
            a, b = mine.structures[name], theirs.structures[name]
            if a is not None and b is not None:
                part = a.tile(b, kind, dtype)
                total = part if total is None else total.add_(part)
        if total is None:
            total = torch.zeros(mine.samples, *wide, theirs.samples, *wide, dtype=dtype, device=self.device)
        return total

    def per_layer(self, *, kind: Kind = "full", dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return the kernel of each layer by name; they add up to `gram(kind=kind)`."""
        return {name: self.only(name).gram(kind=kind, dtype=dtype) for name in self.layers}

    def blocks(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the diagonal blocks K[i, :, i, :], shape (n, C, C), without the rest of the kernel."""
        parts = []
        for chunk in self._chunks:
            block = torch.zeros(chunk.samples, self.outputs, self.outputs, dtype=dtype, device=self.device)
            for structure in chunk.structures.values():
                if structure is not None:
                    block += structure.blocks(dtype)
            parts.append(block)
        return torch.cat(parts)

    def diagonal(self, *, kind: Kind = "full", dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the diagonal: (n, C) for "full", (n,) summed over outputs for "trace"."""
        full = self.blocks(dtype).diagonal(dim1=1, dim2=2)
        return full.sum(1) if kind == "trace" else full

    def pull(self, v: Tensor) -> dict[str, Tensor]:
        """Return J^T v by parameter name, each (k, *shape), for v of shape (k, n, C)."""
        total: dict[str, Tensor] = {}
        for rows, chunk in zip(_spans(self._chunks), self._chunks, strict=True):
            for structure in chunk.structures.values():
                if structure is None:
                    continue
                for name, part in zip(structure.names, structure.pull(v[:, rows]), strict=True):
                    total[name] = part if name not in total else total[name].add_(part)
        return total

    def push(self, u: dict[str, Tensor]) -> Tensor:
        """Return J u, shape (k, n, C), for u as `pull` returns it."""
        k, dtype = next((t.shape[0], t.dtype) for t in u.values())
        parts = []
        for chunk in self._chunks:
            part = torch.zeros(k, chunk.samples, self.outputs, dtype=dtype, device=self.device)
            for structure in chunk.structures.values():
                if structure is not None:
                    part += structure.push(tuple(u[name] for name in structure.names))
            parts.append(part)
        return torch.cat(parts, dim=1)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return K v: v (n C,), (n C, k) or (n, C); the product is formed in v's precision.

        Cost: two passes over the factors, about 4 n sum(K O) multiply-adds for each column.
        """
        n, outputs = self.samples, self.outputs
        if v.shape not in {(n * outputs,), (n, outputs)} and (v.dim() != 2 or v.shape[0] != n * outputs):
            raise InputError(
                f"cannot multiply a kernel of {n} samples and {outputs} outputs with shape "
                f"{tuple(v.shape)}; give ({n * outputs},), ({n}, {outputs}) or ({n * outputs}, k)"
            )
        columns = v.reshape(n * outputs, -1).T.reshape(-1, n, outputs)
        product = self.push(self.pull(columns.contiguous()))
        return product.reshape(-1, n * outputs).T.reshape(v.shape)


def _spans(chunks: list[Chunk]) -> list[slice]:
    spans, start = [], 0
    for chunk in chunks:
        spans.append(slice(start, start + chunk.samples))
        start += chunk.samples
    return spans


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
    methods = choose_methods(layout, samples, len(cotangents), trace)
    chunk = chunk_size(layout, methods, len(cotangents), limit, trace)
    return Setting(layout, cotangents, methods, chunk)


def collect(setting: Setting, items: list[Batch]) -> Factors:
    """Return the factors of some batches, chunk by chunk."""
    chunks = []
    for item in items:
        for start in range(0, batch_size(item), setting.chunk):
            chunks.append(_collect_chunk(setting, take(item, slice(start, start + setting.chunk))))
    return Factors(setting, chunks)


def _collect_chunk(setting: Setting, batch: Batch) -> Chunk:
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


def factors(
    model: nn.Module,
    x: Any,
    *,
    outputs: Outputs = "full",
    output: OutputPick = None,
    params: Any = None,
    max_memory: int | None = None,
) -> Factors:
    """Return the factor cache of a model on some data: one pass, then every kernel quantity from it.

    K = sum over layers of (A A^T) * (G G^T): A the layer's inputs, G the gradients of its outputs

    Cost: one forward pass and one data-gradient backward pass per output; memory n sum(K + C O) numbers
    for layers used at one position, against n C P for the Jacobian.

    Args:
        model: any module whose output for a sample does not depend on the other samples. Its state
            (`training`, `.grad`, `requires_grad`, buffers) is left as found.
        x: a tensor (n, ...), a dict of tensors (passed as keywords), or an iterable of those or of
            (x, y) pairs, such as a DataLoader.
        outputs: "full" or "trace" for all C logits, "sum" for their sum, or the number of one.
        output: which part of a tuple, dict or ModelOutput holds the logits: an index, a key or a function.
        params: None for every parameter that requires a gradient; else names (a name includes all below
            it) or a predicate on names.
        max_memory: bytes the cache may take; a quarter of the free memory where left out.

    Returns:
        A `Factors`.

    Raises:
        InputError: random or batch-coupled model, non-finite data or weights, unclear outputs, or the cache
            would not fit.
        NumericsError: the model returns non-finite numbers.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> cache = factors(model, torch.ones(5, 3))
        >>> cache.gram().shape, (cache @ torch.ones(5, 2)).shape
        (torch.Size([5, 2, 5, 2]), torch.Size([5, 2]))

    Reference: Novak, Sohl-Dickstein, Schoenholz 2022 (structured derivatives); the per-layer form is exact.
    """
    items = batches(x, _device_of(model))
    samples = sum(batch_size(item) for item in items)
    limit = memory_limit(max_memory, _device_of(model))

    def work(rerouted: tuple[str, ...]) -> Factors:
        from wideangle.kernel.cost import sample_bytes

        setting = prepare(
            model,
            items[0],
            samples,
            outputs=outputs,
            output=output,
            params=params,
            limit=limit,
            rerouted=rerouted,
        )
        need = samples * sample_bytes(setting.layout, setting.methods, setting.outputs)
        if need > limit:
            raise InputError(
                f"the factors of {samples} samples need about {need / 2**20:.0f} MiB, more than max_memory = "
                f"{limit / 2**20:.0f} MiB; use fewer samples or outputs, or tangent_kernel, which works "
                "in blocks"
            )
        return collect(setting, items)

    return with_reroutes(work)


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError(f"the model ({type(model).__name__}) has no parameters, so it has no tangent kernel")
    return parameter.device
