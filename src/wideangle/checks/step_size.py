"""Section 3, the step size: where descent on the linearised model turns unstable, and what batch to take."""

from __future__ import annotations

import copy
import time

import torch

from wideangle.checks._study import Study
from wideangle.document import Section, Table
from wideangle.kernel._model import Batch, take
from wideangle.losses import SQUARED_LOSSES
from wideangle.optim import choose_batch, choose_step, critical_step
from wideangle.plan import Decision

__all__ = ["run"]


def run(study: Study) -> Section:
    """Return the critical step in every convention, the constants L and L1, and step and batch to use."""
    constants = study.constants
    choice, tried = choose_batch(constants, lambda m: _seconds(study, m))
    size = choice.batch if study.batch is None else study.batch
    step, batch = choose_step(constants, size)
    why = (
        "as asked for"
        if study.batch
        else "the smallest of at least 16 whose step is 4/5 of the full-batch one"
    )
    study.decisions["step_size"] = step
    study.decisions["batch_size"] = Decision(
        batch.value,
        batch.unit,
        f"{batch.evidence}; {why}",
    )
    study.decisions["optimizer"] = Decision(
        "sgd", "", "plain gradient descent is what the kernel predicts; momentum was not measured"
    )
    through = "Gauss-Newton matrix" if study.loss == "cross-entropy" else "full tangent kernel"
    study.sentences["step-size"] = (
        f"take {step.value:.3g} with batches of {size} ({1 / constants.smoothness:.3g} for all "
        f"{study.samples} at once); above {constants.critical_step:.3g} full-batch descent on the linearised model "
        f"diverges ({study.loss}, through the {through})"
    )
    values = {
        "L, largest curvature of the loss": constants.smoothness,
        "relative residual of L": constants.residual,
        "L1, largest of one sample": constants.sample_smoothness,
        "critical batch L1 / L": constants.critical_batch,
        "critical step 2 / L": constants.critical_step,
        "recommended full-batch step 1 / L": 1.0 / constants.smoothness,
        "recommended batch": size,
        "recommended step at that batch": step.value,
    }
    source = (
        "full kernel (nC x nC)" if study.loss == "mse" else "Gauss-Newton matrix, through the full kernel"
    )
    notes = [
        f"The largest eigenvalue is that of the {source}, by Lanczos on the factors. The trace "
        "kernel's is up to C times larger and would give a wrong step.",
        "Batches no larger than the critical one gain in proportion to their size; larger ones hardly. That holds "
        "where the model can fit every label: gradient noise then vanishes. Where it cannot, take larger batches.",
    ]
    tables = [
        Table(
            "Batch sizes",
            ["batch", "safe step 1 / L_m", "seconds a step", "step / second"],
            [[c.batch, c.step, c.seconds, c.speed] for c in tried],
            "L_m = curvature bound of batches without replacement, between L1 (m = 1) and L (m = n).",
        )
    ]
    if study.loss == "mse":
        top = constants.smoothness * study.samples * study.outputs / 2.0
        values["largest eigenvalue of the full kernel"] = top
        tables.append(_conventions(study, top))
    else:
        notes.append(
            "For cross-entropy the critical step follows from the Gauss-Newton matrix at the start; it "
            "changes as the probabilities do, so the trial run follows the sharpness."
        )
    return Section(summary=study.sentences["step-size"], values=values, notes=notes, tables=tables)


def _conventions(study: Study, top: float) -> Table:
    cells = [
        [name, formula, critical_step(top, loss=name, samples=study.samples, outputs=study.outputs)]
        for name, formula in SQUARED_LOSSES.items()
    ]
    return Table(
        "Critical step in the four conventions of the squared loss",
        ["loss", "formula", "critical step"],
        cells,
        "The same descent, the same divergence; only the scale of the loss differs.",
    )


def _seconds(study: Study, batch: int) -> float:
    """Return the seconds of one step with `batch` samples: best of three, after one to warm up."""
    model = copy.deepcopy(study.model)
    rows = slice(0, batch)
    part: Batch = take(study.x, rows)
    targets = study.targets[rows]
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        z = study.evaluate(model, part)
        loss = (z - targets).square().mean() if study.loss == "mse" else _entropy(z, targets)
        wanted = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(loss, wanted, allow_unused=True)
        if z.is_cuda:
            torch.cuda.synchronize(z.device)
        best = min(best, time.perf_counter() - begun)
    return best


def _entropy(z: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(z, targets)
