"""CIFAR-10 in torchvision's layout, its pickled batches read by an unpickler that can build arrays only."""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar

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


class StoredType:
    """Stands in for numpy.dtype while a batch is unpickled: admits unsigned bytes only."""

    def __init__(self, code: str, *flags: object) -> None:
        del flags
        if code != "u1":
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}, a batch holds unsigned bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment, which mean nothing for single bytes."""


class StoredArray:
    """Stands in for numpy.ndarray while a batch is unpickled: keeps shape, order and bytes."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], StoredType, bool, bytes | str]) -> None:
        """Keep what numpy writes: version, shape, type, column-major, bytes (text from Python 2)."""
        _, shape, kind, column_major, raw = state
        if not isinstance(kind, StoredType):
            raise pickle.UnpicklingError("it holds an array without a type")
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        order = "F" if column_major else "C"
        self.values = np.frombuffer(content, dtype=np.uint8).reshape(shape, order=order)


def _new_array(*pattern: object) -> StoredArray:
    """Stand in for numpy's _reconstruct, which makes the empty array that the bytes are put into."""
    del pattern
    return StoredArray()


def _bytes_from_text(text: str, encoding: str) -> bytes:
    """Stand in for _codecs.encode, by which Python 3 spells bytes in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not one an array needs")
    return text.encode("latin1")


class ArrayUnpickler(pickle.Unpickler):
    """Loads containers, numbers, text and byte arrays; every other class or function is refused.

    Even the names that numpy arrays use lead to stand-ins, so nothing outside this file is called.
    """

    stand_ins: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _new_array,
        ("numpy._core.multiarray", "_reconstruct"): _new_array,
        ("numpy", "ndarray"): StoredArray,
        ("numpy", "dtype"): StoredType,
        ("_codecs", "encode"): _bytes_from_text,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name an array needs; raise for everything else a pickle may name."""
        try:
            return self.stand_ins[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs") from None


def parse_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32) uint8 and labels (n,) of one pickled batch; no code in it is run."""
    try:
        batch = ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # damaged bytes may raise nearly anything while they are unpickled
        raise InputError(f"{where} is refused: {error}; fetch the file again") from error
    stored = batch.get("data") if isinstance(batch, dict) else None
    data = getattr(stored, "values", None)
    labels = batch.get("labels") if isinstance(batch, dict) else None
    if not isinstance(stored, StoredArray) or data is None or data.shape[1:] != (PIXELS,):
        raise InputError(f"{where} is no CIFAR-10 batch: 'data' must be uint8 (n, {PIXELS})")
    digits = isinstance(labels, list) and all(label in range(10) for label in labels)
    if not isinstance(labels, list) or len(labels) != len(data) or not digits:
        raise InputError(f"{where} is no CIFAR-10 batch: 'labels' must list {len(data)} integers in 0..9")
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def read_cifar10(split: str, root: str | None) -> Raw:
    """Return CIFAR-10 as stored: x uint8 (n, 3, 32, 32), labels 0..9."""
    layout = f"{FOLDER}/data_batch_1 .. data_batch_5 and test_batch, as torchvision lays them out"
    folder = data_root(root, "cifar10", layout)
    batches = []
    for file in FILES[split]:
        batches.append(
            parse_batch(*read_checked(folder, f"{FOLDER}/{file}", "cifar10", layout, MD5.get(file)))
        )
    return Raw(np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches]), classes=10)
