"""Parametrized accelerated methods free of condition number (arXiv 1802.10235), claim by claim.

Only the paper's abstract and opening were at hand: its theorems and experiments are not quoted. Statements
marked "derived" follow from the recurrences of the three methods.
"""

from __future__ import annotations

from wideangle.papers import _accelerated_forms as forms
from wideangle.papers import _accelerated_kernels as kernels
from wideangle.papers import _accelerated_training as training
from wideangle.papers._frame import Paper, Statement

__all__ = ["PAPER"]

FORMS, KERNELS = "Closed forms by eigenvalue", "Kernel regression with a wrong condition number"
STOPPING, NOISE = "Early stopping", "Networks and mini-batches"

PAPER = Paper(
    "accelerated",
    "Accelerated methods free of the condition number",
    "Liu, Belkin, arXiv 1802.10235",
    (
        Statement(
            "factor of a direction",
            FORMS,
            "an explicit factor r(s) for each eigenvalue; it is the largest root of the recurrence (derived)",
            forms.roots,
        ),
        Statement(
            "residual polynomials",
            FORMS,
            "e_t(s) in closed form for three methods (derived)",
            forms.polynomials,
        ),
        Statement(
            "worst case",
            FORMS,
            "kappa_hat too small or too large: a known rate, best at kappa_hat = kappa (derived)",
            forms.worst_case,
        ),
        Statement(
            "twice the usual exponent",
            FORMS,
            "improved worst-case rates: (1 - 1/sqrt(kappa))^2 on the loss (derived)",
            forms.rate_of_the_loss,
        ),
        Statement(
            "below the cut-off",
            FORMS,
            "an underestimated kappa still gains (k + 1)/2 or k over gradient descent (derived)",
            forms.below_cut_off,
        ),
        Statement(
            "transient", FORMS, "a factor t at the cut-off, none for Chebyshev (derived)", forms.transient
        ),
        Statement("singular H", FORMS, "kappa may be infinite: no divergence (derived)", forms.null_space),
        Statement(
            "L too small",
            FORMS,
            "an L a little below lambda_max, as power iteration finds it, will do",
            forms.small_smoothness,
            False,
        ),
        Statement(
            "every direction of a kernel",
            KERNELS,
            "the analysis by eigenvalue describes kernel regression, whatever kappa_hat",
            kernels.per_direction,
        ),
        Statement(
            "exponential with a wrong kappa",
            KERNELS,
            "exponential convergence without knowing kappa, here wrong by 10^-3 to 10^3",
            kernels.wrong_kappa,
        ),
        Statement(
            "gain below the cut-off",
            KERNELS,
            "directions far below it fall (k + 1)/2 or k times as fast as by gradient descent (derived)",
            kernels.gain_below,
        ),
        Statement(
            "kappa_hat from the spectrum",
            KERNELS,
            "not in the paper: the kappa_hat with the smallest predicted loss is the best in runs",
            kernels.best_guess,
        ),
        Statement(
            "what is fitted",
            STOPPING,
            "directions below L / kappa_hat are hardly fitted when those above are (derived)",
            training.regularises,
        ),
        Statement(
            "kappa_hat regularises",
            STOPPING,
            "a smaller kappa_hat is a stronger regularisation (derived)",
            training.early_stopping,
        ),
        Statement(
            "sooner",
            STOPPING,
            "the early-stopped error of gradient descent in fewer steps (derived)",
            training.sooner,
        ),
        Statement(
            "any kappa_hat stops as well",
            STOPPING,
            "at its best step no kappa_hat costs test error",
            training.free_choice,
            False,
        ),
        Statement(
            "full-batch network",
            NOISE,
            "the free parameter serves networks too: kappa_hat from the tangent kernel beats gradient descent",
            training.network,
            None,
        ),
        Statement(
            "mini-batches", NOISE, "the factors hold with mini-batch gradients", training.mini_batches, False
        ),
    ),
)
