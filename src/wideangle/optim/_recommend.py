"""The recommendation: learning rate, momentum and compensation of MaSS for a batch size, from measurement alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from wideangle.errors import InputError
from wideangle.kernel._model import OutputPick
from wideangle.optim._forecast import Quadratic, forecast
from wideangle.optim._mass_parameters import MassParameters
from wideangle.optim._measured import Measured, measure
from wideangle.optim._step_choice import LEAST_BATCH
from wideangle.optim.accelerated import best_kappa_hat
from wideangle.optim.constants import Constants
from wideangle.plan import Decision, Plan
from wideangle.result import Result

__all__ = ["Recommendation", "recommend", "recommendation_of", "usual_batch"]

PASSES = 10.0  # over the data, where no budget is given
SHARE = 0.05  # of the budget that the measurement may take, where nothing else is said
LONGEST = 50.0  # delta / lr: the slow iterate's step in steps of the fast one, see `recommend`
GROWTH = {"mse": 1.0, "cross-entropy": 4.0}  # of the curvature during training, see `recommend`
FURTHEST = 20_000  # steps that are forecast, of however many
SLOW = 1.1  # a method that takes at most so many times the steps is as good
FRACTIONS = (1.0, 0.5, 0.25, 0.1, 0.03)  # of 1 / L_m, the step sizes looked at
FINEST = 18  # values of alpha and of kappa_tilde looked at


@dataclass(frozen=True)
class Recommendation(Result):
    """The parameters of MaSS for a model, its data and a batch size, and what they were derived from.

    `lr`, `alpha`, `kappa_tilde` are the settings (`parameters`, and `gamma`, `eta2` in the paper's terms);
    `method` is "mass", "nesterov" or "sgd", the simplest that is forecast to be as good. `forecast_loss` and
    `sgd_loss`, `nesterov_loss` are those of the quadratic at the end of the budget with each method's best
    setting, as multiples of its loss at the start; `speed_up` is how many times more steps SGD would take
    to the loss it reaches. `kappa_m`, `kappa_tilde_m` are the paper's constants for this batch, mu being
    the eigenvalue `cut_off` = L / kappa_hat that the budget can reach. `settings` holds the best [lr, alpha,
    kappa_tilde] of each method, `passes` is what the measurement cost.
    """

    loss: str = "mse"
    batch_size: int = 0
    budget: float = PASSES
    steps: int = 0
    method: str = "mass"
    lr: float = 0.0
    alpha: float = 1.0
    kappa_tilde: float = 1.0
    smoothness_m: float = 0.0
    kappa_m: float = 0.0
    kappa_tilde_m: float = 0.0
    kappa_hat: float = 0.0
    cut_off: float = 0.0
    critical_batches: list[float] = field(default_factory=list)
    forecast_loss: float = 0.0
    sgd_loss: float = 0.0
    nesterov_loss: float = 0.0
    speed_up: float = 1.0
    theory_alpha: float = 0.0
    growth: float = 1.0
    passes: float = 0.0
    settings: dict[str, list[float]] = field(default_factory=dict)
    regime: str = ""
    verdict: str = ""
    notes: list[str] = field(default_factory=list)
    constants: Constants = field(default_factory=Constants, repr=False)

    @property
    def parameters(self) -> MassParameters:
        """The three parameters, for `MaSS.retune` or their other form."""
        return MassParameters(self.lr, self.alpha, self.kappa_tilde)

    @property
    def smoothness(self) -> float:
        """L of the batch, with the growth allowed for: an lr above 2/L is refused by `MaSS`."""
        return self.growth * self.smoothness_m

    @property
    def gamma(self) -> float:
        """Momentum, (1 - alpha) / (1 + alpha)."""
        return self.parameters.gamma

    @property
    def eta2(self) -> float:
        """Compensation, see `MassParameters`."""
        return self.parameters.eta2

    def mass(self, batch_size: int | None = None) -> MassParameters:
        """Return `parameters`, so that `MaSS.from_constants` takes a recommendation too.

        Raises:
            InputError: another batch size than the one it was made for.
        """
        if batch_size not in (None, self.batch_size):
            raise InputError(
                f"the recommendation is for batches of {self.batch_size}, not {batch_size}; ask for another"
            )
        return self.parameters

    def into(self, plan: Plan) -> Plan:
        """Return the plan with loss, step size, batch size, optimiser, momentum and stop replaced by these.

        A predicted course in the plan was that of another method and goes.
        """
        return replace(
            plan, loss=self.loss, samples=self.constants.samples, predicted_loss=[], **self.decisions()
        )

    def decisions(self) -> dict[str, Decision]:
        """Return the entries of a plan that this recommendation decides, each with its evidence."""
        p = self.parameters
        why = (
            f"L_m = {self.smoothness_m:.4g} of the mean loss at batch {self.batch_size}, curvature growth "
            f"{self.growth:g} allowed for; forecast over {self.steps} steps"
        )
        momentum = 0.0 if self.method == "sgd" else p.gamma
        return {
            "step_size": Decision(p.lr, "a step", why),
            "batch_size": Decision(self.batch_size, "samples", self.regime),
            "optimizer": Decision(self.method, "", self.verdict),
            "momentum": Decision(momentum, "", f"alpha = {p.alpha:.4g}, kappa_tilde = {p.kappa_tilde:.4g}"),
            "stop": Decision(self.steps, "steps", f"the budget: {self.budget:g} passes over the data"),
            "warmup_steps": Decision(0, "steps", "the curvature's growth is allowed for"),
            "kappa_tilde": Decision(p.kappa_tilde, "", f"eta2 = {p.eta2:.4g}, the compensation of MaSS")
            if self.method == "mass"
            else Decision(),
        }


def recommend(
    model: nn.Module,
    x: Any,
    y: Any,
    loss: str = "mse",
    batch_size: int | None = None,
    budget: float | None = None,
    *,
    samples: int | None = None,
    output: OutputPick = None,
    seed: int = 0,
) -> Recommendation:
    """Return learning rate and momentum for a model, its data and a batch size, without a single trial step.

        minimise E loss(T) over lr <= 1 / (s L_m), alpha, kappa_tilde with 1 / (alpha kappa_tilde) <= 50,
        on the quadratic with the curvatures s lambda_i

    The linearised model's loss is a quadratic: its curvatures lambda_i and the share of the loss in each
    come from the tangent kernel of a random subsample, and so does the noise of batches, which vanishes with
    the loss and couples the directions (batches without replacement). The mean-square course of MaSS on such a
    quadratic is a recursion of three numbers a direction; it is computed for every setting of a grid, and the
    lowest loss (geometric mean at T/4, T/2 and T = budget n / m steps) wins: where the smallest eigenvalue
    is out of reach, an asymptotic rate says nothing about the loss at T. At most 20,000 steps are forecast. For
    cross-entropy the quadratic is Boehning's upper bound. Three constants were set by looking at runs (the ten
    development tasks of benchmarks/bench_zero_search.py): s, 1 for the squared loss and 4 for cross-entropy,
    whose outputs grow without bound and the kernel with them; the 50, the step of the slow iterate in
    units of lr, above which a transformer diverged that the quadratic would have let pass; and the least noise,
    2.5 times what the bound |g|^2 <= 2 l L1 allows a sample, spread evenly.

    The worst-case theory of the paper is reported beside it: L_m, kappa_m, kappa_tilde_m, its alpha. There
    mu is the cut-off L / kappa_hat that T full-batch steps can reach.

    Cost: (2 + 2 C) samples / (3 n) passes over the data, an eigendecomposition of side samples x C, and some
    seconds for the forecast.

    Args:
        model: any module; a copy is measured, where it stands: call again during training and pass the
            result to `MaSS.retune`.
        x: n inputs, a tensor or a dict of tensors.
        y: n class labels, or numbers (n, C).
        loss: "mse" (torch.nn.MSELoss on one-hot labels) or "cross-entropy".
        batch_size: m; the smallest power of two from 16 on whose step is 4/5 of the full batch's, where left out.
        budget: passes over the data still to be made; 10 where left out.
        samples: how many to look at, at most n; by default 128, or as many as 5 % of the budget pays for.
        output: which part of a tuple, dict or ModelOutput holds the logits.
        seed: of the subsample.

    Returns:
        A `Recommendation`.

    Raises:
        InputError: something given cannot be used.
        NumericsError: the outputs do not react to the parameters.

    Example:
        >>> import torch
        >>> from wideangle.seeds import generator
        >>> x = torch.randn(64, 20, generator=generator(0, "x"))
        >>> found = recommend(nn.Linear(20, 1), x, x[:, :1], batch_size=8, budget=20)
        >>> found.steps, found.kappa_tilde >= 1, 0 < found.lr <= 1 / found.smoothness_m * 1.001
        (160, True, True)

    Reference: Liu, Belkin 2020 (MaSS, L_m, kappa_m, kappa_tilde_m); Liu, Belkin 2018 (the cut-off); the forecast
    is derived here.
    """
    passes = PASSES if budget is None else budget
    if not (isinstance(passes, (int, float)) and math.isfinite(passes) and passes > 0):
        raise InputError(f"budget is {budget!r} passes over the data; it must be a positive finite number")
    if samples is not None and not (isinstance(samples, int) and samples >= 2):
        raise InputError(f"samples={samples!r}; the measurement needs a whole number of at least 2")
    measured = measure(model, x, y, loss, samples=samples, budget=SHARE * passes, output=output, seed=seed)
    n = measured.constants.samples
    m = usual_batch(measured.constants) if batch_size is None else batch_size
    m = int(m) if isinstance(m, np.integer) else m
    if isinstance(m, bool) or not isinstance(m, int) or not 1 <= m <= n:
        raise InputError(f"batch size {m!r} of {n} samples; it must be a whole number between 1 and {n}")
    return recommendation_of(measured, m, float(passes))


def usual_batch(constants: Constants) -> int:
    """Return the smallest power of two from 16 on with L_m <= 5/4 L, or n."""
    n = constants.samples
    sizes = [*(2**k for k in range(n.bit_length()) if LEAST_BATCH <= 2**k < n), n]
    return next(m for m in sizes if m == n or constants.batch_smoothness(m) <= 1.25 * constants.smoothness)


def recommendation_of(measured: Measured, m: int, passes: float) -> Recommendation:
    """Return the recommendation for what was measured, a batch size and a budget in passes."""
    steps = max(1, round(passes * measured.constants.samples / m))
    ahead = min(steps, FURTHEST)
    constants = measured.constants
    growth = GROWTH[constants.loss]
    problem = measured.problem.binned().scaled(growth)
    smoothness, share = constants.batch_smoothness(m), constants.share(m)
    kappa_hat = _reachable(measured.problem, steps)
    cut_off = constants.smoothness / kappa_hat
    kappa_tilde_m = constants.batch_kappa_tilde(m)
    choices = {
        name: _best(problem, _settings(growth * smoothness, ahead, name), share, ahead)
        for name in ("sgd", "nesterov", "mass")
    }
    best = choices["mass"][1]
    chosen = {name: p for name, (p, _) in choices.items()}
    courses = forecast(problem, list(chosen.values()), share, range(ahead + 1))
    method, verdict, speed_up = _judge(dict(zip(chosen, courses, strict=True)), chosen)
    parameters = choices[method][0]
    scale = problem.loss
    return Recommendation(
        loss=constants.loss,
        batch_size=m,
        budget=passes,
        steps=steps,
        method=method,
        lr=parameters.lr,
        alpha=parameters.alpha,
        kappa_tilde=parameters.kappa_tilde,
        smoothness_m=smoothness,
        kappa_m=smoothness / cut_off,
        kappa_tilde_m=kappa_tilde_m,
        kappa_hat=kappa_hat,
        cut_off=cut_off,
        critical_batches=list(constants.critical_batches),
        forecast_loss=best / scale,
        sgd_loss=choices["sgd"][1] / scale,
        nesterov_loss=choices["nesterov"][1] / scale,
        speed_up=speed_up,
        theory_alpha=1.0 / math.sqrt(smoothness / cut_off * kappa_tilde_m),
        growth=growth,
        passes=measured.passes,
        settings={name: [p.lr, p.alpha, p.kappa_tilde] for name, (p, _) in choices.items()},
        regime=_regime(constants, m),
        verdict=verdict,
        notes=measured.notes,
        constants=constants,
    )


def _settings(smoothness: float, steps: int, method: str) -> list[MassParameters]:
    """Return the settings looked at: the step sizes of `FRACTIONS`, alpha from 1 to 1/T, kappa_tilde from 1 to 1/alpha.

    Left out is what moves more than `LONGEST` steps along a steady gradient, lr / (alpha kappa_tilde) being
    the slow iterate's step.
    """
    if method == "sgd":
        return [MassParameters(fraction / smoothness, 1.0, 1.0) for fraction in FRACTIONS]
    found = []
    for alpha in np.geomspace(1.0, max(1.0 / steps, 1e-4), FINEST).tolist():
        most = 1.0 / alpha
        count = max(2, round(FINEST * math.log(most) / 8))
        for kappa_tilde in np.geomspace(1.0, most, count).tolist() if method == "mass" else [1.0]:
            if most / kappa_tilde <= LONGEST:
                held = min(kappa_tilde, most)
                found += [MassParameters(fraction / smoothness, alpha, held) for fraction in FRACTIONS]
    return found


def _best(
    problem: Quadratic, settings: Sequence[MassParameters], share: float, steps: int
) -> tuple[MassParameters, float]:
    """Return the best setting and its loss at the end: the lowest geometric mean at T/4, T/2 and T.

    So the way counts as well as the end. Of equals the first is taken: fewer parts before more, then large steps.
    """
    courses = forecast(problem, settings, share, [max(1, steps // 4), max(1, steps // 2), steps])
    scores = np.log(courses).mean(axis=1)
    place = int(np.argmax(scores <= scores.min() + 1e-6))
    return settings[place], float(courses[place, -1])


def _speed_up(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return how many times more steps `theirs` takes to the lowest loss that both reach; 1 where none falls."""
    if not (theirs.min() < theirs[0] and ours.min() < ours[0]):
        return math.inf if ours.min() < ours[0] else 1.0
    goal = max(theirs.min(), ours.min()) * (1 + 1e-9)
    first = [int(np.argmax(course <= goal)) for course in (ours, theirs)]
    return first[1] / first[0]


