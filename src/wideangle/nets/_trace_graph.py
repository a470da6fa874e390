"""The neuron graph of a module: its weighted layers, their depth and in-degrees, read from its fx graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from wideangle.errors import InputError
from wideangle.nets._neuron_graph import NeuronGraph, NeuronLayer
from wideangle.nets._trace_values import VALUE, traced

__all__ = ["conv_in_degrees", "neuron_graph"]

JOINS = {
    "add",
    "iadd",
    "sub",
    "isub",
    "rsub",
    "add_",
    "sub_",
    "cat",
    "concat",
    "concatenate",
    "stack",
    "hstack",
}
SCALES = {"mul", "imul", "mul_", "div", "truediv", "itruediv", "div_", "multiply", "divide", "neg"}
AVERAGES = {"mean", "sum", *(f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3))}
SHAPES = {
    *("flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "movedim"),
    *(
        "swapaxes",
        "t",
        "expand",
        "expand_as",
        "view_as",
        "clone",
        "detach",
        "to",
        "float",
        "double",
        "type_as",
    ),
    *(
        "getitem",
        "getattr",
        "chunk",
        "split",
        "narrow",
        "pad",
        "dropout",
        "unflatten",
        "index_select",
        "roll",
    ),
    *("flip", "repeat", "unbind", "select", "ravel", "swapdims", "_assert", "eq", "size", "dim", "tile"),
}
SHAPE_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = tuple(getattr(nn, f"{kind}AvgPool{d}d") for kind in ("", "Adaptive") for d in (1, 2, 3))
ACTIVATIONS = {
    *(
        "relu",
        "relu_",
        "tanh",
        "sigmoid",
        "gelu",
        "silu",
        "erf",
        "elu",
        "leaky_relu",
        "softplus",
        "mish",
        "selu",
    ),
    *(
        "celu",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "relu6",
        "logsigmoid",
        "softsign",
        "tanhshrink",
        "square",
    ),
    *(
        "pow",
        "abs",
        "exp",
        "sin",
        "cos",
        "sqrt",
        "clamp",
        "clip",
        "softmax",
        "log_softmax",
        "logsumexp",
        "max",
    ),
    *("layer_norm", "group_norm", "rms_norm", "normalize", "amax", "log", "maximum", "minimum"),
    *(f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)),
}
ACTIVATION_HOMES = {f"torch.nn.modules.{name}" for name in ("activation", "normalization", "pooling")}


@dataclass(frozen=True)
class _Signal:
    """What a value is to the layers before it: its depth, the layers it ends in, whether linearly in them."""

    depth: int = 0
    ends: frozenset[int] = frozenset()
    bent: bool = False

    def with_(self, others: Sequence[_Signal]) -> _Signal:
        every = [self, *others]
        ends = frozenset[int]().union(*(s.ends for s in every))
        return _Signal(max(s.depth for s in every), ends, any(s.bent for s in every))


class _Reader:
    """Walks the nodes of a traced module and collects its weighted layers."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.layers: list[NeuronLayer] = []
        self.signals: dict[fx.Node, _Signal] = {}
        self.joins: list[str] = []
        self.averages: list[str] = []
        self.unread: list[str] = []
        self.calls: dict[str, int] = {}

    def read(self, node: fx.Node) -> None:
        inputs = [self.signals[parent] for parent in node.all_input_nodes if parent in self.signals]
        if node.op == "placeholder":
            self.signals[node] = _Signal()
        elif inputs:
            joined = inputs[0].with_(inputs[1:])
            module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
            if node.op == "output":
                self.signals[node] = joined
            elif module is not None:
                self.signals[node] = self._module(node, module, joined)
            else:
                self.signals[node] = self._call(node, joined, len(inputs))

    def _module(self, node: fx.Node, module: nn.Module, s: _Signal) -> _Signal:
        name = str(node.target)
        if isinstance(module, nn.Linear):
            return self._weighted(node, name, "Linear", [module.in_features], module.weight, s)
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
            spatial = node.args[0].meta[VALUE].shape[-len(module.kernel_size) :]  # type: ignore[union-attr]
            shape = module.weight.shape
            degrees = conv_in_degrees(spatial, shape, module.stride, module.padding, module.dilation)
            if module.padding_mode != "zeros":
                degrees = [shape[1:].numel()]
            return self._weighted(node, name, type(module).__name__, degrees, module.weight, s)
        if hasattr(module, "stages") and hasattr(module, "graph"):
            return self._dag(name, module, s)
        home = type(module).__module__
        if isinstance(module, POOLS):
            self.averages.append(name)
        elif home in ACTIVATION_HOMES and not isinstance(module, nn.MultiheadAttention):
            return replace(s, bent=True)
        elif (
            not isinstance(module, (*SHAPE_MODULES, *NORMS))
            and "dropout" not in home
            and "padding" not in home
        ):
            self.unread.append(f"{name} ({type(module).__name__})")
            return replace(s, bent=True)
        return s

    def _call(self, node: fx.Node, s: _Signal, signals: int) -> _Signal:
        name = (
            node.target
            if isinstance(node.target, str)
            else getattr(node.target, "__name__", str(node.target))
        )
        name = name.strip("_") if name.startswith("__") else name
        if name in ("linear", "matmul", "mm", "conv1d", "conv2d", "conv3d") and signals == 1:
            found = self._product(node, name, s)
            if found is not None:
                return found
        if name in JOINS or (name in SCALES and signals == 1):
            if signals > 1:
                self.joins.append(f"{node.name}")
            return s
        if name in AVERAGES:
            self.averages.append(node.name)
            return s
        if name in SHAPES:
            return s
        if name not in ACTIVATIONS:
            self.unread.append(f"{node.name} ({name})")
        return replace(s, bent=True)

    def _product(self, node: fx.Node, name: str, s: _Signal) -> _Signal | None:
        """Return the signal behind a product with a parameter; None where the other factor is a constant."""
        x, weight = (node.args + tuple(node.kwargs.values()))[:2]
        swapped = name in ("matmul", "mm") and x not in self.signals
        x, weight = (weight, x) if swapped else (x, weight)
        if not isinstance(weight, fx.Node) or not isinstance(x, fx.Node):
            return None
        tensor = self._constant(weight)
        if not (isinstance(tensor, nn.Parameter) or tensor.requires_grad):
            return s
        where = str(weight.target) if weight.op == "get_attr" else node.name
        if not name.startswith("conv"):
            rank = 1 if name == "linear" or swapped or tensor.dim() == 1 else 2
            return self._weighted(node, where, name, [tensor.shape[-rank]], tensor, s)
        given = (
            dict(zip(("bias", "stride", "padding", "dilation"), node.args[2:], strict=False)) | node.kwargs
        )
        spatial = x.meta[VALUE].shape[2:]
        stride, padding, dilation = given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1)
        degrees = conv_in_degrees(spatial, tensor.shape, stride, padding, dilation)
        return self._weighted(node, where, name, degrees, tensor, s)

    def _constant(self, node: fx.Node) -> Tensor:
        value = node.meta.get(VALUE)
        return (
            value if isinstance(value, Tensor) else reduce(getattr, str(node.target).split("."), self.model)
        )

    def _weighted(
        self, node: fx.Node, name: str, kind: str, degrees: Sequence[int], weight: Tensor, s: _Signal
    ) -> _Signal:
        """Add a layer; `degrees` are those of the positions of one unit, or one for all."""
        self.calls[name] = self.calls.get(name, 0) + 1
        neurons = int(node.meta[VALUE][0].numel())
        return self._add(
            name if self.calls[name] == 1 else f"{name}, call {self.calls[name]}",
            kind,
            np.repeat(np.asarray(degrees), neurons // len(degrees)),
            int(weight.numel()),
            s.depth + 1,
        )

    def _add(self, name: str, kind: str, degrees: np.ndarray, weights: int, depth: int) -> _Signal:
        distinct, counts = np.unique(degrees, return_counts=True)
        index = len(self.layers)
        self.layers.append(
            NeuronLayer(name, kind, depth, len(degrees), distinct.tolist(), counts.tolist(), weights)
        )
        return _Signal(depth, frozenset([index]))

    def _dag(self, name: str, dag: Any, s: _Signal) -> _Signal:
        found, graph = [], dag.graph
        for layer, stage in enumerate(dag.stages, 1):
            degrees = graph.in_degree[graph.layer == layer]
            added = self._add(
                f"{name}.stages.{layer - 1}", "DAG", degrees, stage.weight.numel(), s.depth + layer
            )
            if (graph.layer[graph.outputs] == layer).any():
                found.append(added)
        return replace(found[0].with_(found[1:]), bent=not dag.linear_output)


def conv_in_degrees(
    spatial: Sequence[int], weight: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> list[int]:
    """Return the in-degree at each output position of a convolution: taps inside the image times channels.

    Args:
        spatial: height and width (any number of axes) of the input.
        weight: shape of the weight, (units, channels a unit sees, kernel...).
        stride: one number or one an axis.
        padding: zeros on each side, one number or one an axis, "same" or "valid".
        dilation: one number or one an axis.
    """
    axes, kernel = len(spatial), weight[2:]
    counts = []
    for axis in range(axes):
        size, taps = int(spatial[axis]), int(kernel[axis])
        step, gap = _entry(stride, axis), _entry(dilation, axis)
        reach = gap * (taps - 1)
        total = {"same": reach, "valid": 0}.get(padding) if isinstance(padding, str) else None
        before = total // 2 if total is not None else _entry(padding, axis)
        around = total if total is not None else 2 * before
        starts = np.arange(0, size + around - reach, step) - before
        places = starts[:, None] + gap * np.arange(taps)
        counts.append(((places >= 0) & (places < size)).sum(1))
    return (int(weight[1]) * reduce(np.multiply.outer, counts)).ravel().tolist()


def _entry(value: Any, axis: int) -> int:
    return int(value) if isinstance(value, int) else int(value[axis if len(value) > 1 else 0])


def neuron_graph(model: nn.Module, x: Any) -> NeuronGraph:
    """Return the neuron graph of a module; see `DAG.from_module`."""
    from wideangle.nets.dag import DAG

    if isinstance(model, DAG):
        model = nn.Sequential(model)
    graph = traced(model, x, (DAG,))
    nodes = _ancestors(graph)
    reader = _Reader(model)
    for node in nodes:
        reader.read(node)
    end = reader.signals.get(nodes[-1])
    if end is None or not reader.layers:
        raise InputError(f"no weighted layer of {type(model).__name__} leads from x to its output")
    layers = [replace(layer, output=i in end.ends) for i, layer in enumerate(reader.layers)]
    layers.sort(key=lambda layer: layer.depth)
    counted = [layer for layer in layers if layer.depth >= 2]
    width = min((layer.in_degrees[0] for layer in counted), default=float("inf"))
    narrow = [layer for layer in counted if layer.in_degrees[0] == width]
    return NeuronGraph(
        layers=layers,
        width=width,
        narrowest=narrow[0].name if narrow else "",
        at_output=any(layer.output for layer in narrow),
        linear_output=not end.bent,
        joins=reader.joins,
        averages=reader.averages,
        unread=reader.unread,
    )


def _ancestors(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes the output depends on, in order."""
    nodes = list(graph.nodes)
    waiting, found = [nodes[-1]], {nodes[-1]}
    while waiting:
        for parent in waiting.pop().all_input_nodes:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return [node for node in nodes if node in found]
