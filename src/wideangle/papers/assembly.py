"""Transition to Linearity of Wide Neural Networks is an Emerging Property of Assembling Weak Models, by claims.

arXiv 2203.05104 states rates by order; the exact norms and the tolerances are derived in the claims.
"""

from __future__ import annotations

from wideangle.papers import _assembly_blocks as block
from wideangle.papers import _assembly_layers as layer
from wideangle.papers._frame import Paper, Statement

__all__ = ["PAPER"]

SUB, CONTROLS, NETS = "Independent sub-models", "What breaks it", "Networks and real inputs"

PAPER = Paper(
    "assembly",
    "Transition to linearity by assembling weak models",
    "Liu, Zhu, Belkin, arXiv 2203.05104",
    (
        Statement("block formula", SUB, "|H_f| = max |v_i| |H_gi| / s (derived, exact)", block.block_formula),
        Statement("tiny MLPs", SUB, "|H| ~ 1/sqrt(m) for independent sub-models", block.tiny_nets),
        Statement(
            "tiny MLPs, Gaussian",
            SUB,
            "the same where no constant bounds the Hessians of the sub-models",
            block.gaussian_nets,
            None,
        ),
        Statement("sine features", SUB, "the same for sub-models of any kind", block.sines),
        Statement("quadratic polynomials", SUB, "the same for sub-models of any kind", block.quadratics),
        Statement("cubic polynomials", SUB, "the same for sub-models of any kind", block.cubics, False),
        Statement(
            "cubic polynomials (corrected)",
            SUB,
            "the same times the largest of m unbounded Hessians",
            block.cubics_corrected,
        ),
        Statement(
            "everywhere", SUB, "|H_f(w)| <= beta max |v| / sqrt(m) at every w (derived)", block.everywhere
        ),
        Statement(
            "in the ball", SUB, "the rate holds within a fixed radius of the start", block.in_the_ball, None
        ),
        Statement(
            "whole networks", SUB, "bagging view: networks summed with 1/sqrt(m)", block.whole_networks, None
        ),
        Statement("effective number", SUB, "no sub-model dominates: each is weak", block.effective_number),
        Statement(
            "trained coefficients",
            SUB,
            "the two-layer net: cross blocks keep the rate (derived form)",
            block.trained_coefficients,
        ),
        Statement("one dominant sub-model", CONTROLS, "no transition where one dominates", block.dominated),
        Statement(
            "heavy tails", CONTROLS, "no transition for Cauchy coefficients (derived)", block.heavy_tailed
        ),
        Statement(
            "mean-field scale",
            CONTROLS,
            "s = m: |H| and |grad f|^2 both fall like 1/m (derived)",
            block.mean_field,
        ),
        Statement(
            "shared weights", CONTROLS, "the block formula for shared weights", block.shared_weights, False
        ),
        Statement(
            "bottleneck", CONTROLS, "few sub-models: no transition, however wide each", layer.bottleneck
        ),
        Statement(
            "bottleneck width", CONTROLS, "|H| falls about as 1/sqrt(m_b) (derived)", layer.bottleneck_width
        ),
        Statement("first layer", NETS, "base of the recursion: |H| = 0", layer.first_layer),
        Statement("hidden layers", NETS, "every pre-activation: |H| ~ 1/sqrt(m)", layer.hidden_layers),
        Statement(
            "diversity", NETS, "gradients of neurons in a layer come apart with width", layer.diversity
        ),
        Statement("digits", NETS, "not in the paper: the rate and its control on digits", layer.digits),
    ),
)
