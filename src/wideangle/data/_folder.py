"""Finding and opening the files of a data folder, with errors that say where they belong."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

from wideangle.errors import InputError

VARIABLE = "WIDEANGLE_DATA"


def data_root(root: str | os.PathLike[str] | None, name: str, layout: str) -> Path:
    """Return the data folder: `root`, or what the environment variable names."""
    chosen = root if root is not None else os.environ.get(VARIABLE)
    if not chosen:
        raise InputError(
            f"{name} is read from a data folder and none is named: pass root=FOLDER or set "
            f"{VARIABLE}=FOLDER, where FOLDER holds {layout}"
        )
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"the data folder {folder} does not exist (from {'root' if root is not None else VARIABLE}); "
            f"for {name} it must hold {layout}"
        )
    return folder


def read_checked(folder: Path, relative: str, name: str, layout: str, md5: str | None) -> tuple[bytes, str]:
    """Return the uncompressed bytes of folder/relative (or .gz), compared with `md5`, and its path."""
    plain = folder / relative
    candidates = [plain, plain.with_name(plain.name + ".gz")]
    path = next((file for file in candidates if file.is_file()), None)
    if path is None:
        raise InputError(
            f"{name}: looked for {plain} (or {candidates[1].name}) and found neither; put the files "
            f"there as {layout}, or point root= or {VARIABLE} at the folder that has them"
        )
    content = uncompressed(path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise InputError(
            f"{name}: {path} is not the published file: md5 {found} of its {len(content)} uncompressed "
            f"bytes, expected {md5}; fetch it again"
        )
    return content, str(path)


def uncompressed(path: Path) -> bytes:
    """Return the bytes of a file, gunzipped where its first bytes say that it is gzipped."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); it may be cut short: fetch it again") from error
