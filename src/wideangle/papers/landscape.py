"""Loss landscapes and optimization in over-parameterized non-linear systems (arXiv 2003.00307), claim by claim."""

from __future__ import annotations

from wideangle.papers import _landscape_condition as condition
from wideangle.papers import _landscape_geometry as geometry
from wideangle.papers._frame import Paper, Statement

__all__ = ["PAPER"]

CONDITION, WIDE, SHAPE = "The PL* condition", "Wide networks", "Random systems and minima"

PAPER = Paper(
    "landscape",
    "Loss landscapes and PL*",
    "Liu, Zhu, Belkin, arXiv 2003.00307",
    (
        Statement(
            "identity", CONDITION, "|grad L|^2 / 2 = 1/2 r^T K r >= lambda_min(K) L", condition.identity
        ),
        Statement(
            "rate of descent",
            CONDITION,
            "mu-PL* gives L(w_t) <= (1 - eta mu)^t L_0 within R = 2 L_F |F_0 - y| / mu",
            condition.descent_rate,
        ),
        Statement(
            "rate of SGD",
            CONDITION,
            "eta <= mu / (beta (n beta + mu (s - 1))) gives the factor 1 - mu s eta / n (derived)",
            condition.sgd_step_bound,
        ),
        Statement(
            "relaxed condition",
            CONDITION,
            "PL*_epsilon: descent reaches L <= epsilon at the same rate",
            condition.relaxed,
        ),
        Statement(
            "a point is a ball",
            CONDITION,
            "the ratio at one point holds around it (what a check at one point would have to mean)",
            condition.point_is_a_ball,
            False,
        ),
        Statement(
            "Hessian control",
            WIDE,
            "|lambda_min(K) - lambda_0| <= |K - K_0| <= 2 L_F sqrt(n) |H_F| R",
            geometry.hessian_control,
        ),
        Statement(
            "certified ball",
            WIDE,
            "small |H_F| makes a ball uniformly conditioned: it holds a solution, descent finds it",
            condition.certified_ball,
        ),
        Statement(
            "Hessian against width",
            WIDE,
            "|H_F| = O(1/sqrt(m)), so lambda_min stays above zero along descent",
            geometry.hessian_scaling,
        ),
        Statement(
            "kernel change against width",
            WIDE,
            "the kernel's change falls like 1/sqrt(m) (the order of its bound)",
            geometry.kernel_scaling,
            None,
        ),
        Statement(
            "output transform",
            WIDE,
            "lambda_min of phi(F) >= rho^2 lambda_min of F, though K is not nearly constant",
            condition.output_transform,
        ),
        Statement(
            "under-parametrised",
            SHAPE,
            "lambda_min(K) = 0 with fewer parameters than equations",
            geometry.under_parametrised,
        ),
        Statement(
            "random Jacobian",
            SHAPE,
            "E log kappa(K) < 2 log(m / (m - n + 1)) + 5",
            geometry.random_jacobian,
        ),
        Statement("codimension", SHAPE, "{lambda_min = 0} has codimension m - n + 1", geometry.codimension),
        Statement(
            "not convex near minima",
            SHAPE,
            "rank(H_i) > 2n for some i: convex in no neighbourhood of w*",
            geometry.non_convex,
        ),
    ),
)
