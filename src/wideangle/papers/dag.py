"""Transition to Linearity of General Neural Networks with DAG Architecture (arXiv 2205.11786), claim by claim."""

from __future__ import annotations

from wideangle.papers import _dag_architectures as nets
from wideangle.papers import _dag_theory as theory
from wideangle.papers._frame import Paper, Statement

__all__ = ["PAPER"]

LARGE, SMALL = "Architectures whose in-degrees grow", "Small in-degrees"
THEORY, OUTPUT = "Behind the theorem", "Non-linear outputs"
GROWS = "Theorem 3.6: |H| = O(1/sqrt(m)) up to logarithms, m the smallest in-degree"

PAPER = Paper(
    "dag",
    "Linearity of networks on acyclic graphs",
    "Zhu, Liu, Belkin, arXiv 2205.11786",
    (
        Statement("fully connected", LARGE, GROWS, nets.fully_connected),
        Statement("densely connected", LARGE, f"{GROWS}; a DenseNet is one of them", nets.densely_connected),
        Statement(
            "narrow layer with dense skips",
            LARGE,
            f"{GROWS}; skips keep the in-degrees large around a narrow layer",
            nets.narrow_with_skips,
        ),
        Statement("random graph", LARGE, f"{GROWS}, on any graph", nets.random_graph),
        Statement("uneven in-degrees", LARGE, f"{GROWS}; in-degrees from m to m^c", nets.uneven_graph),
        Statement("deep random graph", LARGE, f"{GROWS}, at any fixed number of layers", nets.deep),
        Statement("convolutional", LARGE, f"{GROWS}; weights may be shared", nets.convolutional),
        Statement("residual", LARGE, "appendix D: the same with identity skip connections", nets.residual),
        Statement("random graph on digits", LARGE, f"{GROWS}, here on a real digit", nets.digits),
        Statement(
            "width decides", LARGE, "Theorem 3.6 over all architectures of the table", nets.width_decides
        ),
        Statement(
            "narrow layer", SMALL, "a bottleneck keeps the net from becoming linear", nets.narrow_layer
        ),
        Statement(
            "narrow first layer",
            SMALL,
            "the second layer's in-degree counts, the first's not",
            nets.narrow_first,
        ),
        Statement(
            "narrow last layer", SMALL, "abstract: the in-degree of the outputs counts", nets.narrow_output
        ),
        Statement(
            "width without the outputs (as printed)",
            SMALL,
            "the display takes the minimum over layers 2 to L - 1",
            nets.width_as_printed,
            False,
        ),
        Statement(
            "one thin neuron",
            SMALL,
            "not in the paper: a vanishing share of thin neurons does no harm",
            nets.one_thin_neuron,
        ),
        Statement(
            "a small width forbids it (converse)",
            SMALL,
            "not in the paper: the smallest in-degree is needed",
            nets.small_width_forbids,
            False,
        ),
        Statement(
            "thin everywhere",
            SMALL,
            "not in the paper: in-degree 4 in every hidden layer, chosen at random, is no transition",
            nets.thin_everywhere,
            None,
        ),
        Statement("on the ball", THEORY, "Theorem 3.6: for all w within R of w0", theory.ball),
        Statement(
            "every pre-activation", THEORY, "Theorem 3.8: the same for all neurons", theory.preactivations
        ),
        Statement("first layer", THEORY, "base of the proof: H = 0 in the first layer", theory.first_layer),
        Statement("remainder", THEORY, "Corollary 3.7: |f - f_lin| <= R^2/2 sup |H|", theory.remainder_bound),
        Statement("gap falls", THEORY, "Corollary 3.7: f tends to its linear expansion", theory.gap_falls),
        Statement(
            "kernel on the ball",
            THEORY,
            "the kernel's smallest eigenvalue changes by O(sup |H|) (derived entry by entry)",
            theory.kernel_on_ball,
        ),
        Statement(
            "gradient norm",
            THEORY,
            "Proposition 4.4: the mean gradient norm is bounded below for homogeneous activations",
            theory.gradient_norm,
        ),
        Statement(
            "non-linear output", OUTPUT, "the Hessian norm stays of order one", theory.nonlinear_output
        ),
        Statement(
            "PL* with a non-linear output",
            OUTPUT,
            "PL* can hold without linearity, and descent converges",
            theory.pl_with_nonlinear_output,
        ),
    ),
)
