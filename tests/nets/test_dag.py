"""The net on a graph against its formula written vertex by vertex, and the graph against networkx and by hand."""

from __future__ import annotations

import copy
import math
import pickle
import re
import runpy
import time
from pathlib import Path

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch
from torch.func import functional_call, grad, jvp, vmap

from wideangle import data
from wideangle.curvature import linearity_gap
from wideangle.kernel import tangent_kernel
from wideangle.kernel.reference import jacobian_kernel
from wideangle.nets import ACTIVATIONS, DAG, MLP
from wideangle.nets._graph import longest_paths
from wideangle.seeds import generator


def random_graph(seed: int, vertices: int = 14, features: int = 3) -> networkx.DiGraph:
    """A graph of named vertices in shuffled order with skips, outputs in several layers and thin neurons."""
    rng = np.random.default_rng(seed)
    names = [f"v{i}" for i in range(vertices)]
    graph = networkx.DiGraph()
    graph.add_nodes_from(rng.permutation(names).tolist())
    for j in range(features, vertices):
        count = int(rng.integers(1, min(j, 5) + 1))
        graph.add_edges_from((names[i], names[j]) for i in rng.choice(j, count, replace=False))
    graph.remove_nodes_from(list(networkx.isolates(graph)))
    return graph


def inputs_of(graph: networkx.DiGraph) -> list[str]:
    return [v for v in graph if graph.in_degree(v) == 0]


def slow(net: DAG, graph: networkx.DiGraph, x: torch.Tensor, activations: dict, last: dict | None = None):
    """Evaluate the net vertex by vertex, as the formula says, in the order networkx sorts the graph."""
    weight = {}
    for layer in range(1, len(net.stages) + 1):
        weight |= dict(zip(net.edges(layer), net.stages[layer - 1].weight, strict=True))
    value, before = {}, {}
    entries = inputs_of(graph)
    for v in networkx.topological_sort(graph):
        sources = list(graph.predecessors(v))
        if v in entries:
            value[v] = x[:, entries.index(v)]
            continue
        total = sum(weight[u, v] * value[u] for u in sources)
        before[v] = total / math.sqrt(len(sources))
        named = ACTIVATIONS[(last or {}).get(v, activations[v] if graph.out_degree(v) else "identity")]
        value[v] = named(before[v])
    return torch.stack([value[v] for v in graph if graph.out_degree(v) == 0], 1), before


@pytest.mark.parametrize("storage", ["auto", "dense", "sparse"])
@pytest.mark.parametrize("seed", range(4))
def test_forward_is_the_formula_vertex_by_vertex(seed, storage):
    graph = random_graph(seed)
    kinds = list(ACTIVATIONS)
    mapping = {
        v: kinds[i % len(kinds)] for i, v in enumerate(graph) if graph.in_degree(v) and graph.out_degree(v)
    }
    net = DAG(graph, activation=mapping, storage=storage, generator=generator(seed)).double()
    x = torch.randn(5, net.in_features, dtype=torch.float64, generator=generator(seed, "x"))
    f, before = slow(net, graph, x, mapping)
    assert f.shape[1] == net.out_features > 1
    torch.testing.assert_close(net(x), f, rtol=1e-12, atol=1e-12)
    for labels, pre in zip(net.layers()[1:], net.preactivations(x), strict=True):
        torch.testing.assert_close(pre, torch.stack([before[v] for v in labels], 1), rtol=1e-12, atol=1e-12)


def test_outputs_can_have_activations_of_their_own():
    graph = random_graph(5)
    hidden = {v: "tanh" for v in graph if graph.in_degree(v) and graph.out_degree(v)}
    ends = [v for v in graph if graph.out_degree(v) == 0]
    net = DAG(graph, activation={**hidden, ends[-1]: "relu"}, output_activation="erf").double()
    x = torch.randn(4, net.in_features, dtype=torch.float64, generator=generator(1))
    last = dict.fromkeys(ends, "erf") | {ends[-1]: "relu"}
    torch.testing.assert_close(net(x), slow(net, graph, x, hidden, last)[0], rtol=1e-12, atol=1e-12)
    assert not net.linear_output
    assert DAG(graph).linear_output
    again = DAG(graph, activation="tanh", outputs=ends[::-1], inputs=inputs_of(graph)).double()
    torch.testing.assert_close(again(x).flip(1), slow(again, graph, x, hidden)[0], rtol=1e-12, atol=1e-12)

    assert DAG([("x", "p"), ("x", "q")], outputs=["q", "p"]).layers() == [["x"], ["q", "p"]]


