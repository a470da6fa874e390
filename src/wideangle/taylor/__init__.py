"""The model's own Taylor expansions in its parameters, as modules one can train."""

from wideangle.taylor.linear import Linearized, linearize

__all__ = ["Linearized", "linearize"]
