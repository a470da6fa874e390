"""Curvature: the loss Hessian and its largest eigenvalue, distance from linearity, the model's audit."""

from wideangle.curvature._hessian_norm import HessianNorm, hessian_norm
from wideangle.curvature._kernel_change import KernelChange, kernel_change, kernel_change_bound
from wideangle.curvature._norm import SpectralNorm, lanczos_steps, spectral_norm
from wideangle.curvature._sharpness import Sharpness, sharpness
from wideangle.curvature.assembly import (
    AssemblyNorm,
    Diversity,
    Dominance,
    NeuronNorms,
    assembly_hessian_norm,
    dominance,
    gradient_diversity,
    preactivation_hessian_norms,
)
from wideangle.curvature.ggn import ggn_blocks, ggn_product, ggn_top_eigenpair, output_root
from wideangle.curvature.hessian import LossHessian, OutputHessian, hessian_product
from wideangle.curvature.linearity import Audit, LinearityGap, audit, linearity_gap
from wideangle.curvature.scaling import WidthScaling, width_scaling

__all__ = [
    "AssemblyNorm",
    "Audit",
    "Diversity",
    "Dominance",
    "HessianNorm",
    "KernelChange",
    "LinearityGap",
    "LossHessian",
    "NeuronNorms",
    "OutputHessian",
    "Sharpness",
    "SpectralNorm",
    "WidthScaling",
    "assembly_hessian_norm",
    "audit",
    "dominance",
    "ggn_blocks",
    "ggn_product",
    "ggn_top_eigenpair",
    "gradient_diversity",
    "hessian_norm",
    "hessian_product",
    "kernel_change",
    "kernel_change_bound",
    "lanczos_steps",
    "linearity_gap",
    "output_root",
    "preactivation_hessian_norms",
    "sharpness",
    "spectral_norm",
    "width_scaling",
]
