"""`wideangle doctor`: what is installed, what the machine offers, which data sets are there."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wideangle.cli import _output
from wideangle.cli._common import JsonOption, OutOption, command_line

if TYPE_CHECKING:
    from wideangle.document import Document, Section

EXTRAS = {
    "federated": ("flwr", "dp-accounting"),
    "tuning": ("optuna",),
    "battery": ("pybamm", "bpx", "botorch"),
    "labels": ("cleanlab",),
    "integrations": ("lightning", "transformers", "skorch", "tensorboard", "networkx"),
}
BASE = (
    "wideangle",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "jinja2",
    "typer",
    "rich",
    "joblib",
)
BUNDLED = ("digits", "breast-cancer")
DATA_FILES = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte",
    "fashion-mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
    "cifar10": "cifar-10-batches-py/data_batch_1",
    "svhn": "train_32x32.mat",
    "credit-default": "tabular/credit-default.csv",
    "reuters-r8": "text/reuters-r8-train.tab",
}


def diagnose(ctx: typer.Context, out: OutOption = None, json: JsonOption = None) -> None:
    """Show versions, threads, devices, extras and data sets."""
    outputs = _output.Outputs(out, json).check()
    document = examine(command_line(ctx))
    for part in document.sections:
        _output.heading(part.title)
        _output.pairs((name, str(value)) for name, value in part.values.items())
        for table in part.tables:
            _output.pairs(_row(table.columns, row) for row in table.cells)
        for note in part.notes:
            _output.paragraph(note, "  ")
    _output.files(outputs.write(document))


def _row(columns: list[str], row: list[Any]) -> tuple[str, str]:
    told = zip(columns[1:], row[1:], strict=True)
    return str(row[0]), "; ".join(f"{name}: {value}" for name, value in told if value not in ("", "none"))


def examine(command: str | None = None) -> Document:
    """The state of this installation as a document."""
    from wideangle.document import Document
    from wideangle.result import Provenance

    parts = (_versions, _threads, _devices, _extras, _data)
    return Document(
        title="State of this installation",
        sections=[_guarded(part) for part in parts],
        provenance=Provenance.here(command=command),
    )


def _guarded(part: Callable[[], Section]) -> Section:
    """A machine in disorder is what one calls the doctor for: a part that fails says why."""
    from wideangle.document import Section

    name = part.__name__.strip("_")
    try:
        return part()
    except Exception as error:  # any broken library may raise anything
        text = f"{type(error).__name__}: {error}"
        return Section(name, name.capitalize(), text, status="failed", notes=[text])


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> Section:
    import platform

    from wideangle.document import Section

    values: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    values |= {name: _installed(name) or "not installed" for name in BASE}
    return Section("versions", "Versions", values=values)


def _threads() -> Section:
    import numpy as np
    import torch

    from wideangle.document import Section

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # pyright: ignore[reportOptionalSubscript, reportTypedDictNotRequiredAccess]
    values = {
        "processors": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "torch BLAS": _torch_blas(torch.__config__.show()),
        "numpy BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
    }
    return Section("threads", "Threads", values=values)


def _torch_blas(text: str) -> str:
    found = [part.partition("=")[2] for part in text.replace("\n", ",").split(",") if "BLAS_INFO=" in part]
    return found[0].strip() if found else "unknown"


def _devices() -> Section:
    import torch

    from wideangle.document import Section

    values = {"cpu": "available"}
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory
        values[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {memory / 2**30:.0f} GiB"
    if len(values) == 1:
        values["cuda"] = "none"
    values["mps"] = "available" if torch.backends.mps.is_available() else "none"
    return Section("devices", "Devices", values=values)


def _extras() -> Section:
    from wideangle.document import Section, Table

    cells = []
    for extra, packages in EXTRAS.items():
        found = {package: _installed(package) for package in packages}
        missing = ", ".join(package for package, number in found.items() if number is None)
        present = ", ".join(f"{package} {number}" for package, number in found.items() if number)
        command = f'pip install "wideangle[{extra}]"' if missing else ""
        cells.append([extra, present or "none", missing or "none", command])
    columns = ["extra", "installed", "missing", "to install"]
    return Section("extras", "Extras", tables=[Table("", columns, cells)])


def _data() -> Section:
    from wideangle.document import Section

    root = os.environ.get("WIDEANGLE_DATA")
    values: dict[str, Any] = {"WIDEANGLE_DATA": root or "not set"}
    values |= dict.fromkeys(BUNDLED, "bundled")
    notes = []
    if root and not Path(root).expanduser().is_dir():
        notes.append(f"WIDEANGLE_DATA names {root}, which is no folder")
    for name, relative in DATA_FILES.items():
        path = Path(root).expanduser() / relative if root else None
        there = path is not None and (path.is_file() or path.with_name(path.name + ".gz").is_file())
        values[name] = "found" if there else f"not found ({relative} in the data folder)"
    return Section("data", "Data", values=values, notes=notes)
