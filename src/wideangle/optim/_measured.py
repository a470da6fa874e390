"""What a recommendation rests on: the loss as a quadratic of the linearised model, on some of the samples.

For the squared loss the quadratic is exact. Cross-entropy is bounded from above by one (Boehning's bound,
Hessian in the outputs <= (I - 11^T/C)/2): its own curvature at the start, about (I - 11^T/C)/C, is far below
what the run meets as soon as the outputs differ.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.curvature._norm import spectral_norm
from wideangle.curvature.ggn import GaussNewton
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._factors import Factors, factors
from wideangle.kernel._model import (
    Batch,
    OutputPick,
    batch_size,
    batches,
    explained,
    from_numpy,
    logits,
    take,
)
from wideangle.kernel._settle import is_batch_norm, settle
from wideangle.optim._forecast import Quadratic, quadratic
from wideangle.optim.constants import Constants, constants_of
from wideangle.seeds import generator
from wideangle.targets import LOSSES, prepare_targets

__all__ = ["Measured", "measure"]

DIRECTIONS = 2048  # largest side of a kernel that is decomposed: samples x outputs
USUAL, LEAST = 128, 16  # samples looked at
COUPLED, LOOKS = 32, 8  # samples and products for the curvature with batch statistics
LEAST_NOISE = 2.5  # in units of the bound |g|^2 <= 2 l L1 of one sample, spread over all directions


@dataclass(frozen=True)
class Measured:
    """The constants and the quadratic of a loss, how much was looked at, and what was done to the model."""

    constants: Constants
    problem: Quadratic
    passes: float
    notes: list[str]


def measure(
    model: nn.Module,
    x: Any,
    y: Any,
    loss: str,
    *,
    samples: int | None,
    budget: float,
    output: OutputPick,
    seed: int,
) -> Measured:
    """Return the constants and the quadratic of a model's loss from a random subsample.

    A model with BatchNorm is measured with fixed statistics; the curvatures are then scaled to the top one with
    batch statistics, which training uses, found by Lanczos on 32 of the samples.

    Cost: two forward and C backward passes over the subsample, (2 + 2 C) samples / (3 n) in passes over the
    data, a backward pass counted as two forward ones; an eigendecomposition of side samples x C. Without
    `samples`, 128 are looked at, or as many as `budget` passes pay for, at least 16 (or 2048 / C, if less).

    Raises:
        InputError: model, x, y or loss cannot be used.
        NumericsError: the outputs do not react to the parameters.
    """
    if loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}")
    inputs, copied = _prepared(model, x)
    total = batch_size(inputs)
    targets = _targets(y, total)
    rows = torch.randperm(total, generator=generator(seed, "recommend", "rows"))
    outputs = _outputs(copied, take(inputs, rows[:2].to(_device(inputs))), output).shape[1]
    norms = any(is_batch_norm(module) for module in copied.modules())
    count = min(_count(outputs, total, samples, budget / 2 if norms else budget), total)
    if count * outputs > 2 * DIRECTIONS:
        raise InputError(
            f"the model has {outputs} outputs; the kernel of even {count} samples is too large to decompose. "
            "Give output= a function that picks some of them, or fewer samples="
        )
    part = take(inputs, rows[:count].to(_device(inputs)))
    target = prepare_targets(targets.to(_device(inputs)), outputs, loss, dtype=_dtype(copied))
    target = target[rows[:count].to(target.device)]
    blank = copy.deepcopy(copied) if norms else None
    with explained(part):
        notes = settle(copied, part)
    z = _outputs(copied, part, output)
    constants, problem = _quadratic(factors(copied, part, output=output), z.double(), target, loss, total)
    passes = count * (2 + 2 * outputs) / (3 * total)
    if blank is not None:
        ratio, products = _batch_ratio(blank, copied, take(part, slice(0, COUPLED)), loss, output)
        passes += 2 * products * min(COUPLED, count) * 4 / (3 * total)
        constants, problem = _scaled(constants, ratio), problem.scaled(ratio)
        notes.append(
            f"With batch statistics the top curvature is {ratio:.3g} times that with fixed ones; curvatures are scaled."
        )
    if samples is None and passes > 1.01 * budget:
        notes.append(
            f"Even {count} samples took {passes:.2g} passes, more than the {budget:.2g} meant for it."
        )
    return Measured(constants, problem, passes, notes)


def _targets(y: Any, total: int) -> Tensor:
    try:
        targets = torch.as_tensor(y)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"y cannot be used as targets ({error}); give integers or floats") from error
    if targets.dim() == 0 or len(targets) != total:
        count = len(targets) if targets.dim() else "no"
        raise InputError(f"x has {total} samples and y has {count}; give one target a sample")
    if total < 2:
        raise InputError(
            "at least 2 samples are needed to tell one sample's curvature from the whole's, got 1"
        )
    return targets


def _outputs(model: nn.Module, part: Batch, output: OutputPick) -> Tensor:
    """Return the outputs (n, C) in eval mode; the model's modes are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), explained(part):
            raw = model(**part) if isinstance(part, dict) else model(part)
            return logits(raw, output, batch_size(part))
    finally:
        for module, mode in modes:
            module.training = mode


