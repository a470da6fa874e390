"""Aiming towards the minimizers: fast convergence of SGD (arXiv 2306.02601), claim by claim."""

from __future__ import annotations

from wideangle.papers import _aiming_networks as networks
from wideangle.papers import _aiming_squares as squares
from wideangle.papers._frame import Paper, Statement

__all__ = ["PAPER"]

SQUARES, NETWORKS = "Least squares", "Networks"

PAPER = Paper(
    "aiming",
    "Aiming towards the minimizers",
    "Liu, Drusvyatskiy, Belkin, Davis, Ma, arXiv 2306.02601",
    (
        Statement("theta is 2", SQUARES, "<grad L, w - proj(w)> = 2 L for least squares", squares.two),
        Statement(
            "one step",
            SQUARES,
            "E dist^2 <= (1 - eta alpha (theta - beta eta)) dist^2, with batches by beta_b",
            squares.one_step,
        ),
        Statement(
            "complexity",
            SQUARES,
            "SGD at theta / (2 beta) is of gradient descent's order, beta/alpha, a factor of order beta/beta_L <= n "
            "apart; PL alone gives its square",
            squares.complexity,
        ),
        Statement(
            "width",
            NETWORKS,
            "wide nets aim, theta tends to 2, without being convex",
            networks.against_width,
        ),
        Statement(
            "bound of theta",
            NETWORKS,
            "theta >= 2 - epsilon dist / sqrt(alpha) (derived)",
            networks.lower_bound,
        ),
        Statement(
            "stand-in",
            NETWORKS,
            "Gauss-Newton steps are a first-order projection (derived)",
            networks.solution_is_near,
        ),
        Statement(
            "SGD on a wide net",
            NETWORKS,
            "eta = theta / (2 beta): the rate 1 - alpha theta^2 / (4 beta) and P(exit) <= dist^2 / r^2",
            networks.sgd_on_a_net,
        ),
        Statement("LSTM", NETWORKS, "the condition holds along the training of an LSTM", networks.lstm, None),
    ),
)