def _judge(courses: dict[str, np.ndarray], chosen: dict[str, MassParameters]) -> tuple[str, str, float]:
    """Return the simplest method that is as good, why, and its speed-up over SGD, from the three courses."""
    ours = courses["mass"]
    speed_up, over = _speed_up(ours, courses["sgd"]), _speed_up(ours, courses["nesterov"])
    p = chosen["mass"]
    if speed_up <= SLOW or p.alpha * p.kappa_tilde >= 1 - 1e-9:
        much = f"MaSS would take {_times(speed_up)}" if speed_up > 1.005 else "momentum gains nothing"
        return "sgd", f"plain SGD is as good here: {much} over this budget", 1.0
    if over <= SLOW or p.kappa_tilde <= 1 + 1e-9:
        gain = _speed_up(courses["nesterov"], courses["sgd"])
        return (
            "nesterov",
            f"at this batch size Nesterov is fine: forecast to take {_times(gain)} than SGD",
            gain,
        )
    return (
        "mass",
        f"MaSS: forecast to take {_times(speed_up)} than SGD and {_times(over)} than Nesterov",
        speed_up,
    )


def _times(ratio: float) -> str:
    if math.isinf(ratio):
        return "incomparably fewer steps"
    return f"{ratio:.2g} times fewer steps" if ratio < 9.5 else f"{ratio:.0f} times fewer steps"


def _regime(constants: Constants, m: int) -> str:
    first, second = constants.critical_batches
    where = f"critical batches {first:.3g} and {second:.4g}"
    if m <= first:
        return f"linear scaling: up to {first:.3g} samples a step, the gain grows with the batch ({where})"
    if m < second:
        return f"diminishing returns: the rate of MaSS grows as the root of the batch, SGD's hardly ({where})"
    return f"saturated: a larger batch makes steps costlier and hardly better ({where})"


def _reachable(problem: Quadratic, steps: int) -> float:
    guess = best_kappa_hat(problem.curvatures, steps, coefficients=2 * problem.energies)
    return min(guess, float(steps + 1) ** 2)  # the most that T steps have a use for
