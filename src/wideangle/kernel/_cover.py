"""A layer whose rule accounts for its parameters, and what is remembered of a call of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from wideangle.kernel.layers import Rule

__all__ = ["Call", "Cover"]


@dataclass
class Call:
    """One call of a layer: its input and the tensor whose gradient is that of the layer's output."""

    a: Tensor
    z: Tensor


@dataclass(frozen=True)
class Cover:
    """A layer whose rule accounts for its parameters; a name is None where that parameter is left out."""

    name: str
    module: nn.Module
    rule: Rule
    weight: str | None
    bias: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are covered."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)
