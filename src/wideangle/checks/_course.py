"""The main run of a check-up: a trained copy whose losses, slopes and weights the later sections read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wideangle.checks._descent import RISE, Trial, descend, step_seconds
from wideangle.checks._study import PATH_STEPS, Study

__all__ = ["Course", "main_course"]

_RESTARTS = 4
_THROWN = 1.5
_SECONDS = {"main": 8.0, "sharpness": 8.0}
_LOOK = 40  # one look at the sharpness takes about ten products of two gradients, twice over
_STATES = 7
_STATE_BYTES = 2**29


@dataclass(frozen=True)
class Course:
    """The main run: how it went, the step 1 / L, the one it began with, and the rise of the sharpness in all tries."""

    trial: Trial
    step: float
    used: float
    rise: float
    length: int
    seconds: float  # of one full-batch step


def main_course(study: Study) -> Course:
    """Return the study's main run, made at the first call: full batches, the step 1 / L lowered where needed."""
    if study.course is None:
        step = 1.0 / study.constants.smoothness
        seconds = step_seconds(study)
        length = study.steps or max(20, min(PATH_STEPS, int(_SECONDS["main"] / seconds)))
        looks = min(12, max(2, int(_SECONDS["sharpness"] / (_LOOK * seconds))))
        trial, used, rise = _trial(study, step, length, looks)
        study.course = Course(trial, step, used, rise, length, seconds)
    return study.course


def _trial(study: Study, step: float, steps: int, looks: int) -> tuple[Trial, float, float]:
    """Return a run that ends below its start, the step it began with and the rise of the sharpness in all runs.

    Where the sharpness rises so fast that the run is thrown off, it is begun again with the step divided
    by that rise, at most `_RESTARTS` times.
    """
    keep = _moments(study, steps)
    used, rise = step, 1.0
    trial = descend(study, used, steps, follow=looks, keep=keep)
    for _ in range(_RESTARTS):
        thrown = trial.losses[-1] > trial.losses[0] or max(trial.losses) > _THROWN * trial.losses[0]
        if not thrown or trial.rise <= RISE:
            break
        rise = max(rise, step / used * trial.rise)
        used = step / rise
        trial = descend(study, used, steps, follow=looks, keep=keep)
    return trial, used, max(rise, step / used * trial.rise)


def _moments(study: Study, steps: int) -> set[int]:
    """Return the steps at which the weights are kept: both ends and between them on a logarithmic scale."""
    size = sum(p.numel() * p.element_size() for p in study.model.parameters())
    count = max(2, min(_STATES, int(_STATE_BYTES / size)))
    return {0, *(int(t) for t in np.geomspace(1, steps, count).round())}
