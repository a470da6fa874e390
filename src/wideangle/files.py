"""Writing files so that nothing is lost: a temporary name first, then one rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[Any]], object] | str) -> Path:
    """Write a file under a temporary name in the same folder, then rename it; return its path.

    A reader sees the old file or the whole new one, never a part, also after a kill.

    Args:
        path: where the file shall lie; missing folders are made.
        write: the text itself, or a function that gets the open binary file.

    Raises:
        OSError: the folder cannot be made or written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(write, str):
                file.write(write.encode())
            else:
                write(file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target
