"""The user's own files and functions."""

from __future__ import annotations

import gzip
import os
import sys

import numpy as np
import pytest
import torch

from wideangle import data
from wideangle.errors import InputError

X = np.random.default_rng(0).normal(size=(20, 3))
LABELS = np.arange(20) % 4


class RunsCode:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("key", ["x", "X"])
def test_npz(tmp_path, key):
    np.savez(tmp_path / "own.npz", **{key: X, "y": LABELS})
    loaded = data.load(tmp_path / "own.npz")
    assert (loaded.name, loaded.classes, len(loaded)) == ("own.npz", 4, 20)
    torch.testing.assert_close(loaded.x, torch.from_numpy(X).float(), rtol=0, atol=0)
    assert loaded.y.tolist() == LABELS.tolist()
    part = data.load(str(tmp_path / "own.npz"), n=8, seed=3)
    assert part.y.bincount().tolist() == [2, 2, 2, 2]


def test_npz_test_split(tmp_path):
    np.savez(tmp_path / "own.npz", x=X, y=LABELS)
    with pytest.raises(InputError, match=r"holds x, y; .*'test'.* x_test .*y_test"):
        data.load(tmp_path / "own.npz", split="test")
    np.savez(tmp_path / "own.npz", x=X, y=LABELS, x_test=X[:2] + 1, y_test=LABELS[:2])
    test = data.load(tmp_path / "own.npz", split="test")
    assert (len(test), test.classes) == (2, 4)
    torch.testing.assert_close(test.x, torch.from_numpy(X[:2] + 1).float())


def test_npz_with_pickled_code_is_refused(tmp_path):
    holder = np.empty(1, dtype=object)
    holder[0] = RunsCode(str(tmp_path / "was_run"))
    np.savez(tmp_path / "own.npz", x=holder, y=LABELS[:1], allow_pickle=True)
    with pytest.raises(InputError, match="without running pickled code"):
        data.load(tmp_path / "own.npz")
    assert not (tmp_path / "was_run").exists()


def test_a_single_array_is_no_npz(tmp_path):
    np.save(tmp_path / "own.npy", X)
    (tmp_path / "own.npy").rename(tmp_path / "own.npz")
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        data.load(tmp_path / "own.npz")


def test_pt_dict_pair_and_dtypes(tmp_path):
    x = torch.from_numpy(X).to(torch.bfloat16).requires_grad_()
    torch.save({"x": x, "y": torch.from_numpy(LABELS)}, tmp_path / "own.pt")
    loaded = data.load(tmp_path / "own.pt")
    torch.testing.assert_close(loaded.x, x.detach().float(), rtol=0, atol=0)
    assert not loaded.x.requires_grad
    torch.save((torch.from_numpy(X), torch.from_numpy(LABELS)), tmp_path / "own.pt")
    assert data.load(tmp_path / "own.pt").classes == 4
    torch.save(torch.zeros(3), tmp_path / "own.pt")
    with pytest.raises(InputError, match="holds a Tensor"):
        data.load(tmp_path / "own.pt")


def test_pt_with_pickled_code_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1, 2), "y": RunsCode(str(tmp_path / "was_run"))}, tmp_path / "own.pt")
    with pytest.raises(InputError, match="plain tensors"):
        data.load(tmp_path / "own.pt")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".csv.gz"])
@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00junk", b"PK\x03\x04 cut"])
def test_damaged_files(tmp_path, suffix, content):
    path = tmp_path / f"own{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"own\."):
        data.load(path)


def test_uint8_images_are_scaled_and_wider_integers_are_token_ids(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (6, 1, 2, 2), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=pixels, y=LABELS[:6])
    torch.testing.assert_close(data.load(tmp_path / "images.npz").x, torch.from_numpy(pixels).float() / 255)
    np.savez(tmp_path / "tokens.npz", x=pixels[:, 0, 0].astype(np.int32), y=LABELS[:6])
    tokens = data.load(tmp_path / "tokens.npz")
    assert tokens.x.dtype == torch.int64
    assert tokens.vocabulary == int(pixels[:, 0, 0].max()) + 1
    np.savez(tmp_path / "tokens.npz", x=-pixels[:, 0, 0].astype(np.int32), y=LABELS[:6])
    with pytest.raises(InputError, match="store features as floating-point"):
        data.load(tmp_path / "tokens.npz")


