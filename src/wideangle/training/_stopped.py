"""Why a training run stopped early, and what to do: divergence and Ctrl-C."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from wideangle.curvature import sharpness
from wideangle.kernel._model import take
from wideangle.kernel._push import pick_tensor
from wideangle.training._loop import DivergedError, Run

__all__ = ["explain", "how_to_resume"]


def explain(run: Run, error: DivergedError, first: int, file: Path | None) -> str:
    """Return the message on a loss that is not finite: where, against which critical step, what to do."""
    recipe = run.recipe
    text = (
        f"the loss became {error.value} at step {error.step} of {recipe.steps} with {recipe.optimizer} at "
        f"step size {recipe.step_size:.4g}"
    )
    critical = _critical(run)
    if critical is None:
        text += f". Try a smaller step size, such as {recipe.step_size / 2:.4g}"
    else:
        ratio = recipe.step_size / critical
        text += (
            f", which is {ratio:.3g} times the critical one, {critical:.4g}, measured on up to 256 samples "
            f"at step {first}. "
        )
        advice = 0.9 * critical if ratio > 1 else recipe.step_size / 2
        text += f"Try a step size of {advice:.4g}" + ("" if ratio > 1 else ": the curvature grew on the way")
    text += ", or run `wideangle checkup` for a plan. The model holds the weights it started with again"
    if run.saved is not None:
        text += f"; the last good checkpoint, of step {run.saved}, is {file}"
    return text + "."


def _critical(run: Run) -> float | None:
    """The largest stable step at the starting weights; None where none is known or it cannot be measured."""
    factor = run.recipe.critical_factor()
    if factor is None:
        return None
    modes = [(module, module.training) for module in run.model.modules()]
    run.model.eval()
    try:
        part = take(run.x, slice(0, 256))

        def loss(raw: Any, y: Tensor) -> Tensor:
            return run.loss(pick_tensor(raw, run.output), y)

        top = sharpness(run.model, loss, part, run.y[:256], max_products=40, strict=False).value
    except Exception:
        return None
    finally:
        for module, mode in modes:
            module.training = mode
    return factor / top if math.isfinite(top) and top > 0 else None


def how_to_resume(run: Run, file: Path | None) -> str:
    """Return the sentence on a run that Ctrl-C ended: where it stopped and how to go on."""
    stopped = f"Stopped after step {run.step} of {run.recipe.steps}."
    if file is None:
        return f"{stopped} The model keeps its weights; without a checkpoint the run cannot be resumed."
    return (
        f"{stopped} The state is in {file}: the same call with resume=True, or the same command with "
        "--resume, goes on from there."
    )
