"""The factor cache: one pass over the data stores what the tangent kernel is made of.

Gram tiles, K v, the diagonal, cross-Grams and per-layer kernels all come from the same factors, which are
hundreds of times smaller than the Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.errors import InputError
from wideangle.kernel._model import Batch, OutputPick, batch_size, batches, largest, take
from wideangle.kernel._pass import Chunk, Outputs, Setting, collect_chunk, device_of, prepare, with_reroutes
from wideangle.kernel._structures import Kind, add_tile
from wideangle.kernel.cost import BLOCK, memory_limit, pass_bytes, sample_bytes

__all__ = ["TILE", "Factors", "as_vector", "collect", "factors", "fitting", "measured_bytes", "needed_bytes"]

TILE: dict[Kind, int] = {"trace": 256, "full": 64}  # samples on a side: what stays in cache
_JOINED = 256  # samples of a chunk that fills a tile
_CONVERTED_BYTES = 512 * 2**20


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

    def rows(self, start: int, stop: int) -> Factors:
        """Return the factors of the samples from `start` to `stop`; they share memory with these."""
        chunks, first = [], 0
        for chunk in self._chunks:
            a, b = max(start - first, 0), min(stop - first, chunk.samples)
            if a < b:
                chunks.append(chunk.part(slice(a, b)))
            first += chunk.samples
        if not chunks:
            raise InputError(f"rows {start} to {stop} of {self.samples} samples: nothing is left")
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
        if theirs.layers != self.layers or not self._setting.fits(theirs._setting):
            raise InputError(
                f"the two factor sets do not belong together: {self.outputs} and {theirs.outputs} outputs, layers "
                f"{self.layers} and {theirs.layers}; make both with the same model, outputs and params"
            )
        _check_float(dtype)
        wide = (self.outputs,) if kind == "full" else ()
        result = torch.empty(
            self.samples, *wide, theirs.samples, *wide, dtype=dtype, device=self._setting.layout.device
        )
        columns_axis = len(wide) + 1
        rows = self._pieces(kind, dtype)
        columns = rows if other is None else theirs._pieces(kind, dtype)
        for i, (here, mine) in enumerate(rows):
            for j, (there, others) in enumerate(columns[: i + 1] if other is None else columns):
                tile = self._tile(mine, others, kind, dtype)
                if other is None and j == i:
                    tile = (tile + _mirror(tile)).mul_(0.5)
                result[here].narrow(columns_axis, there.start, there.stop - there.start).copy_(tile)
                if other is None and j < i:
                    height = here.stop - here.start
                    result[there].narrow(columns_axis, here.start, height).copy_(_mirror(tile))
        return result

    def _pieces(self, kind: Kind, dtype: torch.dtype) -> list[tuple[slice, Chunk]]:
        """Return the factors cut into tiles' sides that stay in cache, in `dtype` where that costs little."""
        size, start, found = TILE[kind], 0, []
        ready = self.nbytes * dtype.itemsize <= _CONVERTED_BYTES * self.dtype.itemsize
        for chunk in self._chunks:
            count = -(-chunk.samples // size)
            for k in range(count):
                rows = slice(chunk.samples * k // count, chunk.samples * (k + 1) // count)
                piece = chunk.part(rows)
                found.append(
                    (slice(start + rows.start, start + rows.stop), piece.to(dtype) if ready else piece)
                )
            start += chunk.samples
        return found

    def _tile(self, mine: Chunk, theirs: Chunk, kind: Kind, dtype: torch.dtype) -> Tensor:
        wide = (self.outputs,) if kind == "full" else ()
        total = torch.zeros(mine.samples, *wide, theirs.samples, *wide, dtype=dtype, device=self.device)
        for name in self.layers:
            a, b = mine.structures[name], theirs.structures[name]
            if a is not None and b is not None:
                add_tile(a, b, kind, total)
        return total

    def squared_norm(self, dtype: torch.dtype = torch.float64) -> float:
        """Return |K|_F^2 of the full kernel, tile by tile, without holding it."""
        total = 0.0
        pieces = self._pieces("full", dtype)
        for i, (_, mine) in enumerate(pieces):
            for j, (_, theirs) in enumerate(pieces[: i + 1]):
                share = float(self._tile(mine, theirs, "full", dtype).square().sum())
                total += share if i == j else 2 * share
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
        k, dtype = next(((t.shape[0], t.dtype) for t in u.values()), (1, self.dtype))
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
        v = as_vector(v, self.device, self.dtype)
        if v.shape not in {(n * outputs,), (n, outputs)} and (v.dim() != 2 or v.shape[0] != n * outputs):
            raise InputError(
                f"cannot multiply a kernel of {n} samples and {outputs} outputs with shape "
                f"{tuple(v.shape)}; give ({n * outputs},), ({n}, {outputs}) or ({n * outputs}, k)"
            )
        columns = v.reshape(n * outputs, -1).T.reshape(-1, n, outputs)
        if not columns.shape[0]:
            return v.clone()
        product = self.push(self.pull(columns.contiguous())).expand(len(columns), n, outputs)
        return product.reshape(-1, n * outputs).T.reshape(v.shape)


def _check_float(dtype: torch.dtype) -> None:
    if not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype}; sums over parameters need a floating-point type")


def as_vector(v: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return what is to be multiplied as a real floating-point tensor on a device.

    Raises:
        InputError: it holds no real numbers.
    """
    try:
        vector = torch.as_tensor(v, device=device)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"cannot multiply a kernel with a {type(v).__name__} ({error}); give a tensor"
        ) from error
    if vector.is_complex() or vector.is_meta:
        raise InputError(
            f"cannot multiply a kernel with {vector.dtype} on {vector.device}; give real numbers"
        )
    if vector.is_inference():
        vector = vector.clone()
    return vector if vector.is_floating_point() else vector.to(dtype)


def _mirror(tile: Tensor) -> Tensor:
    return tile.permute(2, 3, 0, 1) if tile.dim() == 4 else tile.T


def _spans(chunks: list[Chunk]) -> list[slice]:
    spans, start = [], 0
    for chunk in chunks:
        spans.append(slice(start, start + chunk.samples))
        start += chunk.samples
    return spans


def collect(setting: Setting, items: list[Batch]) -> Factors:
    """Return the factors of some batches, chunk by chunk; of many samples, small chunks are joined to a tile's."""
    chunks = []
    for item in items:
        size = batch_size(item)
        count = -(-size // setting.chunk)
        edges = [size * k // count for k in range(count + 1)]  # even: no chunk of a single left-over sample
        waiting: list[Chunk] = []
        for a, b in pairwise(edges):
            waiting.append(collect_chunk(setting, take(item, slice(a, b))))
            if b == size or sum(chunk.samples for chunk in waiting) >= _JOINED:
                whole = Chunk.joined(waiting) if len(waiting) > 1 and size > _JOINED else None
                chunks += waiting if whole is None else [whole]
                waiting = []
    return Factors(setting, chunks)


def measured_bytes(setting: Setting, item: Batch) -> int:
    """Return the bytes of one sample's factors, measured on one chunk: layers below a head take less than planned."""
    chunk = collect_chunk(setting, take(item, slice(0, setting.chunk)))
    return max(1, Factors(setting, [chunk]).nbytes // chunk.samples)


@torch.inference_mode(False)
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
        outputs: "full" or "trace" for all C logits, "sum" for their sum, the number of one, several numbers, or
            rows (R, C) of combinations of logits such as `random_outputs` gives.
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
    items = batches(x, device_of(model))
    samples = sum(batch_size(item) for item in items)
    limit = memory_limit(max_memory, device_of(model))

    def ready(rerouted: tuple[str, ...], together: int) -> Setting:
        return prepare(
            model,
            largest(items),
            samples,
            outputs=outputs,
            output=output,
            params=params,
            limit=limit,
            rerouted=rerouted,
            together=together,
        )

    def work(rerouted: tuple[str, ...]) -> Factors:
        setting = fitting(lambda together: ready(rerouted, together), items, samples, limit)
        need = needed_bytes(setting, largest(items), samples, limit)
        if need > limit:
            raise InputError(
                f"the factors of {samples} samples need about {need / 2**20:.0f} MiB, more than max_memory = "
                f"{limit / 2**20:.0f} MiB; use fewer samples or outputs, or tangent_kernel, which works "
                "in blocks"
            )
        return collect(setting, items)

    return with_reroutes(work)


def needed_bytes(setting: Setting, item: Batch, samples: int, limit: int) -> int:
    """Return the bytes of all factors: as planned where that fits `limit`, else by a measured chunk."""
    planned = samples * sample_bytes(setting.layout, setting.methods, setting.outputs)
    if planned <= limit or pass_bytes(setting.layout, setting.methods, setting.outputs) > limit:
        return planned
    return samples * measured_bytes(setting, item)


def fitting(ready: Callable[[int], Setting], items: list[Batch], samples: int, limit: int) -> Setting:
    """Return the quickest setting whose factors fit `limit`, or else the smallest.

    Args:
        ready: how many samples' factors must fit at once -> a setting.
        items: the batches.
        samples: how many samples they hold.
        limit: bytes for all factors.
    """
    quick = ready(BLOCK)
    return quick if needed_bytes(quick, largest(items), samples, limit) <= limit else ready(samples)