@pytest.mark.parametrize(
    ("y", "classes", "coded", "names"),
    [
        (np.array([2, 0, 1, 2]), 3, [2, 0, 1, 2], ()),
        (np.array([0, 0, 0, 0]), 2, [0, 0, 0, 0], ()),
        (np.array([-1, 1, 1, -1]), 2, [0, 1, 1, 0], ("-1", "1")),
        (np.array(["dog", "cat", "dog", "eel"]), 3, [1, 0, 1, 2], ("cat", "dog", "eel")),
        (np.array([True, False, True, True]), 2, [1, 0, 1, 1], ()),
    ],
)
def test_label_kinds(tmp_path, y, classes, coded, names):
    np.savez(tmp_path / "own.npz", x=X[:4], y=y)
    loaded = data.load(tmp_path / "own.npz")
    assert (loaded.classes, loaded.y.tolist(), loaded.label_names) == (classes, coded, names)
    assert loaded.y.dtype == torch.int64


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2)])
def test_regression_targets(tmp_path, shape):
    y = np.random.default_rng(2).normal(size=shape)
    np.savez(tmp_path / "own.npz", x=X[:4], y=y)
    loaded = data.load(tmp_path / "own.npz", n=3)
    assert loaded.classes == 0
    assert loaded.y.shape == (3, y.reshape(4, -1).shape[1])
    rows = [X[:4].astype(np.float32).tolist().index(row) for row in loaded.x.tolist()]
    np.testing.assert_allclose(loaded.y.numpy(), y.reshape(4, -1)[rows], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:4], LABELS[:3], "x has 4 rows"),
        (X[:4], np.eye(4, dtype=int), "one integer or word per row"),
        (X[:4], np.array(3), "one target per row"),
        (X[:0], LABELS[:0], "n >= 1"),
        (X[:4, 0], LABELS[:4], r"\(n, \.\.\.\)"),
        (X[:4] + 1j, LABELS[:4], "must hold numbers"),
        (X[:4].astype(str), LABELS[:4], "must hold numbers"),
        (X[:4], LABELS[:4] * 1j, "use integers or words"),
        (X[:4], np.array([0, 1, 2, 50_000]), "too many classes"),
        (X[:4], np.array([0.0, 1.0, np.nan, 2.0]), r"y holds 1 value.*\(2, 0\) \(nan\)"),
        (X[:4], np.zeros((4, 1, 1)), r"\(n,\) or \(n, k\)"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, x, y, message):
    np.savez(tmp_path / "own.npz", x=x, y=y)
    with pytest.raises(InputError, match=message) as caught:
        data.load(tmp_path / "own.npz")
    assert "own.npz" in str(caught.value)


