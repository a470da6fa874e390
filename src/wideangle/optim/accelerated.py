"""Nesterov, heavy ball and Chebyshev with the condition number as a free parameter kappa_hat.

The three methods on f(w) = 1/2 w^T H w - b^T w, with L >= lambda_max(H), k = sqrt(kappa_hat),
gamma = (k - 1) / (k + 1) and w_{-1} = w_0:

    nesterov    u = w_t + gamma (w_t - w_{t-1}),   w_{t+1} = u - grad f(u) / L
    heavy_ball  w_{t+1} = w_t - 4 kappa_hat / (L (k + 1)^2) grad f(w_t) + gamma^2 (w_t - w_{t-1})
    chebyshev   the polynomial that is smallest on [L / kappa_hat, L], by its three-term recurrence

None needs the true condition number: directions above the cut-off L / kappa_hat converge like
1 - 1/k, those below faster than by gradient descent (`convergence_factor`). `best_kappa_hat` chooses it from
a spectrum and a number of steps. All of this is for gradients without noise; for mini-batches take `MaSS`.
"""

from __future__ import annotations

from wideangle.optim._accelerated_factors import (
    convergence_factor,
    cut_off,
    residual_polynomial,
    worst_case,
)
from wideangle.optim._accelerated_optimizer import AcceleratedGradient
from wideangle.optim._accelerated_solve import AcceleratedRun, kernel_regression, solve_quadratic
from wideangle.optim._accelerated_spectrum import best_kappa_hat, predicted_loss

__all__ = [
    "AcceleratedGradient",
    "AcceleratedRun",
    "best_kappa_hat",
    "convergence_factor",
    "cut_off",
    "kernel_regression",
    "predicted_loss",
    "residual_polynomial",
    "solve_quadratic",
    "worst_case",
]