@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_derivatives_of_every_kind(storage):
    net = DAG(random_graph(2), storage=storage, generator=generator(3)).double()
    x = torch.randn(3, net.in_features, dtype=torch.float64, generator=generator(4))
    names = [name for name, _ in net.named_parameters()]

    def outputs(*weights: torch.Tensor) -> torch.Tensor:
        return functional_call(net, dict(zip(names, weights, strict=True)), (x,))

    weights = tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    assert sum(w.numel() for w in weights) == len(net.graph.sources)  # one number an edge
    assert torch.autograd.gradcheck(outputs, weights)
    assert torch.autograd.gradgradcheck(outputs, weights)

    named = dict(zip(names, (w.detach() for w in weights), strict=True))
    tangent = {
        name: torch.randn(w.shape, generator=generator(5, name), dtype=w.dtype) for name, w in named.items()
    }
    push = jvp(lambda given: functional_call(net, given, (x,)), (named,), (tangent,))[1]
    step = 1e-6

    def moved(h: float) -> torch.Tensor:
        return functional_call(net, {name: w + h * tangent[name] for name, w in named.items()}, (x,))

    torch.testing.assert_close(push, (moved(step) - moved(-step)) / (2 * step), rtol=1e-7, atol=1e-8)

    def one(given: dict, sample: torch.Tensor) -> torch.Tensor:
        return functional_call(net, given, (sample[None],)).sum()

    together = vmap(grad(one), (None, 0))(named, x)
    for i, sample in enumerate(x):
        alone = grad(one)(named, sample)
        for name in names:
            torch.testing.assert_close(together[name][i], alone[name])


@pytest.mark.parametrize("storage", ["auto", "dense", "sparse"])
def test_fcn_is_the_mlp_without_gain(storage):
    mlp = MLP((2, 3), 4, width=(7, 5), activation="tanh", gain=False, generator=generator(6)).double()
    net = DAG.fcn((2, 3), 4, width=(7, 5), activation="tanh", storage=storage).double()
    for stage, layer in zip(net.stages, [*mlp.hidden, mlp.head], strict=True):
        stage.weight.data.copy_(layer.weight.detach().flatten())
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=generator(7))
    torch.testing.assert_close(net(x), mlp(x), rtol=1e-12, atol=1e-12)
    assert net.in_degrees() == dict.fromkeys(range(6, 13), 6) | dict.fromkeys(
        range(13, 18), 7
    ) | dict.fromkeys(range(18, 22), 5)


@pytest.mark.parametrize("storage", ["auto", "sparse"])
def test_the_tangent_kernel_is_exact(storage):
    net = DAG.random(6, 2, layers=(12, 12), in_degree=4, storage=storage, generator=generator(8)).double()
    x = torch.randn(5, 6, dtype=torch.float64, generator=generator(9))
    kernel = tangent_kernel(net, x, outputs="full")
    torch.testing.assert_close(kernel.reshape(5, 2, 5, 2), jacobian_kernel(net, x), rtol=1e-12, atol=1e-12)


def test_storage_follows_the_share_of_edges():
    thin = DAG.random(8, 4, layers=(300, 300), in_degree=2, output_in_degree=300, previous_only=True)
    assert [stage.kind for stage in thin.stages] == ["dense", "sparse", "complete"]
    x = torch.randn(4, 8, generator=generator(10))
    for storage in ("dense", "sparse"):
        twin = DAG.random(
            8, 4, layers=(300, 300), in_degree=2, output_in_degree=300, previous_only=True, storage=storage
        )
        torch.testing.assert_close(twin(x), thin(x))
    spread = DAG([("a", "h"), ("b", "h"), ("a", "y"), ("h", "y"), *((f"x{i}", "z") for i in range(9))])
    assert spread.stages[1].columns == 2  # of eleven in the two layers it sees
    assert spread(torch.ones(2, 11)).shape == (2, 2)


