"""Linearity: how far a model is from its linear expansion, and what in it decides that."""

from __future__ import annotations

from wideangle.curvature._audit import Audit, audit
from wideangle.curvature._gap import Direction, LinearityGap, linearity_gap

__all__ = ["Audit", "Direction", "LinearityGap", "audit", "linearity_gap"]
