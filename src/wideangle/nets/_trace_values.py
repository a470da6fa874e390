"""A torch.fx tracer that runs every call as it records it, so that code which looks at shapes can be followed."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Iterator
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import TraceError

from wideangle.errors import InputError

__all__ = ["VALUE", "traced"]

VALUE = "wideangle_value"  # where a node keeps what its call returned
SHAPE_CALLS = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "is_floating_point"),
    *("is_contiguous", "is_complex", "get_device", "storage_offset"),
}


class _Valued(fx.Proxy):
    """A proxy that knows its value; shapes and other facts that do not depend on the data are handed out."""

    @property
    def known(self) -> Any:
        return self.node.meta[VALUE]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.known, name)
        if callable(found):
            return super().__getattr__(name)
        if isinstance(found, Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return found

    def __len__(self) -> int:
        return len(self.known)

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(cast(Any, self), i) for i in range(len(self)))


class _Tracer(fx.Tracer):
    def __init__(self, given: dict[str, Any], whole: tuple[type[nn.Module], ...]):
        super().__init__()
        self._given, self._whole, self._running = given, whole, False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._whole) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Valued(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._running:  # inside a leaf that is being run
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        args_now, kwargs_now = map_aggregate(args, _value), map_aggregate(kwargs, _value)
        value = self._run(kind, target, args_now, kwargs_now)
        if not isinstance(value, Tensor) and kind in ("call_function", "call_method"):
            name = target if isinstance(target, str) else getattr(target, "__name__", "")
            if name in SHAPE_CALLS or not _has_tensor((args_now, kwargs_now)):
                return value
            if isinstance(value, (bool, int, float)):
                raise TraceError(f"{name} turns values of the inputs into a Python {type(value).__name__}")
        found = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        found.node.meta[VALUE] = value
        return found

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            name = str(target)  # torch.fx numbers the defaults it puts in: scale_1
            return self._given[name if name in self._given else name.rpartition("_")[0]]
        self._running = True
        try:
            if kind == "call_module":
                return self.root.get_submodule(target).forward(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            if kind == "call_function":
                return target(*args, **kwargs)
            return reduce(getattr, str(target).split("."), self.root)  # an attribute of the model
        finally:
            self._running = False


def _value(argument: Any) -> Any:
    return argument.node.meta[VALUE] if isinstance(argument, fx.Proxy) else argument


def _has_tensor(arguments: Any) -> bool:
    found: list[Any] = []
    map_aggregate(arguments, lambda entry: found.append(entry) or entry)
    return any(isinstance(entry, Tensor) for entry in found)


def traced(model: nn.Module, x: Any, whole: tuple[type[nn.Module], ...]) -> fx.Graph:
    """Return the fx graph of a forward pass on `x` in eval mode, each node with its value in `meta[VALUE]`.

    The model is left as it was. Modules of the types `whole` are not entered.

    Raises:
        InputError: the forward pass cannot be followed, or fails.
    """
    given, fixed = _arguments(model, x)
    attributes = set(vars(model))
    try:
        with _evaluating(model), torch.enable_grad():
            graph = _Tracer({**given, **fixed}, whole).trace(model, fixed or None)
        for node in graph.nodes:
            if node.op == "get_attr" and VALUE not in node.meta:  # buffers and constants, put in as they are
                node.meta[VALUE] = reduce(getattr, str(node.target).split("."), model)
        return graph
    except TraceError as error:
        raise InputError(
            f"torch.fx cannot follow {type(model).__name__}: {error}. A forward pass that branches on the values "
            "of its inputs has no one graph; wideangle.curvature.audit(model, x) reads a model by running it"
        ) from error
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} could not be traced on x: {type(error).__name__}: {error}; check that "
            "model(x) runs, or use wideangle.curvature.audit(model, x), which reads a model by running it"
        ) from error
    finally:
        for name in set(vars(model)) - attributes:  # constants that torch.fx leaves on the model
            delattr(model, name)


def _arguments(model: nn.Module, x: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments given, and the defaults of the others, by name."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(**x) if isinstance(x, dict) else signature.bind(x)
    except TypeError as error:
        raise InputError(
            f"{type(model).__name__} does not take x: {error}; give a tensor for its one argument, or a dict "
            "with an entry for each"
        ) from error
    given = {name: _copied(value) for name, value in bound.arguments.items()}
    rest = {name: entry.default for name, entry in signature.parameters.items() if name not in given}
    return given, {name: value for name, value in rest.items() if value is not inspect.Parameter.empty}


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
