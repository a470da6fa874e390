"""load(): named sets, splits, subsets and what it says about bad requests."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from wideangle import data
from wideangle.data._raw import stratified_rows
from wideangle.errors import InputError

needs_folder = pytest.mark.skipif(not os.environ.get("WIDEANGLE_DATA"), reason="WIDEANGLE_DATA is not set")


def test_digits_splits_partition_the_bundled_set():
    from sklearn.datasets import load_digits

    train, test = data.load("digits"), data.load("digits", split="test")
    assert train.x.shape[1:] == (1, 8, 8)
    assert train.x.dtype == torch.float32
    assert train.y.dtype == torch.int64
    assert float(train.x.min()) == 0
    assert float(train.x.max()) == 1
    whole = load_digits()
    rows = np.concatenate([part.x.flatten(1).numpy() * 16 for part in (train, test)])
    labels = np.concatenate([train.y.numpy(), test.y.numpy()])
    pairs = sorted(map(bytes, np.column_stack([rows, labels]).astype(np.uint8)))
    assert pairs == sorted(map(bytes, np.column_stack([whole.data, whole.target]).astype(np.uint8)))
    for label in range(10):
        total = int((whole.target == label).sum())
        assert int((test.y == label).sum()) == total // 5


def test_breast_cancer_is_standardised_by_its_train_rows():
    train, test = data.load("breast-cancer"), data.load("breast-cancer", split="test")
    torch.testing.assert_close(
        train.x.double().mean(0), torch.zeros(30, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        train.x.double().std(0, correction=0), torch.ones(30, dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert float(test.x.mean(0).abs().max()) > 1e-3
    assert train.label_names == ("malignant", "benign")
    assert len(train) + len(test) == 569


def test_a_subset_is_stratified_deterministic_and_seeded():
    whole = data.load("breast-cancer")
    part = data.load("breast-cancer", n=101)
    again = data.load("breast-cancer", n=101)
    other = data.load("breast-cancer", n=101, seed=1)
    assert torch.equal(part.x, again.x)
    assert torch.equal(part.y, again.y)
    assert not torch.equal(part.x, other.x)
    expected = whole.y.bincount() * 101 / len(whole)
    assert float((part.y.bincount() - expected).abs().max()) < 1
    assert len(torch.unique(part.x, dim=0)) == 101
    assert part.y[:30].bincount(minlength=2).min() > 2  # the classes are mixed, not in blocks


def test_shares_that_are_no_whole_number_go_to_the_largest_remainders():
    y = np.array([0] * 7 + [1] * 2 + [2])
    rows = stratified_rows(y, 3, 4, "toy", seed=0)  # shares 2.8, 0.8, 0.4
    assert np.bincount(y[rows], minlength=3).tolist() == [3, 1, 0]


def test_all_samples_may_be_asked_for_and_one_more_may_not():
    total = len(data.load("digits"))
    assert len(data.load("digits", n=total)) == total
    with pytest.raises(InputError, match=rf"n={total + 1} .*digits.* {total}"):
        data.load("digits", n=total + 1)
    with pytest.raises(InputError, match="n=0"):
        data.load("digits", n=0)


def test_unknown_names_offer_the_nearest_and_the_list():
    with pytest.raises(InputError, match=r"'digit'; did you mean 'digits'.*mnist.*reuters-r8"):
        data.load("digit")
    with pytest.raises(InputError, match="unknown split 'valid'"):
        data.load("digits", split="valid")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", data.NAMES[2:])
def test_without_a_folder_the_error_says_what_it_must_hold(name, monkeypatch, tmp_path):
    monkeypatch.delenv("WIDEANGLE_DATA", raising=False)
    with pytest.raises(InputError, match="WIDEANGLE_DATA") as caught:
        data.load(name)
    assert "http" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        data.load(name, root=tmp_path / "nowhere")
    with pytest.raises(InputError, match="looked for") as caught:
        data.load(name, root=tmp_path)
    assert str(tmp_path) in str(caught.value)
    monkeypatch.setenv("WIDEANGLE_DATA", str(tmp_path))
    with pytest.raises(InputError, match="looked for"):
        data.load(name)


@needs_folder
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_idx_files(name):
    test = data.load(name, split="test")
    assert test.x.shape == (10000, 1, 28, 28)
    assert float(test.x.max()) == 1
    assert len(data.load(name, n=50)) == 50
    if name == "mnist":
        assert test.y[:5].tolist() == [7, 2, 1, 0, 4]


@needs_folder
def test_real_credit_default():
    train, test = data.load("credit-default"), data.load("credit-default", split="test")
    assert len(train) + len(test) == 30000
    assert int(train.y.sum() + test.y.sum()) == 6636
    assert train.x.shape[1] == 32
    assert float(train.x.double().mean(0).abs().max()) < 1e-5


@needs_folder
def test_real_reuters():
    train, test = data.load("reuters-r8"), data.load("reuters-r8", split="test")
    assert (len(train), len(test), train.classes) == (5485, 2189, 8)
    assert train.vocabulary == test.vocabulary == int(train.x.max()) + 1
    assert train.label_names == test.label_names
    assert int((train.x == 1).sum()) > 0
