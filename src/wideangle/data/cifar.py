"""CIFAR-10 in torchvision's layout, its pickled batches read by an unpickler that can build arrays only."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from wideangle.data._folder import data_root, read_checked
from wideangle.data._raw import Raw
from wideangle.errors import InputError

FOLDER = "cifar-10-batches-py"
FILES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
PIXELS = 3 * 32 * 32


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for _codecs.encode, which pickle protocol 2 names to spell bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not one an array needs")
    return text.encode("latin1")


def _array_parts() -> dict[tuple[str, str], Any]:
    """Return the three constructors numpy's own arrays name in a pickle, by every module name they had."""
    rebuild: Any = np.empty(0).__reduce__()[0]
    parts: dict[tuple[str, str], Any] = {("_codecs", "encode"): _latin1}
    for package in ("numpy.core.multiarray", "numpy._core.multiarray"):
        parts[package, "_reconstruct"] = rebuild
    parts["numpy", "ndarray"] = np.ndarray
    parts["numpy", "dtype"] = np.dtype
    return parts


class ArrayUnpickler(pickle.Unpickler):
    """Loads plain containers, numbers, text and numpy arrays; any other class or function is refused."""

    allowed = _array_parts()

    def find_class(self, module: str, name: str) -> Any:
        """Return what an array is built from; raise for everything else a pickle may name."""
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs") from None


def parse_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32) uint8 and labels (n,) of one pickled batch; no code in it is run."""
    try:
        batch = ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"{where} is refused: {error}; fetch the file again") from error
    data = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels") if isinstance(batch, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        raise InputError(f"{where} is no CIFAR-10 batch: 'data' must be uint8 (n, {PIXELS})")
    if not isinstance(labels, list) or len(labels) != len(data) or not set(labels) <= set(range(10)):
        raise InputError(f"{where} is no CIFAR-10 batch: 'labels' must list {len(data)} integers in 0..9")
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def read_cifar10(split: str, root: str | None) -> Raw:
    """Return CIFAR-10 as stored: x uint8 (n, 3, 32, 32), labels 0..9."""
    layout = f"{FOLDER}/data_batch_1 .. data_batch_5 and test_batch, as torchvision lays them out"
    folder = data_root(root, "cifar10", layout)
    batches = []
    for file in FILES[split]:
        content = read_checked(folder, f"{FOLDER}/{file}", "cifar10", layout, MD5.get(file))
        batches.append(parse_batch(content, f"{folder}/{FOLDER}/{file}"))
    return Raw(np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches]), classes=10)
