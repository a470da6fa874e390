"""Curvature: the loss Hessian and its largest eigenvalue, distance from linearity, the model's audit."""

from wideangle.curvature.hessian import LossHessian, Sharpness, hessian_product, sharpness

__all__ = ["LossHessian", "Sharpness", "hessian_product", "sharpness"]
