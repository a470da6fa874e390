"""Step size, batch size and the constants they follow from, measured on the model itself."""

from __future__ import annotations

from wideangle.optim._mass_parameters import MassParameters, from_etas, optimal_parameters
from wideangle.optim._recommend import StepChoice, choose_batch, recommend
from wideangle.optim.constants import Constants, critical_step, measure_constants
from wideangle.optim.mass import MaSS

__all__ = [
    "Constants",
    "MaSS",
    "MassParameters",
    "StepChoice",
    "choose_batch",
    "critical_step",
    "from_etas",
    "measure_constants",
    "optimal_parameters",
    "recommend",
]
