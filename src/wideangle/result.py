"""What every measurement returns: a frozen record that prints, round-trips through JSON and knows its origin."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from wideangle.errors import InputError
from wideangle.files import write_atomically

__all__ = ["Provenance", "Result"]


@functools.cache
def _installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Provenance:
    """Where a result came from: seed, library versions, device, seconds and the command that repeats it."""

    seed: int | None = None
    device: str = "cpu"
    seconds: float | None = None
    command: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(
        cls,
        *,
        seed: int | None = None,
        device: str = "cpu",
        seconds: float | None = None,
        command: str | None = None,
    ) -> Self:
        """Return the provenance of a result made now, with the versions installed on this machine."""
        versions = {name: _installed(name) for name in ("wideangle", "torch", "numpy", "scipy")}
        versions["python"] = platform.python_version()
        return cls(seed=seed, device=device, seconds=seconds, command=command, versions=versions)


@dataclass(frozen=True)
class Result:
    """Base of every record the library returns.

    A subclass is a frozen dataclass of plain numbers, strings, lists, dicts, numpy arrays and other
    results. It prints as a short table and round-trips through `to_json` / `from_json`, non-finite
    numbers included. A subclass that changes its fields raises `schema_version` and teaches
    `upgrade` to read the older form.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Norm(Result):
        ...     value: float = 0.0
        >>> print(Norm(value=1.5))
        Norm
          value  1.5
        >>> Norm.from_json(Norm(value=float("inf")).to_json()).value
        inf
    """

    schema_version: ClassVar[int] = 1
    provenance: Provenance = field(default_factory=Provenance, kw_only=True, repr=False)

    @classmethod
    def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        """Return the fields of an older `version` as today's; a subclass overrides it when it changes."""
        del version
        return data

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of the printed table as (name, value) pairs."""
        pairs = []
        for item in dataclasses.fields(self):
            if item.name == "provenance" or not item.repr:
                continue
            pairs.append((item.name.replace("_", " "), _brief(getattr(self, item.name))))
        return pairs

    def __str__(self) -> str:
        pairs = self.rows()
        width = max((len(name) for name, _ in pairs), default=0)
        return "\n".join([type(self).__name__, *(f"  {name:<{width}}  {text}" for name, text in pairs)])

    def to_json(self, indent: int | None = 1) -> str:
        """Return the record as JSON text (strict JSON; non-finite numbers are tagged)."""
        return json.dumps(_encode(self), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that `to_json` wrote.

        Raises:
            InputError: the text is not JSON, is no result, is another kind of result than `cls`,
                or was written by a newer version of wideangle.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"this is not JSON ({error}); expected what to_json() writes") from error
        result = _decode(data)
        if not isinstance(result, cls):
            kind = type(result).__name__
            raise InputError(f"the text holds a {kind}, but a {cls.__name__} was expected")
        return result

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record as JSON (temporary name, then rename) and return the path."""
        return write_atomically(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the record stored at `path`.

        Raises:
            InputError: no file there, or not a record of this kind.
        """
        file = Path(path)
        if not file.is_file():
            raise InputError(f"no file at {file}; expected a JSON file written by {cls.__name__}.save()")
        try:
            return cls.from_json(file.read_text())
        except (InputError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: {error}") from error


def _brief(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray):
        return f"array of shape {value.shape}" if value.ndim != 1 else _brief(value.tolist())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_brief(item) for item in value[:6])
        return f"[{shown}{', ...' if len(value) > 6 else ''}]"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_brief(item)}" for key, item in value.items())
    if isinstance(value, Result):
        return "; ".join(f"{name} {text}" for name, text in value.rows())
    return str(value)


def _encode(value: Any) -> Any:
    if isinstance(value, (Result, Provenance)):
        kind = type(value)
        body = {item.name: _encode(getattr(value, item.name)) for item in dataclasses.fields(value)}
        head: dict[str, Any] = {"type": f"{kind.__module__}:{kind.__qualname__}"}
        if isinstance(value, Result):
            head["schema_version"] = value.schema_version
        return {"$result": head, **body}
    if isinstance(value, np.ndarray):
        return {"$array": _encode(value.tolist()), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return _encode(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a result cannot hold a {type(value).__name__}; store numbers, text, lists or arrays")


def _known_types() -> dict[str, type]:
    found: dict[str, type] = {}
    waiting: list[type] = [Result]
    while waiting:
        kind = waiting.pop()
        found[f"{kind.__module__}:{kind.__qualname__}"] = kind
        waiting.extend(kind.__subclasses__())
    found[f"{Provenance.__module__}:{Provenance.__qualname__}"] = Provenance
    return found


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$array" in value:
        return np.array(_decode(value["$array"]), dtype=value["dtype"])
    if "$result" not in value:
        return {key: _decode(item) for key, item in value.items()}
    head = value["$result"]
    name = str(head.get("type", ""))
    kind = _known_types().get(name)
    if kind is None and name.startswith("wideangle.") and ":" in name:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name.partition(":")[0])
        kind = _known_types().get(name)
    if kind is None:
        raise InputError(f"the text holds an unknown kind of result, {name!r}; a newer wideangle may read it")
    body = {key: _decode(item) for key, item in value.items() if key != "$result"}
    if issubclass(kind, Result):
        version = int(head.get("schema_version", 1))
        if version > kind.schema_version:
            raise InputError(
                f"{kind.__name__} was written with schema {version}, this wideangle reads up to "
                f"{kind.schema_version}; install a newer wideangle"
            )
        if version < kind.schema_version:
            body = kind.upgrade(body, version)
    try:
        return kind(**body)
    except TypeError as error:
        raise InputError(f"the text does not hold the fields of a {kind.__name__}: {error}") from error
