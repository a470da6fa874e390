"""Section 7, the optimiser: step and momentum from measured constants, and a short race of four on the model."""

from __future__ import annotations

from wideangle.checks._race import Entrant, entrants, race, seconds_a_step
from wideangle.checks._study import Study
from wideangle.document import Figure, Section, Series, Table
from wideangle.optim import Recommendation
from wideangle.optim._measured import measure
from wideangle.optim._recommend import PASSES, SHARE, recommendation_of, usual_batch
from wideangle.plan import Decision

__all__ = ["run"]

_SECONDS = 6.0  # for the four runs together
_FEWEST = 1.0  # passes


def run(study: Study) -> Section:
    """Return the recommended parameters with what they rest on, and how they did against three others."""
    measured = measure(
        study.model,
        study.x,
        study.y,
        study.loss,
        samples=None,
        budget=SHARE * PASSES,
        output=study.output,
        seed=study.seed,
    )
    batch = _batch(study) or usual_batch(measured.constants)
    found = recommendation_of(measured, batch, PASSES)
    afford = _SECONDS / (4.5 * seconds_a_step(study, batch))
    steps = max(1, int(min(found.steps, max(afford, _FEWEST * study.samples / batch))))
    raced = (
        found if steps == found.steps else recommendation_of(measured, batch, steps * batch / study.samples)
    )
    runners = entrants(raced)
    race(study, runners, batch, steps)
    written = _write(study, found)
    ours = runners[-1]
    study.sentences["optimiser"] = (
        f"{found.verdict}; take {_setting(found)} with batches of {batch}; in the race over "
        f"{steps * batch / study.samples:.3g} passes {_outcome(runners)}{written}"
    )
    return Section(
        summary=study.sentences["optimiser"],
        values=_values(found) | {"last loss of MaSS in the race": ours.losses[-1]},
        notes=_notes(study, found, raced, steps),
        tables=[_table(runners)],
        figures=[_figure(runners)],
    )


def _batch(study: Study) -> int | None:
    """Return the batch the user asked for, else the one the step-size section decided."""
    planned = study.decisions.get("batch_size")
    return study.batch or (planned.value if planned is not None else None)


def _write(study: Study, found: Recommendation) -> str:
    """Leave the recommendation in the plan where it was asked for or nothing else decides; say where it is not."""
    if study.batch is None and "step_size" in study.decisions:
        study.decisions["optimizer"] = Decision(
            "sgd", "", f"the kernel predicts plain descent step by step; with --batch-size: {found.verdict}"
        )
        return "; the plan keeps plain descent, whose course it predicts: --batch-size writes this into it"
    study.decisions.update(found.decisions())
    study.predicts = False
    return ""


def _setting(found: Recommendation) -> str:
    if found.method == "sgd":
        return f"lr {found.lr:.3g} without momentum"
    if found.method == "nesterov":
        return f"lr {found.lr:.3g}, momentum {found.gamma:.3g} (Nesterov)"
    return f"lr {found.lr:.3g}, alpha {found.alpha:.3g}, kappa_tilde {found.kappa_tilde:.3g}"


def _outcome(runners: list[Entrant]) -> str:
    order = sorted(runners, key=lambda r: r.losses[-1] if not r.diverged else float("inf"))
    words = [f"{r.name} {'diverged' if r.diverged else f'{r.losses[-1]:.3g}'}" for r in order]
    return f"the last losses are {', '.join(words)}"


def _values(found: Recommendation) -> dict[str, object]:
    constants = found.constants
    first, second = found.critical_batches
    return {
        "method": found.method,
        "learning rate": found.lr,
        "alpha": found.alpha,
        "kappa_tilde": found.kappa_tilde,
        "momentum gamma": found.gamma,
        "compensation eta2": found.eta2,
        "batch": found.batch_size,
        "L": constants.smoothness,
        "L, two standard errors": constants.smoothness_interval or None,
        "L1, largest of the samples looked at": constants.sample_smoothness,
        "mu, an upper bound" if constants.mu_kind == "upper bound" else "mu": constants.mu,
        "L_m": found.smoothness_m,
        "kappa_m at the cut-off": found.kappa_m,
        "kappa_tilde_m": found.kappa_tilde_m,
        "kappa_hat the budget can use": found.kappa_hat,
        "alpha by the worst-case theory": found.theory_alpha,
        "critical batches": f"{first:.3g} and {second:.4g}",
        "forecast speed-up over SGD": found.speed_up,
        "forecast loss over that at the start: MaSS": found.forecast_loss,
        "forecast loss over that at the start: Nesterov": found.nesterov_loss,
        "forecast loss over that at the start: SGD": found.sgd_loss,
        "passes the measurement took": found.passes,
    }


def _notes(study: Study, found: Recommendation, raced: Recommendation, steps: int) -> list[str]:
    constants = found.constants
    notes = [f"{found.regime[0].upper()}{found.regime[1:]}."]
    looked = constants.looked_at or constants.samples
    notes.append(
        f"Measured on {looked} of {constants.samples} samples, for batches without replacement and the loss averaged "
        f"over the batch. kappa_tilde is {constants.samples} by identity where the samples' features are independent."
    )
    if looked < constants.samples:
        notes.append(
            "L1 is the largest of those looked at: with 95 % confidence at most "
            f"{min(3 / looked, 1):.1%} of all samples lie above it."
        )
    notes.append(
        f"In place of the smallest eigenvalue stands the cut-off L / kappa_hat = {found.cut_off:.3g}, below which "
        f"{found.steps} full-batch steps gain nothing from more momentum."
    )
    if found.loss == "cross-entropy":
        notes.append(
            "For cross-entropy L is Boehning's bound, which holds at any outputs; the kernel's growth is allowed "
            f"for by a factor {found.growth:g}."
        )
    if raced is not found:
        notes.append(
            f"The race took {steps} steps to keep to its time, and its settings are those for so short a run."
        )
    notes.append("Adam runs at its default step: it is beside the measured ones, not tuned against them.")
    return notes + found.notes


def _table(runners: list[Entrant]) -> Table:
    cells = [
        [r.name, r.setting, r.passes[-1], r.losses[0], "diverged" if r.diverged else r.losses[-1]]
        for r in runners
    ]
    return Table(
        "The race: equal passes over the data, the same batches",
        ["optimiser", "setting", "passes", "first loss", "last loss"],
        cells,
        "Loss of all samples; the last value, not the best. SGD, Nesterov and MaSS at their forecast best settings.",
    )


def _figure(runners: list[Entrant]) -> Figure:
    return Figure(
        title="The race",
        x_label="passes over the data",
        y_label="loss",
        y_log=True,
        series=[
            Series(r.name, list(r.passes), [v if v < 1e6 * r.losses[0] else None for v in r.losses])
            for r in runners
        ],
        caption="Four copies of the model, the same batches. A line that stops has diverged.",
    )
