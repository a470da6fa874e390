"""Linearity: how far a model is from its linear expansion, and what in it decides that."""

from __future__ import annotations

from wideangle.curvature._audit import Audit, audit
from wideangle.curvature._gap import Direction, LinearityGap, linearity_gap
from wideangle.curvature._hessian_norm import HessianNorm, hessian_norm
from wideangle.curvature._kernel_change import KernelChange, kernel_change, kernel_change_bound

__all__ = [
    "Audit",
    "Direction",
    "HessianNorm",
    "KernelChange",
    "LinearityGap",
    "audit",
    "hessian_norm",
    "kernel_change",
    "kernel_change_bound",
    "linearity_gap",
]
