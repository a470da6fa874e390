"""What a function computes, as a short text that is the same in every process: to tell one sweep from another."""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.files import digest

__all__ = ["identity", "name_of"]

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), range, slice, PurePath)
PLAIN += (np.generic, torch.dtype, torch.device)
FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


def identity(value: Any) -> str:
    """Return a short hash of what a function or a value is made of, the same in every process.

    Compared by content: numbers, strings, arrays, tensors, lists, dicts, sets, dataclasses, modules of torch
    (settings, weights, buffers); functions with their bytecode and constants, default arguments, closure, the
    arguments of a partial, the object of a method, the attributes of a callable object, and what they name in
    their module: data, and the functions and classes that are defined in the same module as the first one.
    Functions and classes of other modules count by their name, all else by its type: what changes inside of
    those is not seen. Bytecode differs between versions of Python.
    """
    root = value
    while isinstance(root, FUNCTIONS[1:]):
        root = root.__func__ if isinstance(root, types.MethodType) else root.func
    home = getattr(root, "__module__", None) or type(root).__module__
    return _Reader(str(home)).read(value, whole=True)


def name_of(function: Any) -> str:
    """Return the name of a function or class with its module, of a partial that of its function."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _hashed(*parts: str) -> str:
    """Return one hash of several texts; where one ends and the next begins counts."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


class _Reader:
    """Reads values, each object once; `home` is the module whose functions are looked into."""

    def __init__(self, home: str):
        self.home = home
        self.depth = 0
        self.known: dict[int, str] = {}
        self.kept: list[Any] = []  # so that no id is given out twice

    def read(self, value: Any, whole: bool = False) -> str:
        """Return the hash of a value; `whole`: also of the attributes of an object of one's own."""
        if isinstance(value, PLAIN):
            kind = type(value)
            return _hashed(f"{kind.__module__}.{kind.__qualname__}", repr(value))
        if id(value) not in self.known:
            self.kept.append(value)
            self.known[id(value)] = f"within itself, {self.depth}"
            self.depth += 1
            self.known[id(value)] = _hashed(*self._parts(value, whole))
            self.depth -= 1
        return self.known[id(value)]

    def _parts(self, value: Any, whole: bool) -> Iterator[str]:
        kind = type(value)
        yield f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(value, Tensor):
            yield _tensor(value)
        elif isinstance(value, np.ndarray):
            yield f"{value.dtype} {value.shape}"
            yield (
                self.read(value.tolist())
                if value.dtype.hasobject
                else hashlib.sha256(value.tobytes()).hexdigest()
            )
        elif isinstance(value, Mapping):
            yield from sorted(self.read(key) + self.read(item) for key, item in value.items())
        elif isinstance(value, (list, tuple)):
            yield from (self.read(item) for item in value)
        elif isinstance(value, (set, frozenset)):
            yield from sorted(self.read(item) for item in value)
        elif isinstance(value, enum.Enum):
            yield value.name
        elif isinstance(value, functools.partial):
            yield from (self.read(part, whole) for part in (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            yield from (self.read(value.__func__), self.read(value.__self__, whole))
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, types.BuiltinFunctionType):
            yield f"{value.__module__}.{value.__qualname__}"
            if not isinstance(value.__self__, types.ModuleType):
                yield self.read(value.__self__)
        elif isinstance(value, nn.Module):
            yield from self._module(value)
        elif hasattr(value, "__wrapped__"):
            yield self.read(value.__wrapped__)
        elif dataclasses.is_dataclass(value) or whole:
            yield self.read(kind)
            yield self.read(getattr(value, "__dict__", {}))
        else:
            yield str(getattr(value, "__qualname__", getattr(value, "__name__", "")))

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        yield from self._code(function.__code__)
        yield self.read(function.__defaults__)
        yield self.read(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                yield self.read(cell.cell_contents)
            except ValueError:
                yield "empty"
        for name in sorted(_globals(function.__code__)):
            if name in function.__globals__:
                yield name + self._named(function.__globals__[name])

    def _named(self, value: Any) -> str:
        """Read what a function names in its module: the content of data, and of functions and classes from home."""
        if isinstance(value, (types.FunctionType, type)) and value.__module__ != self.home:
            return name_of(value)
        return self.read(value)

    def _code(self, code: types.CodeType) -> Iterator[str]:
        yield code.co_code.hex()
        yield from (self.read(item) for item in code.co_consts)
        yield from (*code.co_names, "variables", *code.co_varnames, "free", *code.co_freevars)

    def _class(self, kind: type) -> Iterator[str]:
        yield f"{kind.__module__}.{kind.__qualname__}"
        if kind.__module__ != self.home:
            return
        for base in kind.__bases__:
            yield self.read(base)
        for name, item in sorted(vars(kind).items()):
            if isinstance(item, (classmethod, staticmethod)):
                item = item.__func__
            item = item.fget if isinstance(item, property) else item
            if isinstance(item, types.FunctionType) or (
                isinstance(item, PLAIN) and not name.startswith("__")
            ):
                yield name + self.read(item)

    def _module(self, module: nn.Module) -> Iterator[str]:
        for name, part in module.named_modules():
            settings = {key: item for key, item in vars(part).items() if key[0] != "_" and key != "training"}
            yield name + self.read(type(part)) + self.read(settings)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            yield name + _tensor(tensor)


def _globals(code: types.CodeType) -> set[str]:
    """Return the names a function takes from its module, also within the functions it defines."""
    found = {
        item.argval for item in dis.get_instructions(code) if item.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    inner = (item for item in code.co_consts if isinstance(item, types.CodeType))
    return found.union(*(_globals(item) for item in inner))


def _tensor(tensor: Tensor) -> str:
    try:
        plain = tensor.detach()
        plain = plain if plain.layout == torch.strided else plain.to_dense()
        return digest(plain.resolve_conj().resolve_neg())
    except (RuntimeError, NotImplementedError, ValueError):  # without numbers: on meta, or not yet made
        return f"{tensor.dtype} {tuple(tensor.shape) if tensor.is_meta else ''}"
