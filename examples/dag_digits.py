"""A net on a random graph of neurons, built with networkx and trained on the bundled digits.

python examples/dag_digits.py [predecessors of a neuron]

Prints the test accuracy, the Hessian norm at the start, the width of the graph (the smallest in-degree behind the
first layer), and how far the net is from linear at the distance the training moved its weights. With fewer
predecessors, such as 2, the Hessian norm is larger. The training moves the weights about as far as they are long,
and there none of these nets is near-linear.
"""

from __future__ import annotations

import copy
import math
import sys

import networkx
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from wideangle import data, seeds
from wideangle.curvature import hessian_norm, linearity_gap
from wideangle.nets import DAG

HIDDEN = (300, 300)


def random_graph(features: int, classes: int, predecessors: int) -> networkx.DiGraph:
    """Return a graph whose every neuron has random predecessors among all vertices before its layer."""
    graph, before = networkx.DiGraph(), [f"pixel {i}" for i in range(features)]
    graph.add_nodes_from(before)
    rng = np.random.default_rng(0)
    for layer, size in enumerate(HIDDEN, 1):
        names = [f"neuron {layer}.{i}" for i in range(size)]
        for name in names:
            chosen = rng.choice(len(before), min(predecessors, len(before)), replace=False)
            graph.add_edges_from((before[i], name) for i in chosen)
        before = before + names
    hidden = before[features:]
    graph.add_edges_from((name, f"digit {c}") for c in range(classes) for name in hidden)
    return graph


def build(predecessors: int) -> DAG:
    """Return the net at its start."""
    return DAG(
        random_graph(64, 10, predecessors),
        inputs=[f"pixel {i}" for i in range(64)],
        activation="tanh",
        generator=seeds.generator(0, "dag digits"),
    )


def distance(net: DAG, start: DAG) -> float:
    """Return how far apart the weights of two nets are, |w - w0|."""
    pairs = zip(net.parameters(), start.parameters(), strict=True)
    return math.sqrt(sum(float((w - w0).detach().square().sum()) for w, w0 in pairs))


def verdict(gap: float) -> str:
    """Return in words what a relative linearity gap says."""
    return "near-linear" if gap < 0.1 else "mildly non-linear" if gap < 0.5 else "non-linear"


def main(predecessors: int) -> None:
    """Build, train and measure the net."""
    train, test = data.load("digits", split="train"), data.load("digits", split="test")
    start = build(predecessors)
    net = copy.deepcopy(start)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    order = seeds.generator(0, "dag digits", "order")
    for _ in range(15):
        for rows in torch.randperm(len(train.x), generator=order).split(64):
            optimizer.zero_grad()
            cross_entropy(net(train.x[rows]), train.y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (net(test.x).argmax(1) == test.y).double().mean().item()

    few, travelled = train.x[:4], distance(net, start)
    gap = linearity_gap(start, few, radius=travelled).relative
    norm = hessian_norm(start, few[:1])
    print(f"layers        {[len(layer) for layer in net.layers()]}, {len(net.graph.sources)} edges")
    print(f"accuracy      {accuracy:.1%} on {len(test.x)} test digits")
    print(f"Hessian norm  {norm.value:.3g} at the start, ratio to |gradient|^2 {norm.ratio:.3g}")
    print(f"width         {net.width()}, {len(net.thin_neurons(10))} neurons under 10")
    print(
        f"linearity     training moved the weights by {travelled:.4g}; at that distance the net is {verdict(gap)}: "
        f"it leaves its linear expansion by {gap:.3g} of the linear change"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
