"""The published file formats, on tiny files written here."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from wideangle import data
from wideangle.data import cifar, idx, svhn
from wideangle.errors import InputError


def idx_bytes(array: np.ndarray) -> bytes:
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(root, images, labels, zipped=False, split="train"):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in zip(idx.FILES[split], (images, labels), strict=True):
        content = idx_bytes(array)
        path = folder / (file + (".gz" if zipped else ""))
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)


@pytest.fixture
def labels():
    return np.arange(12, dtype=np.uint8) % 10


@pytest.fixture
def no_checksums(monkeypatch):
    for module in (idx, cifar, svhn):
        monkeypatch.setattr(module, "MD5", {})


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_plain_and_gzipped(tmp_path, images, labels, zipped, no_checksums):
    write_idx(tmp_path, images, labels, zipped)
    loaded = data.load("mnist", root=tmp_path)
    assert loaded.y.tolist() == labels.tolist()
    torch.testing.assert_close(loaded.x, torch.from_numpy(images)[:, None].float() / 255, rtol=0, atol=0)


def test_idx_checksum(tmp_path, images, labels, monkeypatch):
    write_idx(tmp_path, images, labels, zipped=True)
    with pytest.raises(InputError, match=r"md5 .* expected 6bbc9ace898e44ae57da46a324031adb"):
        data.load("mnist", root=tmp_path)
    for file, array in zip(idx.FILES["train"], (images, labels), strict=True):
        digest = hashlib.md5(idx_bytes(array), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(idx.MD5, f"MNIST/raw/{file}", digest)
    assert len(data.load("mnist", root=tmp_path)) == 12


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_cut_short_is_named(tmp_path, images, labels, zipped, no_checksums):
    write_idx(tmp_path, images, labels, zipped)
    path = next((tmp_path / "MNIST" / "raw").glob("train-images*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut short") as caught:
        data.load("mnist", root=tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"\0\0\x0d\x01\0\0\0\x01abcd", b"\0\0\x08\x03\0\0", b"PK\3\4"]
)
def test_idx_refuses_other_files(content):
    with pytest.raises(InputError, match="here"):
        idx.parse_idx(content, "here")


def test_idx_images_and_labels_must_match(tmp_path, images, labels, no_checksums):
    write_idx(tmp_path, images, labels[:-1])
    with pytest.raises(InputError, match="do not go with"):
        data.load("mnist", root=tmp_path)


def protocol_2_batch(pixels: np.ndarray, classes: list[int]) -> bytes:
    return pickle.dumps({"data": pixels, "labels": classes, "batch_label": "tiny"}, protocol=2)


@pytest.fixture
def pixels():
    return np.random.default_rng(1).integers(0, 256, (4, 3072), dtype=np.uint8)


def write_cifar(root, pixels):
    folder = root / cifar.FOLDER
    folder.mkdir()
    for i, file in enumerate([*cifar.FILES["train"], *cifar.FILES["test"]]):
        (folder / file).write_bytes(protocol_2_batch(pixels, [i, 1, 2, 3]))


def test_cifar_batches_are_joined_in_order(tmp_path, pixels, no_checksums):
    write_cifar(tmp_path, pixels)
    train, test = data.load("cifar10", root=tmp_path), data.load("cifar10", "test", root=tmp_path)
    assert train.x.shape == (20, 3, 32, 32)
    assert train.y[::4].tolist() == [0, 1, 2, 3, 4]
    assert test.y.tolist() == [5, 1, 2, 3]
    assert round(float(test.x[2, 1, 0, 5]) * 255) == pixels[2, 1024 + 5]  # planes R, G, B; then rows


def test_cifar_checksums_are_compared(tmp_path, pixels):
    write_cifar(tmp_path, pixels)
    with pytest.raises(InputError, match="c99cafc152244af753f735de768cd75f"):
        data.load("cifar10", root=tmp_path)


def test_cifar_as_python_2_wrote_it(pixels):
    """The published batches name numpy.core.multiarray and hold byte strings of Python 2."""
    stored = protocol_2_batch(pixels, [0, 1, 2, 3]).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    assert b"numpy.core.multiarray" in stored
    x, y = cifar.parse_batch(stored, "batch")
    np.testing.assert_array_equal(x.reshape(4, -1), pixels)
    np.testing.assert_array_equal(y, [0, 1, 2, 3])
    raw = pixels[:1].tobytes()
    python_2 = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03"
        b"K\x00\x85U\x01b\x87Rq\x04(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(raw)) + raw
    ) + b"tbU\x06labelsq\x07]q\x08K\x07au."
    x, y = cifar.parse_batch(python_2, "batch")
    np.testing.assert_array_equal(x.reshape(1, -1), pixels[:1])
    assert y.tolist() == [7]


class Malicious:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_pickle_that_runs_code_is_refused(tmp_path, pixels, no_checksums):
    trace = tmp_path / "was_run"
    for attack in (Malicious(os.system, f"touch {trace}"), Malicious(eval, f"open({str(trace)!r}, 'w')")):
        content = pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3], "extra": attack}, protocol=2)
        with pytest.raises(
            InputError,
            match=r"refused: it asks for (posix\.system|nt\.system|builtins\.eval|__builtin__\.eval)",
        ):
            cifar.parse_batch(content, "batch")
    assert not trace.exists()
    with pytest.raises(InputError, match="refused"):
        cifar.parse_batch(pickle.dumps(Malicious(np.load, str(trace))), "batch")
    encode = __import__("_codecs").encode
    with pytest.raises(InputError, match="refused"):
        cifar.parse_batch(pickle.dumps(Malicious(encode, "a", "rot13"), protocol=2), "batch")


@pytest.mark.parametrize("dtype", [object, np.float32, np.uint16, "V8", [("a", "u1")]])
def test_arrays_of_anything_but_bytes_are_refused(dtype):
    content = pickle.dumps({"data": np.zeros((1, 3072), dtype), "labels": [0]}, protocol=2)
    with pytest.raises(InputError, match="it holds an array of type"):
        cifar.parse_batch(content, "batch")


def test_the_constructors_cannot_be_called_for_something_else():
    buffer_of_pointers = Malicious(np.ndarray, (1,), np.dtype("u1"), b"12345678")
    for content in (buffer_of_pointers, Malicious(np.ndarray, (10**12,))):
        with pytest.raises(InputError, match="refused"):
            cifar.parse_batch(pickle.dumps({"data": content, "labels": [0]}, protocol=2), "batch")


def test_column_major_arrays_keep_their_order(pixels):
    x, _ = cifar.parse_batch(protocol_2_batch(np.asfortranarray(pixels), [0, 1, 2, 3]), "batch")
    np.testing.assert_array_equal(x.reshape(4, -1), pixels)


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {"data": np.zeros((2, 10), np.uint8), "labels": [0, 1]},
        {"data": b"0" * 6144, "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, [1]]},
        {"labels": [0, 1]},
    ],
)
def test_other_pickles_are_no_batch(batch):
    with pytest.raises(InputError, match="no CIFAR-10 batch"):
        cifar.parse_batch(pickle.dumps(batch, protocol=2), "batch")


@pytest.mark.parametrize("keep", [0, 1, 60, 200, 3000, -1])
def test_a_pickle_cut_short_is_refused(pixels, keep):
    with pytest.raises(InputError, match="refused"):
        cifar.parse_batch(protocol_2_batch(pixels, [0, 1, 2, 3])[:keep], "batch")


def mat_bytes(**arrays) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, arrays, do_compression=True)
    return buffer.getvalue()


def test_svhn(tmp_path, no_checksums):
    stored = np.random.default_rng(2).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    content = mat_bytes(X=stored, y=np.array([[10], [1], [2], [9], [10]], dtype=np.uint8))
    (tmp_path / "train_32x32.mat").write_bytes(content)
    loaded = data.load("svhn", root=tmp_path)
    assert loaded.y.tolist() == [0, 1, 2, 9, 0]
    assert loaded.x.shape == (5, 3, 32, 32)
    assert round(float(loaded.x[3, 2, 4, 7]) * 255) == stored[4, 7, 2, 3]


def test_svhn_refuses_damaged_files(tmp_path):
    stored = np.random.default_rng(2).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    whole = mat_bytes(X=stored, y=np.ones((5, 1)))
    (tmp_path / "train_32x32.mat").write_bytes(whole)
    with pytest.raises(InputError, match="e26dedcc434d2e4c54c9b2d4a06d8373"):
        data.load("svhn", root=tmp_path)
    for keep in (0, 50, 200, 5000, len(whole) - 200):
        with pytest.raises(InputError, match="here"):
            svhn.parse_mat(whole[:keep], "here")
    with pytest.raises(InputError, match="must hold X"):
        svhn.parse_mat(mat_bytes(X=stored), "here")
    with pytest.raises(InputError, match="5 images but 4 labels"):
        svhn.parse_mat(mat_bytes(X=stored, y=np.ones((4, 1))), "here")


CREDIT = "ID,LIMIT,AGE,default-payment-next-month,EDUCATION_0\n"


@pytest.mark.parametrize("zipped", [False, True])
def test_credit_default(tmp_path, zipped):
    rows = "".join(f"{i},{1000 * i},{20 + i},{i % 2},0\n" for i in range(20))
    path = tmp_path / "tabular" / ("credit-default.csv" + (".gz" if zipped else ""))
    path.parent.mkdir()
    path.write_bytes(gzip.compress((CREDIT + rows).encode()) if zipped else (CREDIT + rows).encode())
    train, test = (
        data.load("credit-default", root=tmp_path),
        data.load("credit-default", "test", root=tmp_path),
    )
    assert (len(train), len(test)) == (16, 4)
    assert train.x.shape[1] == 3  # neither the row's number nor the target
    assert float(train.x[:, 2].abs().max()) == 0  # a constant column
    limits = np.array([1000 * i for i in range(20) if (i // 2) % 5 != 4], dtype=float)
    expected = torch.tensor((limits - limits.mean()) / limits.std()).float()
    torch.testing.assert_close(train.x[:, 0], expected)
    assert float(test.x[-1, 0]) == pytest.approx((19000 - limits.mean()) / limits.std())


def test_credit_default_needs_its_columns(tmp_path):
    path = tmp_path / "tabular" / "credit-default.csv"
    path.parent.mkdir()
    path.write_text("ID,AGE\n1,20\n2,30\n")
    with pytest.raises(InputError, match="no column 'default-payment-next-month'"):
        data.load("credit-default", root=tmp_path)
    path.write_text(CREDIT + "1,2,3,7,0\n1,2,3,0,0\n")
    with pytest.raises(InputError, match="must hold 0 and 1"):
        data.load("credit-default", root=tmp_path)


def write_reuters(root, split, lines):
    folder = root / "text"
    folder.mkdir(exist_ok=True)
    text = "Category\tText\nd\tstring\nclass\t\n\n" + "".join(line + "\n" for line in lines)
    (folder / f"reuters-r8-{split}.tab.gz").write_bytes(gzip.compress(text.encode()))


def test_reuters(tmp_path):
    write_reuters(tmp_path, "train", ["earn\t" + "profit " * 200, "crude\toil oil oil oil rare", "earn\toil"])
    write_reuters(tmp_path, "test", ["earn\tOil profit never"])
    train, test = data.load("reuters-r8", root=tmp_path), data.load("reuters-r8", "test", root=tmp_path)
    assert train.x.shape == (3, 128)
    assert train.label_names == ("crude", "earn")
    assert train.y.tolist() == [1, 0, 1]
    assert train.vocabulary == 4  # padding, unknown, profit, oil
    assert train.x[0].tolist() == [2] * 128
    assert train.x[1, :6].tolist() == [3, 3, 3, 3, 1, 0]
    assert test.x[0, :4].tolist() == [3, 2, 1, 0]


def test_reuters_refuses_what_does_not_fit(tmp_path):
    write_reuters(tmp_path, "train", ["earn\tprofit"])
    write_reuters(tmp_path, "test", ["wheat\tgrain"])
    with pytest.raises(InputError, match="wheat"):
        data.load("reuters-r8", "test", root=tmp_path)
    write_reuters(tmp_path, "train", ["no tab here"])
    with pytest.raises(InputError, match="line 5: expected category <tab> text"):
        data.load("reuters-r8", root=tmp_path)
    write_reuters(tmp_path, "train", [])
    with pytest.raises(InputError, match="holds no document"):
        data.load("reuters-r8", root=tmp_path)
