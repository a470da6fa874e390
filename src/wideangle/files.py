"""Writing files so that nothing is lost: a temporary name first, then one rename; and what they were made from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

__all__ = ["digest", "write_atomically"]


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


def digest(tensor: Tensor) -> str:
    """Return shape, type and a short hash of a tensor's content, to tell whether a file belongs to it.

    Example:
        >>> digest(torch.zeros(2)).split(" sha256")[0]
        '(2,) torch.float32'
    """
    host = tensor.detach().cpu().contiguous()
    code = hashlib.sha256(host.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:12]
    return f"{tuple(host.shape)} {host.dtype} sha256 {code}"
