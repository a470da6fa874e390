"""A document as a check-up writes it: every kind of section, figure, mark, table and odd value."""

from __future__ import annotations

import math

import numpy as np

from wideangle.document import Document, Figure, Mark, Section, Series, Table
from wideangle.plan import Decision, Plan
from wideangle.result import Provenance

COMMAND = "wideangle checkup conv --data mnist --n 512 --seed 0 --plan plan.json --out report.html"
STEPS = list(range(0, 201, 4))
PREDICTED = [0.0902 * (0.42 * math.exp(-0.06 * t) + 0.4 * math.exp(-0.011 * t) + 0.18) for t in STEPS]
MEASURED = [
    p * (1 + 0.05 * math.sin(0.11 * t) * min(t / 40, 1)) for p, t in zip(PREDICTED, STEPS, strict=True)
]


def _regime() -> Section:
    radius = [10 ** (-2 + 0.25 * k) for k in range(13)]
    gap = [min(0.004 * r**1.02, 2.0) for r in radius]
    return Section(
        name="regime",
        title="Regime",
        summary="At width 256 the model stays within 0.41 % of its linearisation: it is lazy.",
        values={
            "width": 256,
            "parameters": 1_482_250,
            "output": "linear",
            "bottleneck": None,
            "normalisation": "none",
            "linearity_gap": 0.0041,
            "batch_coupled": False,
        },
        figures=[
            Figure(
                title="Distance from the linearisation",
                x_label="length of the move along the gradient, in steps",
                y_label="|f - f_lin| / |f - f_0|",
                series=[
                    Series("along the gradient", radius, list(gap)),
                    Series("along a random direction", radius, [0.04 * g for g in gap], "dashed"),
                ],
                x_log=True,
                y_log=True,
                marks=[Mark(1.0, "recommended step")],
                caption="The model departs from its linear expansion in proportion to the move.",
            )
        ],
        seconds=1.31,
        budget=5.0,
    )


def _kernel() -> Section:
    index = list(range(1, 513))
    trace = [212.4 * k**-1.31 + 2e-4 for k in index]
    return Section(
        name="kernel",
        title="Tangent kernel",
        summary="The kernel K_trace/C has condition number 4.1e5; 9.3 of 512 directions carry the training.",
        values={
            "kernel": "trace over the 10 outputs, divided by 10 (K_trace/C)",
            "largest eigenvalue": 212.4,
            "smallest eigenvalue": 5.18e-4,
            "condition number": 4.1e5,
            "condition number of the full kernel": math.inf,
            "effective rank": 9.31,
            "smallest_angle": 0.0873,
            "per_layer": {"conv1": 0.12, "conv2": 0.51, "head": 0.37},
            "top eigenvalues": np.array(trace[:20]),
        },
        notes=[
            "Two samples are equal, so the full kernel is rank deficient and its smallest eigenvalue is zero."
        ],
        figures=[
            Figure(
                title="Spectrum",
                x_label="index",
                y_label="eigenvalue",
                series=[
                    Series("K_trace/C", index, list(trace), "points"),
                    Series(
                        "linear network", index, [31.0 * k**-1.9 if k < 400 else 0.0 for k in index], "points"
                    ),
                ],
                x_log=True,
                y_log=True,
                caption="A steep spectrum: late directions learn thousands of times slower than the first.",
            ),
            Figure(
                title="Angles between gradient features",
                x_label="angle between inputs, degrees",
                y_label="angle between gradients, degrees",
                series=[
                    Series(
                        "this network",
                        [10, 20, 30, 40, 50, 60, 70, 80, 90],
                        [16, 28, 39, 48, 57, 64, 71, 78, 84],
                    ),
                    Series("linear network", [10, 90], [10, 90], "dashed"),
                    Series(
                        "infinite width",
                        [10, 20, 30, 40, 50, 60, 70, 80, 90],
                        [15, 27, 38, 48, 56, 64, 71, 77, 83],
                    ),
                ],
                caption="The network separates near inputs better than a linear one.",
            ),
        ],
        tables=[
            Table(
                title="Conditioning by layer",
                columns=[
                    "layer",
                    "parameters",
                    "largest eigenvalue",
                    "condition number",
                    "share of the trace",
                    "method",
                ],
                cells=[
                    ["features.conv1", 320, 25.5, 8.2e6, 0.12, "explicit gradients"],
                    ["features.conv2", 18496, 108.3, 2.3e5, 0.51, "spatial contraction"],
                    ["classifier.head", 1463434, 78.6, math.inf, 0.37, "(A Aᵀ) * (G Gᵀ)"],
                    ["features.norm", 0, None, math.nan, 0.0, "no parameters"],
                ],
                caption="inf: the layer's kernel alone is rank deficient.",
            )
        ],
        seconds=4.6,
        budget=10.0,
    )


