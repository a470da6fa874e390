"""A squared-loss problem F(w) = y: a model of one type of number, its data, and what moves."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._factors import Factors, factors
from wideangle.kernel._model import (
    Batch,
    OutputPick,
    batch_size,
    batches,
    check_model,
    explained,
    logits,
    plain_attention,
    select_parameters,
)
from wideangle.losses import SQUARED_LOSSES, hessian_factor
from wideangle.targets import prepare_targets

__all__ = ["Problem", "State", "check_margin", "entries", "floor", "inner", "squared"]

State = Mapping[str, Tensor] | nn.Module


def floor(dtype: torch.dtype) -> float:
    """Return the loss below which ratios by the loss are 0/0: 1e-12 in float64, 1e-6 in anything shorter."""
    return 1e-12 if dtype == torch.float64 else 1e-6


def check_margin(margin: float) -> None:
    """Refuse a `margin` that is no multiple of a loss.

    Raises:
        InputError: it is below zero or not finite.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(
            f"margin={margin} must be zero or more and finite: it multiplies the target's loss; 100 is usual"
        )


class Problem:
    """A copy of a model in one floating type with its data; the user's model is left alone.

    With residual r = F(w) - y, all n C numbers of it, L = (c/2) |r|^2, c of `wideangle.losses`.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        y: Any,
        *,
        params: Any = None,
        output: OutputPick = None,
        dtype: torch.dtype | None = torch.float64,
        loss: str = "half_sum",
    ):
        if loss not in SQUARED_LOSSES:
            raise InputError(
                f"loss {loss!r} is none of {', '.join(SQUARED_LOSSES)}: PL* and aiming are for squared losses; "
                "cross-entropy has its solutions at infinity, so no distance to them exists"
            )
        check_model(model)
        self.names = select_parameters(model, params)
        own = model.get_parameter(self.names[0])
        self.dtype, self.device = dtype or own.dtype, own.device
        self.model = copy.deepcopy(model).to(self.dtype)
        for name, parameter in self.model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(name in self.names)
        self._first: dict[str, Tensor] = {}  # what does not move, as it was before a state changed it
        self.output = output
        self.items = [self._cast(item) for item in batches(x, self.device)]
        self.samples = sum(batch_size(item) for item in self.items)
        if y is not None and len(y) != self.samples:
            raise InputError(f"x has {self.samples} samples and y has {len(y)}; they must be equal")
        with torch.no_grad():
            self.outputs = self._forward().shape[1]
        targets = torch.zeros(self.samples, self.outputs) if y is None else torch.as_tensor(y)
        self.y = prepare_targets(targets.to(self.device), self.outputs, "mse", self.dtype)
        self.factor = hessian_factor(loss, self.samples, self.outputs)

    def _cast(self, item: Batch) -> Batch:
        if isinstance(item, Tensor):
            return item.to(self.dtype) if item.is_floating_point() else item
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in item.items()}

    @property
    def equations(self) -> int:
        """The number of equations in F(w) = y, n C."""
        return self.samples * self.outputs

    @property
    def parameters(self) -> int:
        """p: the numbers that may move."""
        return sum(tensor.numel() for tensor in self.weights().values())

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters that move, as they are now (no copies)."""
        return {name: self.model.get_parameter(name) for name in self.names}

    def taken(self, state: State) -> dict[str, Tensor]:
        """Return the parameters that move as `state` has them, checked, cast and copied.

        Raises:
            InputError: a parameter is missing, has another shape or is not finite.
        """
        given = entries(state)
        found = {}
        for name, mine in self.weights().items():
            if name not in given or given[name].shape != mine.shape:
                shape = tuple(given[name].shape) if name in given else "no such entry"
                raise _unlike(f"{shape} for parameter {name!r} of shape {tuple(mine.shape)}")
            found[name] = given[name].detach().to(self.device, self.dtype, copy=True)
            if not bool(torch.isfinite(found[name]).all()):
                raise InputError(f"the state's parameter {name!r} is not finite; give an earlier state")
        return found

    def held(self, state: State) -> dict[str, Tensor]:
        """Return copies of all that `state` has of this model: what moves, checked, and what does not.

        Raises:
            InputError: as for `taken`; another parameter or buffer has another shape.
        """
        given, moving = entries(state), self.taken(state)
        fixed = {name: given[name] for name in self._fixed() if name in given}
        for name, mine in self._fixed().items():
            if name in fixed and fixed[name].shape != mine.shape:
                raise _unlike(f"{tuple(fixed[name].shape)} for {name!r} of shape {tuple(mine.shape)}")
        kept = {n: t.detach().to(self.device, self._fixed()[n].dtype, copy=True) for n, t in fixed.items()}
        return {**kept, **moving}

    def _fixed(self) -> dict[str, Tensor]:
        """Return the buffers and the parameters that do not move, as they are now (no copies)."""
        moving = set(self.names)
        others = {name: w for name, w in self.model.named_parameters() if name not in moving}
        return {**dict(self.model.named_buffers()), **others}

    def load(self, state: State) -> None:
        """Move the copy to `state`, with the parameters that do not move and the buffers it has.

        Of these, what it lacks is as the model had it at first.
        """
        new = self.held(state)
        self.place(new)
        with torch.no_grad():
            for name, mine in self._fixed().items():
                if name in new and not torch.equal(mine, new[name]):
                    self._first.setdefault(name, mine.detach().clone())
                    mine.copy_(new[name])
                elif name not in new and name in self._first:
                    mine.copy_(self._first[name])

    def place(self, weights: Mapping[str, Tensor]) -> None:
        """Put the parameters that move to `weights` and leave all else as it is."""
        with torch.no_grad():
            for name, parameter in self.weights().items():
                parameter.copy_(weights[name])

    def now(self) -> dict[str, Tensor]:
        """Return copies of the parameters that move, as they are now."""
        return {name: w.detach().clone() for name, w in self.weights().items()}

    def _forward(self) -> Tensor:
        parts = []
        for item in self.items:
            with plain_attention(), explained(item):
                raw = self.model(**item) if isinstance(item, dict) else self.model(item)
            parts.append(logits(raw, self.output, batch_size(item)))
        return torch.cat(parts)

    def values(self) -> Tensor:
        """Return F(w), (n, C).

        Raises:
            NumericsError: an output is not finite.
        """
        with torch.no_grad():
            return self._checked(self._forward())

    def residual(self) -> Tensor:
        """Return r = F(w) - y, (n, C).

        Raises:
            NumericsError: an output is not finite.
        """
        return self.values() - self.y

    def _checked(self, f: Tensor) -> Tensor:
        if not bool(torch.isfinite(f).all()):
            raise NumericsError("the outputs are not finite at these weights; the run may have diverged")
        return f

    def loss_of(self, residual: Tensor) -> float:
        """Return L = (c/2) |r|^2."""
        return self.factor / 2 * float(residual.double().square().sum())

    def slope(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return r and the gradient of L on all data, by one backward pass."""
        leaves = self.weights()
        with torch.enable_grad():
            residual = self._checked(self._forward()) - self.y
            total = self.factor / 2 * residual.square().sum()
            if not total.requires_grad:
                raise InputError("the loss does not depend on the parameters chosen; check params=")
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        gradient = {
            name: torch.zeros_like(w) if g is None else g
            for (name, w), g in zip(leaves.items(), found, strict=True)
        }
        return residual.detach(), gradient

    def cache(self) -> Factors:
        """Return the kernel's factors at the weights the copy has now."""
        return factors(self.model, self.items, output=self.output, params=self.names)

    def positive(self, loss: float, what: str) -> None:
        """Refuse a loss that is zero to rounding.

        Raises:
            NumericsError: L is below the floor of the type, so `what` is 0/0.
        """
        if not loss >= floor(self.dtype):
            raise NumericsError(
                f"the loss is {loss:.3g}, below {floor(self.dtype):g}: {what} is 0/0 at a solution; measure at "
                "weights before the end of training"
            )


def entries(state: State) -> dict[str, Tensor]:
    """Return the tensors of a state dict; of a module its buffers that no state dict holds, too."""
    found = state
    if isinstance(state, nn.Module):
        found = {**dict(state.named_buffers()), **state.state_dict()}
    return {name: t for name, t in found.items() if isinstance(t, Tensor)}  # type: ignore[union-attr]


def _unlike(what: str) -> InputError:
    return InputError(f"the state has {what}; give a state dict of this model")


def squared(pieces: Mapping[str, Tensor]) -> float:
    """Return the sum of squares of all numbers."""
    return sum(float(piece.double().square().sum()) for piece in pieces.values())


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the inner product of two sets of named tensors."""
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)
