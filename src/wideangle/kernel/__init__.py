"""The tangent kernel: exact Gram matrices of any module, their spectrum, and what follows from it.

`tangent_kernel` and `factors` measure a model. `spectrum`, `angles`, `alignment` and `convergence` read a
kernel; `infinite` has the closed forms of infinitely wide nets; `jacobian_kernel` is the slow twin.
"""

from __future__ import annotations

from wideangle.kernel import alignment, angles, convergence, infinite, spectrum
from wideangle.kernel._disk import GramFile, gram_to_disk
from wideangle.kernel._explain import Explanation, explain
from wideangle.kernel._factors import Factors, factors
from wideangle.kernel._pass import random_outputs
from wideangle.kernel._tangent import TangentKernel
from wideangle.kernel.function_space import (
    DenseKernel,
    LinearisedRun,
    linearised_descent,
    quickest_product,
)
from wideangle.kernel.gram import tangent_kernel
from wideangle.kernel.interval import ConditionInterval, condition_interval
from wideangle.kernel.lanczos import KernelOperator, TopEigenpairs, lanczos_eigenpairs, top_eigenpairs
from wideangle.kernel.reference import jacobian, jacobian_kernel
from wideangle.kernel.spectrum import Spectrum, condition_number, effective_rank, eigenpairs

__all__ = [
    "ConditionInterval",
    "DenseKernel",
    "Explanation",
    "Factors",
    "GramFile",
    "KernelOperator",
    "LinearisedRun",
    "Spectrum",
    "TangentKernel",
    "TopEigenpairs",
    "alignment",
    "angles",
    "condition_interval",
    "condition_number",
    "convergence",
    "effective_rank",
    "eigenpairs",
    "explain",
    "factors",
    "gram_to_disk",
    "infinite",
    "jacobian",
    "jacobian_kernel",
    "lanczos_eigenpairs",
    "linearised_descent",
    "quickest_product",
    "random_outputs",
    "spectrum",
    "tangent_kernel",
    "top_eigenpairs",
]
