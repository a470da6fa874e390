"""MNIST and Fashion-MNIST: the idx format, gzipped or not."""

from __future__ import annotations

import math

import numpy as np

from wideangle.data._folder import data_root, read_checked
from wideangle.data._raw import Raw
from wideangle.errors import InputError

FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MD5 = {
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
UNSIGNED_BYTE = 0x08


def parse_idx(content: bytes, where: str) -> np.ndarray:
    """Return the array of an idx file of unsigned bytes.

    Layout: two zero bytes, the type (0x08), the number of axes, one big-endian 4-byte size per axis,
    then the values, last axis fastest.
    """
    if len(content) < 4 or content[0] or content[1] or content[2] != UNSIGNED_BYTE:
        raise InputError(f"{where} is no idx file of unsigned bytes (it begins with {content[:4].hex()})")
    axes = content[3]
    start = 4 + 4 * axes
    head = content[4:start]
    shape = tuple(int.from_bytes(head[i : i + 4], "big") for i in range(0, len(head), 4))
    expected = math.prod(shape)
    if len(head) != 4 * axes or len(content) - start != expected:
        raise InputError(
            f"{where} is cut short or damaged: its head announces {expected} values of shape {shape}, "
            f"{max(0, len(content) - start)} follow; fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_idx(name: str, split: str, root: str | None) -> Raw:
    """Return MNIST or Fashion-MNIST as stored: x uint8 (n, 1, 28, 28), labels 0..9."""
    layout = (
        f"{FOLDERS[name]}/{FILES['train'][0]}[.gz] and its three companions, as torchvision lays them out"
    )
    folder = data_root(root, name, layout)
    arrays = []
    for file in FILES[split]:
        relative = f"{FOLDERS[name]}/{file}"
        arrays.append(parse_idx(*read_checked(folder, relative, name, layout, MD5.get(relative))))
    images, labels = arrays
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(f"{name}: images of shape {images.shape} do not go with labels of {labels.shape}")
    return Raw(images[:, None], labels, classes=10)
