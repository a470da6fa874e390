"""MaSS, the momentum method with a compensation term for training that interpolates, as a torch optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wideangle.errors import InputError, NumericsError
from wideangle.optim._mass_group import (
    ScaleOfLoss,
    check_group,
    check_options,
    check_step_size,
    checked_parameters,
    settle,
    warn_without_momentum,
)
from wideangle.optim._mass_parameters import MassParameters, from_etas
from wideangle.optim._mass_state import fresh, iterates, remember, restart, retuned, started
from wideangle.optim._mass_step import first_non_finite, mass
from wideangle.optim._shown import ShowsW

__all__ = ["MaSS", "mass"]


class MaSS(ShowsW):
    """Return an optimiser that takes the steps of MaSS: SGD with momentum, compensated for noisy gradients.

        w' = u - lr g,   u' = w' + gamma (w' - w) + eta2 g
        gamma = (1 - alpha) / (1 + alpha),   eta2 = lr (1 - 1/kappa_tilde) / (1 + alpha)

    The model's parameters are u, where the gradient is taken; `eval_params` shows w, the iterate that the
    theory speaks of. `kappa_tilde` = 1 is Nesterov's method (torch's SGD(nesterov=True), momentum gamma),
    1/alpha is plain SGD. One buffer c per parameter, (w - u) / (lr gamma), in units of the gradient: after a
    change of lr the displacement u - w scales with lr, as in torch's SGD. The authors instead start the
    momentum anew when lr drops: `restart=True`. The two differ. Schedules that also cycle the momentum
    (OneCycleLR, CyclicLR) need cycle_momentum=False: alpha is no momentum in their sense.

    Cost: that of torch.optim.SGD with Nesterov momentum, in time and memory (one buffer);
    `benchmarks/bench_optim_step.py` measures it.

    Args:
        params: parameters, named parameters or groups of them, each group with its own values if wanted.
        lr: eta1, the step along the gradient; a tensor of one element is copied, one for each group (with
            `differentiable` it is the given one), and stays on its device unless `capturable`.
        alpha: in (0, 1]; 1 (no momentum) only with kappa_tilde = 1.
        kappa_tilde: at least 1, the statistical condition number of the batches. Smaller batches need a
            larger one; at 1/alpha and above there is no gain from momentum, and a warning says so.
        weight_decay: added to the gradient times u (coupled), before both of its uses. It breaks
            interpolation, so the theory no longer applies.
        decoupled_weight_decay: u is multiplied by 1 - lr weight_decay before the step, as in AdamW; w is then
            the decayed u less lr g.
        restart: zero the buffers of a group when its lr has dropped since the last step, as the authors'
            recipe does. For schedules with few drops: one that falls at every step leaves no momentum.
        maximize: climb instead of descend.
        foreach: the multi-tensor form (True) or the plain loop (False); None takes, on CUDA, the multi-tensor
            form, on the CPU torch's fused kernel where it can be used and the loop elsewhere.
        capturable: lr becomes a tensor on the parameters' device, so that a captured CUDA graph follows its
            schedule. alpha and kappa_tilde are constants of the graph: capture again after `retune`. A
            loaded state leaves it as it is here.
        differentiable: autograd passes through `step`, which changes the parameters in place: take the
            gradient at clones of them.
        check_finite: refuse a step with a NaN or infinite gradient; costs one pass and a wait for the device.
        state_dtype: precision of the buffer. Where it differs from the parameter's, a master copy of u in
            that precision is kept too, and small steps are not lost in rounding: torch.float32 for bfloat16
            parameters takes 8 bytes a parameter in place of 2. Weights changed by other hands, those that
            are no longer their master rounded, are taken over at the next step.
        fused: torch's fused SGD kernel.
        smoothness: a measured L; an lr above 2/L is refused, here, by `add_param_group` and by `retune`.

    Raises:
        InputError: a parameter outside its range, lr above 2/L, options that exclude each other, no
            parameters, complex or sparse parameters; at a step, sparse gradients.
        NumericsError: with `check_finite`, a gradient that is not finite; weights and state are as before.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimiser = MaSS(model.parameters(), lr=0.1, alpha=0.05, kappa_tilde=3.0)
        >>> model(torch.ones(8, 3)).square().mean().backward()
        >>> optimiser.step()
        >>> with optimiser.eval_params():
        ...     prediction = model(torch.ones(1, 3))

    Reference: Liu, Belkin 2020, "Accelerating SGD with momentum for over-parameterized learning", Algorithm 1.
    """

    _constructed = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        alpha: float = 0.05,
        kappa_tilde: float = 3.0,
        *,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        restart: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        check_finite: bool = False,
        state_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        smoothness: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "kappa_tilde": kappa_tilde,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "restart": restart,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "check_finite": check_finite,
            "state_dtype": state_dtype,
            "fused": fused,
            "smoothness": smoothness,
        }
        given: Any = params if isinstance(params, Tensor) else list(params)  # a bare tensor: torch refuses it
        if not isinstance(given, Tensor) and not given:
            raise InputError("params is empty; pass model.parameters(), or a model that has some")
        super().__init__(given, defaults)
        if not any(group["params"] for group in self.param_groups):
            raise InputError(f"all {len(self.param_groups)} groups are empty; at least one needs a parameter")
        warn_without_momentum(self.param_groups)
        self._constructed = True

    @classmethod
    def from_etas(cls, params: ParamsT, eta1: float, eta2: float, gamma: float, **options: Any) -> Self:
        """Return the optimiser for the paper's parameters.

        Args:
            params: as for the class.
            eta1: step along the gradient.
            eta2: compensation, from 0 (Nesterov) up to below eta1 / (1 + alpha).
            gamma: momentum, in (0, 1).
            **options: the other arguments of the class.

        Raises:
            InputError: a parameter outside its range.

        Example:
            >>> w = torch.nn.Parameter(torch.ones(2))
            >>> round(MaSS.from_etas([w], 0.1, 0.0635, 0.905).param_groups[0]["kappa_tilde"], 2)
            3.0
        """
        p = from_etas(eta1, eta2, gamma)
        return cls(params, p.lr, p.alpha, p.kappa_tilde, **options)

    @classmethod
    def from_constants(cls, params: ParamsT, constants: ScaleOfLoss, batch_size: int, **options: Any) -> Self:
        """Return the optimiser with the optimal parameters for measured constants and a batch size.

        Args:
            params: as for the class.
            constants: measured constants; `constants.mass(batch_size)` gives the parameters, and
                `constants.smoothness`, where there is one, is the L that lr is checked against.
            batch_size: samples in a batch.
            **options: the other arguments of the class, also `lr`, to replace the optimal one.

        Raises:
            InputError: a parameter outside its range, or lr above 2/L.
        """
        p = checked_parameters(constants, batch_size)
        values: dict[str, Any] = vars(p) | {"smoothness": getattr(constants, "smoothness", None)}
        return cls(params, **values | options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, also in the middle of a training; its buffers start at zero.

        Args:
            param_group: {"params": ...} and the values that differ from the constructor's.

        Raises:
            InputError: as for the class; the group is then not added.
        """
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except InputError:
            del self.param_groups[-1]
            raise
        if self._constructed:
            warn_without_momentum(self.param_groups[-1:])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step from the gradients in place; a parameter without a gradient is left out, buffer too.

        Args:
            closure: evaluates the model, calls backward and returns the loss; run once, with gradients on.

        Returns:
            What the closure returned, or None.

        Raises:
            InputError: a sparse gradient, or the step is within `eval_params`. Nothing was changed.
            NumericsError: with `check_finite`, a gradient is not finite. Nothing was changed.
        """
        self._refuse_inside("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            groups = [
                (group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups
            ]
            gradients = [self._gradients(group, params) for group, params in groups]
            for (group, params), grads in zip(groups, gradients, strict=True):
                self._update(group, params, grads)
        return loss

    def _gradients(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        grads: list[Any] = [param.grad for param in params]
        for param, grad in zip(params, grads, strict=True):
            if grad.layout is not torch.strided:
                raise InputError(
                    f"the gradient of {self._name(param)} is sparse ({grad.layout}); MaSS moves every entry "
                    "by its buffer at every step. Build the embedding with sparse=False"
                )
        if group["check_finite"] and (bad := first_non_finite(grads)) is not None:
            raise NumericsError(
                f"the gradient of {self._name(params[bad])} holds a NaN or an infinity; the step was refused, "
                "weights and buffers are as before. Lower lr, or look for what made it in the loss"
            )
        return grads

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        if group["restart"]:
            restart(group, self.state)
        states = [self.state[param] for param in params]
        if not all(states):
            for param, state in zip(params, states, strict=True):
                if not state:
                    state.update(started(param, group["state_dtype"]))
        buffers = [state["momentum_buffer"] for state in states]
        masters = None
        if group["state_dtype"] is not None:
            masters = [fresh(param, state) for param, state in zip(params, states, strict=True)]
        mass(
            params,
            grads,
            buffers,
            lr=group["lr"],
            alpha=group["alpha"],
            kappa_tilde=group["kappa_tilde"],
            weight_decay=group["weight_decay"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            maximize=group["maximize"],
            foreach=group["foreach"],
            fused=group["fused"],
            capturable=group["capturable"],
            differentiable=self.defaults["differentiable"],
            masters=masters,
        )
        if self.defaults["differentiable"]:
            for state, buffer in zip(states, buffers, strict=True):
                state["momentum_buffer"] = buffer
        remember(group, "last_lr")

    @contextmanager
    def eval_params(self) -> Iterator[None]:
        """Return a context within which the parameters hold w = u + lr gamma c, of the last step taken.

        On leaving it, also by an exception, they hold u again, bit for bit. Statistics of BatchNorm belong to
        u and are left: after a long step, w may want its own (torch.optim.swa_utils.update_bn). What is saved
        of the model inside is w. A gradient taken inside is taken at w. Weights loaded inside are lost on
        leaving, and a copy of model and optimiser made inside goes on from w as if it were u.

        The last lr is that of the group: a parameter that got no gradient since lr has changed is shown with
        its old buffer and the new lr.

        Cost: a copy of the parameters, and one pass over them.

        Raises:
            InputError: within itself.

        Example:
            >>> w = torch.nn.Parameter(torch.tensor([1.0]))
            >>> optimiser = MaSS([w], lr=0.1, alpha=0.5, kappa_tilde=1.0)
            >>> w.grad = torch.tensor([1.0]); optimiser.step()
            >>> with optimiser.eval_params():
            ...     inside = round(w.item(), 4)
            >>> inside, round(w.item(), 4)
            (0.9, 0.8667)
        """
        with self._shown(pair for group in self.param_groups for pair in iterates(group, self.state)):
            yield

    def retune(
        self,
        parameters: MassParameters | ScaleOfLoss,
        batch_size: int | None = None,
        *,
        group: int | None = None,
        smoothness: float | None = None,
    ) -> None:
        """Set lr, alpha and kappa_tilde anew; u stays, and so does b = (w - u) / lr, in units of the gradient.

        `restart` does not see the change. A scheduler that computes lr from its own base value (LambdaLR, most
        of them) will overrule lr at its next step; those that multiply the present lr (StepLR) carry on.

        Args:
            parameters: the parameters themselves or measured constants.
            batch_size: with constants, samples in a batch.
            group: index of the one group to change; None changes all.
            smoothness: L to check lr against, in place of `parameters.smoothness`; the old one is dropped.

        Raises:
            InputError: a parameter outside its range, lr above 2/L, no such group, an lr that requires a
                gradient; nothing was changed.

        Example:
            >>> optimiser = MaSS([torch.nn.Parameter(torch.ones(2))], lr=0.1)
            >>> optimiser.retune(MassParameters(lr=0.05, alpha=0.02, kappa_tilde=8.0))
            >>> optimiser.param_groups[0]["kappa_tilde"]
            8.0
        """
        p = checked_parameters(parameters, batch_size)
        count = len(self.param_groups)
        if group is not None and not (isinstance(group, int) and -count <= group < count):
            raise InputError(f"group is {group!r}; it must be the index of one of {count}")
        groups = self.param_groups if group is None else [self.param_groups[group]]
        smoothness = getattr(parameters, "smoothness", None) if smoothness is None else smoothness
        check_step_size(p.lr, smoothness)
        if any(isinstance(each["lr"], Tensor) and each["lr"].requires_grad for each in groups):
            raise InputError("lr is a tensor that requires a gradient; put another into the group by hand")
        for each in groups:
            retuned(each, self.state, p, smoothness)
        warn_without_momentum(groups)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state from `state_dict()`; the tensors are copied, a `state_dtype` keeps its precision.

        Args:
            state_dict: of a MaSS with the same groups, on any device, with any `foreach`.

        Raises:
            InputError: the state of another optimiser, or within `eval_params`.
        """
        self._refuse_inside("load_state_dict")
        groups = []
        for place, group in enumerate(state_dict["param_groups"]):
            if missing := sorted({"alpha", "kappa_tilde"} - set(group)):
                raise InputError(f"group {place} of the state has no {missing}; it is not a state of MaSS")
            own = self.param_groups[place] if place < len(self.param_groups) else self.defaults
            groups.append(group | {"capturable": own["capturable"]})
            check_options(self.defaults | groups[-1])
        super().load_state_dict(state_dict | {"param_groups": groups})
        for group in self.param_groups:
            settle(group)
        saved = [place for group in state_dict["param_groups"] for place in group["params"]]
        own = [(group, param) for group in self.param_groups for param in group["params"]]
        for place, (group, param) in zip(saved, own, strict=True):
            precision = group["state_dtype"] or param.dtype
            for key, value in state_dict["state"].get(place, {}).items():
                self.state[param][key] = value.to(param.device, precision, copy=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._constructed = True
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def _name(self, param: Tensor) -> str:
        """Where a parameter stands, for messages."""
        for place, group in enumerate(self.param_groups):
            for i, other in enumerate(group["params"]):
                if other is param:
                    name = f" ({group['param_names'][i]})" if "param_names" in group else ""
                    return f"parameter {i} of group {place}{name}, of shape {tuple(param.shape)},"
        return "a parameter"
