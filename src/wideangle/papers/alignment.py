"""Label-NTK Alignments and A Tighter Convergence Bound in the NTK Regime (arXiv 2605.25275), claim by claim."""

from __future__ import annotations

from wideangle.papers import _alignment_bounds as bounds
from wideangle.papers import _alignment_dynamics as dynamics
from wideangle.papers import _alignment_rates as rates
from wideangle.papers import _alignment_slopes as slopes
from wideangle.papers._frame import Paper, Statement

__all__ = ["PAPER"]

DYNAMICS, BOUNDS, ALIGNED = "Residual dynamics", "Convergence bounds", "Alignment"
RATES, TEST = "Rates of a power-law spectrum", "Generalisation"

PAPER = Paper(
    "alignment",
    "Label-NTK alignments",
    "Marreddy, Liu, arXiv 2605.25275",
    (
        Statement(
            "residual recursion",
            DYNAMICS,
            "r_{t+1} = (I - eta K) r_t on the linearised model",
            dynamics.recursion,
        ),
        Statement(
            "finite network", DYNAMICS, "in the NTK regime the network follows it", dynamics.finite_network
        ),
        Statement(
            "closer with width",
            DYNAMICS,
            "the NTK regime is that of wide networks",
            dynamics.closer_with_width,
        ),
        Statement(
            "predicted against measured",
            DYNAMICS,
            "Figures 1, 4: the predicted curve is close to training, MLP and CNN",
            dynamics.predicted_against_measured,
        ),
        Statement("full-spectrum bound", BOUNDS, "L(w_t) <= c/2 tr[(I - eta K)^2t K]", bounds.rigorous_bound),
        Statement(
            "tighter than lambda_min", BOUNDS, "Figure 1: the classic bound is nearly flat", bounds.tighter
        ),
        Statement(
            "fitted constant bounds",
            BOUNDS,
            "curves normalised at t = 0 bound the loss",
            bounds.fitted_bound,
            False,
        ),
        Statement(
            "expected loss",
            BOUNDS,
            "E L(w_t) <= 1/2 tr[(I - eta K)^2t (K + c_y K^2)] (derived)",
            bounds.expected_bound,
        ),
        Statement(
            "label slope 2, one hidden layer",
            ALIGNED,
            "(v_i . y)^2 ~ lambda_i^2",
            slopes.label_slope_shallow,
            False,
        ),
        Statement(
            "label slope 2, four hidden layers",
            ALIGNED,
            "(v_i . y)^2 ~ lambda_i^2",
            slopes.label_slope_deep,
            None,
        ),
        Statement(
            "label slope 2 by the paper's protocol",
            ALIGNED,
            "Figures 2, 3, 5: label slope about 2 on its networks and data",
            slopes.label_protocol,
            None,
        ),
        Statement("label slope rises with depth", ALIGNED, "not in the paper: a fixed 2", slopes.depth_trend),
        Statement(
            "residual slope 1, one hidden layer",
            ALIGNED,
            "(v_i . r_0)^2 ~ lambda_i",
            slopes.residual_slope_shallow,
            False,
        ),
        Statement(
            "residual slope 1, four hidden layers",
            ALIGNED,
            "(v_i . r_0)^2 ~ lambda_i",
            slopes.residual_slope_deep,
            False,
        ),
        Statement(
            "residual slope 1 by the paper's protocol",
            ALIGNED,
            "Figures 2, 3, 5: residual slope about 1 on its networks and data",
            slopes.residual_protocol,
            None,
        ),
        Statement(
            "residual slope stable",
            ALIGNED,
            "the residual's slope is stable over training",
            slopes.stable_in_training,
        ),
        Statement(
            "alignment above control", ALIGNED, "labels are aligned with the kernel", slopes.above_control
        ),
        Statement(
            "energy of the start", ALIGNED, "E (v_i . f_0)^2 <= lambda_i (derived)", slopes.start_energy
        ),
        Statement(
            "energy of the start on networks", ALIGNED, "the same, 2 x 512", slopes.start_energy_networks
        ),
        Statement(
            "why slope 2", ALIGNED, "a Lipschitz label on a close pair, ReLU (derived)", slopes.two_points
        ),
        Statement("power-law decay", RATES, "tr[(I - eta K)^2t K] ~ t^(-(q - 1) / q)", rates.power_law_rate),
        Statement("T_eps (corrected)", RATES, "log T_eps = q / (q - 1) log(1/eps)", rates.corrected_rate),
        Statement("T_eps (as printed)", RATES, "T_eps = O(log(1/eps) / (q - 1))", rates.printed_rate, False),
        Statement(
            "decay on digits",
            RATES,
            "the power law of a real kernel predicts the decay",
            rates.digits_rate,
            None,
        ),
        Statement(
            "tighter generalisation",
            TEST,
            "tr K / n in place of y K^-1 y / n is a better bound",
            bounds.tighter_generalisation,
        ),
        Statement(
            "generalisation bound is a bound",
            TEST,
            "L_test = O(tr K / n) whatever the labels, with c_y = |y|^2 / tr K^2",
            bounds.aligned_is_a_bound,
            False,
        ),
    ),
)
