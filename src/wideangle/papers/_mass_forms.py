"""The claims of `mass` about its update: forms that agree, limits, and updates that only carry its name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wideangle import seeds
from wideangle.document import Figure, Series, Table
from wideangle.optim import MaSS, MassParameters
from wideangle.papers import _mass_updates as updates
from wideangle.papers._frame import Finding, Setting

STEPS = 300
TRIED = (
    MassParameters(0.02, 0.05, 2.0),
    MassParameters(0.02, 0.05, 3.0),
    MassParameters(0.02, 0.05, 12.0),
    MassParameters(0.02, 0.3, 1.5),
    MassParameters(0.02, 0.05, 30.0),
)


def problem(seed: int, batch: int = 4) -> tuple[Tensor, list[updates.Gradient]]:
    """Return a start and the gradients of 300 batches: 20 equations, 30 unknowns, solution 0."""
    draws = seeds.generator(seed, "papers", "mass", "forms")
    x = torch.randn(20, 30, generator=draws, dtype=torch.float64)
    start = torch.randn(30, generator=draws, dtype=torch.float64)
    drawn = torch.randint(0, 20, (STEPS, batch), generator=draws)
    return start, [lambda u, rows=x[b]: rows.T @ (rows @ u) / batch for b in drawn]


def _optimiser(start: Tensor, gradients: Sequence[updates.Gradient], p: MassParameters) -> list[Tensor]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # alpha kappa_tilde above 1 is tried on purpose
        return updates.torch_optimiser(
            lambda params: MaSS(params, p.lr, p.alpha, p.kappa_tilde), start, gradients
        )


def _by_etas(start: Tensor, gradients: Sequence[updates.Gradient], p: MassParameters) -> list[Tensor]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return updates.torch_optimiser(
            lambda params: MaSS.from_etas(params, p.eta1, p.eta2, p.gamma), start, gradients
        )


FORMS: dict[str, updates.Update] = {
    "(lr, alpha, kappa_tilde), three points": updates.three_points,
    "one buffer": updates.one_buffer,
    "AccSGD": updates.acc_sgd,
    "AGNES": updates.agnes,
    "quasi-hyperbolic momentum": updates.quasi_hyperbolic,
    "wideangle.optim.MaSS": _optimiser,
    "wideangle.optim.MaSS.from_etas": _by_etas,
}


def _apart(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest difference of two sequences of points."""
    return max(float((p - q).abs().max()) for p, q in zip(a, b, strict=True))


def forms_agree(setting: Setting) -> Finding:
    """All forms of the update take the same steps, the library's optimiser among them."""
    cells, worst = [], 0.0
    for name, form in FORMS.items():
        gaps = []
        for p in TRIED:
            start, gradients = problem(setting.seed)
            gaps.append(_apart(form(start, gradients, p), updates.two_points(start, gradients, p)))
        worst = max(worst, *gaps)
        cells.append([name, *gaps])
    heads = ["form", *(f"alpha {p.alpha:g}, kappa_tilde {p.kappa_tilde:g}" for p in TRIED)]
    return Finding(
        worst < 1e-10,
        f"{len(FORMS)} forms, {len(TRIED)} settings: at most {worst:.0e} apart over {STEPS} steps",
        "stochastic gradients of a linear model in float64, against Algorithm 1; holds below 1e-10; AccSGD, AGNES and "
        "QHM are the same family in other parameters",
        [setting.seed],
        tables=[Table("Largest distance from Algorithm 1", heads, cells)],
    )


def limits(setting: Setting) -> Finding:
    """kappa_tilde = 1 is Nesterov's method step by step, kappa_tilde = 1/alpha is plain SGD."""
    start, gradients = problem(setting.seed)
    alpha = 0.05
    nesterov, plain = MassParameters(0.02, alpha, 1.0), MassParameters(0.02, alpha, 1.0 / alpha)
    torchs = updates.torch_optimiser(
        lambda params: torch.optim.SGD(params, 0.02, momentum=nesterov.gamma, nesterov=True), start, gradients
    )
    gaps = [
        _apart(_optimiser(start, gradients, nesterov), torchs),
        _apart(_optimiser(start, gradients, plain), updates.sgd(start, gradients, 0.02)),
    ]
    middle = _optimiser(start, gradients, MassParameters(0.02, alpha, 3.0))
    apart = min(_apart(middle, torchs), _apart(middle, updates.sgd(start, gradients, 0.02)))
    return Finding(
        max(gaps) < 1e-10 and apart > 1e-3,
        f"kappa_tilde = 1: {gaps[0]:.0e} from torch's SGD(nesterov=True); 1/alpha: {gaps[1]:.0e} from SGD; "
        f"kappa_tilde = 3: {apart:.2g} from the nearer of the two",
        "holds below 1e-10, with kappa_tilde = 3 away from both",
        [setting.seed],
    )


