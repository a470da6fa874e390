"""What the net on a graph refuses, and that the message names the vertices."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch

from wideangle.errors import InputError
from wideangle.nets import DAG

EDGES = [("x", "a"), ("x", "b"), ("a", "b"), ("a", "y"), ("b", "y")]


@pytest.mark.parametrize(
    ("edges", "options", "message"),
    [
        ([], {}, "no edge"),
        ([("a", "b"), ("c", "d"), ("a", "b")], {}, r"more than once: \('a', 'b'\)"),
        (
            [("x", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "y")],
            {},
            "cycle: '([abc])' -> .* -> .* -> '\\1'$",
        ),
        ([("x", "a"), ("a", "a"), ("a", "y")], {}, "cycle: 'a' -> 'a'"),
        ([*EDGES, ("z", "b")], {"inputs": ["x"]}, "nothing feeds, yet inputs= does not name 'z'"),
        (EDGES, {"inputs": ["x", "a"]}, "inputs= names, yet edges lead to 'a'"),
        (EDGES, {"inputs": ["x", "x"]}, "names x more than once"),
        (EDGES, {"inputs": []}, "inputs is empty"),
        ([*EDGES, ("a", "dead")], {"outputs": ["y"]}, "lead to no output: 'dead'"),
        (EDGES, {"outputs": ["b", "y"]}, "outputs= names, yet edges leave 'b'"),
        (EDGES, {"outputs": ["y", "w"]}, "outputs names 'w', which no edge touches"),
        (EDGES, {"activation": {"a": "tanh"}}, "names no function for 'b'"),
        (EDGES, {"activation": {"a": "tanh", "b": "tanh", "c": "tanh"}}, "names 'c', which are inputs or no"),
        (EDGES, {"activation": {"a": "tanh", "b": "tanh", "x": "tanh"}}, "names 'x', which are inputs or no"),
        (EDGES, {"activation": "tahn"}, "did you mean 'tanh'"),
        (EDGES, {"storage": "csr"}, "choose 'auto', 'dense' or 'sparse'"),
        ([("a",)], {}, "must be a pair"),
        ([(["a"], "b")], {}, "hashable labels"),
        (np.eye(3), {}, "use DAG.from_adjacency"),
        (scipy.sparse.eye_array(3), {}, "use DAG.from_adjacency"),
        (networkx.Graph(EDGES), {}, "undirected"),
    ],
)
def test_what_is_refused(edges, options, message):
    with pytest.raises(InputError, match=message):
        DAG(edges, **options)


def test_what_else_is_refused():
    lonely = networkx.DiGraph(EDGES)
    lonely.add_node("alone")
    with pytest.raises(InputError, match="no edge touches 'alone'"):
        DAG(lonely)
    with pytest.raises(InputError, match=r"square matrix .* got shape \(2, 3\)"):
        DAG.from_adjacency(np.ones((2, 3)))
    with pytest.raises(InputError, match=r"takes 1 inputs per sample, got \(2, 3\)"):
        DAG(EDGES)(torch.ones(2, 3))
    with pytest.raises(InputError, match="layer must be 1 to 3, got 4"):
        DAG(EDGES).edges(4)
    with pytest.raises(InputError, match="in_degree must be"):
        DAG.random(3, 1, in_degree=(5, 3))
    with pytest.raises(InputError, match="in_features must be"):
        DAG.fcn(0, 1)
    with pytest.raises(InputError, match="outputs must be"):
        DAG.densenet(2, 0)
