"""What the net on a graph refuses, and that the message names the vertices."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch

from wideangle.errors import InputError
from wideangle.nets import DAG, MLP, ConvNet, ResNet, Transformer

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
        ([(0, 1, 5.0), (1, 2, 0.3)], {}, r"got \(0, 1, 5.0\); weights .* stages\[layer - 1\].weight"),
        (["ab", "bc"], {}, "as a tuple or list, got 'ab'"),
        ("ab", {}, "as a tuple or list, got 'a'"),
        ([b"ab"], {}, "as a tuple or list, got b'ab'"),
        ({"a": ["b"], "b": []}, {}, "as a tuple or list, got 'a'"),
        ([{"a", "b"}], {}, "must be a pair"),
        (np.array([[0.0, 1.0, 5.0]]), {}, r"integers of shape \(E, 2\)"),
        (networkx.MultiDiGraph([("a", "b"), ("a", "b")]), {}, r"more than once: \('a', 'b'\)"),
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


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.array([[0.0, np.nan], [0.0, 0.0]]), "1 entries that are not finite, such as nan"),
        (torch.tensor([[0.0, torch.nan], [0.0, 0.0]]), "not finite, such as nan"),
        (scipy.sparse.csr_array(np.array([[0.0, np.nan], [0.0, 0.0]])), "not finite, such as nan"),
        ([[np.inf, 1.0], [np.inf, np.inf]], "3 entries that are not finite, such as inf.* put 0"),
        ([["0", "1"], ["0", "0"]], "must be numbers"),
        ([[0, None], [0, 0]], "must be numbers"),
        ([[0, 1], [0]], "rows differ in length"),
    ],
)
def test_adjacencies_that_are_refused(matrix, message):
    with pytest.raises(InputError, match=message):
        DAG.from_adjacency(matrix)


@pytest.mark.parametrize(
    "degree", [2.5, (1, np.inf), (np.nan, 3), (1, 2, 3), (1,), "12", None, ("1", "2"), 0, (0, 3)]
)
def test_in_degrees_that_are_refused(degree):
    with pytest.raises(InputError, match="in_degree must be"):
        DAG.random(3, 1, layers=(4,), in_degree=degree)


def test_numbers_of_numpy_are_whole_numbers():
    plain = DAG.random(5, 1, layers=(9, 9), in_degree=2)
    other = DAG.random(np.int64(5), np.int64(1), layers=np.array([9, 9]), in_degree=np.int64(2))
    assert [plain.edges(i) for i in (1, 2, 3)] == [other.edges(i) for i in (1, 2, 3)]
    assert DAG.random(5, 1, layers=(9, 9), in_degree=(np.int32(2), np.float64(2.9))).width() == 2
    assert MLP(np.int64(3), 1, width=np.int64(4)).in_features == 3
    assert DAG.fcn((np.int64(2), 2), 1, width=np.int64(4)).in_features == 4
    with pytest.raises(InputError, match=r"in_features must be a whole number or a shape, got 2\.5"):
        DAG.random(2.5, 1)
    with pytest.raises(InputError, match="width must be a whole number"):
        DAG.fcn(2, 1, width=2.5)


def test_pairs_of_any_kind_are_edges():
    x = torch.ones(2, 1)
    expected = DAG([(0, 1), (1, 2)])(x)
    for edges in (
        [[0, 1], [1, 2]],
        [np.array([0, 1]), np.array([1, 2])],
        [torch.tensor([0, 1]), torch.tensor([1, 2])],
        networkx.MultiDiGraph([(0, 1), (1, 2)]),
    ):
        net = DAG(edges)
        assert net.layers() == [[0], [1], [2]]
        torch.testing.assert_close(net(x), expected)


def total(z):
    return z.sum()


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (total, r"'total' of layer 1 turned \(3, 2\) into \(\)"),
        ({"a": "tanh", "b": "tanh", "c": total}, r"'total' of layer 2 turned \(3, 1\) into \(\)"),
        (lambda z: z[:, :1], r"'<lambda>' of layer 1 turned \(3, 2\) into \(3, 1\)"),
        (lambda z: (z, z), r"'<lambda>' of layer 1 turned \(3, 2\) into a tuple"),
    ],
)
def test_an_activation_that_changes_the_shape_is_named(activation, message):
    net = DAG([("x", "a"), ("x", "b"), ("a", "c"), ("b", "c"), ("c", "y")], activation=activation)
    with pytest.raises(InputError, match=message):
        net(torch.ones(3, 1))


@pytest.mark.parametrize("shape", [5, 2.5, None, "5", (5.5, 2), (5,), (0, 3)])
def test_shapes_that_are_refused(shape):
    with pytest.raises(
        InputError, match=r"in_shape=\(tokens, features\) or \(channels, height, width\), got"
    ):
        Transformer(shape, 2)
    for net in (ConvNet, ResNet):
        with pytest.raises(InputError, match=r"in_shape=\(channels, height, width\), got"):
            net(shape, 2)
