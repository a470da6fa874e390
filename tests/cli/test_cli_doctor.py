from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from wideangle import data
from wideangle.cli import app, doctor
from wideangle.document import Document

runner = CliRunner()


def test_it_names_versions_threads_devices_extras_and_data(monkeypatch, tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    monkeypatch.setenv("WIDEANGLE_DATA", str(tmp_path))
    result = runner.invoke(
        app, ["doctor", "--json", str(tmp_path / "d.json"), "--out", str(tmp_path / "d.html")]
    )
    assert result.exit_code == 0
    for title in ("Versions", "Threads", "Devices", "Extras", "Data"):
        assert f"\n{title}\n" in result.stdout
    assert torch.__version__ in result.stdout
    stored = Document.load(tmp_path / "d.json")
    found = stored.section("data").values
    assert found["mnist"] == "found"
    assert found["svhn"].startswith("not found (train_32x32.mat")
    assert found["digits"] == "bundled"
    assert stored.section("threads").values["torch threads"] == torch.get_num_threads()
    assert "Versions" in (tmp_path / "d.html").read_text()


def test_a_missing_extra_comes_with_its_command(monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"base": ("torch",), "odd": ("torch", "no-such-package-here")})
    rows = doctor.examine().section("extras").tables[0].cells
    assert rows[0][2:] == ["none", ""]
    assert rows[1][1].startswith("torch ")
    assert rows[1][2:] == ["no-such-package-here", 'pip install "wideangle[odd]"']


def test_every_named_data_set_is_looked_for():
    assert {*doctor.BUNDLED, *doctor.DATA_FILES} == set(data.NAMES)


def test_a_data_folder_that_is_none_is_said(monkeypatch):
    monkeypatch.setenv("WIDEANGLE_DATA", "/no/such/folder")
    assert "which is no folder" in doctor.examine().section("data").notes[0]
    monkeypatch.delenv("WIDEANGLE_DATA")
    assert doctor.examine().section("data").values["WIDEANGLE_DATA"] == "not set"


def test_a_broken_library_is_reported_and_the_rest_still_examined(monkeypatch):
    def broken() -> str:
        raise OSError("library is cut short")

    monkeypatch.setattr(torch.__config__, "show", broken)
    document = doctor.examine()
    assert document.section("threads").status == "failed"
    assert "library is cut short" in document.section("threads").notes[0]
    assert document.section("data").status == "done"


def test_blas_is_read_from_the_build():
    assert (
        doctor._torch_blas("PyTorch built with:\n - Build settings: BLAS_INFO=mkl, BUILD_TYPE=Release")
        == "mkl"
    )
    assert doctor._torch_blas("nothing here") == "unknown"


@pytest.mark.parametrize("words", [["doctor", "--out", "x.pdf"], ["doctor", "--json", "/"]])
def test_places_that_cannot_be_written_are_refused_first(words):
    result = runner.invoke(app, words)
    assert result.exit_code == 2
    assert words[1] in result.stderr
    assert "Versions" not in result.stdout