def _along_the_gradient(points: Sequence[Tensor], gradients: Sequence[updates.Gradient]) -> float:
    """Return the largest share of a step that is not along its gradient, over all steps."""
    worst = 0.0
    for before, after, gradient in zip(points, points[1:], gradients, strict=False):
        step, g = after - before, gradient(before)
        across = step - g * (step @ g) / (g @ g)
        worst = max(worst, float(across.norm() / step.norm()))
    return worst


def others_are_sgd(setting: Setting) -> Finding:
    """Two published versions are plain SGD: with lr (1 + gamma) eta1 + eta2, and with lr eta1 + eta2."""
    cells, worst, least = [], 0.0, math.inf
    for p in TRIED[:3]:
        start, gradients = problem(setting.seed)
        ours = updates.two_points(start, gradients, p)
        aside = _along_the_gradient(ours[:50], gradients)
        for name, update, step in (
            ("student reproduction", updates.without_memory, (1 + p.gamma) * p.eta1 + p.eta2),
            ("C++ library", updates.same_iterate, p.eta1 + p.eta2),
        ):
            points = update(start, gradients, p)
            gap = _apart(points, updates.sgd(start, gradients, step))
            worst, least = max(worst, gap), min(least, _apart(points, ours))
            sideways = _along_the_gradient(points[:50], gradients)
            cells.append([name, p.kappa_tilde, step / p.eta1, gap, _apart(points, ours), sideways, aside])
    heads = ["version", "kappa_tilde", "its SGD step / eta1", "from that SGD", "from MaSS"]
    heads += ["part of its steps across the gradient", "of MaSS"]
    return Finding(
        worst < 1e-10 and least > 1e-2,
        f"{worst:.0e} from SGD with those steps ({cells[0][2]:.2f} and {cells[1][2]:.2f} eta1 at kappa_tilde = 2), "
        f"{least:.2g} or more from MaSS",
        "one keeps no second iterate, the other takes both momentum terms at the same one; both subtract eta2; "
        "comparisons made with them are no evidence about MaSS",
        [setting.seed],
        tables=[Table("Versions without momentum", heads, cells)],
    )


def bad_first_step(setting: Setting) -> Finding:
    """A third version starts v at the first gradient: the weights shrink by 1/(1 + alpha) and are pulled to 0."""
    p, (start, gradients) = TRIED[1], problem(setting.seed)
    first = gradients[0](start)
    points = updates.gradient_as_start(start, gradients, p)
    formula = (start + (p.alpha - p.lr) * first) / (1 + p.alpha)
    gap = float((points[1] - formula).abs().max())
    # with no gradient at all nothing should move
    still = [lambda u: torch.zeros_like(u)] * 100
    theirs = [float(u.norm() / start.norm()) for u in updates.gradient_as_start(start, still, p)]
    ours = [float(u.norm() / start.norm()) for u in _optimiser(start, still, p)]
    least = theirs.index(min(theirs))
    figure = Figure(
        title="Size of the weights where the gradient is zero",
        x_label="step",
        y_label="|u_t| / |w_0|",
        series=[
            Series("v starts at the first gradient", [float(t) for t in range(101)], list(theirs)),
            Series("wideangle.optim.MaSS", [float(t) for t in range(101)], list(ours)),
        ],
        caption="The right recurrence with a wrong start forgets the weights it was given.",
    )
    return Finding(
        gap < 1e-12
        and abs(theirs[1] - 1 / (1 + p.alpha)) < 1e-12
        and min(theirs) < 0.9
        and set(ours) == {1.0},
        f"u_1 = (w_0 + (alpha - lr) g) / (1 + alpha) within {gap:.0e}; without any gradient the weights fall to "
        f"{theirs[1]:.3f} in one step and to {min(theirs):.3f} after {least}, those of MaSS stay",
        f"alpha = {p.alpha:g}, kappa_tilde = {p.kappa_tilde:g}",
        [setting.seed],
        figures=[figure],
    )