@pytest.mark.parametrize("seed", range(6))
def test_layers_are_longest_paths(seed):
    graph = random_graph(seed, 40, 5)
    longest: dict[str, int] = {}
    for v in networkx.topological_sort(graph):
        longest[v] = max((longest[u] + 1 for u in graph.predecessors(v)), default=0)
    net = DAG(graph)
    assert {v: i for i, layer in enumerate(net.layers()) for v in layer} == longest
    assert net.layers()[0] == inputs_of(graph)
    assert net.in_degrees() == {v: d for v, d in graph.in_degree() if d}
    counted = {v: d for v, d in graph.in_degree() if longest[v] >= 2}
    assert net.width() == min(counted.values())
    assert net.thin_neurons(3) == {v: d for v, d in counted.items() if d < 3}


def test_a_long_chain_and_a_cycle_in_layering():
    ends = np.arange(5000)
    assert longest_paths(ends[:-1], ends[1:], 5000).tolist() == ends.tolist()
    assert longest_paths(np.array([0, 1, 2, 2]), np.array([1, 2, 1, 3]), 4).tolist() == [0, -1, -1, -1]


def test_width_counts_the_outputs_and_not_the_first_layer():
    assert DAG.fcn(3, 1, width=(50, 4)).width() == 4
    assert DAG.fcn(3, 1, width=(4, 50)).width() == 4
    assert DAG.fcn(3, 1, width=(50, 50)).width() == 50
    assert DAG.bottleneck(3, 1, width=50, narrow=4).thin_neurons(10) == dict.fromkeys(range(57, 107), 4)
    assert DAG.bottleneck(3, 1, width=50, narrow=4, skips=True).width() == 50
    assert DAG.fcn(3, 2, width=(), depth=0).width() == math.inf
    assert DAG.densenet(3, 1, width=(8, 6, 5)).in_degrees()[22] == 19
    assert DAG.densenet(3, 1, width=(8, 6, 5), with_inputs=True).in_degrees()[22] == 22


def test_random_graphs_are_drawn_as_said():
    net = DAG.random(10, 1, layers=(256, 256), in_degree=(16, 64), generator=generator(11))
    degrees = net.in_degrees()
    behind = [degrees[v] for layer in net.layers()[2:] for v in layer]
    assert 16 <= min(behind) < 20
    assert 60 < max(behind) <= 64
    assert np.mean(behind) == pytest.approx(40, abs=4)
    assert all(degrees[v] == 10 for v in net.layers()[1])  # fewer inputs than the in-degree
    assert len(net.layers()) == 4
    same = DAG.random(10, 1, layers=(256, 256), in_degree=(16, 64), generator=generator(11))
    other = DAG.random(10, 1, layers=(256, 256), in_degree=(16, 64), seed=1)
    assert same.edges(2) == net.edges(2) != other.edges(2)
    assert torch.equal(same.stages[1].weight, net.stages[1].weight)
    narrow = DAG.random(10, 1, layers=(256, 256), in_degree=4, previous_only=True)
    assert narrow.width() == 4
    assert [len(layer) for layer in narrow.layers()[2:]] == [
        4,
        1,
    ]  # what the output does not reach is left out
    assert all(u < 10 for u, _ in narrow.edges(1))


def test_weights_are_standard_normal_and_drawing_is_local():
    state = torch.random.get_rng_state()
    net = DAG.fcn(100, 5, width=300, generator=generator(12))
    assert torch.equal(state, torch.random.get_rng_state())
    for stage in net.stages:
        weight = stage.weight.detach()
        assert abs(float(weight.mean())) < 5 / math.sqrt(weight.numel())
        assert abs(float(weight.var()) - 1) < 5 * math.sqrt(2 / weight.numel())


EDGES = [("x", "a"), ("x", "b"), ("a", "b"), ("a", "y"), ("b", "y")]