def _labels() -> Section:
    share = [1 - math.exp(-0.02 * k) for k in range(0, 200, 5)]
    index = [float(k) for k in range(0, 200, 5)]
    return Section(
        name="labels",
        title="Labels",
        summary="The labels lie 3.2 times more in the fast directions than shuffled ones.",
        values={"slope": -0.84, "interval": [-0.91, -0.77], "slope of permuted labels": -0.11},
        figures=[
            Figure(
                title="Cumulative alignment",
                x_label="eigenvectors",
                y_label="share of the labels",
                series=[
                    Series("given labels", index, list(share)),
                    Series("permuted labels", index, [k / 200 for k in index], "dashed"),
                ],
                caption="Given labels are explained by few directions.",
            ),
            Figure(
                title="Predicted loss",
                x_label="step",
                y_label="training loss, mean squared error",
                series=[
                    Series("exact curve", [float(t) for t in STEPS], list(PREDICTED)),
                    Series("bound", [float(t) for t in STEPS], [2.2 * p for p in PREDICTED], "dashed"),
                    Series("bound by the smallest eigenvalue", [0.0, 200.0], [0.0902, 0.0899], "dashed"),
                ],
                y_log=True,
                caption="The exact curve needs about 180 steps to a tenth of the initial loss.",
            ),
        ],
        seconds=0.42,
        budget=5.0,
    )


def _trial() -> Section:
    steps = [float(t) for t in STEPS]
    broken: list[float | None] = [*MEASURED]
    broken[20] = None
    broken[21] = math.nan
    return Section(
        name="trial",
        title="Trial run",
        summary="Measured and predicted loss differ by a median factor of 1.03 over 200 steps.",
        values={
            "median |log10 ratio|": 0.0132,
            "diverging factor measured": 1.08,
            "edge_of_stability": False,
        },
        notes=[
            "The window [1, 2] times the critical rate holds for the quadratic model with squared loss only."
        ],
        figures=[
            Figure(
                title="Predicted against measured",
                x_label="step",
                y_label="training loss, mean squared error",
                series=[
                    Series("measured", steps, broken),
                    Series("predicted", steps, list(PREDICTED), "dashed"),
                ],
                y_log=True,
                caption="The run follows the prediction.",
            ),
            Figure(
                title="Around the critical rate",
                x_label="step",
                y_label="top-mode residual, squared",
                series=[
                    Series("0.9 × critical", steps, [0.64**t if 0.64**t > 1e-30 else 0.0 for t in STEPS]),
                    Series("1.1 × critical", steps, [1.44**t for t in STEPS]),
                ],
                y_log=True,
                marks=[Mark(60.0, "turning point"), Mark(148.0, "leaves the quadratic model")],
                caption="Below the critical rate the top mode shrinks, above it grows.",
            ),
            Figure(
                title="Sharpness",
                x_label="step",
                y_label="largest Hessian eigenvalue",
                series=[Series("sharpness", [], []), Series("2 / step size", [0.0], [math.nan], "dashed")],
                caption="Not tracked in this run.",
            ),
        ],
        seconds=14.2,
        budget=12.0,
    )


def make() -> Document:
    """The sample."""
    plan = Plan(
        model="conv",
        data="mnist",
        samples=512,
        step_size=Decision(
            0.08723, "per step", "1 / (c lambda_max), c = 2/(nC), lambda_max = 5.87e4 of the full kernel"
        ),
        batch_size=Decision(64, "samples", "smallest batch whose top eigenvalue is within 2 of the full one"),
        optimizer=Decision("sgd", "", "no momentum gains more than 1.3 at this condition number"),
        warmup_steps=Decision(None, "", "sharpness falls from the start, no warm-up needed was tested"),
        stop=Decision(180, "steps", "predicted loss below a tenth of the initial loss"),
        suspect_labels=Decision(
            [3, 17, 40, 41, 77, 102, 230, 301, 388, 401, 477], "rows", "residual after 180 steps"
        ),
        predicted_loss=[[float(t), p] for t, p in zip(STEPS, PREDICTED, strict=True)],
    )
    sections = [
        _regime(),
        _kernel(),
        Section(
            name="step",
            title="Step size",
            summary="Gradient descent is stable below 0.1745 and fastest near 0.08723.",
            values={
                "critical step": 0.1745,
                "convention": "1/(nC) sum of squares",
                "c": 3.906e-4,
                "lanczos_steps": 38,
            },
            seconds=2.0,
            budget=5.0,
        ),
        _labels(),
        _trial(),
        Section(
            name="curvature",
            title="Curvature",
            summary="the model holds a BatchNorm layer in training mode; call model.eval() first",
            status="skipped",
            seconds=0.0,
        ),
        Section(
            name="optimiser",
            title="Optimiser",
            summary="lambda_max is not finite",
            status="failed",
            seconds=0.2,
        ),
    ]
    return Document(
        title="Check-up of conv on mnist",
        subject="A convolutional network with 1,482,250 parameters, 512 samples, mean squared error",
        verdict=[
            "Train with plain gradient descent at step size 0.0872; it is stable below 0.1745.",
            "Expect a tenth of the initial loss after about 180 steps.",
            "The network behaves linearly: the gap after one step is 0.41 %.",
            "The labels fit the network 3.2 times better than shuffled labels would.",
            "Condition number 4.1e5: the slowest directions will not be learned in any practical time.",
        ],
        sections=sections,
        plan=plan,
        provenance=Provenance(
            seed=0,
            device="cpu",
            seconds=22.73,
            command=COMMAND,
            versions={
                "wideangle": "0.1.0",
                "torch": "2.13.0",
                "numpy": "2.2.1",
                "scipy": "1.15.0",
                "python": "3.11.9",
            },
        ),
    )
