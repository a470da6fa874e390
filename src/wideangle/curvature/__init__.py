"""Curvature: the loss Hessian and its largest eigenvalue, distance from linearity, the model's audit."""

from wideangle.curvature._hessian_norm import HessianNorm, hessian_norm
from wideangle.curvature._kernel_change import KernelChange, kernel_change, kernel_change_bound
from wideangle.curvature._norm import SpectralNorm, lanczos_steps, spectral_norm
from wideangle.curvature._sharpness import Sharpness, sharpness
from wideangle.curvature.ggn import ggn_blocks, ggn_product, ggn_top_eigenpair, output_root
from wideangle.curvature.hessian import LossHessian, OutputHessian, hessian_product
from wideangle.curvature.linearity import Audit, LinearityGap, audit, linearity_gap

__all__ = [
    "Audit",
    "HessianNorm",
    "KernelChange",
    "LinearityGap",
    "LossHessian",
    "OutputHessian",
    "Sharpness",
    "SpectralNorm",
    "audit",
    "ggn_blocks",
    "ggn_product",
    "ggn_top_eigenpair",
    "hessian_norm",
    "hessian_product",
    "kernel_change",
    "kernel_change_bound",
    "lanczos_steps",
    "linearity_gap",
    "output_root",
    "sharpness",
    "spectral_norm",
]
