"""The user's own data: .npz, .pt and .csv files, or a function in a Python file."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wideangle.data._folder import uncompressed
from wideangle.data._raw import Raw, every_fifth, standardised
from wideangle.data.dataset import Dataset
from wideangle.data.table import numeric_columns, parse_csv, target_values
from wideangle.errors import InputError

SUFFIXES = (".npz", ".pt", ".csv", ".csv.gz")
TARGET_COLUMNS = ("y", "label", "target")
MOST_CLASSES = 1000


def is_own(target: str) -> bool:
    """Return whether `target` names a file or a function of the user's rather than a built-in data set."""
    return target.endswith(SUFFIXES) or ".py:" in target or "/" in target or target.endswith(".py")


def read_own(target: str, split: str) -> Raw:
    """Return the data behind a file name or module.py:function."""
    if ".py:" in target:
        return _from_function(target, split)
    path = Path(target).expanduser()
    if not path.is_file():
        raise InputError(
            f"no file at {path.absolute()}; own data is a .npz, .pt or .csv file or module.py:function"
        )
    if path.name.endswith(".npz"):
        return _from_mapping(_read_npz(path), split, str(path))
    if path.name.endswith(".pt"):
        return _from_mapping(_read_pt(path), split, str(path))
    if path.name.endswith((".csv", ".csv.gz")):
        return _from_csv(path, split)
    raise InputError(f"{path} is none of the formats read here: {', '.join(SUFFIXES)} or module.py:function")


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as .npz without running pickled code: {error}") from error


def _read_pt(path: Path) -> Mapping[str, Any]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} cannot be read as plain tensors ({reason}); save {{'x': x, 'y': y}} with torch.save"
        ) from error
    if isinstance(stored, (tuple, list)) and len(stored) == 2:
        return {"x": stored[0], "y": stored[1]}
    if isinstance(stored, Mapping):
        return stored
    raise InputError(
        f"{path} holds a {type(stored).__name__}; expected a dict with x and y, or the pair (x, y)"
    )


def _from_mapping(stored: Mapping[str, Any], split: str, where: str) -> Raw:
    ending = "" if split == "train" else "_test"
    x = stored.get(f"x{ending}", stored.get(f"X{ending}"))
    y = stored.get(f"y{ending}")
    if x is None or y is None:
        raise InputError(
            f"{where} holds {', '.join(map(str, stored)) or 'nothing'}; for split={split!r} it must hold "
            f"x{ending} (or X{ending}) and y{ending}"
        )
    raw = raw_arrays(x, y, where)
    if split == "train" or not raw.classes:
        return raw
    known = _from_mapping(stored, "train", where)
    return Raw(raw.x, raw.y, max(raw.classes, known.classes), max(raw.vocabulary, known.vocabulary))


def _from_csv(path: Path, split: str) -> Raw:
    header, columns = parse_csv(uncompressed(path), str(path))
    lower = [name.lower() for name in header]
    at = next((lower.index(name) for name in TARGET_COLUMNS if name in lower), len(header) - 1)
    y = target_values(columns[at])
    rest = [i for i in range(len(header)) if i != at]
    x = numeric_columns([header[i] for i in rest], [columns[i] for i in rest], str(path))
    raw = raw_arrays(x, y, str(path))
    groups = raw.y if raw.classes else np.zeros(len(raw.y))
    kept = every_fifth(groups, split)
    if not len(kept):
        raise InputError(
            f"{path} has {len(x)} rows, too few for a test split: every fifth row of a class is one"
        )
    train = x[every_fifth(groups, "train")]
    finite = bool(np.isfinite(x).all())
    return Raw(standardised(x, train) if finite else x, raw.y, raw.classes, 0, raw.label_names).take(kept)


