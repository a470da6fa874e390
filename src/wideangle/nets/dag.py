"""The net on any directed acyclic graph of neurons."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wideangle import seeds
from wideangle.errors import InputError
from wideangle.nets import _graph_builders as builders
from wideangle.nets._dag_parts import (
    Activations,
    Listed,
    edges_into,
    joined,
    layer_members,
    layer_sizes,
    neuron_functions,
    output_places,
    positions,
    stages,
)
from wideangle.nets._graph import adjacency_edges, check_graph, read_edges
from wideangle.nets._layers import layer_widths
from wideangle.nets._neuron_graph import NeuronGraph
from wideangle.nets._stage import Stage, Storage
from wideangle.nets.activations import ACTIVATIONS, Activation

__all__ = ["DAG"]


class DAG(nn.Module):
    """A trainable net on any directed acyclic graph, in the NTK parameterisation.

        f_v = activation_v(pre_v),   pre_v = (1 / sqrt(in(v))) sum_{u -> v} w_(u,v) f_u,   w ~ N(0, 1)

    in(v) is the in-degree of v; f_v is feature number k for input k; the activation is the identity on inputs
    and, unless said otherwise, on outputs; there is no bias and every edge has a weight. A neuron's layer is
    its longest path from the inputs. The weights are one flat parameter a layer, `stages[l - 1].weight`, one
    number an edge in the order of `edges(l)`.

    Cost: a layer is one matrix product over the earlier neurons it sees where at least one pair in 64 is an
    edge, else one multiply-add an edge and sample. Memory: the edges, the matrices of the former layers, and
    n numbers an edge of the latter. Every step is a plain torch operation, so second derivatives, forward
    mode, vmap, float64 and any device work.

    Args:
        edges: pairs (from, to) of hashable labels, an integer array or tensor (E, 2), or a networkx.DiGraph
            (any object with `edges`, and `nodes` for the order).
        inputs: the labels of the input features in order; by default every vertex that nothing feeds
            (integers in increasing order, else in the order of the nodes or of first appearance). A label
            that no edge touches is a feature that is not used.
        outputs: the labels of the outputs in order; by default every vertex that feeds none.
        activation: of the hidden neurons: a name of `ACTIVATIONS`, a function, or a mapping from every
            hidden label to one (it may name outputs too). It keeps the shape.
        output_activation: of the outputs; None leaves them linear.
        storage: "auto", or "dense" or "sparse" for every layer.
        generator: where the weights are drawn from; by default a fresh one with `seed`.
        seed: of that generator.

    Attributes:
        graph: the checked graph; `in_features`, `out_features`: the numbers of inputs and outputs.
        stages: one module a layer, with its `weight`; linear_output: no output has an activation.

    Raises:
        InputError: an edge that is no pair, a duplicate edge, a cycle, a neuron that nothing feeds or that
            reaches no output, inputs or outputs that are none, an activation that is missing or unknown; in
            the forward pass, inputs of another size, an activation that changes the shape. The message
            names the vertices.

    Example:
        >>> net = DAG([("x", "a"), ("x", "b"), ("a", "b"), ("a", "y"), ("b", "y")], activation="tanh")
        >>> net.layers(), net.width()
        ([['x'], ['a'], ['b'], ['y']], 2)
        >>> net(torch.ones(5, 1)).shape
        torch.Size([5, 1])

    Reference: Zhu, Liu & Belkin 2022 (arXiv 2205.11786), section 2. `width` counts the outputs, which the
    paper's formula leaves out and its results need.
    """

    def __init__(
        self,
        edges: Any,
        *,
        inputs: Iterable[Hashable] | None = None,
        outputs: Iterable[Hashable] | None = None,
        activation: Activations = "tanh",
        output_activation: Activation | None = None,
        storage: Storage = "auto",
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if storage not in ("auto", "dense", "sparse"):
            raise InputError(f"storage is {storage!r}; choose 'auto', 'dense' or 'sparse'")
        self.graph = check_graph(*read_edges(edges), inputs, outputs)
        self.in_features, self.out_features = len(self.graph.inputs), len(self.graph.outputs)
        kinds, functions = neuron_functions(self.graph, activation, output_activation)
        self.linear_output = all(functions[i] is ACTIVATIONS["identity"] for i in kinds[self.graph.outputs])
        self._members = layer_members(self.graph, kinds)
        generator = generator or seeds.generator(seed, "nets", "dag")
        self.stages = nn.ModuleList(stages(self.graph, self._members, kinds, functions, storage, generator))
        self._output_layers, index = output_places(self.graph, self._members)
        picked = None if index is None else torch.from_numpy(index).to(generator.device)
        self.register_buffer("_picked", picked, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, shape (n, C), of inputs (n, ...)."""
        values = self._run(x)[0]
        f = joined(values, self._output_layers)
        picked = self._picked
        return f.index_select(1, picked) if isinstance(picked, Tensor) else f

    def preactivations(self, x: Tensor) -> list[Tensor]:
        """Return pre_v of the neurons of layers 1, 2, ..., each (n, neurons of the layer), as `layers` orders them.

        Args:
            x: inputs (n, ...).

        Raises:
            InputError: inputs of another size.
        """
        return self._run(x)[1]

    def _run(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        h = x.flatten(1)
        if h.shape[1] != self.in_features:
            raise InputError(f"the net takes {self.in_features} inputs per sample, got {tuple(x.shape)}")
        values, before = [h], []
        for layer, stage in enumerate(cast(list[Stage], self.stages), 1):
            pre = stage(joined(values, stage.needed))
            before.append(pre)
            values.append(stage.activate(pre, layer))
        return values, before

    def layers(self) -> list[list[Any]]:
        """Return the labels layer by layer, the inputs first.

        The layer of a neuron is the length of the longest path to it; inputs and outputs stand in their order
        in their layers where they are all there is, other neurons grouped by activation.

        Example:
            >>> DAG.fcn(2, 1, width=3, depth=1).layers()
            [[0, 1], [2, 3, 4], [5]]
        """
        return [[self.graph.labels[v] for v in members] for members in self._members]

    def edges(self, layer: int) -> list[tuple[Any, Any]]:
        """Return the edges (from, to) into a layer, in the order of the weights `stages[layer - 1].weight`.

        Args:
            layer: 1 to the number of layers.

        Raises:
            InputError: no such layer.
        """
        if not 1 <= layer <= len(self.stages):
            raise InputError(f"layer must be 1 to {len(self.stages)}, got {layer}")
        labels = self.graph.labels
        place = positions(self._members, len(labels))
        sources, targets = edges_into(self.graph, self._members, place, layer)
        return [(labels[u], labels[v]) for u, v in zip(sources.tolist(), targets.tolist(), strict=True)]

    def in_degrees(self) -> dict[Any, int]:
        """Return label -> in-degree of every neuron that is not an input, layer by layer."""
        return {
            self.graph.labels[v]: int(self.graph.in_degree[v])
            for members in self._members[1:]
            for v in members
        }

    def width(self) -> float:
        """Return the smallest in-degree of all neurons behind the first layer, outputs included.

        The Hessian of every output and pre-activation is of the order 1 / sqrt(width) up to logarithms. The
        first layer is left out: its in-degree is the number of features. Infinite where there is nothing
        behind the first layer, and the net is linear.

        Example:
            >>> DAG.fcn(3, 1, width=(50, 4)).width()  # the output sees 4 neurons
            4

        Reference: Zhu, Liu & Belkin 2022 (arXiv 2205.11786), Theorem 3.6; small in-degrees of a vanishing
        share of the neurons do no harm, so a large width is enough, and not needed.
        """
        counted = self.graph.in_degree[self.graph.layer >= 2]
        return int(counted.min()) if len(counted) else math.inf

    def thin_neurons(self, below: int) -> dict[Any, int]:
        """Return label -> in-degree of the neurons behind the first layer with fewer than `below` predecessors.

        A whole layer of them keeps the net from becoming linear; a few beside many wide ones do not.

        Example:
            >>> DAG.fcn(3, 1, width=(50, 4)).thin_neurons(10)
            {57: 4}
        """
        thin = (self.graph.layer >= 2) & (self.graph.in_degree < below)
        return {self.graph.labels[v]: int(self.graph.in_degree[v]) for v in np.flatnonzero(thin)}

    def extra_repr(self) -> str:
        """Return the line that repr shows first."""
        return (
            f"{self.in_features} inputs, {self.out_features} outputs, "
            f"{int((self.graph.layer > 0).sum())} neurons, {len(self.graph.sources)} edges, width {self.width()}"
        )

    @classmethod
    def from_adjacency(cls, matrix: Any, **options: Any) -> DAG:
        """Return the net on the edges u -> v of the entries matrix[u, v] != 0, labelled 0, 1, ...

        Args:
            matrix: square; a numpy array, a tensor or a scipy sparse array. Its values are not used.
            **options: as for `DAG`.

        Raises:
            InputError: not square, entries that are not finite numbers, or as for `DAG`.

        Example:
            >>> DAG.from_adjacency([[0, 1, 1], [0, 0, 1], [0, 0, 0]]).in_degrees()
            {1: 1, 2: 2}
        """
        return cls(Listed(*adjacency_edges(matrix)), **options)

    @classmethod
    def fcn(
        cls,
        in_features: int | Sequence[int],
        outputs: int,
        *,
        width: int | Sequence[int] = 512,
        depth: int | None = None,
        **options: Any,
    ) -> DAG:
        """Return a fully connected net, vertices numbered layer by layer; `MLP` without gain, as a graph.

        Args:
            in_features: inputs per sample; a shape counts as its product.
            outputs: C.
            width: neurons of every hidden layer, or one number per hidden layer.
            depth: number of hidden layers, 2 where not given.
            **options: as for `DAG`.

        Raises:
            InputError: a size below one, or as for `DAG`.
        """
        sizes = layer_sizes(in_features, outputs, layer_widths(width, depth, None, default=2))
        return cls._numbered(builders.layered_edges(sizes), sizes, options)

    @classmethod
    def densenet(
        cls,
        in_features: int | Sequence[int],
        outputs: int,
        *,
        width: int | Sequence[int] = 512,
        depth: int | None = None,
        with_inputs: bool = False,
        **options: Any,
    ) -> DAG:
        """Return a net whose every layer, the outputs too, sees all earlier hidden layers.

        Args:
            in_features: inputs per sample; a shape counts as its product.
            outputs: C.
            width: neurons of every hidden layer, or one number per hidden layer.
            depth: number of hidden layers, 3 where not given.
            with_inputs: every layer sees the inputs too.
            **options: as for `DAG`.

        Raises:
            InputError: a size below one, or as for `DAG`.

        Example:
            >>> DAG.densenet(2, 1, width=(8, 4)).in_degrees()[14]
            12
        """
        sizes = layer_sizes(in_features, outputs, layer_widths(width, depth, None, default=3))
        return cls._numbered(builders.dense_edges(sizes, with_inputs), sizes, options)

    @classmethod
    def bottleneck(
        cls,
        in_features: int | Sequence[int],
        outputs: int,
        *,
        width: int = 512,
        narrow: int = 4,
        depth: int = 3,
        skips: bool = False,
        **options: Any,
    ) -> DAG:
        """Return a fully connected net whose middle hidden layer is narrow, with dense skips around it or not.

        Without skips the layer behind the narrow one has the in-degree `narrow`, whatever the width; with
        them every layer sees all earlier hidden ones and no in-degree is under `width`.

        Args:
            in_features: inputs per sample; a shape counts as its product.
            outputs: C.
            width: neurons of the other hidden layers.
            narrow: neurons of the middle one.
            depth: number of hidden layers.
            skips: connect as `densenet` does.
            **options: as for `DAG`.

        Raises:
            InputError: a size below one, or as for `DAG`.

        Example:
            >>> [DAG.bottleneck(2, 1, width=32, narrow=4, skips=skips).width() for skips in (False, True)]
            [4, 32]
        """
        sizes = layer_sizes(in_features, outputs, layer_widths(width, depth, narrow, default=3))
        edges = builders.dense_edges(sizes, False) if skips else builders.layered_edges(sizes)
        return cls._numbered(edges, sizes, options)

    @classmethod
    def random(
        cls,
        in_features: int | Sequence[int],
        outputs: int,
        *,
        layers: Sequence[int] = (512, 512),
        in_degree: builders.InDegree = 64,
        output_in_degree: builders.InDegree | None = None,
        previous_only: bool = False,
        generator: torch.Generator | None = None,
        seed: int = 0,
        **options: Any,
    ) -> DAG:
        """Return a net on a random graph: every neuron picks its predecessors among the earlier vertices.

        One predecessor comes from the layer before, so that the layers are those asked for, the others from
        all earlier vertices, inputs included. Neurons that reach no output are left out, as nothing depends
        on them: a layer may come out smaller than asked.

        Args:
            in_features: inputs per sample; a shape counts as its product.
            outputs: C.
            layers: neurons of each hidden layer.
            in_degree: predecessors of a neuron, or a range (low, high) to draw from uniformly, rounded down;
                a neuron with fewer earlier vertices takes all of them.
            output_in_degree: that of the outputs; as `in_degree` where left out.
            previous_only: pick from the layer before only.
            generator: where graph and weights are drawn from; by default a fresh one with `seed`.
            seed: of that generator.
            **options: as for `DAG`.

        Raises:
            InputError: a size or in-degree below one or not whole, or as for `DAG`.

        Example:
            >>> net = DAG.random(10, 1, layers=(64, 64), in_degree=(8, 8**1.5))
            >>> 8 <= net.width() <= 22
            True
        """
        sizes = layer_sizes(in_features, outputs, layer_widths(layers, None, None, default=2))
        generator = generator or seeds.generator(seed, "nets", "dag", "random")
        last = in_degree if output_in_degree is None else output_in_degree
        edges = builders.random_edges(sizes, in_degree, last, previous_only, generator)
        return cls._numbered(edges, sizes, {**options, "generator": generator})

    @classmethod
    def _numbered(cls, edges: np.ndarray, sizes: list[int], options: dict[str, Any]) -> DAG:
        total = sum(sizes)
        return cls(edges, inputs=range(sizes[0]), outputs=range(total - sizes[-1], total), **options)

    @staticmethod
    def from_module(model: nn.Module, x: Any) -> NeuronGraph:
        """Return the graph of neurons that a module computes on `x`: a report, not a trainable copy.

        Read by torch.fx: every weighted layer (Linear, convolution, product with a parameter) with its depth,
        its neurons and the range of their in-degrees; see `NeuronGraph`. Cost: one forward pass.

        Args:
            model: any module that torch.fx can follow; left as it was found.
            x: one batch of inputs, as the model takes it; two samples are enough.

        Raises:
            InputError: the forward pass branches on the values of its inputs, or fails on `x`.

        Example:
            >>> model = nn.Sequential(nn.Linear(9, 50), nn.Tanh(), nn.Linear(50, 4), nn.Tanh(), nn.Linear(4, 1))
            >>> found = DAG.from_module(model, torch.zeros(2, 9))
            >>> found.width, found.narrowest
            (4, '4')
        """
        from wideangle.nets._trace_graph import neuron_graph

        return neuron_graph(model, x)
