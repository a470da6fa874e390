"""Curvature: the loss Hessian and its largest eigenvalue, distance from linearity, the model's audit."""

from wideangle.curvature.ggn import ggn_blocks, ggn_product, ggn_top_eigenpair, output_root
from wideangle.curvature.hessian import LossHessian, Sharpness, hessian_product, sharpness
from wideangle.curvature.linearity import Audit, LinearityGap, audit, linearity_gap
from wideangle.curvature.scaling import WidthScaling, width_scaling

__all__ = [
    "Audit",
    "LinearityGap",
    "LossHessian",
    "Sharpness",
    "WidthScaling",
    "audit",
    "ggn_blocks",
    "ggn_product",
    "ggn_top_eigenpair",
    "hessian_product",
    "linearity_gap",
    "output_root",
    "sharpness",
    "width_scaling",
]