def _from_function(target: str, split: str) -> Raw:
    function = import_function(target)
    takes_split = "split" in inspect.signature(function).parameters
    if split != "train" and not takes_split:
        raise InputError(f"{target} has no parameter 'split'; give it one to serve split={split!r}")
    try:
        made = function(split=split) if takes_split else function()
    except Exception as error:  # the user's own code may raise anything
        raise InputError(f"{target} raised {type(error).__name__}: {error}") from error
    if isinstance(made, Dataset):
        return Raw(
            made.x.cpu().numpy(), made.y.cpu().numpy(), made.classes, made.vocabulary, made.label_names
        )
    if isinstance(made, (tuple, list)) and len(made) == 2:
        return raw_arrays(made[0], made[1], target)
    raise InputError(
        f"{target} returned a {type(made).__name__}; expected (x, y) or a wideangle.data.Dataset"
    )


def import_function(target: str) -> Callable[..., Any]:
    """Return the function behind ``module.py:function``, importing the file from where it lies.

    While the file runs, its own folder stands first on the import path, as for a script. The file is
    run afresh at every call. Cost: that of importing the file.

    Args:
        target: path of a Python file, relative to the working folder or absolute, a colon, a name in it.

    Returns:
        The function, class or other callable of that name.

    Raises:
        InputError: no such file, the file fails on import, or it has no such function.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "mine.py")
        ...     _ = file.write_text("def double(x): return 2 * x")
        ...     import_function(f"{file}:double")(21)
        42
    """
    file, _, name = target.rpartition(":")
    path = Path(file).expanduser().absolute()
    if not path.is_file() or path.suffix != ".py":
        raise InputError(
            f"no Python file at {path}; write module.py:function, the path seen from the working folder"
        )
    module_name = f"wideangle_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code may raise anything
        del sys.modules[module_name]
        raise InputError(f"{file} fails on import with {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        offered = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(f"{file} has no function {name!r}; it has {', '.join(offered) or 'none'}")
    return function


def raw_arrays(x: Any, y: Any, where: str) -> Raw:
    """Return x and y (tensors, arrays or nested lists) as stored data; the type of y says what kind it is."""
    inputs, targets = _array(x, f"{where}: x"), _array(y, f"{where}: y")
    if inputs.dtype.kind not in "biuf":
        raise InputError(f"{where}: x is {inputs.dtype}; it must hold numbers")
    if inputs.ndim < 2 or len(inputs) == 0:
        raise InputError(f"{where}: x must be (n, ...) with n >= 1, got {inputs.shape}")
    if targets.ndim == 0 or len(targets) != len(inputs):
        raise InputError(
            f"{where}: x has {len(inputs)} rows, y has shape {targets.shape}; give one target per row"
        )
    words = int(inputs.max()) + 1 if inputs.dtype.kind in "iu" and inputs.dtype != np.uint8 else 0
    y_coded, classes, names = _targets(targets, where)
    return Raw(inputs, y_coded, classes, words, names)


def _array(values: Any, what: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.is_floating_point() else values.numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{what} is no rectangular array ({error})") from error


def _targets(y: np.ndarray, where: str) -> tuple[np.ndarray, int, tuple[str, ...]]:
    if y.dtype.kind == "f":
        if y.ndim > 2:
            raise InputError(f"{where}: regression targets must be (n,) or (n, k), got {y.shape}")
        return y.reshape(len(y), -1), 0, ()
    if y.ndim != 1:
        raise InputError(
            f"{where}: class labels must be one integer or word per row, got {y.dtype} {y.shape}"
        )
    if y.dtype.kind == "b":
        return y.astype(np.int64), 2, ()
    if y.dtype.kind == "U" or (y.dtype.kind == "i" and y.min() < 0):
        values, codes = np.unique(y, return_inverse=True)
        return codes, max(2, len(values)), tuple(str(value) for value in values)
    if y.dtype.kind not in "iu":
        raise InputError(f"{where}: y is {y.dtype}; use integers or words for classes, floats for regression")
    classes = max(2, int(y.max()) + 1)
    if classes > max(MOST_CLASSES, len(y)):
        raise InputError(
            f"{where}: y holds integers up to {classes - 1} in {len(y)} rows, which are too many classes; "
            "write them as floating-point numbers if they are regression targets"
        )
    return y.astype(np.int64), classes, ()
