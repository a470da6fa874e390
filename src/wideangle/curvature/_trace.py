"""What a model does in one forward pass: its weight layers in the order of use and the functions between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from wideangle.kernel._model import call, plain_attention
from wideangle.nets._stage import Stage

__all__ = [
    "ATTENTION",
    "SOFTMAX",
    "Trace",
    "Use",
    "first_tensor",
    "is_torch",
    "kinks",
    "observe",
    "run",
]

ACTIVATIONS = frozenset(
    {
        "relu",
        "relu6",
        "gelu",
        "silu",
        "mish",
        "tanh",
        "sigmoid",
        "softplus",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "hardshrink",
        "softshrink",
        "tanhshrink",
        "softsign",
        "logsigmoid",
        "prelu",
        "rrelu",
        "threshold",
        "glu",
        "sin",
        "cos",
        "exp",
    }
)
SOFTMAX = frozenset(("softmax", "log_softmax", "softmin", "gumbel_softmax"))
ATTENTION = frozenset(("scaled_dot_product_attention", "multi_head_attention_forward"))
KINKED = frozenset(
    {
        *("relu", "relu6", "prelu", "rrelu", "selu", "threshold", "rnn_relu", "rnn_relu_cell"),
        *("hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink"),
        *("abs", "absolute", "l1_loss", "clamp", "clip", "clamp_min", "clamp_max"),
        *("max", "min", "maximum", "minimum", "fmax", "fmin", "amax", "amin", "aminmax", "cummax", "cummin"),
        *("sort", "msort", "topk", "kthvalue", "median", "nanmedian", "quantile", "nanquantile"),
        *("sign", "sgn", "heaviside", "round", "floor", "ceil", "trunc", "fix", "frac", "fmod", "remainder"),
    }
)
SLOPES = {
    "elu": ("alpha", 1.0),
    "leaky_relu": ("negative_slope", 0.01),
}  # left of 0, where it is 1 on the right
NORMS = {"norm": "p", "linalg_norm": "ord", "linalg_vector_norm": "ord"}
RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))


@dataclass
class Use:
    """One weight layer: the module, its name, how often it was called and the widths of its output."""

    name: str
    module: nn.Module
    calls: int = 0
    width: int = 0


@dataclass
class Trace:
    """The record of a pass; `after` holds the functions applied since the last weight layer returned."""

    uses: dict[str, Use] = field(default_factory=dict)
    last: str | None = None
    functions: dict[str, int] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)
    output: Any = None


def _plain(function: Any) -> str:
    """Return the name of a function of torch, the same for relu, relu_, _relu and relu.default."""
    return str(getattr(function, "__name__", "")).split(".")[0].strip("_")


class _Watch(TorchFunctionMode):
    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _plain(func)
        if name in ACTIVATIONS | SOFTMAX | ATTENTION | RECURRENT:
            self.trace.functions[name] = self.trace.functions.get(name, 0) + 1
            self.trace.after.append(name)
        return func(*args, **(kwargs or {}))


class _Kinks(TorchFunctionMode):
    """Collects the functions with kinks that are applied to what depends on the weights."""

    def __init__(self):
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        name = _plain(func)
        if _has_kinks(name, args, given) and _depends([*args, *given.values()]):
            self.found.add(name)
        return func(*args, **given)


def _has_kinks(name: str, args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    if name in KINKED or "max_pool" in name:
        return True
    key, default = SLOPES.get(name, (NORMS.get(name, ""), None))
    value = given.get(key, args[1] if len(args) > 1 else default)
    if name in SLOPES:
        return value != 1
    return name in NORMS and value in (1, math.inf, -math.inf)


def _depends(values: Any) -> bool:
    """Tell whether a gradient flows through one of the tensors, or of those in lists and tuples."""
    return any(
        value.requires_grad if isinstance(value, Tensor) else _depends(value)
        for value in values
        if isinstance(value, (Tensor, list, tuple))
    )


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    """Put every layer into eval mode and give each its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def run(model: nn.Module, x: Any, weights: dict[str, Tensor] | None = None) -> Any:
    """Return what the model returns in eval mode for a tensor, a dict of arguments or a tuple of them.

    `weights` stand in for the model's parameters of those names in this pass.
    """
    with torch.no_grad(), _in_eval(model), plain_attention():
        return call(model, weights or {}, _arguments(x))


def _arguments(x: Any) -> Any:
    return x if isinstance(x, (dict, tuple)) else tuple(x) if isinstance(x, list) else (x,)


def kinks(model: nn.Module, x: Any) -> list[str]:
    """Return the functions with kinks (or jumps) that one pass in eval mode applies to what depends on weights.

    They are told by the names and arguments of torch's functions: ELU has a kink unless alpha is 1, CELU none.
    Kinks of the inputs alone do not count. One that a later function smooths does (ReLU, then its square), and
    `where`, indexing by comparisons and functions of one's own are not seen through.
    """
    weights = {
        name: parameter.detach().requires_grad_()
        for name, parameter in model.named_parameters()
        if not isinstance(parameter, nn.parameter.UninitializedParameter) and parameter.is_floating_point()
    }
    watch = _Kinks()
    with torch.enable_grad(), _in_eval(model), plain_attention(), watch:
        call(model, weights, _arguments(x))
    return sorted(watch.found)


def first_tensor(raw: Any) -> Tensor | None:
    """Return the first floating tensor within what a model or layer returned."""
    if isinstance(raw, Tensor):
        return raw if raw.is_floating_point() else None
    items: Any = raw.values() if hasattr(raw, "values") and callable(raw.values) else raw
    if isinstance(items, (str, bytes)) or not hasattr(items, "__iter__"):
        return None
    return next((found for item in items if (found := first_tensor(item)) is not None), None)


def is_weighted(module: nn.Module) -> bool:
    """Tell whether a module holds a weight matrix of its own (norms and bare biases do not)."""
    if isinstance(module, Stage):
        return True
    weight = getattr(module, "weight", None)
    own = [p for p in module._parameters.values() if p is not None]
    return any(isinstance(w, Tensor) and w.ndim >= 2 and w.is_floating_point() for w in [weight, *own])


def is_torch(module: nn.Module) -> bool:
    """Tell whether a module is a layer of torch itself (or of a graph), with no function behind its weights."""
    if isinstance(module, Stage):
        return True
    recurrent = isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    return type(module).__module__.startswith("torch.") and not recurrent


def observe(model: nn.Module, x: Any) -> Trace:
    """Return the trace of one forward pass in eval mode; the model's hooks and modes are as before."""
    trace = Trace()
    names = {id(module): name for name, module in model.named_modules()}
    parents: list[nn.Module] = []
    busy: set[int] = set()

    def enter(module: nn.Module, args: Any) -> None:
        parents.append(module)
        if not any(isinstance(parent, ParametrizationList) for parent in parents):
            busy.update(id(parent) for parent in parents[:-1])

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        computing = any(isinstance(parent, ParametrizationList) for parent in parents)
        if parents and parents[-1] is module:
            parents.pop()
        if computing or id(module) in busy or not is_weighted(module):
            return
        if module is model and not is_torch(module):
            return
        name = names[id(module)]
        use = trace.uses.setdefault(name, Use(name, module))
        use.calls += 1
        use.width = _width(module, first_tensor(out))
        trace.last = name
        trace.after.clear()

    handles = [module.register_forward_pre_hook(enter) for module in model.modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        with _Watch(trace):
            trace.output = run(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _width(module: nn.Module, out: Tensor | None) -> int:
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    if out is None or out.ndim == 0:
        return 0
    return int(out.shape[1] if convolution and out.ndim > 1 else out.shape[-1])
