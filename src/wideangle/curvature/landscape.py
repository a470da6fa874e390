"""The loss landscape of over-parameterised models: PL*, uniform conditioning, aiming, and what they promise.

PL* papers write L = 1/2 |F - y|^2, a sum ("half_sum"); the aiming paper L = 1/(2n) |F - y|^2 ("half_mean").
Every function says which it takes.
"""

from __future__ import annotations

from wideangle.curvature._aiming import Aiming, AimingPath, aiming, aiming_along
from wideangle.curvature._certificate import UniformConditioning, hessian_bound, uniform_conditioning
from wideangle.curvature._gauss_newton import Solution, gauss_newton_solution
from wideangle.curvature._landscape_monitor import LandscapeMonitor, LandscapeRun
from wideangle.curvature._landscape_rates import (
    aiming_bound,
    batch_smoothness,
    exit_probability,
    iterations,
    pl_gradient_step,
    pl_sgd_rate,
    pl_sgd_step,
    quadratic_growth,
    sgd_step,
    solution_radius,
    transformed_pl,
    uniform_pl,
)
from wideangle.curvature._pl import Extremes, PLPath, PLRatio, kernel_extremes, pl_along, pl_ratio

__all__ = [
    "Aiming",
    "AimingPath",
    "Extremes",
    "LandscapeMonitor",
    "LandscapeRun",
    "PLPath",
    "PLRatio",
    "Solution",
    "UniformConditioning",
    "aiming",
    "aiming_along",
    "aiming_bound",
    "batch_smoothness",
    "exit_probability",
    "gauss_newton_solution",
    "hessian_bound",
    "iterations",
    "kernel_extremes",
    "pl_along",
    "pl_gradient_step",
    "pl_ratio",
    "pl_sgd_rate",
    "pl_sgd_step",
    "quadratic_growth",
    "sgd_step",
    "solution_radius",
    "transformed_pl",
    "uniform_conditioning",
    "uniform_pl",
]
