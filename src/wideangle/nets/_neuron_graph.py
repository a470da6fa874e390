"""What `DAG.from_module` returns: the layers of neurons a module computes and how many predecessors they have."""

from __future__ import annotations

from dataclasses import dataclass, field

from wideangle.result import Result

__all__ = ["NeuronGraph", "NeuronLayer"]


@dataclass(frozen=True)
class NeuronLayer(Result):
    """One weighted layer: its neurons, one a unit and position, and their in-degrees.

    Attributes:
        name: where the module has it; kind: what computes it.
        depth: weighted layers on the longest path from the input, itself included.
        neurons: units times positions.
        in_degrees, counts: the in-degrees that occur, rising, and how many neurons have each.
        weights: numbers the neurons share; the number of edges where none is shared.
        output: whether the model's output is this layer's, with no weighted layer in between.
    """

    name: str = ""
    kind: str = ""
    depth: int = 1
    neurons: int = 0
    in_degrees: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    weights: int = 0
    output: bool = False


@dataclass(frozen=True)
class NeuronGraph(Result):
    """The graph of neurons of a module, layer by layer; `DAG.from_module` makes it. It cannot be trained.

    A neuron is one number of a weighted layer's output, its predecessors are the numbers it is a weighted
    sum of. No neurons are made by activations, reshaping, concatenation, sums of two signals (identity skip
    connections), biases, pooling and normalisation, its scale and shift included. A neuron that sees an average
    over pixels counts one predecessor an average: those pixels enter with equal fixed shares and not with
    weights of their own.

    Attributes:
        layers: the weighted layers the output depends on, by depth.
        width: smallest in-degree behind the first layer, outputs included; inf where there is no second layer;
            None, shown as unknown, where what was not read may hold a smaller one.
        narrowest: the name of the first layer that has it; at_output: whether an output layer has it.
        linear_output: nothing non-linear follows the last weighted layer.
        joins: sums and concatenations of two signals, which skip connections are made of.
        averages: poolings that average, by name.
        unread: calls whose neurons were not read, so that a layer may be missing; unread_weights: those of them
            that hold weights, which are in no layer.

    Reference: Zhu, Liu & Belkin 2022 (arXiv 2205.11786), section 2; identity skip connections are theirs
    (appendix), average pooling and shared weights are read here as said above.
    """

    layers: list[NeuronLayer] = field(default_factory=list)
    width: float | None = float("inf")
    narrowest: str = ""
    at_output: bool = False
    linear_output: bool = True
    joins: list[str] = field(default_factory=list)
    averages: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    unread_weights: list[str] = field(default_factory=list)

    def thin_neurons(self, below: int) -> dict[str, int]:
        """Return layer name -> neurons behind the first layer with fewer than `below` predecessors.

        Args:
            below: the first in-degree that is not thin.
        """
        found = {}
        for layer in self.layers:
            pairs = zip(layer.in_degrees, layer.counts, strict=True)
            thin = sum(count for degree, count in pairs if degree < below)
            if thin and layer.depth >= 2:
                found[layer.name] = thin
        return found

    def rows(self) -> list[tuple[str, str]]:
        """Return one printed line a layer, then the summary."""
        lines = [(f"layer {layer.name}", _line(layer)) for layer in self.layers]
        lines.append(("width", self._width()))
        lines.append(("linear output", "yes" if self.linear_output else "no"))
        for name in ("joins", "averages", "unread"):
            found = getattr(self, name)
            if found:
                lines.append((name, ", ".join(found)))
        return lines

    def _width(self) -> str:
        if self.width is None and self.unread_weights:
            return f"unknown: the weights of {', '.join(self.unread_weights)} are in no layer"
        if self.width is None:
            return f"unknown: {', '.join(self.unread)} may hold a second layer"
        where = f"{self.narrowest}{', an output' if self.at_output else ''}"
        return f"{self.width:g} ({where})" if self.narrowest else "inf: no second layer"


def _line(layer: NeuronLayer) -> str:
    low, high = layer.in_degrees[0], layer.in_degrees[-1]
    degree = f"{low}" if low == high else f"{low} to {high}"
    return f"{layer.kind}, depth {layer.depth}, {layer.neurons} neurons of in-degree {degree}"
