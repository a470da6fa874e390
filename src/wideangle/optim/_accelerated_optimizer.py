"""The accelerated methods as a torch optimiser for full-batch training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wideangle.errors import InputError, NumericsError
from wideangle.optim._accelerated_factors import checked_method, one_kappa_hat
from wideangle.optim._accelerated_steps import Coefficients, extrapolated_step, momentum_step
from wideangle.optim._given import number, one_number
from wideangle.optim._shown import ShowsW

__all__ = ["AcceleratedGradient"]

Closure = Callable[[], Any]
_EVERY = 100  # steps between two looks at the noise of the gradient
_LEAST = 1e-6


class AcceleratedGradient(ShowsW):
    """Return an optimiser that takes Nesterov's, heavy-ball or Chebyshev steps with a free condition number.

    With g the gradient at the parameters and k = sqrt(kappa_hat), gamma = (k - 1) / (k + 1):

        nesterov    b <- gamma (b + g),                          u <- u - lr (g + b)
        heavy_ball  b <- gamma^2 b + 4 kappa_hat / (k + 1)^2 g,  w <- w - lr b
        chebyshev   b <- a_t b + c_t g,                          w <- w - lr b

    (a_t, c_t of the three-term recurrence on [1 / (lr kappa_hat), 1 / lr]). The parameters hold the point
    where the gradient is taken: for nesterov the extrapolated u, and `eval_params` shows w = u + lr b, the
    iterate of the theory; for the others w itself. One buffer b a parameter, in units of the gradient: after
    a change of lr the momentum scales with lr, as in torch's SGD.

    The theory is for the exact gradient of one quadratic. `step` needs a closure, and evaluates it twice at
    step 1 and at every 100th step: at step 1 twice at the first point, later once more at the point of the
    step before, where the gradient is known. So a closure that draws its batch is seen at step 1, one that
    keeps its batch during a step at step 100 first; and a training resumed from a state saved after step 99
    compares at step 100 as at step 1, where such a batch is compared with itself. A warning says where the
    two gradients differ by more than 1e-6 of their size (8 eps in precisions coarser than float32): mini-
    batches or dropout void the theory, and `MaSS` is the method for them. Sums in no fixed order (some CUDA
    kernels) can reach that size too, late in training, when the gradient is small beside its parts. Batch
    normalisation counts the additional evaluations in its running statistics.

    Cost: as torch.optim.SGD with momentum, one buffer; one more evaluation in 100, and for it a copy of
    parameters and gradients during one step.

    Args:
        params: parameters or groups of them, each group with its own values if wanted.
        lr: 1/L, L an upper bound of the loss's curvature (`measure_constants(...).smoothness` is the
            largest eigenvalue at one point: give it room).
        kappa_hat: the condition number to assume, at least 1; 1 is gradient descent. `best_kappa_hat`
            chooses it for a number of steps.
        method: "nesterov", "heavy_ball" or "chebyshev" (kappa_hat above 1).
        weight_decay: added to the gradient times the parameters; L grows by it.
        maximize: climb instead of descend.
        foreach: the multi-tensor form; None takes it on CUDA.

    Raises:
        InputError: lr not positive, kappa_hat below 1, an unknown method, complex or integer parameters, none
            at all; at a step, no closure, or a sparse gradient; a step within `eval_params`.
        NumericsError: a gradient that is not finite, found at the steps with two evaluations.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimiser = AcceleratedGradient(model.parameters(), lr=0.05, kappa_hat=100.0)
        >>> def closure():
        ...     optimiser.zero_grad()
        ...     loss = model(torch.eye(3)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> losses = [float(optimiser.step(closure).detach()) for _ in range(200)]
        >>> with optimiser.eval_params():
        ...     bool(model(torch.eye(3)).square().mean() < 1e-3 * losses[0])
        True

    Reference: Nesterov 2004, section 2.2; Polyak 1964; Golub, Varga 1961; kappa_hat free as in Liu, Belkin
    2018 (arXiv 1802.10235).
    """

    _before: list[tuple[Tensor, Tensor, Tensor]] | None = None  # parameter, its value, its gradient

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        kappa_hat: float,
        method: str = "nesterov",
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        given: Any = params if isinstance(params, Tensor) else list(params)
        if not isinstance(given, Tensor) and not given:
            raise InputError("params is empty; pass model.parameters(), or a model that has some")
        defaults = {
            "lr": lr,
            "kappa_hat": kappa_hat,
            "method": method,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "step": 0,
            "rho": None,  # of Chebyshev's recurrence
            "last_lr": None,  # what the last step was taken with
        }
        super().__init__(given, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own lr, kappa_hat or method; it begins without momentum.

        Raises:
            InputError: a value outside its range, or a complex parameter.
        """
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except InputError:
            self.param_groups.pop()
            raise

    def step(self, closure: Closure | None = None) -> Any:  # type: ignore[override]
        """Take one step and return the closure's loss.

        Args:
            closure: clears the gradients, computes the loss on all data, calls backward and returns it.

        Raises:
            InputError: no closure, a sparse gradient, a group changed to values outside their range, a step
                within `eval_params`.
            NumericsError: the gradient is not finite, at a step with two evaluations.
        """
        self._refuse_inside("step")
        if closure is None:
            raise InputError(
                "step needs a closure that clears the gradients, computes the loss on all data and calls backward: it "
                "is evaluated twice now and then, since noise in the gradient (mini-batches, dropout) voids the theory "
                "of this method; where there is noise, use MaSS, which takes no closure"
            )
        count = max(group["step"] for group in self.param_groups) + 1
        loss = self._compared(closure, count) if count == 1 or count % _EVERY == 0 else _evaluated(closure)
        self._before = self._kept() if (count + 1) % _EVERY == 0 else None
        with torch.no_grad():
            for group in self.param_groups:
                self._move(group)
        return loss

    @contextmanager
    def eval_params(self) -> Iterator[None]:
        """Hold w in the parameters: for nesterov u + lr b, for the other methods what they hold anyway.

        Raises:
            InputError: within itself.

        Example:
            >>> w = torch.nn.Parameter(torch.ones(1))
            >>> optimiser = AcceleratedGradient([w], lr=0.5, kappa_hat=9.0)
            >>> def closure():
            ...     optimiser.zero_grad()
            ...     (w * w / 2).sum().backward()
            >>> optimiser.step(closure)
            >>> with optimiser.eval_params():
            ...     w.item()
            0.5
            >>> w.item()
            0.25
        """
        iterates = (
            (p, p.detach().add(self.state[p]["momentum_buffer"], alpha=group["last_lr"]))
            for group in self.param_groups
            if group["method"] == "nesterov"
            for p in dict.fromkeys(group["params"])
            if "momentum_buffer" in self.state.get(p, {})
        )
        with self._shown(iterates):
            yield

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _kept(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [(p, p.detach().clone(), _dense(p).detach().clone()) for p in self._parameters()]

    def _compared(self, closure: Closure, count: int) -> Any:
        """Evaluate the closure twice at one point, say where the gradients differ, and return the last loss."""
        if self._before is None:
            _evaluated(closure)
            kept = self._kept()
            loss = _evaluated(closure)
            self._judge([(p, g, _dense(p)) for p, _, g in kept if p.grad is not None], count)
            return loss
        now = [(p, p.detach().clone()) for p, _, _ in self._before]
        try:
            with torch.no_grad():
                for p, value, _ in self._before:
                    p.copy_(value)
            _evaluated(closure)
            self._judge([(p, g, _dense(p)) for p, _, g in self._before if p.grad is not None], count)
        finally:
            with torch.no_grad():
                for p, value in now:
                    p.copy_(value)
        return _evaluated(closure)

    def _judge(self, pairs: list[tuple[Tensor, Tensor, Tensor]], count: int) -> None:
        """Warn where two gradients at one point differ."""
        apart, size, twice = 0.0, 0.0, 0.0
        for _, first, second in pairs:
            one, two = first.double(), second.detach().double()
            apart += float((two - one).square().sum())
            twice += float((two - 2 * one).square().sum())
            size += max(float(one.square().sum()), float(two.square().sum()))
        if not math.isfinite(apart) or not math.isfinite(size):
            raise NumericsError(
                f"the gradient at step {count} is not finite; lr is {self.param_groups[0]['lr']}, which must be at "
                "most 1/L: measure L, or look for the first non-finite number in the data and the loss"
            )
        coarsest = max((torch.finfo(g.dtype).eps for _, g, _ in pairs), default=0.0)
        if not pairs or apart <= (max(_LEAST, 8 * coarsest) ** 2) * size:
            return
        relative = math.sqrt(apart / size)
        if twice <= 1e-6 * size:
            reason = "the second is twice the first: the closure must clear the gradients (zero_grad)"
        else:
            reason = (
                "mini-batches, dropout or other noise void the theory of this method, which needs the exact gradient: "
                "use MaSS, or evaluate all data in the closure without dropout"
            )
            if relative < math.sqrt(coarsest):
                reason += "; a difference this small can also come from sums in no fixed order on the device"
        warnings.warn(
            f"two gradients at one point differ by {relative:.2g} of their size at step {count}: {reason}",
            stacklevel=4,
        )

    def _move(self, group: dict[str, Any]) -> None:
        _check_values(group)
        moved = [p for p in group["params"] if p.grad is not None]
        if not moved:
            return
        coefficients = Coefficients(
            one_kappa_hat(group["kappa_hat"], group["method"]), group["method"], group["rho"]
        )
        a, c = coefficients.next()
        lr, nesterov = float(group["lr"]), group["method"] == "nesterov"
        for chunk in _chunks(moved, group["foreach"]):
            grads = [_dense(p) for p in chunk]
            if group["maximize"]:
                grads = [-g for g in grads]
            if group["weight_decay"]:
                grads = [g.add(p, alpha=group["weight_decay"]) for g, p in zip(grads, chunk, strict=True)]
            buffers = [self._buffer(p) for p in chunk]
            if nesterov:
                extrapolated_step(chunk, grads, buffers, a, lr)
            else:
                momentum_step(chunk, grads, buffers, a, c, lr)
        group["step"] += 1
        group["rho"], group["last_lr"] = coefficients.rho, lr

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def _chunks(params: list[Tensor], foreach: bool | None) -> Iterator[list[Tensor]]:
    """Return the parameters one by one, or together where they share device and type."""
    if foreach is None:
        foreach = bool(params) and all(p.is_cuda for p in params)
    if not foreach:
        yield from ([p] for p in params)
        return
    kinds: dict[Any, list[Tensor]] = {}
    for p in params:
        kinds.setdefault((p.device, p.dtype, _dense(p).dtype), []).append(p)
    yield from kinds.values()


def _dense(p: Tensor) -> Tensor:
    gradient = p.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise InputError(
            f"a gradient of shape {tuple(p.shape)} is sparse: entries that are left out would still have to move by "
            "their momentum; make the layer with sparse=False"
        )
    return gradient


def _evaluated(closure: Closure) -> Any:
    with torch.enable_grad():
        return closure()


def _check_values(group: dict[str, Any]) -> None:
    lr = one_number(group["lr"], "lr")
    if not (math.isfinite(lr) and lr >= 0):
        raise InputError(f"lr is {lr}; it must be 1/L: positive and finite")
    one_kappa_hat(group["kappa_hat"], checked_method(group["method"]))


def _check_group(group: dict[str, Any]) -> None:
    _check_values(group)
    if float(group["lr"]) == 0:
        raise InputError("lr is 0.0; it must be 1/L: positive and finite")
    decay = number(group["weight_decay"], "weight_decay")
    if not (math.isfinite(decay) and decay >= 0):
        raise InputError(f"weight_decay is {decay}; it must be zero or more and finite")
    for p in group["params"]:
        if not p.is_floating_point() or p.layout != torch.strided:
            raise InputError(
                f"a parameter of shape {tuple(p.shape)} is {p.dtype} {p.layout}; the theory is for real, dense ones"
            )
