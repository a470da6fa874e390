"""The neuron graph of a module: its weighted layers, their depth and in-degrees, read from its fx graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from wideangle.errors import InputError
from wideangle.nets import _trace_names as names
from wideangle.nets._neuron_graph import NeuronGraph, NeuronLayer
from wideangle.nets._trace_products import (
    call_name,
    contracted,
    conv_in_degrees,
    occurrences,
    reduced_axes,
    varying,
)
from wideangle.nets._trace_values import VALUE, traced

__all__ = ["neuron_graph"]


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
        self.trained: set[fx.Node] = set()  # no signals, but they depend on parameters
        self.scaled: dict[fx.Node, fx.Node] = {}  # what a node multiplies by constants
        self.entrywise: dict[fx.Node, tuple[fx.Node, _Signal]] = {}  # products with weights, not yet summed
        self.joins: list[str] = []
        self.averages: list[str] = []
        self.unread: list[str] = []
        self.unread_weights: list[str] = []
        self.calls: dict[str, int] = {}

    def read(self, node: fx.Node) -> None:
        inputs = [self.signals[parent] for parent in node.all_input_nodes if parent in self.signals]
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op == "placeholder":
            self.signals[node] = _Signal()
        elif not inputs:
            value = node.meta.get(VALUE)
            owned = isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and value.requires_grad)
            owned = owned or (module is not None and _holds_weights(module))
            if owned or self.trained & set(node.all_input_nodes):
                self.trained.add(node)
        else:
            joined = inputs[0].with_(inputs[1:])
            if node.op == "output":
                self.signals[node] = joined
            elif module is not None:
                self.signals[node] = self._module(node, module, joined)
            else:
                self.signals[node] = self._call(node, joined)

    def finish(self) -> None:
        """Name the products with weights that no sum followed."""
        for node, (weight, _) in self.entrywise.items():
            self._not_read(node.name, f"{call_name(node)} by {_where(weight, node)}", True)

    def _not_read(self, name: str, kind: str, weights: bool) -> None:
        self.unread.append(f"{name} ({kind})")
        if weights:
            self.unread_weights.append(self.unread[-1])

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
        if isinstance(module, names.POOLS):
            self.averages.append(name)
        elif home in names.ACTIVATION_HOMES and not isinstance(module, (nn.MultiheadAttention, nn.PReLU)):
            return replace(s, bent=True)
        elif (
            not isinstance(module, (*names.SHAPE_MODULES, *names.NORMS))
            and "dropout" not in home
            and "padding" not in home
        ):
            self._not_read(name, type(module).__name__, _holds_weights(module))
            return replace(s, bent=True)
        return s

    def _call(self, node: fx.Node, s: _Signal) -> _Signal:
        name, operands = call_name(node), occurrences(node)
        signals = [operand for operand in operands if operand in self.signals]
        weights = [operand for operand in operands if operand in self.trained]
        if name in names.JOINS:
            if len(signals) > 1:
                self.joins.append(node.name)
            return s
        if name in names.PRODUCTS and len(signals) == 1:
            if not weights:
                return s
            found = self._product(node, name, signals[0], weights[0], s) if len(weights) < 3 else None
            if found is not None:
                return found
        if name in names.SCALES and len(signals) == 1:
            return self._scale(node, name, signals[0], weights, s)
        if name in names.AVERAGES and not weights:
            return self._sum(node, s)
        if name in names.SHAPES and operands[0] in self.signals:
            return s
        if name not in names.NORM_CALLS and (name not in names.ACTIVATIONS or weights):
            self._not_read(node.name, name, bool(weights))
        return replace(s, bent=True)

    def _scale(
        self, node: fx.Node, name: str, signal: fx.Node, weights: list[fx.Node], s: _Signal
    ) -> _Signal:
        """Return the signal behind a product of entries, or behind a division by or of something."""
        divided = name in names.DIVISIONS
        below = divided and (node.kwargs.get("other") if len(node.args) < 2 else node.args[1]) is signal
        if divided and (below or weights or node.kwargs.get("rounding_mode")):
            if weights:
                self._not_read(node.name, name, True)
            return replace(s, bent=True)
        if weights:
            self.entrywise[node] = weights[0], s
            return replace(s, bent=False)
        self.scaled[node] = signal
        return s

    def _sum(self, node: fx.Node, s: _Signal) -> _Signal:
        """Return the signal behind a sum or average: a layer where each entry was multiplied by a weight."""
        name, at = call_name(node), occurrences(node)[0]
        path = [at]
        while at in self.scaled:
            at = self.scaled[at]
            path.append(at)
        alone = all(len(step.users) == 1 for step in path)
        if name in ("sum", "mean") and at in self.entrywise and alone:
            weight, before = self.entrywise[at]
            tensor = weight.meta[VALUE]
            degree = varying(tensor, at.meta[VALUE].shape, reduced_axes(node))
            if degree:
                del self.entrywise[at]
                return self._weighted(node, _where(weight, node), f"mul, {name}", [degree], tensor, before)
        stacked = call_name(at) == "stack" and name in ("sum", "mean")
        axis = (at.args[1] if len(at.args) > 1 else at.kwargs.get("dim", 0)) if stacked else None
        if isinstance(axis, int) and reduced_axes(node) == [axis % at.meta[VALUE].dim()]:
            return s  # a sum over what was stacked is the join that the stack has named
        self.averages.append(node.name)
        return s

    def _product(
        self, node: fx.Node, name: str, signal: fx.Node, weight: fx.Node, s: _Signal
    ) -> _Signal | None:
        """Return the signal behind a product with weights; None where it is written in an unusual way."""
        tensor, where = weight.meta[VALUE], _where(weight, node)
        if name in ("einsum", "tensordot"):
            degree = contracted(node, signal, weight)
            return self._weighted(node, where, name, [degree], tensor, s) if degree else None
        pair = (node.args + tuple(node.kwargs.values()))[:2]
        swapped = name in ("matmul", "mm", "bmm") and pair[0] is weight
        if pair != ((weight, signal) if swapped else (signal, weight)):
            return None
        if not name.startswith("conv"):
            rank = 1 if name == "linear" or swapped or tensor.dim() == 1 else 2
            return self._weighted(node, where, name, [tensor.shape[-rank]], tensor, s)
        given = (
            dict(zip(("bias", "stride", "padding", "dilation"), node.args[2:], strict=False)) | node.kwargs
        )
        spatial = signal.meta[VALUE].shape[2:]
        stride, padding, dilation = given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1)
        degrees = conv_in_degrees(spatial, tensor.shape, stride, padding, dilation)
        return self._weighted(node, where, name, degrees, tensor, s)

    def _weighted(
        self, node: fx.Node, name: str, kind: str, degrees: Sequence[int], weight: Tensor, s: _Signal
    ) -> _Signal:
        """Add a layer; `degrees` are those of the positions of one unit, or one for all."""
        self.calls[name] = self.calls.get(name, 0) + 1
        value = node.meta[VALUE]
        neurons = int(value[0].numel()) if value.dim() else 1
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


def _holds_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _where(weight: fx.Node, node: fx.Node) -> str:
    return str(weight.target) if weight.op == "get_attr" else node.name


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
    reader.finish()
    end = reader.signals.get(nodes[-1])
    if end is None or not (reader.layers or reader.unread_weights):
        raise InputError(f"no weighted layer of {type(model).__name__} leads from x to its output")
    layers = [replace(layer, output=i in end.ends) for i, layer in enumerate(reader.layers)]
    layers.sort(key=lambda layer: layer.depth)
    counted = [layer for layer in layers if layer.depth >= 2]
    width = _width(counted, reader)
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
        unread_weights=reader.unread_weights,
    )


def _width(counted: list[NeuronLayer], reader: _Reader) -> float | None:
    """Return the smallest in-degree, None where calls that were not read may hold a smaller one."""
    if reader.unread_weights or (reader.unread and not counted):
        return None
    return min((layer.in_degrees[0] for layer in counted), default=float("inf"))


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
