"""A net on a random graph of neurons, built with networkx and trained on the bundled digits.

python examples/dag_digits.py [predecessors of a neuron]

Prints the width of the graph (the smallest in-degree behind the first layer), how far from linear the net is at
its start, and its test accuracy. With fewer predecessors, such as 2, the net is farther from linear.
"""

from __future__ import annotations

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


def main(predecessors: int) -> None:
    """Build, measure and train the net."""
    train, test = data.load("digits", split="train"), data.load("digits", split="test")
    pixels = train.x[0].numel()
    net = DAG(
        random_graph(pixels, 10, predecessors),
        inputs=[f"pixel {i}" for i in range(pixels)],
        activation="tanh",
        generator=seeds.generator(0, "dag digits"),
    )
    few = train.x[:4]
    gap = linearity_gap(net, few, radius=1.0)
    norm = hessian_norm(net, few[:1])
    print(net.extra_repr())
    print(f"layers        {[len(layer) for layer in net.layers()]}")
    print(f"width         {net.width()}, {len(net.thin_neurons(10))} neurons under 10")
    print(f"Hessian norm  {norm.value:.3g}, ratio to |gradient|^2 {norm.ratio:.3g}")
    print(f"linearity     {gap}")

    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    order = seeds.generator(0, "dag digits", "order")
    for _ in range(15):
        for rows in torch.randperm(len(train.x), generator=order).split(64):
            optimizer.zero_grad()
            cross_entropy(net(train.x[rows]), train.y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (net(test.x).argmax(1) == test.y).double().mean().item()
    print(f"accuracy      {accuracy:.1%} on {len(test.x)} test digits")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
