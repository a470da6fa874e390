"""The record itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from wideangle.data import Dataset
from wideangle.errors import InputError

X = torch.zeros(3, 2)
Y = torch.tensor([2, 0, 1])


def test_one_hot_and_repr():
    toy = Dataset(X, Y, classes=4, name="toy")
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[[0, 1, 2], [2, 0, 1]] = 1
    assert torch.equal(toy.one_hot(torch.float64), expected)
    assert toy.one_hot().dtype == torch.float32
    assert repr(toy) == "Dataset('toy': 3 samples of shape (2,), torch.float32, 4 classes)"
    assert len(toy) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.name = "other"  # type: ignore[misc]


def test_regression_has_no_classes():
    toy = Dataset(X, torch.zeros(3, 2), classes=0, name="toy")
    assert "2 regression target(s)" in repr(toy)
    with pytest.raises(InputError, match="no classes to encode"):
        toy.one_hot()


def test_token_ids_need_a_vocabulary():
    ids = torch.tensor([[0, 5], [1, 2], [3, 0]])
    assert "vocabulary 6" in repr(Dataset(ids, Y, classes=3, name="toy", vocabulary=6))
    with pytest.raises(InputError, match=r"from 0 to 5, expected 0\.\.4"):
        Dataset(ids, Y, classes=3, name="toy", vocabulary=5)


@pytest.mark.parametrize(
    ("x", "y", "classes", "message"),
    [
        (X[:0], Y[:0], 3, "n >= 1"),
        (X[:, 0], Y, 3, r"\(n, \.\.\.\)"),
        (X, Y[:2], 3, "x has 3 rows"),
        (X.double(), Y, 3, "torch.float64"),
        (X, Y.float(), 3, "must be int64"),
        (X, Y[:, None], 3, r"shape \(3, 1\)"),
        (X, Y, 2, r"from 0 to 2, expected 0\.\.1"),
        (X, Y - 1, 3, "from -1 to 1"),
        (X, Y.float(), 0, r"float32 of shape \(n, k\)"),
        (X, torch.full((3, 1), torch.inf), 0, "3 value"),
        (X / 0, Y, 3, r"6 value\(s\) that are not finite, in 3 of 3 rows"),
    ],
)
def test_what_is_refused(x, y, classes, message):
    with pytest.raises(InputError, match=message):
        Dataset(x, y, classes=classes, name="toy")
