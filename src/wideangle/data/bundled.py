"""The two data sets that come with scikit-learn and need no download."""

from __future__ import annotations

from typing import Any

from wideangle.data._raw import Raw, every_fifth, standardised


def read_digits(split: str) -> Raw:
    """Return the 8x8 digits: x (n, 1, 8, 8) in [0, 1] (16 grey levels), labels 0..9."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x = (bunch.images[:, None] / 16).astype("float32")
    return Raw(x, bunch.target, classes=10).take(every_fifth(bunch.target, split))


def read_breast_cancer(split: str) -> Raw:
    """Return the breast-cancer table: 30 standardised features, labels 0 (malignant) and 1 (benign)."""
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    train = bunch.data[every_fifth(bunch.target, "train")]
    x = standardised(bunch.data, train)
    names = tuple(str(name) for name in bunch.target_names)
    return Raw(x, bunch.target, classes=2, label_names=names).take(every_fifth(bunch.target, split))
