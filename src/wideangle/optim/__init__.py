"""Step size, batch size and the constants they follow from, measured on the model itself."""

from __future__ import annotations

from wideangle.optim._linear_constants import constants_from_data, constants_from_gram
from wideangle.optim._mass_parameters import MassParameters, from_etas, optimal_parameters
from wideangle.optim._recommend import Recommendation, recommend
from wideangle.optim._step_choice import StepChoice, choose_batch, choose_step
from wideangle.optim.accelerated import AcceleratedGradient
from wideangle.optim.constants import Constants, critical_step, measure_constants
from wideangle.optim.mass import MaSS
from wideangle.optim.mean_square import (
    critical_momentum,
    decoupled_mean_square_rate,
    expected_error,
    gaussian_mean_square_rate,
    mean_square_rate,
)

__all__ = [
    "AcceleratedGradient",
    "Constants",
    "MaSS",
    "MassParameters",
    "Recommendation",
    "StepChoice",
    "choose_batch",
    "choose_step",
    "constants_from_data",
    "constants_from_gram",
    "critical_momentum",
    "critical_step",
    "decoupled_mean_square_rate",
    "expected_error",
    "from_etas",
    "gaussian_mean_square_rate",
    "mean_square_rate",
    "measure_constants",
    "optimal_parameters",
    "recommend",
]
