"""How the neurons of a graph are ordered within their layers, and the stage of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wideangle.errors import InputError
from wideangle.nets._graph import Graph
from wideangle.nets._layers import check_outputs, feature_count
from wideangle.nets._stage import Stage, Storage
from wideangle.nets.activations import ACTIVATIONS, Activation, activation_function

__all__ = [
    "Activations",
    "Listed",
    "edges_into",
    "joined",
    "layer_members",
    "layer_sizes",
    "neuron_functions",
    "output_places",
    "positions",
    "stages",
]

Activations = Activation | Mapping[Any, Activation]
Function = Callable[[Tensor], Tensor]


class Listed:
    """Vertices and edges as an object with `nodes` and `edges`."""

    def __init__(self, nodes: list[Any], edges: np.ndarray):
        self.nodes, self.edges = nodes, edges.tolist()


def layer_sizes(in_features: int | Sequence[int], outputs: int, hidden: list[int]) -> list[int]:
    """Return the sizes of all layers, inputs and outputs included, after a check."""
    features = feature_count(in_features)
    check_outputs(outputs)
    return [features, *hidden, outputs]


def joined(values: list[Tensor], layers: list[int]) -> Tensor:
    """Return the values of some layers side by side."""
    return values[layers[0]] if len(layers) == 1 else torch.cat([values[i] for i in layers], 1)


def neuron_functions(
    graph: Graph, activation: Activations, output_activation: Activation | None
) -> tuple[np.ndarray, list[Function]]:
    """Return for each vertex the number of its activation, and the activations."""
    last = ACTIVATIONS["identity"] if output_activation is None else activation_function(output_activation)
    if not isinstance(activation, Mapping):
        functions = [ACTIVATIONS["identity"], activation_function(activation), last]
        kinds = np.ones(len(graph.labels), dtype=np.int64)
        kinds[graph.inputs], kinds[graph.outputs] = 0, 2
        return kinds, functions
    named: dict[Any, Function] = {graph.labels[v]: ACTIVATIONS["identity"] for v in graph.inputs}
    wrong = [label for label in activation if label in named or label not in set(graph.labels)]
    if wrong:
        raise InputError(
            f"activation names {_few(wrong)}, which are inputs or no vertices of the graph; name neurons"
        )
    named |= {graph.labels[v]: last for v in graph.outputs}
    named |= {label: activation_function(entry) for label, entry in activation.items()}
    missing = [label for label in graph.labels if label not in named]
    if missing:
        raise InputError(
            f"activation names no function for {_few(missing)}; name one for every hidden neuron"
        )
    functions = list(dict.fromkeys(named.values()))
    number = {function: i for i, function in enumerate(functions)}
    return np.array([number[named[label]] for label in graph.labels]), functions


def _few(labels: list[Any]) -> str:
    return ", ".join(map(repr, labels[:5])) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def layer_members(graph: Graph, kinds: np.ndarray) -> list[np.ndarray]:
    """Return the vertices of each layer in the order they are computed: by activation, then as declared."""
    place = np.arange(len(graph.labels))
    place[graph.outputs] = np.sort(graph.outputs)
    order = np.lexsort((place, kinds, graph.layer))
    counts = np.bincount(graph.layer)
    return [graph.inputs, *np.split(order, np.cumsum(counts)[:-1])[1:]]


def positions(members: list[np.ndarray], size: int) -> np.ndarray:
    """Return where each vertex stands in its layer."""
    place = np.zeros(size, dtype=np.int64)
    for found in members:
        place[found] = np.arange(len(found))
    return place


def output_places(graph: Graph, members: list[np.ndarray]) -> tuple[list[int], np.ndarray | None]:
    """Return the layers the outputs lie in and each output's place in them side by side, None where as it is."""
    layer = graph.layer[graph.outputs]
    found = np.unique(layer)
    sizes = np.array([len(members[i]) for i in found])
    index = (np.cumsum(sizes) - sizes)[np.searchsorted(found, layer)]
    index = index + positions(members, len(graph.labels))[graph.outputs]
    whole = np.array_equal(index, np.arange(sizes.sum()))
    return found.tolist(), None if whole else index


def edges_into(
    graph: Graph, members: list[np.ndarray], place: np.ndarray, layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return sources and targets of the edges into a layer, by target, then source, as they are computed."""
    a, b = np.searchsorted(graph.layer[graph.targets], [layer, layer + 1])
    sources, targets = graph.sources[a:b], graph.targets[a:b]
    order = np.lexsort((place[sources], graph.layer[sources], place[targets]))
    return sources[order], targets[order]


def stages(
    graph: Graph,
    members: list[np.ndarray],
    kinds: np.ndarray,
    functions: list[Function],
    storage: Storage,
    generator: torch.Generator,
) -> Iterator[Stage]:
    """Yield the stage of each layer, its weights drawn from N(0, 1)."""
    sizes = np.array([len(found) for found in members])
    place = positions(members, len(graph.labels))
    for layer in range(1, len(members)):
        sources, targets = edges_into(graph, members, place, layer)
        needed = np.unique(graph.layer[sources])
        offset = np.zeros(len(members), dtype=np.int64)
        offset[needed] = np.cumsum(sizes[needed]) - sizes[needed]
        rows = kinds[members[layer]]
        cuts = [0, *(np.flatnonzero(np.diff(rows)) + 1).tolist(), len(rows)]
        yield Stage(
            needed.tolist(),
            int(sizes[needed].sum()),
            offset[graph.layer[sources]] + place[sources],
            place[targets],
            len(rows),
            [(a, b, functions[rows[a]]) for a, b in pairwise(cuts)],
            storage,
            torch.randn(len(sources), generator=generator, device=generator.device),
        )
