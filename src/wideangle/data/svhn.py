"""SVHN, cropped digits, in torchvision's layout: one MATLAB file per split."""

from __future__ import annotations

import io

import numpy as np

from wideangle.data._folder import data_root, read_checked
from wideangle.data._raw import Raw
from wideangle.errors import InputError

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def parse_mat(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32) uint8 and labels 0..9 (stored as (32, 32, 3, n), with 10 for zero)."""
    from scipy.io import loadmat

    try:
        stored = loadmat(io.BytesIO(content), variable_names=["X", "y"])
    except Exception as error:  # a damaged file may fail anywhere in the parser, with any error
        raise InputError(
            f"{where} is no MATLAB file ({error}); it may be cut short: fetch it again"
        ) from error
    images, labels = stored.get("X"), stored.get("y")
    if images is None or labels is None or images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3):
        raise InputError(f"{where} is no SVHN file: it must hold X, uint8 (32, 32, 3, n), and y")
    labels = labels.reshape(-1).astype(np.int64) % 10
    if len(labels) != images.shape[3]:
        raise InputError(f"{where} is damaged: {images.shape[3]} images but {len(labels)} labels")
    return images.transpose(3, 2, 0, 1), labels


def read_svhn(split: str, root: str | None) -> Raw:
    """Return SVHN as stored: x uint8 (n, 3, 32, 32), labels 0..9."""
    layout = "train_32x32.mat and test_32x32.mat, as torchvision lays them out"
    folder = data_root(root, "svhn", layout)
    file = FILES[split]
    images, labels = parse_mat(*read_checked(folder, file, "svhn", layout, MD5.get(file)))
    return Raw(images, labels, classes=10)
