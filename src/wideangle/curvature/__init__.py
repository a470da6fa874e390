"""Curvature: the loss Hessian and its largest eigenvalue, distance from linearity, the model's audit."""

from wideangle.curvature._eigenpairs import Eigenpairs, eigenpairs
from wideangle.curvature._hessian_norm import HessianNorm, hessian_norm
from wideangle.curvature._kernel_change import KernelChange, kernel_change, kernel_change_bound
from wideangle.curvature._norm import SpectralNorm, lanczos_steps, spectral_norm
from wideangle.curvature._sharpness import Sharpness, sharpness
from wideangle.curvature.ggn import GaussNewton, ggn_blocks, ggn_product, ggn_top_eigenpair, output_root
from wideangle.curvature.hessian import LossHessian, OutputHessian, hessian_product
from wideangle.curvature.landscape import (
    LandscapeMonitor,
    aiming,
    aiming_along,
    hessian_bound,
    pl_along,
    pl_ratio,
    uniform_conditioning,
)
from wideangle.curvature.linearity import Audit, LinearityGap, audit, linearity_gap
from wideangle.curvature.scaling import WidthScaling, width_scaling
from wideangle.curvature.spectral import SpectralDensity, TraceEstimate, spectral_density, trace

__all__ = [
    "Audit",
    "Eigenpairs",
    "GaussNewton",
    "HessianNorm",
    "KernelChange",
    "LandscapeMonitor",
    "LinearityGap",
    "LossHessian",
    "OutputHessian",
    "Sharpness",
    "SpectralDensity",
    "SpectralNorm",
    "TraceEstimate",
    "WidthScaling",
    "aiming",
    "aiming_along",
    "audit",
    "eigenpairs",
    "ggn_blocks",
    "ggn_product",
    "ggn_top_eigenpair",
    "hessian_bound",
    "hessian_norm",
    "hessian_product",
    "kernel_change",
    "kernel_change_bound",
    "lanczos_steps",
    "linearity_gap",
    "output_root",
    "pl_along",
    "pl_ratio",
    "sharpness",
    "spectral_density",
    "spectral_norm",
    "trace",
    "uniform_conditioning",
    "width_scaling",
]
