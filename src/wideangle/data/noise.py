"""Wrong labels on purpose, with the mask of those that were changed."""

from __future__ import annotations

from typing import Literal

import torch

from wideangle import seeds
from wideangle.data.dataset import raise_non_finite
from wideangle.errors import InputError
from wideangle.names import unknown_name

__all__ = ["label_noise"]

KINDS = ("symmetric", "pair", "instance")


def label_noise(
    y: torch.Tensor,
    rate: float,
    kind: Literal["symmetric", "pair", "instance"] = "symmetric",
    generator: torch.Generator | None = None,
    *,
    x: torch.Tensor | None = None,
    classes: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy labels and the mask of the flipped ones; rate = P(given label != true label).

        symmetric:  flip with probability rate, to one of the C - 1 other classes, each equally likely
        pair:       flip with probability rate, y -> (y + 1) mod C
        instance:   flip sample i with probability q_i = sigmoid(w.x_i + b), to class c != y_i with
                    probability softmax_c(W x_i);  w, W Gaussian, b such that mean_i q_i = rate

    Cost: O(n), for "instance" O(n d C) with d values per input.

    Args:
        y: class labels, integers of shape (n,).
        rate: expected share of flipped labels, in [0, 1]. With "symmetric", some authors' rate counts
            draws that hit the true class: theirs times (C - 1)/C is this one.
        kind: "symmetric", "pair" or "instance".
        generator: where the noise is drawn from; by default a fresh one with a fixed seed.
        x: inputs (n, ...), needed by "instance"; standardised inside, column by column.
        classes: C; by default max(y) + 1.

    Returns:
        The labels after noise (a new tensor, type and device of y), and flipped, a boolean (n,) that is
        true exactly where they differ from y.

    Raises:
        InputError: labels of the wrong type, shape or range, a rate outside [0, 1], fewer than two
            classes, an unknown kind, or x missing or of another length.

    Example:
        >>> noisy, flipped = label_noise(torch.arange(4), 1.0, "pair")
        >>> noisy.tolist(), int(flipped.sum())
        ([1, 2, 3, 0], 4)

    Reference: Xia et al. 2020 (arXiv 2006.07836), Algorithm 2, for instance-dependent noise; differs from
    the paper in that q_i is a logistic function of one projection, not a truncated normal independent of x.
    """
    count = _check(y, rate, kind, classes)
    draw = generator if generator is not None else seeds.generator(0, "data", "label noise")
    true = y.to(draw.device).long()
    n = len(true)
    probability = torch.full((n,), float(rate), dtype=torch.float64, device=draw.device)
    if kind == "symmetric":
        shift = torch.randint(1, count, (n,), generator=draw, device=draw.device)
        other = (true + shift) % count
    elif kind == "pair":
        other = (true + 1) % count
    else:
        probability, other = _instance(true, rate, count, _inputs(x, n).to(draw.device), draw)
    flips = torch.rand(n, generator=draw, device=draw.device, dtype=torch.float64) < probability
    noisy = torch.where(flips, other, true)
    return noisy.to(device=y.device, dtype=y.dtype), flips.to(y.device)


def _check(y: torch.Tensor, rate: float, kind: str, classes: int | None) -> int:
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1 or len(y) == 0:
        raise InputError(f"y must hold integer class labels of shape (n,), got {y.dtype} {tuple(y.shape)}")
    if not 0 <= rate <= 1:
        raise InputError(f"rate must lie in [0, 1], got {rate}")
    if kind not in KINDS:
        raise unknown_name("kind of label noise", kind, KINDS)
    low, high = int(y.min()), int(y.max())
    count = high + 1 if classes is None else classes
    if count < 2 or low < 0 or high >= count:
        raise InputError(
            f"labels run from {low} to {high} with classes={count}; need 0..{count - 1}, two or more"
        )
    return count


def _inputs(x: torch.Tensor | None, n: int) -> torch.Tensor:
    if x is None:
        raise InputError("kind='instance' makes the noise depend on the inputs; pass x=")
    if x.ndim < 2 or len(x) != n:
        raise InputError(f"x must be (n, ...) with one row per label, n = {n}, got {tuple(x.shape)}")
    raise_non_finite(x, "x")
    flat = x.detach().flatten(1).double()
    spread = flat.std(0, correction=0)
    return (flat - flat.mean(0)) / torch.where(spread > 0, spread, 1.0) / flat.shape[1] ** 0.5


def _instance(
    true: torch.Tensor, rate: float, count: int, x: torch.Tensor, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each sample's flip probability, with mean `rate`, and the class it would be given."""
    weights = torch.randn(x.shape[1], count + 1, generator=draw, device=draw.device, dtype=torch.float64)
    scores = x @ weights
    probability = _with_mean(2 * scores[:, -1], rate)
    logits = scores[:, :-1].scatter(1, true[:, None], float("-inf"))
    other = torch.multinomial(logits.softmax(1), 1, generator=draw).squeeze(1)
    return probability, other


def _with_mean(score: torch.Tensor, mean: float) -> torch.Tensor:
    """Return sigmoid(score + b) with b, found by bisection, such that the mean is `mean`."""
    if mean in (0, 1):
        return torch.full_like(score, mean)
    low, high = -1000.0 - float(score.max()), 1000.0 - float(score.min())
    for _ in range(100):
        b = (low + high) / 2
        low, high = (b, high) if float(torch.sigmoid(score + b).mean()) < mean else (low, b)
    return torch.sigmoid(score + (low + high) / 2)
