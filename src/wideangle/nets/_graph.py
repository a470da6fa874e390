"""A checked directed acyclic graph of neurons: its vertices, edges, in-degrees and longest-path layers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wideangle.errors import InputError

__all__ = ["Graph", "adjacency_edges", "check_graph", "graph_edges", "longest_paths", "read_edges"]

Label = Hashable


@dataclass(frozen=True)
class Graph:
    """A graph that passed every check; vertices are numbers, `labels` names them.

    `sources` and `targets` are the ends of the edges, ordered by the layer of the target; `layer` is the
    longest path from the inputs; `inputs` and `outputs` are in the order of features and of outputs.
    """

    labels: list[Any]
    sources: np.ndarray
    targets: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    layer: np.ndarray
    in_degree: np.ndarray

    @property
    def depth(self) -> int:
        """The largest layer index L."""
        return int(self.layer.max())


def read_edges(edges: Any) -> tuple[list[Any], np.ndarray]:
    """Return the vertex labels and the edges (E, 2) as vertex numbers.

    Integers are numbered in increasing order, other labels in the order they first appear; the nodes of a
    graph object keep its order.
    """
    if hasattr(edges, "edges"):
        return graph_edges(edges)
    if isinstance(edges, torch.Tensor):
        edges = edges.detach().cpu().numpy()
    if hasattr(edges, "tocoo"):
        raise InputError("edges is a sparse matrix; for an adjacency use DAG.from_adjacency(matrix)")
    if isinstance(edges, np.ndarray):
        return _array_edges(edges)
    return _labelled_edges(edges, [])


def _array_edges(edges: np.ndarray) -> tuple[list[Any], np.ndarray]:
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise InputError(
            f"edges as an array must be integers of shape (E, 2), one row (from, to) an edge, got {edges.dtype} "
            f"of shape {edges.shape}; for an adjacency matrix use DAG.from_adjacency(matrix)"
        )
    labels, numbers = np.unique(edges, return_inverse=True)
    return labels.tolist(), numbers.reshape(edges.shape).astype(np.int64)


def _labelled_edges(edges: Iterable[Any], labels: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    number: dict[Any, int] = {label: i for i, label in enumerate(labels)}
    pairs: list[tuple[int, int]] = []
    for edge in edges:
        source, target = _ends(edge)
        try:
            pairs.append((number.setdefault(source, len(number)), number.setdefault(target, len(number))))
        except TypeError as error:
            raise InputError(
                f"every edge must be a pair (from, to) of hashable labels, got {edge!r}"
            ) from error
    found, array = list(number), np.array(pairs, dtype=np.int64).reshape(-1, 2)
    if labels or not all(type(label) is int for label in found):
        return found, array
    order = np.argsort(np.array(found, dtype=np.int64))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return [found[i] for i in order], rank[array] if len(array) else array


def _ends(edge: Any) -> tuple[Any, Any]:
    """Return the two labels of an edge; refuse what only looks like a pair, and weights, which are not used."""
    if isinstance(edge, (np.ndarray, torch.Tensor)):
        edge = edge.tolist()
    if not isinstance(edge, (tuple, list)) or len(edge) != 2:
        weighted = isinstance(edge, (tuple, list)) and len(edge) == 3
        more = (
            "; weights or other data of an edge are not used: leave them out, and set the weights of the net in "
            "stages[layer - 1].weight, in the order of edges(layer)"
        )
        raise InputError(
            f"every edge must be a pair (from, to) of hashable labels, as a tuple or list, got {edge!r}"
            + (more if weighted else "")
        )
    return edge[0], edge[1]


def graph_edges(graph: Any) -> tuple[list[Any], np.ndarray]:
    """Return labels and edges of an object with `edges` and perhaps `nodes`, such as a networkx.DiGraph."""
    directed = getattr(graph, "is_directed", None)
    if callable(directed) and not directed():
        raise InputError(
            "the graph is undirected, and a neuron needs to know which end comes first; build a networkx.DiGraph "
            "with edges (from, to)"
        )
    nodes, edges = getattr(graph, "nodes", ()), graph.edges
    several = getattr(graph, "is_multigraph", None)
    if callable(several) and several():
        edges = graph.edges()  # pairs, where graph.edges has (from, to, key)
    nodes, edges = (
        found() if callable(found) and not _iterable(found) else found for found in (nodes, edges)
    )
    return _labelled_edges(edges, list(nodes))


def _iterable(value: Any) -> bool:
    return hasattr(value, "__iter__")


def adjacency_edges(matrix: Any) -> tuple[list[Any], np.ndarray]:
    """Return labels 0, 1, ... and the edges u -> v of the entries matrix[u, v] != 0, dense or scipy sparse."""
    if isinstance(matrix, torch.Tensor):
        matrix = (matrix.to_dense() if matrix.layout != torch.strided else matrix).detach().cpu().numpy()
    try:
        shape = np.shape(matrix)
    except ValueError as error:
        raise InputError(
            f"an adjacency must be a square matrix, but its rows differ in length: {error}"
        ) from error
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InputError(
            f"an adjacency must be a square matrix with entry [u, v] for the edge u -> v, got shape {tuple(shape)}"
        )
    if hasattr(matrix, "tocoo"):
        entries = matrix.tocoo()
        _check_entries(entries.data)
        kept = entries.data != 0
        rows, columns = entries.row[kept], entries.col[kept]
    else:
        _check_entries(np.asarray(matrix))
        rows, columns = np.nonzero(np.asarray(matrix))
    return list(range(shape[0])), np.stack([rows, columns], 1).astype(np.int64)


def _check_entries(entries: np.ndarray) -> None:
    if entries.dtype.kind not in "biufc":
        raise InputError(f"the entries of an adjacency must be numbers, got {entries.dtype}")
    strange = entries[~np.isfinite(entries)]
    if len(strange):
        raise InputError(
            f"the adjacency has {len(strange)} entries that are not finite, such as {strange[0]}; where there is no "
            "edge put 0"
        )


def check_graph(
    labels: list[Any],
    edges: np.ndarray,
    inputs: Iterable[Label] | None = None,
    outputs: Iterable[Label] | None = None,
) -> Graph:
    """Return the graph, its edges in order.

    Raises:
        InputError: no edge, a duplicate edge, a cycle, an isolated vertex, a neuron that nothing feeds or
            that reaches no output, an input that is fed, an output that feeds.
    """
    if not len(edges):
        raise InputError("the graph has no edge; give at least one pair (from, to)")
    labels = list(labels)
    entry = _numbers(labels, inputs, "inputs", grow=True)
    ends = _numbers(labels, outputs, "outputs", grow=False)
    size = len(labels)
    sources, targets = edges[:, 0], edges[:, 1]
    _refuse_duplicates(labels, sources, targets)
    in_degree, out_degree = (np.bincount(end, minlength=size) for end in (targets, sources))
    layer = longest_paths(sources, targets, size)
    if (layer < 0).any():
        raise InputError(f"the graph has a cycle: {_cycle(labels, sources, targets, layer < 0)}")
    isolated = (in_degree == 0) & (out_degree == 0)
    if entry is None:
        _refuse(labels, isolated, "no edge touches", "remove them, or name them in inputs=")
        entry = np.flatnonzero(in_degree == 0)
    else:
        undeclared = in_degree == 0
        undeclared[entry] = False
        _refuse(
            labels, undeclared, "nothing feeds, yet inputs= does not name", "name them or give them an edge"
        )
        _refuse(labels, _only(entry, in_degree > 0), "inputs= names, yet edges lead to", "an input has none")
    if ends is None:
        ends = np.flatnonzero((out_degree == 0) & (in_degree > 0))
    else:
        _refuse(labels, _only(ends, out_degree > 0), "outputs= names, yet edges leave", "an output has none")
        _refuse(labels, _only(ends, in_degree == 0), "outputs= names, yet no edge leads to", "remove them")
        hidden_ends = (out_degree == 0) & (in_degree > 0)
        hidden_ends[ends] = False
        _refuse(labels, hidden_ends, "lead to no output:", "name them in outputs= or remove them")
    order = np.argsort(layer[targets], kind="stable")
    return Graph(labels, sources[order], targets[order], entry, ends, layer, in_degree)


def _numbers(labels: list[Any], named: Iterable[Label] | None, role: str, grow: bool) -> np.ndarray | None:
    if named is None:
        return None
    number = {label: i for i, label in enumerate(labels)}
    wanted: list[Any] = named.tolist() if isinstance(named, (np.ndarray, torch.Tensor)) else list(named)
    if not wanted:
        raise InputError(f"{role} is empty; name at least one vertex, or leave it out")
    if len(set(wanted)) < len(wanted):
        repeated = sorted({str(label) for label in wanted if wanted.count(label) > 1})
        raise InputError(f"{role} names {', '.join(repeated[:5])} more than once")
    absent = [label for label in wanted if label not in number]
    if absent and not grow:
        raise InputError(f"{role} names {_shown(absent)}, which no edge touches")
    for label in absent:
        number[label] = len(labels)
        labels.append(label)
    return np.array([number[label] for label in wanted], dtype=np.int64)


def _only(vertices: np.ndarray, condition: np.ndarray) -> np.ndarray:
    mask = np.zeros(len(condition), dtype=bool)
    mask[vertices] = True
    return mask & condition


def _refuse(labels: list[Any], wrong: np.ndarray, what: str, remedy: str) -> None:
    if wrong.any():
        raise InputError(f"{what} {_shown([labels[i] for i in np.flatnonzero(wrong)])}; {remedy}")


def _shown(found: Sequence[Any]) -> str:
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(repr(label) for label in found[:5]) + more


def _refuse_duplicates(labels: list[Any], sources: np.ndarray, targets: np.ndarray) -> None:
    keys = sources * len(labels) + targets
    distinct, counts = np.unique(keys, return_counts=True)
    if len(distinct) < len(keys):
        twice = [(labels[key // len(labels)], labels[key % len(labels)]) for key in distinct[counts > 1]]
        raise InputError(f"edges are given more than once: {_shown(twice)}; keep one of each")


def longest_paths(sources: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """Return the longest path from a vertex of in-degree 0 to each vertex, -1 on and behind a cycle.

    A vertex is placed in the round in which the last of its predecessors has been placed. Cost: one pass
    over the edges.
    """
    order = np.argsort(sources, kind="stable")
    heads = targets[order]
    starts = np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=size))])
    waiting = np.bincount(targets, minlength=size)
    layer = np.full(size, -1, dtype=np.int64)
    front, index = np.flatnonzero(waiting == 0), 0
    while len(front):
        layer[front] = index
        lengths = starts[front + 1] - starts[front]
        offsets = np.repeat(starts[front] - np.cumsum(lengths) + lengths, lengths)
        reached = heads[offsets + np.arange(int(lengths.sum()))]
        np.subtract.at(waiting, reached, 1)
        reached = np.unique(reached)
        front, index = reached[waiting[reached] == 0], index + 1
    return layer


def _cycle(labels: list[Any], sources: np.ndarray, targets: np.ndarray, left: np.ndarray) -> str:
    """Return one cycle as text: from a vertex that was never placed, predecessors lead into it."""
    inside = left[sources] & left[targets]
    before = dict(zip(targets[inside].tolist(), sources[inside].tolist(), strict=True))
    path, seen, vertex = [], {}, next(iter(before))
    while vertex not in seen:
        seen[vertex] = len(path)
        path.append(vertex)
        vertex = before[vertex]
    around = [*path[seen[vertex] :], vertex][::-1]
    shown = [repr(labels[v]) for v in around]
    middle = [*shown[:5], f"({len(shown) - 7} more)", *shown[-2:]] if len(shown) > 9 else shown
    return " -> ".join(middle)
