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

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._factors import Factors, factors
from wideangle.kernel._model import Batch, OutputPick, batch_size, explained, from_numpy, logits, take
from wideangle.kernel._settle import settle
from wideangle.optim._forecast import Quadratic, quadratic
from wideangle.optim.constants import Constants, constants_of
from wideangle.seeds import generator
from wideangle.targets import LOSSES, prepare_targets

__all__ = ["Measured", "measure"]

DIRECTIONS = 2048  # largest side of a kernel that is decomposed: samples x outputs
USUAL, LEAST = 128, 16  # samples looked at
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

    Cost: one forward and C backward passes over the subsample, in passes over the data `passes` =
    (1 + 2 C) samples / (3 n), a backward pass counted as two forward ones; an eigendecomposition of side
    samples x C. Without `samples`, 128 are looked at, or as many as `budget` passes pay for, at least 16.

    Raises:
        InputError: model, x, y or loss cannot be used.
        NumericsError: the outputs do not react to the parameters.
    """
    if loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}")
    inputs, copied = _prepared(model, x)
    total = batch_size(inputs)
    targets = torch.as_tensor(y)
    if targets.dim() == 0 or len(targets) != total:
        count = len(targets) if targets.dim() else "no"
        raise InputError(f"x has {total} samples and y has {count}; give one target a sample")
    if total < 2:
        raise InputError(
            "at least 2 samples are needed to tell one sample's curvature from the whole's, got 1"
        )
    rows = torch.randperm(total, generator=generator(seed, "recommend", "rows"))
    part = take(inputs, rows[: USUAL if samples is None else samples].to(_device(inputs)))
    with explained(part):
        notes = settle(copied, part)
    with torch.no_grad(), explained(part):
        z = logits(copied(**part) if isinstance(part, dict) else copied(part), output, batch_size(part))
    paid = 3 * total * budget / (1 + 2 * z.shape[1]) if samples is None else math.inf
    count = min(len(z), max(2, DIRECTIONS // z.shape[1]), max(LEAST, math.floor(min(paid, len(z)))))
    if count * z.shape[1] > 4 * DIRECTIONS:
        raise InputError(
            f"the model has {z.shape[1]} outputs; the kernel of even {count} samples is too large to decompose. "
            "Give output= a function that picks some of them"
        )
    kept = slice(0, count)
    target = prepare_targets(targets[rows[: len(z)]].to(z.device), z.shape[1], loss, dtype=z.dtype)[kept]
    cache = factors(copied, take(part, kept), output=output)
    constants, problem = _quadratic(cache, z[kept].double(), target, loss, total)
    passes = len(z[kept]) * (1 + 2 * z.shape[1]) / (3 * total)
    return Measured(constants, problem, passes, notes)


def _prepared(model: Any, x: Any) -> tuple[Batch, nn.Module]:
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError(f"the model ({type(model).__name__}) has no parameters to train")
    if isinstance(x, np.ndarray):
        x = from_numpy(x)
    if not isinstance(x, (Tensor, dict)):
        raise InputError(f"x is a {type(x).__name__}; give a tensor or a dict of tensors")

    def cast(tensor: Tensor) -> Tensor:
        moved = tensor.to(parameter.device)
        return moved.to(parameter.dtype) if moved.is_floating_point() else moved

    inputs = {key: cast(value) for key, value in x.items()} if isinstance(x, dict) else cast(x)
    return inputs, copy.deepcopy(model)


def _device(batch: Batch) -> torch.device:
    return batch.device if isinstance(batch, Tensor) else next(iter(batch.values())).device


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
    if not (np.isfinite(top) and top > 0 and np.isfinite(hardest)):
        raise NumericsError(
            f"the curvature of the {loss} loss is {top:.3g}: the outputs do not react to the parameters; "
            "initialise the model again, or scale its weights down"
        )
    counted = values > side * torch.finfo(cache.dtype).eps * values[-1]
    top_vector = vectors[:, -1].cpu().numpy()
    constants = constants_of(loss, outputs, top, hardest, top_vector, count=n, total=total)
    least = float(values[counted][0])
    constants = replace(constants, mu=least, mu_kind="exact" if n == total else "upper bound")
    return constants, quadratic(values.cpu().numpy(), energies.cpu().numpy(), _noise(vectors, n, values, hardest))


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
