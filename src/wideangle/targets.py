"""Targets and losses: labels as each loss wants them, checked, and the loss as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from wideangle.errors import InputError

__all__ = ["LOSSES", "Loss", "accuracy", "loss_function", "prepare_targets"]

Loss = Literal["mse", "cross-entropy"]

LOSSES: dict[str, str] = {
    "mse": "1/(nC) sum_i |f_i - y_i|^2, torch.nn.MSELoss",
    "cross-entropy": "-1/n sum_i log softmax(f_i)[y_i], torch.nn.CrossEntropyLoss",
}


def prepare_targets(y: Tensor, outputs: int, loss: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the targets of `loss` for a model with `outputs` outputs, checked.

        mse:            t_ic = 1 if y_i = c else 0 for class labels;  t = y for numbers
        cross-entropy:  t_i = y_i for class labels;                   t = y for class probabilities

    Cost: one pass over y.

    Args:
        y: class labels, integers or booleans of shape (n,), or numbers of shape (n, outputs). With one
            output, shape (n,) is taken as numbers, whatever its dtype.
        outputs: C, the number of outputs of the model.
        loss: "mse" or "cross-entropy".
        dtype: the floating type of the targets where they are numbers.

    Returns:
        A tensor of shape (n, C) and type `dtype`, or (n,) and int64 for cross-entropy on labels,
        on the device of y.

    Raises:
        InputError: y has the wrong shape, type or range, is empty or not finite, or the loss is unknown.

    Example:
        >>> prepare_targets(torch.tensor([0, 2]), outputs=3, loss="mse").tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
        >>> prepare_targets(torch.tensor([0, 2]), outputs=3, loss="cross-entropy").tolist()
        [0, 2]
    """
    _check_loss(loss)
    y = torch.as_tensor(y)
    shape = tuple(y.shape)
    if y.ndim == 0 or shape[0] == 0:
        raise InputError(f"y has shape {shape}; give at least one row of targets")
    if y.is_complex():
        raise InputError(f"y is {y.dtype}; give integer class labels or real numbers")
    if y.is_floating_point() and not bool(torch.isfinite(y).all()):
        bad = int((~torch.isfinite(y)).sum())
        raise InputError(f"y holds {bad} values that are not finite; remove or replace them")
    if loss == "cross-entropy" and outputs < 2:
        raise InputError(
            f"cross-entropy needs at least 2 outputs and the model has {outputs}; "
            "use loss='mse', or give the model one output for each class"
        )
    if y.ndim == 1 and outputs == 1:
        return y.to(dtype).unsqueeze(1)
    if y.ndim == 1:
        labels = _check_labels(y, outputs)
        return labels if loss == "cross-entropy" else _one_hot(labels, outputs, dtype)
    return _check_numbers(y, outputs, loss).to(dtype)


def _check_loss(loss: str) -> None:
    if loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}")


def _check_labels(y: Tensor, outputs: int) -> Tensor:
    if y.is_floating_point():
        raise InputError(
            f"y is {y.dtype} of shape {tuple(y.shape)} but the model has {outputs} outputs; for class labels "
            f"pass y.long(), for numbers give the shape ({y.shape[0]}, {outputs})"
        )
    labels = y.to(torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs:
        raise InputError(
            f"the labels run from {low} to {high} but the model has {outputs} outputs; "
            f"labels must lie in 0..{outputs - 1}"
        )
    return labels


def _one_hot(labels: Tensor, outputs: int, dtype: torch.dtype) -> Tensor:
    table = torch.zeros(labels.shape[0], outputs, dtype=dtype, device=labels.device)
    return table.scatter_(1, labels.unsqueeze(1), 1.0)


def _check_numbers(y: Tensor, outputs: int, loss: str) -> Tensor:
    shape = tuple(y.shape)
    flat = y.reshape(shape[0], -1)
    if flat.shape[1] != outputs:
        hint = "; for class labels pass y.squeeze(1).long()" if flat.shape[1] == 1 else ""
        raise InputError(f"y has shape {shape} but the model has {outputs} outputs a sample{hint}")
    if loss == "cross-entropy":
        numbers = flat.to(torch.float64)
        if float(numbers.min()) < 0 or float((numbers.sum(1) - 1).abs().max()) > 1e-3:
            raise InputError(
                f"y has shape {shape}: for cross-entropy its rows must be class probabilities "
                "(not negative, sum 1); for class labels give integers of shape (n,)"
            )
    return flat


def loss_function(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (outputs, targets) -> mean loss, a scalar tensor one can differentiate.

        mse            L = 1/(nC) sum_ic (f_ic - t_ic)^2          torch.nn.MSELoss
        cross-entropy  L = -1/n sum_i log softmax(f_i)[t_i]       torch.nn.CrossEntropyLoss

    For mse the outputs of a sample are flattened first, so a model returning (n,) fits targets (n, 1).

    Args:
        loss: "mse" or "cross-entropy".

    Returns:
        The function; its targets are what `prepare_targets` returns.

    Raises:
        InputError: the loss is unknown; the function raises it where outputs and targets do not fit.

    Example:
        >>> loss = loss_function("mse")
        >>> float(loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])))
        0.5
    """
    _check_loss(loss)
    return _mse if loss == "mse" else _cross_entropy


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    flat = outputs.reshape(outputs.shape[0], -1) if outputs.ndim != 2 else outputs
    if flat.shape != targets.shape:
        raise InputError(f"outputs of shape {tuple(outputs.shape)} against targets {tuple(targets.shape)}")
    return torch.nn.functional.mse_loss(flat, targets)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    fits = outputs.ndim == 2 and (targets.shape == outputs.shape or targets.shape == outputs.shape[:1])
    if not fits:
        raise InputError(f"outputs of shape {tuple(outputs.shape)} against targets {tuple(targets.shape)}")
    return torch.nn.functional.cross_entropy(outputs, targets)


def accuracy(outputs: Tensor, targets: Tensor) -> float | None:
    """Return the fraction of samples classified as their target says; None where targets are no classes.

        accuracy = 1/n #{i: argmax_c f_ic = argmax_c t_ic};   for one output f_i and t_i are on the same
        side of (min t + max t)/2

    Args:
        outputs: model outputs, (n, C), or (n,) for one output.
        targets: what `prepare_targets` returns: labels (n,), one-hot or probability rows (n, C), or one
            column of exactly two different values.

    Returns:
        A number in [0, 1], or None for regression targets.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    with torch.no_grad():
        flat = outputs.reshape(outputs.shape[0], -1)
        if targets.ndim == 1:
            return float((flat.argmax(1) == targets).double().mean())
        if targets.shape[1] == 1:
            if torch.unique(targets).numel() != 2:
                return None
            middle = (targets.min() + targets.max()) / 2
            return float(((flat > middle) == (targets > middle)).double().mean())
        rows_are_classes = bool((targets >= 0).all()) and bool(((targets.sum(1) - 1).abs() < 1e-3).all())
        if not rows_are_classes:
            return None
        return float((flat.argmax(1) == targets.argmax(1)).double().mean())
