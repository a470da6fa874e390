"""The data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from wideangle.data._raw import Raw, stratified_rows
from wideangle.data.bundled import read_breast_cancer, read_digits
from wideangle.data.cifar import read_cifar10
from wideangle.data.dataset import Dataset
from wideangle.data.idx import read_idx
from wideangle.data.own import is_own, read_own
from wideangle.data.svhn import read_svhn
from wideangle.data.table import read_credit_default
from wideangle.data.text import read_reuters
from wideangle.errors import InputError
from wideangle.names import unknown_name

__all__ = ["NAMES", "load"]

_READERS: dict[str, Callable[[str, str | None], Raw]] = {
    "digits": lambda split, root: read_digits(split),
    "breast-cancer": lambda split, root: read_breast_cancer(split),
    "mnist": lambda split, root: read_idx("mnist", split, root),
    "fashion-mnist": lambda split, root: read_idx("fashion-mnist", split, root),
    "cifar10": read_cifar10,
    "svhn": read_svhn,
    "credit-default": read_credit_default,
    "reuters-r8": read_reuters,
}
NAMES = tuple(_READERS)
"""The names `load` knows; the first two come with scikit-learn, the rest lie in a data folder."""


def load(
    name: str | os.PathLike[str],
    split: Literal["train", "test"] = "train",
    n: int | None = None,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Dataset:
    """Return a data set by name, or the user's own from a file or function, checked and ready to use.

        images:  x / 255 (digits: x / 16);   tables:  (x - mean_train) / std_train;   text:  token ids

    The data folder of the named sets has torchvision's layout: MNIST/raw, FashionMNIST/raw,
    cifar-10-batches-py, train_32x32.mat and test_32x32.mat (SVHN), and tabular/credit-default.csv,
    text/reuters-r8-train.tab, text/reuters-r8-test.tab; idx, csv and tab files may be gzipped (.gz).
    Published checksums are compared. One-table sets (digits, breast-cancer, credit-default, any .csv)
    are split by a fixed rule: every fifth row of each class, in file order, is a test row.

    Own data: .npz or .pt (a dict with x or X, and y; x_test and y_test for the test split; .pt also the
    pair), .csv (the column y, label or target, else the last, is the target; standardised), or
    module.py:function returning (x, y) or a `Dataset` (it gets split= where it has that parameter).
    Floating-point y are regression targets, everything else class labels; uint8 x are images and divided
    by 255, wider integers are token ids. No pickled code is run.

    Cost: one pass over the file; memory of the file uncompressed plus 4 bytes per value of the samples kept.

    Args:
        name: one of `NAMES`, a file, or module.py:function.
        split: "train" or "test".
        n: how many samples, drawn at random with every class in its share; all, in file order, where
            not given.
        root: the data folder; by default what the environment variable WIDEANGLE_DATA names.
        seed: which random subset.

    Returns:
        A `Dataset`: images (n, channels, height, width), tables (n, features), token ids (n, 128).

    Raises:
        InputError: an unknown name (the nearest is offered), n beyond what there is, a file that is
            missing, damaged or not the published one, values that are not finite, labels that do not fit.

    Example:
        >>> load("digits", n=100)
        Dataset('digits': 100 samples of shape (1, 8, 8), torch.float32, 10 classes)
    """
    target = os.fspath(name)
    if split not in ("train", "test"):
        raise InputError(f"unknown split {split!r}; choose 'train' or 'test'")
    folder = None if root is None else os.fspath(root)
    if target in _READERS:
        raw, title = _READERS[target](split, folder), target
    elif is_own(target):
        raw, title = read_own(target, split), Path(target).name
    else:
        raise unknown_name("data set", target, NAMES, "a .npz, .pt or .csv file, or module.py:function")
    if n is not None:
        raw = raw.take(stratified_rows(raw.y, raw.classes, n, title, seed))
    return raw.finish(title)
