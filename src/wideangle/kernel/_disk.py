"""Kernels too large for memory: tiles on or below the diagonal to a memory map, by one process or several."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.files import digest
from wideangle.kernel._factors import Factors, collect, measured_bytes
from wideangle.kernel._group import Ranks, shard
from wideangle.kernel._model import (
    Batch,
    OutputPick,
    batch_size,
    batches,
    call,
    copied,
    largest,
    logits,
    plain_attention,
    take,
)
from wideangle.kernel._pass import Chunk, Outputs, Setting, device_of, prepare, with_reroutes
from wideangle.kernel._structures import Kind
from wideangle.kernel._tile_file import LOGITS, TileFile
from wideangle.kernel.cost import HELD, memory_limit, sample_bytes
from wideangle.progress import track
from wideangle.result import Provenance, Result

__all__ = ["GramFile", "gram_to_disk"]

_SIDE = 1024  # rows of a tile, about
_DTYPES = {torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64")}


@dataclass(frozen=True)
class GramFile(Result):
    """A kernel on disk: where it is, and what this process did for it.

    `computed` and `reused` count tiles; `entries` the numbers of the tiles this process computed;
    `factor_bytes` what it held of factors at most.
    """

    path: str = ""
    side: int = 0
    computed: int = 0
    reused: int = 0
    entries: int = 0
    factor_bytes: int = 0

    def open(self) -> np.memmap:
        """Return the matrix, read-only, mapped from the file: only what is read is loaded."""
        return np.load(self.path, mmap_mode="r")


@torch.inference_mode(False)
def gram_to_disk(
    model: nn.Module,
    x: Any,
    path: str | os.PathLike[str],
    *,
    outputs: Outputs = "trace",
    output: OutputPick = None,
    params: Any = None,
    dtype: torch.dtype = torch.float32,
    max_memory: int | None = None,
    group: Any = None,
) -> GramFile:
    """Write the tangent kernel of a model to a .npy file, tile by tile, and return where it is.

    trace:  K[i, j] = sum_c <J_ic, J_jc>, (n, n);   full:  (n C, n C), sample-major

    Tiles on or below the diagonal are computed, each with its mirror image written beside it. A run that is
    stopped, by Ctrl-C or a kill, goes on where it was when called again with the same model and data; a
    finished file of the same model and data is returned as it is. The room on disk is reserved at the start.

    With `group`, every process calls this with the same arguments and a path they all see. Each makes the
    factors of its own samples, half of the processes' factors pass by each of them tile by tile, and all
    have the same share of tiles.

    Cost: as for `tangent_kernel`; where the factors of all samples do not fit, blocks of them are made
    again for every pair of blocks.

    Args:
        model: any module whose output for a sample does not depend on the other samples.
        x: n inputs: a tensor, a dict of tensors, or an iterable of batches.
        path: the file; a .npy that numpy reads.
        outputs: "trace", "full", or some outputs or combinations, as for `factors` (then as "full").
        output: which part of a tuple, dict or ModelOutput holds the logits.
        params: parameters to differentiate by; all that require a gradient where left out.
        dtype: float32 or float64, of the sums and the file.
        max_memory: bytes for factors and tiles; a quarter of the free memory where left out.
        group: a `torch.distributed` process group.

    Returns:
        A `GramFile`; `open()` maps the matrix.

    Raises:
        InputError: the file is of another model or data, the disk or `max_memory` is too small (with what
            is needed), or a rank would have no samples.
        RankError: another process stopped; finished tiles are kept.

    Example:
        >>> import tempfile
        >>> file = f"{tempfile.mkdtemp()}/kernel.npy"
        >>> gram_to_disk(nn.Linear(3, 2), torch.eye(3), file).open().shape
        (3, 3)
    """
    if dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype}; choose torch.float32 or torch.float64")
    begun = time.perf_counter()
    place = _path(path)
    device = device_of(model)
    items, ranks = batches(x, device), Ranks.of(group)
    limit = ranks.least(memory_limit(max_memory, device))
    samples = sum(batch_size(item) for item in items)
    kind: Kind = "trace" if isinstance(outputs, str) and outputs == "trace" else "full"

    def ready(rerouted: tuple[str, ...]) -> Setting:
        options = {"outputs": outputs, "output": output, "params": params, "limit": limit}
        return prepare(model, largest(items), samples, rerouted=rerouted, **options)

    setting = ready(())
    facts = _facts(setting, items, kind)
    side = samples * (setting.outputs if kind == "full" else 1)
    whole = TileFile(place, facts, side, side, _DTYPES[dtype])
    if ranks.every(whole.finished())[0]:
        job = _Job(setting, items, samples, kind, dtype, ranks, whole, limit)
        return job.report(whole.finished_tiles(), begun)
    file = _file(whole, setting, samples, kind, limit, ranks.size)
    job = _Job(setting, items, samples, kind, dtype, ranks, file, limit)
    with file.held() if ranks.rank == 0 else nullcontext():
        if ranks.rank == 0:
            file.open()
        ranks.wait()
        before = file.tiles * (file.tiles + 1) // 2 - len(list(file.missing()))
        try:
            job.run(ready)
        except KeyboardInterrupt as stop:
            stop.add_note(f"finished tiles are kept in {file.part}; call gram_to_disk again to go on")
            raise
        ranks.wait()
        if ranks.rank == 0:
            file.close()
        ranks.wait()
    return job.report(before, begun)


def _path(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path of a file that could be written.

    Raises:
        InputError: it is no path, or names a folder.
    """
    try:
        place = Path(path).expanduser().absolute()
        if not Path(path).name or place.is_dir():
            raise InputError(
                f"path is {str(path)!r}, which names a folder or nothing; name a file, as in kernel.npy"
            )
        place.parent.mkdir(parents=True, exist_ok=True)
    except TypeError as error:
        raise InputError(f"path is a {type(path).__name__}; give the name of a file") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{str(path)[:200]!r} cannot be written: {error}") from error
    return place