def test_non_finite_inputs_are_counted_and_placed(tmp_path):
    x = X.copy()
    x[3, 1], x[3, 2], x[7, 0] = np.nan, np.inf, -np.inf
    np.savez(tmp_path / "own.npz", x=x, y=LABELS)
    with pytest.raises(
        InputError, match=r"3 value\(s\).* in 2 of 20 rows, the first at index \(3, 1\) \(nan\)"
    ):
        data.load(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", x=X * 1e60, y=LABELS)
    with pytest.raises(InputError, match="not finite"):
        data.load(tmp_path / "own.npz")


@pytest.mark.parametrize("zipped", [False, True])
def test_csv_with_named_target_and_text_labels(tmp_path, zipped):
    lines = ["a,Label,b"] + [f"{i},{'yes' if i % 2 else 'no'},{i * i}" for i in range(20)]
    path = tmp_path / ("own.csv.gz" if zipped else "own.csv")
    content = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    train, test = data.load(path), data.load(path, split="test")
    assert (train.label_names, len(train), len(test)) == (("no", "yes"), 16, 4)
    a = np.array([i for i in range(20) if i not in (8, 9, 18, 19)], dtype=float)
    torch.testing.assert_close(train.x[:, 0], torch.from_numpy((a - a.mean()) / a.std()).float())
    assert float(test.x[0, 0]) == pytest.approx((8 - a.mean()) / a.std())
    assert test.y.tolist() == [0, 1, 0, 1]


def test_csv_without_header_takes_the_last_column(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("\ufeff1,2,0.5\n3,5,1.5\n\n4,1,2.5\n9,9,3.5\n8,8,4.5\n", encoding="utf-8")
    train = data.load(path)
    assert train.classes == 0
    assert train.y.flatten().tolist() == [0.5, 1.5, 2.5, 3.5]
    assert data.load(path, "test").y.tolist() == [[4.5]]
    path.write_text("1,2,0\n3,5,1\n")
    assert data.load(path).classes == 2
    with pytest.raises(InputError, match="too few for a test split"):
        data.load(path, split="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,y\n", "0 data rows"),
        ("a,b\n1,2\n1,2,3\n", "data row 2 has 3 cells, expected 2"),
        ("a,y\n1,0\nred,1\n", "column 'a', data row 2 holds 'red'"),
        ("a,y\n1,0\n,1\n", "column 'a', data row 2 holds ''"),
        ("a,y\n1,0\nnan,1\n", r"1 value\(s\) that are not finite"),
        ("a;y\n1;0\n", "two columns separated by commas"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        data.load(path)


FUNCTIONS = """
import torch
from helper_beside import SHIFT
from wideangle.data import Dataset

def pair():
    return torch.zeros(4, 2) + SHIFT, [0, 1, 2, 1]

def ready():
    y = torch.tensor([0, 1, 0, 1])
    return Dataset(torch.zeros(4, 2), y, classes=5, name="ignored", label_names=tuple("abcde"))

def split_aware(split):
    return torch.zeros(1 if split == "test" else 4, 2), torch.zeros(1 if split == "test" else 4)

def wrong():
    return 3

def ragged():
    return [[1.0], [1.0, 2.0]], [0, 1]

def fails():
    raise KeyError("missing")

NUMBER = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "helper_beside.py").write_text("SHIFT = 7.0\n")
    (tmp_path / "own_module.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    yield "own_module.py"
    sys.modules.pop("helper_beside", None)


def test_functions_in_a_file(module):
    before = list(sys.path)
    pair = data.load(f"{module}:pair")
    assert (pair.name, pair.classes, float(pair.x[0, 0])) == ("own_module.py:pair", 3, 7.0)
    ready = data.load(f"{module}:ready", n=2)
    assert (ready.classes, ready.label_names, len(ready)) == (5, tuple("abcde"), 2)
    assert len(data.load(f"{module}:split_aware", split="test")) == 1
    assert sys.path == before
    with pytest.raises(InputError, match="no parameter 'split'"):
        data.load(f"{module}:pair", split="test")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_module.py:wrong", "returned a int"),
        ("own_module.py:ragged", "no rectangular array"),
        ("own_module.py:fails", "raised KeyError: 'missing'"),
        ("own_module.py:absent", "no function 'absent'; it has pair, ready"),
        ("own_module.py:NUMBER", "no function 'NUMBER'"),
        ("other.py:pair", "no Python file at .*other.py"),
        ("own_module.py", "none of the formats"),
        ("missing.npz", "no file at .*missing.npz"),
    ],
)
def test_functions_that_cannot_be_used(module, name, message):
    with pytest.raises(InputError, match=message):
        data.load(name)


def test_a_file_that_fails_on_import(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module_here\n")
    with pytest.raises(InputError, match=r"broken.py fails on import with ModuleNotFoundError"):
        data.import_function(f"{tmp_path}/broken.py:f")
