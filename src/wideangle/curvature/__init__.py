"""Curvature: the loss Hessian and its largest eigenvalue, distance from linearity, the model's audit."""

from wideangle.curvature.hessian import LossHessian, Sharpness, hessian_product, sharpness
from wideangle.curvature.linearity import Audit, LinearityGap, audit, linearity_gap

__all__ = [
    "Audit",
    "LinearityGap",
    "LossHessian",
    "Sharpness",
    "audit",
    "hessian_product",
    "linearity_gap",
    "sharpness",
]