def _file(whole: TileFile, setting: Setting, samples: int, kind: Kind, limit: int, ranks: int) -> TileFile:
    """Return the file with its tile size: that of a run to go on with, else what fits memory and shares evenly."""
    wide = setting.outputs if kind == "full" else 1
    each = max(1, sample_bytes(setting.layout, setting.methods, setting.outputs))
    known = whole.known_edge()

    def needed(edge: int) -> int:
        return 2 * edge * each + 3 * (edge * wide) ** 2 * whole.dtype.itemsize

    edge = (
        known // wide
        if known
        else max(1, min(_SIDE // wide, samples if ranks == 1 else samples // (8 * ranks)))
    )
    while not known and edge > 1 and needed(edge) > limit:
        edge //= 2
    need = needed(edge)
    if need > limit:
        raise InputError(
            f"two tiles' factors and a tile of {edge} samples need {need / 2**20:,.1f} MiB, more than max_memory = "
            f"{limit / 2**20:,.1f} MiB; give at least {need:,} bytes"
        )
    return replace(whole, edge=edge * wide)


def _facts(setting: Setting, items: list[Batch], kind: Kind) -> dict[str, str]:
    """Return what a file must have been made from to be taken up."""
    layout = setting.layout
    shape = re.sub(r" at 0x[0-9a-f]+", "", repr(layout.model)).encode()
    code = digest(torch.frombuffer(bytearray(shape), dtype=torch.uint8))
    facts = {"model": f"{type(layout.model).__name__} {code}"}
    facts |= {"kind": kind, "outputs": digest(setting.cotangents)}
    facts |= {f"parameter {n}": digest(p) for n, p in layout.parameters.items()}
    facts |= {f"buffer {n}": digest(b) for n, b in layout.model.named_buffers()}
    facts["differentiated"] = ", ".join(
        sorted({*layout.fallback, *(n for c in layout.covers for n in c.names)})
    )
    for k, item in enumerate(items):
        for key, tensor in sorted(item.items()) if isinstance(item, dict) else [("x", item)]:
            facts[f"inputs {k} {key}"] = digest(tensor)
    facts[LOGITS] = _first_logits(setting, items[0])
    return facts


def _first_logits(setting: Setting, item: Batch) -> str:
    """Return the first sample's logits: they tell models apart that differ in their forward pass only."""
    layout, first = setting.layout, copied(take(item, slice(0, 1)))
    with torch.no_grad(), plain_attention():
        z = logits(call(layout.model, layout.parameters, first), layout.output, 1)
    return " ".join(f"{value:.9g}" for value in z[0, :16].tolist())


@dataclass
class _Job:
    """The tiles of one kernel, and this process's share of them."""

    setting: Setting
    items: list[Batch]
    samples: int
    kind: Kind
    dtype: torch.dtype
    ranks: Ranks
    file: TileFile
    limit: int
    computed: int = 0
    entries: int = 0
    factor_bytes: int = 0

    @property
    def edge(self) -> int:
        """Samples on a tile's side."""
        return self.file.edge * self.samples // self.file.side

    def run(self, ready: Callable[[tuple[str, ...]], Setting]) -> None:
        """Compute this process's tiles that are not written yet; `ready` makes a setting with a larger fallback."""
        self.matrix, self.done = self.file.maps()
        if self.ranks.size > 1:
            self._together(
                self.ranks.agreed(lambda names: self._own(ready(names) if names else self.setting))
            )
        else:

            def work(names: tuple[str, ...]) -> None:
                self.setting = ready(names) if names else self.setting
                self._alone()

            with_reroutes(work)
        self.matrix.flush()

    def report(self, reused: int, begun: float) -> GramFile:
        """Return what was done."""
        return GramFile(
            path=str(self.file.path),
            side=self.file.side,
            computed=self.computed,
            reused=reused,
            entries=self.entries,
            factor_bytes=self.factor_bytes,
            provenance=Provenance.here(
                device=str(self.setting.layout.device), seconds=time.perf_counter() - begun
            ),
        )

    def _collect(self, first: int, last: int) -> Factors:
        """Return the factors of some tile rows."""
        found = collect(self.setting, shard(self.items, first * self.edge, last * self.edge))
        self.factor_bytes = max(self.factor_bytes, found.nbytes)
        return found

    def _alone(self) -> None:
        """A tall block of rows stays in memory; the tile rows above it pass by, one at a time."""
        each = measured_bytes(self.setting, largest(self.items))
        tall = max(1, int(HELD * self.limit / (each * self.edge)))
        missing = set(self.file.missing())

        def tasks() -> Iterator[tuple[int, int, Factors, Factors]]:
            for first in range(0, self.file.tiles, tall):
                last = min(first + tall, self.file.tiles)
                if not any(first <= i < last for i, _ in missing):
                    continue
                mine = self._collect(first, last)
                for j in range(last):
                    rows = [i for i in range(max(first, j), last) if (i, j) in missing]
                    if not rows:
                        continue
                    theirs = self._row(mine, j - first) if j >= first else self._collect(j, j + 1)
                    for i in rows:
                        yield i, j, self._row(mine, i - first), theirs

        for i, j, mine, theirs in track(tasks(), "tiles", len(missing)):
            self._write(i, j, mine, theirs)

    def _row(self, held: Factors, index: int) -> Factors:
        return held.rows(index * self.edge, min((index + 1) * self.edge, held.samples))

    def _shares(self) -> list[int]:
        """Return the tile rows at which the ranks' shares begin, and the end."""
        return [e // self.edge for e in self.ranks.edges(self.samples, self.edge)[:-1]] + [self.file.tiles]

    def _own(self, setting: Setting) -> Factors:
        """Return the factors of this rank's samples, all of which it holds."""
        self.setting = setting
        first, last = self._shares()[self.ranks.rank : self.ranks.rank + 2]
        mine = min(last * self.edge, self.samples) - first * self.edge
        need = mine * measured_bytes(setting, largest(self.items))
        if need > self.limit:
            raise InputError(
                f"rank {self.ranks.rank} would hold the factors of {mine} samples, {need / 2**20:,.1f} MiB, more than "
                f"max_memory = {self.limit / 2**20:,.1f} MiB; use more processes, or give {need:,} bytes"
            )
        return self._collect(first, last)

    def _together(self, mine: Factors) -> None:
        """Own tiles first; then the tile rows of the ranks up to half way round pass by, one at a time."""
        size, rank, edges = self.ranks.size, self.ranks.rank, self._shares()
        first, last = edges[rank], edges[rank + 1]
        missing = set(self.file.missing())
        own = [(i, j) for i in range(first, last) for j in range(first, i + 1) if (i, j) in missing]
        for i, j in track(own, "own tiles"):
            self._write(i, j, self._row(mine, i - first), self._row(mine, j - first))
        longest = max(b - a for a, b in pairwise(edges))
        for away in range(1, size // 2 + 1):
            to, source = (rank + away) % size, (rank - away) % size
            for t in track(range(longest), f"tiles with rank {source}"):
                sent = [c.own() for c in self._row(mine, t)._chunks] if first + t < last else None
                chunks = self.ranks.exchange(sent, to, source, mine.device)
                if chunks is not None:
                    half = 2 * away == size
                    self._meet(mine, first, last, chunks, edges[source] + t, half, source, missing)

    def _meet(
        self,
        mine: Factors,
        first: int,
        last: int,
        chunks: list[Chunk],
        j: int,
        half: bool,
        source: int,
        missing: set[tuple[int, int]],
    ) -> None:
        """Compute the tiles of own rows with a passing one; with the rank half way round, every other tile."""
        theirs = Factors(self.setting, chunks)
        for i in range(first, last):
            if half and ((i + j) % 2 == 0) != (self.ranks.rank < source):
                continue
            if (max(i, j), min(i, j)) in missing:
                self._write(i, j, self._row(mine, i - first), theirs)

    def _write(self, i: int, j: int, mine: Factors, theirs: Factors) -> None:
        tile = mine.gram(None if i == j else theirs, kind=self.kind, dtype=self.dtype)
        if self.kind == "full":
            tile = tile.flatten(2).flatten(0, 1)
        _check_finite(tile)
        rows, columns = self.file.span(i), self.file.span(j)
        host = tile.cpu().numpy()
        self.matrix[rows, columns] = host
        if i != j:
            self.matrix[columns, rows] = host.T
        self.done[max(i, j), min(i, j)] = 1
        self.computed += 1
        self.entries += tile.numel()


def _check_finite(tile: Tensor) -> None:
    if not bool(torch.isfinite(tile).all()):
        raise NumericsError("a tile of the kernel is not finite; scale the inputs or weights, or use float64")
