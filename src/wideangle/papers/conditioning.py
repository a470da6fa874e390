"""Better NTK Conditioning: A Free Lunch from (ReLU) Nonlinear Activation (arXiv 2305.08813), claim by claim."""

from __future__ import annotations

from wideangle.papers import _conditioning_angles as angle
from wideangle.papers import _conditioning_kappa as kappa
from wideangle.papers import _conditioning_networks as network
from wideangle.papers import _conditioning_training as training
from wideangle.papers._frame import Paper, Statement

__all__ = ["PAPER"]

ANGLES, DATA = "Angles at infinite width", "Condition numbers at infinite width"
NETWORKS, TRAINING = "Finite networks", "Training"

PAPER = Paper(
    "conditioning",
    "Better NTK conditioning",
    "Liu, Bi, Hui, Liu, arXiv 2305.08813",
    (
        Statement("angle formula", ANGLES, "Lemma 3.1: the closed form of cos phi", angle.closed_form),
        Statement(
            "angle map",
            ANGLES,
            "g increases, g(theta) < theta, its iterates tend to 0 like 3 pi / l",
            angle.angle_map,
        ),
        Statement(
            "separation", ANGLES, "Theorem 3.2: phi > theta for close inputs, rising with L", angle.separation
        ),
        Statement(
            "far pairs stay apart", ANGLES, "Figure 1: large angles stay above 30 degrees", angle.far_pairs
        ),
        Statement(
            "far pairs come nearer",
            ANGLES,
            "Figure 1: above 60 degrees phi falls at first",
            angle.falling_pairs,
            False,
        ),
        Statement(
            "small angle",
            ANGLES,
            "Corollary 3.3: cos phi = (1 - L theta / 2 pi + o(theta)) cos theta",
            angle.small_angle,
        ),
        Statement("infinite depth", ANGLES, "Theorem 3.5: phi tends to arccos(1/4)", angle.deep_angle),
        Statement(
            "other activations",
            ANGLES,
            "Figure 2: tanh, GeLU, ReLU^2 and erf separate too, towards 90 degrees",
            angle.other_activations,
        ),
        Statement(
            "smooth against ReLU",
            ANGLES,
            "near 0 only ReLU stretches like sqrt(theta) (derived)",
            angle.smooth_ratio,
        ),
        Statement(
            "kappa limit (corrected)", DATA, "Theorem 3.5: kappa tends to (n + 3) / 3", kappa.kappa_limit
        ),
        Statement(
            "kappa limit (as printed)", DATA, "kappa tends to (n + 4) / 3", kappa.kappa_limit_printed, False
        ),
        Statement("deep kernel of digits", DATA, "the same limit on real data", kappa.deep_digits),
        Statement("first layer trained", DATA, "Theorem 4.2: kappa never rises with L", kappa.first_layer),
        Statement("layer by layer", DATA, "Theorem 4.2: lambda_min up, lambda_max down", kappa.schur),
        Statement(
            "close data", DATA, "Figure 3: kappa falls with L, under the linear network's", kappa.close_data
        ),
        Statement(
            "always better", DATA, "ReLU always lowers kappa, all layers trained", kappa.always_better, False
        ),
        Statement(
            "two samples", DATA, "Theorem F.1: kappa of two close inputs falls with L", kappa.two_samples
        ),
        Statement(
            "closest pair bounds",
            DATA,
            "Proposition 4.1: lambda_min = O(phi^2), kappa = Omega(1/phi^2)",
            kappa.angle_bound,
        ),
        Statement(
            "angle of networks", NETWORKS, "Lemma 3.1 on networks, pair by pair", network.finite_angles
        ),
        Statement("width", NETWORKS, "|cos phi_m - cos phi_inf| = O(1 / sqrt(m))", network.width_rate),
        Statement("linear network", NETWORKS, "a linear network keeps phi = theta", network.linear_net),
        Statement("gradient norm (corrected)", NETWORKS, "|grad f|^2 = (L + 1) |x|^2", network.gradient_norm),
        Statement(
            "gradient norm (as printed)",
            NETWORKS,
            "|grad f| = (L + 1) |x|",
            network.gradient_norm_printed,
            False,
        ),
        Statement(
            "variance of the weights",
            NETWORKS,
            "Figure 6: the initial variance does not matter",
            network.init_variance,
        ),
        Statement(
            "depth on networks",
            NETWORKS,
            "Figure 3: smallest angle up, kappa down with L",
            network.finite_data,
        ),
        Statement(
            "convolutional network",
            NETWORKS,
            "not in the paper: a ReLU CNN beside a linear CNN",
            network.convolutional,
        ),
        Statement(
            "convolutional network and its inputs",
            NETWORKS,
            "not in the paper: phi > theta for a CNN",
            network.convolutional_inputs,
            None,
        ),
        Statement(
            "faster descent",
            TRAINING,
            "Figure 4 in the kernel regime: deeper needs fewer steps",
            training.faster,
        ),
        Statement(
            "faster SGD", TRAINING, "Figure 4: deeper networks converge faster, best rate each", training.sgd
        ),
        Statement(
            "test accuracy",
            TRAINING,
            "Table 1: MNIST test accuracy peaks near L = 6",
            training.test_accuracy,
            None,
        ),
    ),
)
