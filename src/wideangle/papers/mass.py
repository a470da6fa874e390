"""Accelerating SGD with momentum for over-parameterized learning (arXiv 1810.13395), claim by claim."""

from __future__ import annotations

from wideangle.papers import _mass_budget as budget
from wideangle.papers import _mass_cifar as cifar
from wideangle.papers import _mass_forms as forms
from wideangle.papers import _mass_kernel as kernel
from wideangle.papers import _mass_nesterov as nesterov
from wideangle.papers import _mass_networks as networks
from wideangle.papers import _mass_rates as rates
from wideangle.papers._frame import Paper, Statement

__all__ = ["PAPER"]

UPDATE, RATE = "The update", "Mean-square rate"
DIVERGENCE, BATCH = "Nesterov's method with stochastic gradients", "Batch size"
KERNEL, NETWORKS = "Kernel regression", "Networks"

PAPER = Paper(
    "mass",
    "MaSS: momentum for over-parameterised learning",
    "Liu, Belkin, arXiv 1810.13395",
    (
        Statement(
            "forms agree",
            UPDATE,
            "Algorithm 1, the authors' code, one buffer, AccSGD, AGNES and QHM are one family (derived)",
            forms.forms_agree,
        ),
        Statement(
            "limits",
            UPDATE,
            "kappa_tilde = 1 is Nesterov's method, kappa_tilde = 1/alpha plain SGD",
            forms.limits,
        ),
        Statement(
            "versions without momentum",
            UPDATE,
            "not in the paper: two published versions are plain SGD with a larger step",
            forms.others_are_sgd,
        ),
        Statement(
            "version with a wrong start",
            UPDATE,
            "not in the paper: a third one scales the weights at its first step",
            forms.bad_first_step,
        ),
        Statement(
            "rate",
            RATE,
            "1 - 1/sqrt(kappa_m kappa_tilde_m) a step bounds the mean square",
            rates.rate_bound,
        ),
        Statement(
            "constant in front",
            RATE,
            "E|w_t - w*|^2 <= 2 (1 - alpha)^t |w_0 - w*|^2 (2 is derived)",
            rates.bound_in_front,
        ),
        Statement(
            "full batch",
            RATE,
            "m = n: the deterministic Nesterov rate 1 - 1/sqrt(kappa)",
            rates.full_batch_limit,
        ),
        Statement(
            "never behind SGD",
            RATE,
            "kappa_tilde_m <= kappa_m, so MaSS is never slower than SGD",
            rates.faster_than_sgd,
            None,
        ),
        Statement(
            "divergence",
            DIVERGENCE,
            "Nesterov SGD at step 1/L1 diverges for gamma in [0.6, 1] (recalled, not read in the paper); the "
            "mean square from 0.564 on (derived)",
            nesterov.divergence,
        ),
        Statement(
            "explosion of runs",
            DIVERGENCE,
            "with the momentum of theory Nesterov SGD diverges, MaSS does not",
            nesterov.explosions,
        ),
        Statement(
            "single runs",
            DIVERGENCE,
            "a single run diverges where the mean square does (a reading of the theorem)",
            nesterov.single_runs,
            False,
        ),
        Statement(
            "no acceleration",
            DIVERGENCE,
            "no step and momentum accelerate Nesterov SGD; MaSS goes as sqrt(kappa)",
            nesterov.no_acceleration,
        ),
        Statement(
            "simulation",
            DIVERGENCE,
            "on component-decoupled data MaSS is ahead of SGD and Nesterov SGD",
            nesterov.simulation,
        ),
        Statement(
            "three regimes",
            BATCH,
            "linear scaling, then diminishing returns, then saturation",
            rates.regimes,
        ),
        Statement(
            "saturation of SGD",
            BATCH,
            "SGD gains from batches up to L1/L, MaSS up to max(L1/L, kappa_tilde)",
            rates.saturation,
        ),
        Statement(
            "kernel regression, small batches",
            KERNEL,
            "MaSS is ahead of SGD and Nesterov SGD in Gaussian-kernel regression (here: digits)",
            kernel.digits_small_batches,
        ),
        Statement(
            "kernel regression on MNIST",
            KERNEL,
            "the same on MNIST (here: a subset)",
            kernel.mnist_small_batches,
            None,
        ),
        Statement(
            "every batch size",
            KERNEL,
            "MaSS is ahead at every batch size",
            kernel.every_batch,
            False,
        ),
        Statement(
            "one setting",
            KERNEL,
            "alpha = 0.05 and kappa_tilde = 3 serve every batch size",
            kernel.one_setting,
            False,
        ),
        Statement(
            "parameters of theory",
            KERNEL,
            "the optimal parameters for a batch size need no search",
            kernel.no_search,
            None,
        ),
        Statement(
            "parameters for the budget",
            KERNEL,
            "not in the paper: from the spectrum and the number of steps, without a run, at every batch size",
            budget.without_a_run,
        ),
        Statement(
            "steps of SGD's size",
            NETWORKS,
            "MaSS trains at steps where Nesterov SGD does not, and then faster than SGD",
            networks.stable_where_nesterov_is_not,
        ),
        Statement(
            "every step size",
            NETWORKS,
            "MaSS is ahead at every step size",
            networks.ahead_at_every_step,
            False,
        ),
        Statement(
            "each at its best step", NETWORKS, "MaSS ahead of Nesterov SGD ahead of SGD", networks.tuned, None
        ),
        Statement(
            "test accuracy of an MLP",
            NETWORKS,
            "MaSS has the highest test accuracy",
            networks.test_accuracy,
            None,
        ),
        Statement(
            "official recipe",
            NETWORKS,
            "ResNet-32 on CIFAR-10, batch 64, 300 epochs: MaSS 92.8 %, ahead of SGD and Nesterov SGD",
            cifar.official_recipe,
            None,
        ),
    ),
)
