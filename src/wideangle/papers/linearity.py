"""On the linearity of large non-linear models (arXiv 2010.01092), claim by claim."""

from __future__ import annotations

import math

from wideangle.papers import _linearity_gap as gap
from wideangle.papers import _linearity_hessian as hessian
from wideangle.papers import _linearity_kernels as kernels
from wideangle.papers import _linearity_training as training
from wideangle.papers._frame import Paper, Statement

__all__ = ["PAPER"]

NORM, IMAGES = "Hessian norm against width", "Hessian norm on images"
GAP, TRAINING = "Distance from the linear expansion", "Kernel along gradient descent"
LOW, FLAT, BELOW = (-0.6, -0.35), (-0.2, 0.2), (-math.inf, -0.25)
SMALL = "n = 8, d = 5"
GROWING = {
    "CNN": "the channels",
    "ResNet": "the channels",
    "DenseNet": "the width",
    "random DAG": "the in-degree (arXiv 2205.11786)",
    "attention": "the width (not in the paper)",
}
STAYS = "the kernel moves as much at every width"

PAPER = Paper(
    "linearity",
    "On the linearity of large non-linear models",
    "Liu, Zhu, Belkin, arXiv 2010.01092",
    (
        Statement(
            "linear output", NORM, "Theorem 3.2: |H| = O(1 / sqrt(m))", hessian.within("linear output", *LOW)
        ),
        Statement(
            "linear output, in the ball",
            NORM,
            "Theorem 3.2: at every w with |w - w0| <= R",
            hessian.within("linear output", *LOW, "ball"),
        ),
        Statement(
            "three swish layers",
            NORM,
            "the same for deeper networks and other smooth activations",
            hessian.within("three swish layers", *LOW),
        ),
        Statement(
            "three swish layers, in the ball",
            NORM,
            "at every w with |w - w0| <= R",
            hessian.within("three swish layers", *LOW, "ball"),
        ),
        Statement(
            "DenseNet", NORM, "every layer sees all before it: the same", hessian.within("DenseNet", *BELOW)
        ),
        Statement(
            "random DAG",
            NORM,
            "arXiv 2205.11786: the same in the in-degree of a random graph",
            hessian.within("random DAG", *BELOW),
        ),
        Statement(
            "tanh output", NORM, "a non-linear output: |H| stays", hessian.within("tanh output", *FLAT)
        ),
        Statement(
            "swish output", NORM, "a non-linear output: |H| stays", hessian.within("swish output", *FLAT)
        ),
        Statement(
            "bottleneck of 1", NORM, "a narrow layer: |H| stays", hessian.within("bottleneck of 1", *FLAT)
        ),
        Statement(
            "bottleneck of 8", NORM, "a narrow layer: |H| stays", hessian.within("bottleneck of 8", *FLAT)
        ),
        Statement(
            "narrow layer's width",
            NORM,
            "|H| falls about as 1 / sqrt(m_b) in the width of the narrow layer (derived)",
            hessian.narrow_law,
        ),
        Statement("gradient norm", NORM, "|grad f| stays: the two norms part", hessian.gradient_stays),
        Statement("two layers exactly", NORM, "the closed form of |H| (derived)", hessian.two_layers),
        Statement(
            "output identity",
            NORM,
            "| |H~| - |phi''| |grad f|^2 | <= |phi'| |H| (derived)",
            hessian.output_identity,
        ),
        Statement("architectures", NORM, "which networks become linear with width", hessian.all_vectors),
        Statement("architectures, in the ball", NORM, "the same at distance 3", hessian.all_in_ball),
        Statement(
            "CNN on digits",
            IMAGES,
            "convolutional networks: |H| = O(1 / sqrt(m))",
            hessian.within("CNN", *BELOW, data="digits"),
        ),
        Statement(
            "ResNet on digits",
            IMAGES,
            "residual networks: |H| = O(1 / sqrt(m))",
            hessian.within("ResNet", *BELOW, data="digits"),
        ),
        Statement(
            "attention on digits",
            IMAGES,
            "not in the paper: attention whose heads grow with the width",
            hessian.within("attention", *BELOW, data="digits"),
        ),
        Statement(
            "attention with two heads",
            IMAGES,
            "not in the paper: the scores of few heads are a narrow layer (derived)",
            hessian.few_heads,
            None,
        ),
        Statement(
            "digits", IMAGES, "which networks become linear with width", hessian.all_images("digits", "start")
        ),
        Statement(
            "digits, in the ball", IMAGES, "the same at distance 3", hessian.all_images("digits", "ball")
        ),
        Statement(
            "MNIST", IMAGES, "which networks become linear with width", hessian.all_images("mnist", "start")
        ),
        Statement(
            "gap, linear output",
            GAP,
            "the remainder vanishes with width",
            gap.gap_slope("linear output", -math.inf, -0.5),
        ),
        Statement("gap, tanh output", GAP, "it does not", gap.gap_slope("tanh output", -0.2, math.inf)),
        Statement("gap, bottleneck", GAP, "it does not", gap.gap_slope("bottleneck of 1", -0.2, math.inf)),
        Statement(
            "two directions that tell",
            GAP,
            "gradient and top Hessian directions part the networks",
            gap.telling_directions,
        ),
        Statement(
            "random direction",
            GAP,
            "control: a random direction parts the networks too",
            gap.random_direction,
            False,
        ),
        Statement("Taylor bound", GAP, "|f - f_lin| <= R^2 / 2 sup |H|", gap.taylor_bound),
        Statement(
            "ReLU gap",
            GAP,
            "not in the paper: ReLU has no Hessian at its kinks; its gap",
            gap.gap_slope("ReLU", -math.inf, -0.25),
            None,
        ),
        Statement(
            "kernel bound", TRAINING, "small |H| on the ball: small change of the kernel", gap.kernel_bound
        ),
        Statement(
            "kernel change, linear output",
            TRAINING,
            "the kernel's change vanishes with width",
            training.change_slope(SMALL, "linear output", -math.inf, -0.45),
        ),
        Statement(
            "kernel change, tanh output",
            TRAINING,
            STAYS,
            training.change_slope(SMALL, "tanh output", -0.2, math.inf, 0.2),
        ),
        Statement(
            "kernel change, bottleneck of 1",
            TRAINING,
            STAYS,
            training.change_slope(SMALL, "bottleneck of 1", -0.2, math.inf),
            None,
        ),
        Statement(
            "kernel change, bottleneck of 8",
            TRAINING,
            STAYS,
            training.change_slope(SMALL, "bottleneck of 8", -0.2, math.inf),
            None,
        ),
        Statement(
            "descent works without linearity",
            TRAINING,
            "all networks reach the loss",
            training.losses_reached(SMALL),
        ),
        Statement(
            "descent with a bottleneck of 1",
            TRAINING,
            "all networks reach the loss",
            training.narrow_reached,
            None,
        ),
        Statement("same distance", TRAINING, "|w_t - w0| does not shrink with width", training.same_distance),
        Statement(
            "rate attained",
            TRAINING,
            "read as a rate, not a bound: the kernel's change is 1 / sqrt(m)",
            training.tight_bound,
            False,
        ),
        Statement(
            "digits: linear output",
            TRAINING,
            "the kernel's change vanishes with width",
            training.change_slope("digits", "linear output", -math.inf, -0.45),
        ),
        Statement(
            "digits: tanh output",
            TRAINING,
            STAYS,
            training.change_slope("digits", "tanh output", -0.2, math.inf, 0.2),
        ),
        Statement(
            "digits: bottleneck of 1",
            TRAINING,
            STAYS,
            training.change_slope("digits", "bottleneck of 1", -0.2, math.inf),
            None,
        ),
        Statement(
            "digits: descent works without linearity",
            TRAINING,
            "all networks reach the loss",
            training.losses_reached("digits"),
        ),
        Statement(
            "MNIST: linear output",
            TRAINING,
            "the kernel's change vanishes with width",
            training.change_slope("mnist", "linear output", -math.inf, -0.45),
        ),
        Statement(
            "digits: ReLU",
            TRAINING,
            "not in the paper: the kernel's change of a ReLU network",
            training.change_slope("digits", "ReLU", -math.inf, -0.25),
        ),
        *(
            Statement(
                f"digits: kernel of {name}",
                TRAINING,
                f"the kernel's change vanishes with {grows}",
                kernels.change(name),
                None if name in kernels.FEW_CHANNELS else True,
            )
            for name, grows in GROWING.items()
        ),
        Statement(
            "digits: kernels of all architectures",
            TRAINING,
            "for which architectures the kernel stays along gradient descent",
            kernels.all_changes,
            None,
        ),
        Statement(
            "not lazy training",
            TRAINING,
            "scaling the output keeps the kernel another way: the weights move less",
            training.not_lazy,
        ),
        Statement(
            "width is not lazy training",
            TRAINING,
            "width keeps the kernel while the weights move as far",
            training.width_is_not_lazy,
        ),
    ),
)
