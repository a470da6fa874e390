"""A kernel on disk that is filled tile by tile and survives being killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

from wideangle.errors import InputError
from wideangle.files import write_atomically

__all__ = ["LOGITS", "TileFile"]

LOGITS = "first logits"  # compared up to rounding


@dataclass(frozen=True)
class TileFile:
    """Files beside `path`: `.part` the matrix (.npy), `.part.done` a byte a tile, `.part.json` what it is of.

    Tiles (i, j) with j <= i are written together with their mirror images; the byte of a tile is set after
    its numbers are written. The finished matrix is renamed to `path`, what it is of to `path`.meta.json.
    """

    path: Path
    facts: dict[str, str]
    side: int
    edge: int  # rows of a tile
    dtype: np.dtype

    @property
    def part(self) -> Path:
        """The matrix while it is filled."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def _done(self) -> Path:
        return self.path.with_name(self.path.name + ".part.done")

    def _header(self, finished: bool = False) -> Path:
        return self.path.with_name(self.path.name + (".meta.json" if finished else ".part.json"))

    @property
    def tiles(self) -> int:
        """How many tiles a side has."""
        return -(-self.side // self.edge)

    def finished(self) -> bool:
        """Return whether the whole matrix is there, of the same model and data.

        Raises:
            InputError: `path` holds something else.
        """
        if not self.path.exists() and self._header(finished=True).is_file() and self.part.is_file():
            self._compare(
                self._header(finished=True), self.part, finished=True
            )  # stopped between two renames
            os.replace(self.part, self.path)
        if not self.path.exists():
            return False
        if not self._header(finished=True).is_file():
            raise InputError(f"{self.path} exists and was not written by gram_to_disk; choose another file")
        self._compare(self._header(finished=True), self.path, finished=True)
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs from this file while it is written.

        Raises:
            InputError: another run holds it.
        """
        lock = self.path.with_name(self.path.name + ".part.lock")
        try:
            file = lock.open("w")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error
        with file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is writing {self.path}; wait for it, or choose another file"
                ) from error
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)

    def finished_tiles(self) -> int:
        """Return how many tiles the finished matrix was written in."""
        edge = int(json.loads(self._header(finished=True).read_text())["rows of a tile"])
        count = -(-self.side // edge)
        return count * (count + 1) // 2

    def open(self) -> int:
        """Make the files, or take up those of a run that stopped; return how many tiles are done.

        Raises:
            InputError: they are of another model or data; the disk has too little room; no such folder.
        """
        if self._header().is_file() and self.part.is_file() and self._done.is_file():
            self._compare(self._header(), self.part)
            there, done = self.part.stat().st_size, self._done.stat().st_size
            if there < self.side**2 * self.dtype.itemsize or done != self.tiles**2:
                raise InputError(
                    f"{self.part} or its table of tiles is cut short; remove {self.part} and start again"
                )
            return int(np.count_nonzero(np.fromfile(self._done, dtype=np.uint8)))
        need, free = self.side**2 * self.dtype.itemsize, shutil.disk_usage(self.path.parent).free
        if need > free:
            raise InputError(
                f"the kernel needs {need / 2**20:,.0f} MiB on disk, and {self.path.parent} has {free / 2**20:,.0f} MiB "
                "free; choose another folder, fewer samples, or outputs='trace'"
            )
        try:
            matrix = np.lib.format.open_memmap(self.part, "w+", self.dtype, (self.side, self.side))
            del matrix
            with self.part.open("r+b") as file:  # reserve the room now: a full disk would kill a map later
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self.part.stat().st_size)
            np.zeros(self.tiles**2, np.uint8).tofile(self._done)
            write_atomically(self._header(), json.dumps(self._described(), indent=1))
        except OSError as error:
            self.discard()
            if error.errno == errno.ENOSPC:
                raise InputError(
                    f"the disk filled while {need / 2**20:,.0f} MiB were reserved in {self.path.parent}; free some "
                    "room or choose another folder"
                ) from error
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error
        return 0

    def discard(self) -> None:
        """Remove what an unfinished run left."""
        for path in (self.part, self._done, self._header()):
            path.unlink(missing_ok=True)

    def _described(self) -> dict[str, str]:
        return {
            **self.facts,
            "matrix": f"{self.side} x {self.side} {self.dtype}",
            "rows of a tile": str(self.edge),
        }

    def _compare(self, header: Path, what: Path, finished: bool = False) -> None:
        """Refuse a file of another model, data or choice; a finished one may have tiles of any size."""
        try:
            there = dict(json.loads(header.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{header} cannot be read ({error}); remove it and {what}, and start again"
            ) from error
        here = self._described()
        if finished:
            there["rows of a tile"] = here["rows of a tile"]
        odd = [key for key in {**there, **here} if not _same(key, there.get(key), here.get(key))]
        if odd:
            shown = "; ".join(
                f"{k}: {there.get(k, 'none')} there, {here.get(k, 'none')} here" for k in odd[:3]
            )
            more = f"; and {len(odd) - 3} more" if len(odd) > 3 else ""
            raise InputError(
                f"{what} is the kernel of another model, data or choice ({shown}{more}); give another file, or "
                "remove it"
            )

    def known_edge(self) -> int | None:
        """Return the tile edge of a run that stopped here, None where there is none."""
        try:
            return int(json.loads(self._header().read_text())["rows of a tile"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def maps(self) -> tuple[np.memmap, np.memmap]:
        """Return the matrix and the table of finished tiles, both writable."""
        matrix = np.lib.format.open_memmap(self.part, "r+")
        return matrix, np.memmap(self._done, np.uint8, "r+", shape=(self.tiles, self.tiles))

    def span(self, index: int) -> slice:
        """Return the rows of a tile."""
        return slice(index * self.edge, min((index + 1) * self.edge, self.side))

    def close(self) -> None:
        """Give the finished matrix its name.

        Raises:
            InputError: a tile is missing.
        """
        missing = len(list(self.missing()))
        if missing:
            raise InputError(f"{missing} tiles of {self.part} are not written; run it again to go on")
        os.replace(self._header(), self._header(finished=True))
        os.replace(self.part, self.path)
        self._done.unlink(missing_ok=True)

    def missing(self) -> Iterator[tuple[int, int]]:
        """Yield the tiles on or below the diagonal that are not written."""
        done = np.fromfile(self._done, dtype=np.uint8).reshape(self.tiles, self.tiles)
        yield from ((i, j) for i in range(self.tiles) for j in range(i + 1) if not done[i, j])


def _same(key: str, there: str | None, here: str | None) -> bool:
    if key != LOGITS or there is None or here is None:
        return there == here
    try:
        one, two = (np.array(text.split(), dtype=float) for text in (there, here))
    except ValueError:
        return False
    return one.shape == two.shape and bool(
        np.allclose(one, two, rtol=1e-3, atol=1e-3 * np.abs(two).max(initial=0))
    )