def test_every_way_to_give_a_graph_is_the_same_net():
    numbers = {"x": 0, "a": 1, "b": 2, "y": 3}
    pairs = [(numbers[u], numbers[v]) for u, v in EDGES]
    matrix = np.zeros((4, 4))
    matrix[tuple(np.array(pairs).T)] = 2.5
    nets = [
        DAG(EDGES),
        DAG(networkx.DiGraph(EDGES)),
        DAG(iter(pairs)),
        DAG(np.array(pairs)),
        DAG(torch.tensor(pairs)),
        DAG.from_adjacency(matrix),
        DAG.from_adjacency(torch.tensor(matrix)),
        DAG.from_adjacency(scipy.sparse.csr_array(matrix)),
    ]
    x = torch.ones(2, 1)
    for net in nets:
        assert net.width() == 2
        torch.testing.assert_close(net(x), nets[0](x), rtol=0, atol=0)
    assert nets[0].layers() == [["x"], ["a"], ["b"], ["y"]]
    assert nets[2].layers() == [[0], [1], [2], [3]]
    assert DAG([(9, 5), (2, 5)]).layers()[0] == [2, 9]
    assert DAG([("q", "y"), ("b", "y")]).layers()[0] == ["q", "b"]


def test_a_feature_without_an_edge_is_not_used():
    net = DAG(EDGES, inputs=["x", "unused"])
    x = torch.tensor([[1.0, 2.0], [1.0, 3.0]])
    f = net(x)
    assert torch.equal(f[0], f[1])
    torch.testing.assert_close(f, DAG(EDGES)(x[:, :1]))


def test_state_copies_and_precision():
    net = DAG(random_graph(7), activation="tanh", storage="dense", generator=generator(13))
    x = torch.randn(3, net.in_features, generator=generator(14))
    twins = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        DAG(random_graph(7), storage="sparse", seed=5),
    ]
    assert not torch.allclose(twins[-1](x), net(x))
    twins[-1].load_state_dict(net.state_dict())
    for twin in twins:
        torch.testing.assert_close(twin(x), net(x))
    assert sorted(net.state_dict()) == sorted(f"stages.{i}.weight" for i in range(len(net.stages)))
    assert net.double()(x.double()).dtype == torch.float64
    assert "width" in repr(net)
    moved = copy.deepcopy(net).to("meta")
    assert moved(x.double().to("meta")).device.type == "meta"


def test_training_lowers_the_loss():
    net = DAG.random(6, 1, layers=(40, 40), in_degree=10, generator=generator(15))
    x = torch.randn(30, 6, generator=generator(16))
    y = torch.sin(x[:, :1])
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_the_example_trains_and_says_how_linear_it_is(capsys):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "dag_digits.py"))
    example["main"](24)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 5
    assert "width         24, 0 neurons under 10" in printed
    assert float(re.findall(r"accuracy +([\d.]+)%", printed)[0]) > 90
    assert 0 < float(re.findall(r"Hessian norm +(\S+) ", printed)[0]) < 0.5
    sentence = (
        r"moved the weights by (\S+); at that distance the net is ([a-z -]+): it leaves its linear "
        r"expansion by (\S+) of the linear change"
    )
    moved, words, gap = re.findall(sentence, printed)[0]
    few = data.load("digits", split="train").x[:4]
    again = linearity_gap(example["build"](24), few, radius=float(moved)).relative
    assert float(gap) == pytest.approx(again, rel=0.01)
    assert words == example["verdict"](float(gap))


def test_the_example_measures_distances_and_puts_gaps_in_words():
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "dag_digits.py"))
    said = [example["verdict"](gap) for gap in (0.0, 0.099, 0.1, 0.499, 0.5, 3.0)]
    assert said == ["near-linear"] * 2 + ["mildly non-linear"] * 2 + ["non-linear"] * 2
    start = DAG.fcn(3, 1, width=4)
    moved = copy.deepcopy(start)
    moved.stages[0].weight.data[0] += 3.0
    moved.stages[1].weight.data[0] -= 4.0
    assert example["distance"](moved, start) == pytest.approx(5.0, rel=1e-6)


@pytest.mark.slow
def test_a_million_edges_take_less_than_a_second():
    net = DAG.random(100, 10, layers=[500] * 10, in_degree=205, output_in_degree=1000)
    assert net.graph.sources.size > 950_000
    x = torch.randn(64, 100, generator=generator(17))
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        net(x).square().mean().backward()
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 1