def _count(outputs: int, total: int, samples: int | None, budget: float) -> int:
    """Return how many samples to look at: as asked for, or what is usual, fits the side and is paid for."""
    if samples is not None:
        return samples
    paid = math.floor(min(3 * total * budget / (2 + 2 * outputs), USUAL))
    return max(2, min(DIRECTIONS // outputs, max(LEAST, paid)))


def _batch_ratio(
    blank: nn.Module, settled: nn.Module, part: Batch, loss: str, output: OutputPick
) -> tuple[float, int]:
    """Return the top curvature with batch statistics over that with fixed ones, and the products each took.

    Both are those of the quadratic with the outputs' constant curvature, see `_root_and_residual`.
    """

    def bend(z: Tensor, y: Tensor) -> Tensor:
        if loss == "mse":
            return z.square().mean()
        return (z - z.mean(1, keepdim=True)).square().sum(1).mean() / 4

    for module in blank.modules():
        module.training = is_batch_norm(module)
    found = []
    for model in (blank, settled):
        operator = GaussNewton(
            model, bend, part, torch.zeros(batch_size(part), device=_device(part)), output=output
        )
        found.append(spectral_norm(operator, tolerance=0.1, max_products=LOOKS, strict=False))
    return found[0].value / found[1].value, max(f.products for f in found)


def _scaled(constants: Constants, ratio: float) -> Constants:
    return replace(
        constants,
        smoothness=constants.smoothness * ratio,
        sample_smoothness=constants.sample_smoothness * ratio,
        smoothness_interval=[end * ratio for end in constants.smoothness_interval],
        mu=None if constants.mu is None else constants.mu * ratio,
    )


def _prepared(model: Any, x: Any) -> tuple[Batch, nn.Module]:
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError(f"the model ({type(model).__name__}) has no parameters to train")
    if not isinstance(x, (Tensor, dict, np.ndarray)):
        raise InputError(f"x is a {type(x).__name__}; give a tensor or a dict of tensors")
    (moved,) = batches(from_numpy(x) if isinstance(x, np.ndarray) else x, parameter.device)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(parameter.dtype) if tensor.is_floating_point() else tensor

    inputs = {key: cast(value) for key, value in moved.items()} if isinstance(moved, dict) else cast(moved)
    try:
        return inputs, copy.deepcopy(model)
    except RuntimeError as error:
        raise InputError(
            f"the model cannot be copied ({error}); use torch.nn.utils.parametrizations"
        ) from error


def _device(batch: Batch) -> torch.device:
    return batch.device if isinstance(batch, Tensor) else next(iter(batch.values())).device


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _quadratic(
    cache: Factors, z: Tensor, target: Tensor, loss: str, total: int
) -> tuple[Constants, Quadratic]:
    """Return constants and quadratic: loss = |S^+ r|^2 / (2 n), Hessian through the kernel S^T K S / n."""
    n, outputs = z.shape
    root, whitened = _root_and_residual(z, target, loss)
    kernel = cache.gram(dtype=torch.float64).reshape(n, outputs, n, outputs)
    kernel = torch.einsum("ab,ibjc,cd->iajd", root, kernel, root)
    blocks = torch.stack([kernel[i, :, i, :] for i in range(n)])
    side = n * outputs
    values, vectors = torch.linalg.eigh(kernel.reshape(side, side) / n)
    energies = (vectors.T @ whitened.reshape(side)).square() / (2 * n)
    top, hardest = float(values[-1]), float(torch.linalg.eigvalsh(blocks)[:, -1].max())
    if float(whitened.square().sum()) == 0:
        raise InputError(
            f"the {loss} loss is 0 on the samples looked at: there is nothing to train; look at y"
        )
    if not (np.isfinite(top) and top > 0 and np.isfinite(hardest)):
        raise NumericsError(
            f"the curvature of the {loss} loss is {top:.3g}: the outputs do not react to the parameters; "
            "initialise the model again, or scale its weights down"
        )
    counted = values > side * torch.finfo(cache.dtype).eps * values[-1]
    resolved = n == total and bool(counted.all())
    top_vector = vectors[:, -1].cpu().numpy()
    constants = constants_of(loss, outputs, top, hardest, top_vector, count=n, total=total)
    least = float(values[counted][0])
    constants = replace(constants, mu=least, mu_kind="exact" if resolved else "upper bound")
    return constants, quadratic(
        values.cpu().numpy(), energies.cpu().numpy(), _noise(vectors, n, values, hardest)
    )


def _noise(vectors: Tensor, n: int, values: Tensor, hardest: float) -> np.ndarray:
    """Return M_ij = n sum_k (v_ki . v_kj)^2, raised to what noise must be expected later in training.

    At the start the residuals of C outputs point everywhere, and M is about 1/C. Later few samples and outputs are
    left: then one sample's gradient g and loss l have |g|^2 up to 2 l L1. M is taken to be at least
    2.5 L1 / tr H, and that at most 1, which is M for a single output.
    """
    side = len(values)
    alike = torch.zeros(side, side, dtype=vectors.dtype, device=vectors.device)
    for part in vectors.reshape(n, -1, side):
        alike += (part.T @ part).square()
    least = min(1.0, LEAST_NOISE * hardest / float(values.clamp(min=0).sum()))
    return (n * alike).clamp(min=least).cpu().numpy()


def _root_and_residual(z: Tensor, target: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Return the root S of the outputs' curvature, (C, C), and S^+ times the slope of a sample's loss, (n, C)."""
    outputs = z.shape[1]
    eye = torch.eye(outputs, dtype=torch.float64, device=z.device)
    if loss == "mse":
        scale = (2.0 / outputs) ** 0.5
        return scale * eye, scale * (z - target.double())
    hot = nn.functional.one_hot(target, outputs) if target.dim() == 1 else target
    scale = 0.5**0.5
    return scale * (eye - 1.0 / outputs), (torch.softmax(z, 1) - hot.double()) / scale
