"""AcceleratedGradient keeps what the shipped conformance kit asks of an optimiser."""

from __future__ import annotations

import pytest

from wideangle.optim import AcceleratedGradient
from wideangle.testing import optimizer_cases

CASES = [
    (f"{method}, {case}", case)
    for method in ("nesterov", "heavy_ball", "chebyshev")
    for case in optimizer_cases(
        lambda params, method=method: AcceleratedGradient(params, 0.5, 30.0, method),
        rosenbrock_lr=5e-4,
        needs_closure=True,
    )
]


# the kit's quadratic changes from step to step as batches do, and the optimiser says so
@pytest.mark.filterwarnings("ignore:two gradients at one point differ")
@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_the_kit_passes(case):
    case()
