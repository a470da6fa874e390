"""The tangent kernel: exact Gram matrices of any module, their spectrum, and what follows from it."""

from __future__ import annotations

from wideangle.kernel._factors import Factors, factors
from wideangle.kernel.gram import tangent_kernel
from wideangle.kernel.reference import jacobian, jacobian_kernel

__all__ = ["Factors", "factors", "jacobian", "jacobian_kernel", "tangent_kernel"]
