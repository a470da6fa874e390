"""What a torch optimiser promises, as cases that pass or say what is wrong."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.seeds import generator

__all__ = ["OptimizerCase", "optimizer_cases"]

Factory = Callable[[Any], torch.optim.Optimizer]
SHAPES = ((4, 3), (5,), (), (2, 3, 2))


@dataclass(frozen=True)
class OptimizerCase:
    """One promise: call it, and it returns nothing or raises an AssertionError that says what is wrong.

    What the optimiser itself raises on the way is passed on.
    """

    name: str
    check: Callable[[], None]

    def __call__(self) -> None:
        self.check()

    def __str__(self) -> str:
        return self.name


def optimizer_cases(
    factory: Factory,
    *,
    rosenbrock_lr: float | None = None,
    steps: int = 5000,
    reduction: float = 0.01,
    needs_closure: bool = False,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    devices: Sequence[str] | None = None,
) -> list[OptimizerCase]:
    """Return the cases for the optimiser that `factory` makes; each is called, or given to a test framework.

        state, file, resume   a loaded state is the saved one, and goes on to the same bits
        copies                copy.deepcopy and pickle go on to the same bits
        closure               run with gradients on, its loss returned
        groups, later group   each parameter moves as it would alone, with its own lr
        scheduler             lr is that of the group at each step: 0 rests, half differs from whole
        foreach               the multi-tensor form is the plain loop (where the optimiser has the option)
        no gradient           a parameter without one is left alone, and its state too
        dtype, device         of parameters are kept, and the loss falls
        quadratic, rosenbrock the loss falls to `reduction` times that of the start in `steps` steps

    The quadratic has curvatures from 0.1 to 1 and changes a little at every step, as with batches, around one
    minimum. Rosenbrock's valley starts at (-1.2, 1).

    Cost: seconds; most of it Rosenbrock's.

    Args:
        factory: makes the optimiser from parameters or from groups {"params": ..., "lr": ...}; its own lr must
            suit a curvature of 1, so for gradient descent be below 2.
        rosenbrock_lr: lr on Rosenbrock's function, whose curvature is about 1,000; None takes 1/1,000 of the
            factory's.
        steps: steps allowed for convergence.
        reduction: share of the starting loss to be reached.
        needs_closure: the optimiser cannot step without one.
        dtypes: types of parameters to try.
        devices: devices to try; None is the CPU, and CUDA where there is one.

    Raises:
        ValueError: steps or reduction that no optimiser could fulfil.

    Example:
        >>> for case in optimizer_cases(lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)):
        ...     case()

        With pytest: `@pytest.mark.parametrize("case", optimizer_cases(factory), ids=str)`.
    """
    if steps < 1 or not 0 < reduction < 1:
        raise ValueError(f"steps is {steps} and reduction {reduction}; they must be at least 1 and in (0, 1)")
    kit = _Kit(factory, needs_closure)
    found: dict[str, Callable[[], None]] = {
        "state": kit.state,
        "file": kit.file,
        "resume": kit.resume,
        "copies": kit.copies,
        "closure": kit.closure,
        "groups": kit.groups,
        "later group": kit.later_group,
        "scheduler": kit.scheduler,
        "no gradient": kit.no_gradient,
    }
    if "foreach" in factory(_parameters()).defaults:
        found["foreach"] = kit.foreach
    for dtype in dtypes:
        found[f"dtype {str(dtype).removeprefix('torch.')}"] = partial(kit.kind, "cpu", dtype)
    for device in devices or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]):
        if device != "cpu" or torch.float32 not in dtypes:  # the same as the case of the type
            found[f"device {device}"] = partial(kit.kind, device, torch.float32)
    found["quadratic"] = partial(kit.quadratic, steps, reduction)
    found["rosenbrock"] = partial(kit.rosenbrock, steps, reduction, rosenbrock_lr)
    return [OptimizerCase(name, check) for name, check in found.items()]


def _demand(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise AssertionError(otherwise)


def _drawn(shape: tuple[int, ...], *names: str | int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "optimizer-cases", *names), dtype=torch.float64)


def _parameters(device: str = "cpu", dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(_drawn(shape, "start", i).to(device, dtype)) for i, shape in enumerate(SHAPES)]


def _clones(params: Sequence[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().clone()) for param in params]


def _loss(params: Sequence[Tensor], step: int) -> Tensor:
    """Half of sum_i s_i(t) p_i^2: curvatures in [0.1, 1], another weighting at each step, one minimum."""
    total = torch.zeros((), dtype=torch.float64)
    for param in params:
        curvature = 0.1 + 0.9 * torch.linspace(0, 1, max(param.numel(), 2))[: param.numel()].reshape(
            param.shape
        )
        factor = 0.75 + 0.25 * math.sin(1.7 * step + param.numel())
        total = total + 0.5 * factor * (curvature.to(param) * param.square()).sum().to(total)
    return total


def _differs(params: Sequence[Tensor], others: Sequence[Tensor], relative: float = 0.0) -> str | None:
    """Return where they differ in words, or None."""
    for i, (a, b) in enumerate(zip(params, others, strict=True)):
        gap = float((a.detach() - b.detach()).abs().max())
        if not gap <= relative * float(b.detach().abs().max()):
            return f"parameter {i} of shape {tuple(a.shape)} differs by {gap:.3g}"
    return None


@dataclass(frozen=True)
class _Kit:
    """The cases' bodies, for one factory."""

    factory: Factory
    needs_closure: bool

    def take(
        self,
        optimizer: torch.optim.Optimizer,
        params: Sequence[Tensor],
        steps: range,
        loss: Callable[[Sequence[Tensor], int], Tensor] = _loss,
    ) -> None:
        """Take steps; a parameter's share of the loss does not depend on the others."""
        for t in steps:

            def closure(t: int = t) -> Tensor:
                optimizer.zero_grad()
                value = loss(params, t)
                value.backward()
                return value

            if self.needs_closure:
                optimizer.step(closure)  # type: ignore[arg-type]
            else:
                closure()
                optimizer.step()

    def trained(self, steps: range) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
        params = _parameters()
        optimizer = self.factory(params)
        self.take(optimizer, params, steps)
        return optimizer, params

    def continues(
        self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter], state: Any, how: str
    ) -> None:
        """A fresh optimiser with `state` must go where this one goes."""
        twins = _clones(params)
        fresh = self.factory(twins)
        fresh.load_state_dict(state)
        self.take(optimizer, params, range(6, 12))
        self.take(fresh, twins, range(6, 12))
        where = _differs(params, twins)
        _demand(where is None, f"after {how} the run goes elsewhere: {where}")

    def state(self) -> None:
        optimizer, params = self.trained(range(6))
        saved = copy.deepcopy(optimizer.state_dict())
        fresh = self.factory(_clones(params))
        fresh.load_state_dict(copy.deepcopy(saved))
        wrong = _unequal(saved, fresh.state_dict())
        _demand(wrong is None, f"the loaded state is not the saved one: {wrong}")
        self.continues(optimizer, params, saved, "loading a state")

    def file(self) -> None:
        optimizer, params = self.trained(range(6))
        torch.save(optimizer.state_dict(), held := io.BytesIO())
        held.seek(0)
        self.continues(optimizer, params, torch.load(held, weights_only=True), "a state through a file")

    def resume(self) -> None:
        """Straight through against three runs, each resumed from the last, also before the first step."""
        _, straight = self.trained(range(12))
        params, state = _parameters(), None
        for part in (range(0), range(5), range(5, 6), range(6, 12)):
            params = _clones(params)
            optimizer = self.factory(params)
            if state is not None:
                optimizer.load_state_dict(state)
            self.take(optimizer, params, part)
            state = copy.deepcopy(optimizer.state_dict())
        where = _differs(params, straight)
        _demand(
            where is None,
            f"a run resumed at steps 0, 5 and 6 ends elsewhere than one without a break: {where}",
        )

    def copies(self) -> None:
        for how, copied in (("deepcopy", copy.deepcopy), ("pickle", lambda o: pickle.loads(pickle.dumps(o)))):
            optimizer, params = self.trained(range(6))
            twin = copied(optimizer)
            twins = [param for group in twin.param_groups for param in group["params"]]
            self.take(optimizer, params, range(6, 12))
            self.take(twin, twins, range(6, 12))
            where = _differs(params, twins)
            _demand(where is None, f"after {how} the run goes elsewhere: {where}")

    def closure(self) -> None:
        params = _parameters()
        before, optimizer = _clones(params), self.factory(params)
        calls: list[bool] = []

        def evaluated() -> Tensor:
            calls.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = _loss(params, 0)
            if loss.requires_grad:
                loss.backward()
            return loss

        with torch.no_grad():
            returned = optimizer.step(evaluated)  # type: ignore[arg-type]
        _demand(bool(calls), "step(closure) did not call the closure")
        _demand(all(calls), "the closure ran with gradients off; use torch.enable_grad() around it")
        _demand(returned is not None, "step(closure) returned nothing, not the closure's loss")
        value, expected = float(torch.as_tensor(returned).detach()), float(_loss(before, 0).detach())
        _demand(
            abs(value - expected) <= 1e-12 * expected,
            f"step(closure) returned {value}, the closure's loss was {expected}",
        )
        _demand(_differs(params, before) is not None, "step(closure) did not move the parameters")

    def lr(self) -> float:
        return float(self.factory(_parameters()).param_groups[0]["lr"])

    def groups(self) -> None:
        params, alone = _parameters(), _parameters()
        rates = [self.lr() / 2**i for i in range(len(params))]
        together = self.factory([{"params": [p], "lr": r} for p, r in zip(params, rates, strict=True)])
        self.take(together, params, range(10))
        for param, rate in zip(alone, rates, strict=True):
            self.take(self.factory([{"params": [param], "lr": rate}]), [param], range(10))
        where = _differs(params, alone, 1e-9)
        _demand(
            where is None, f"in a group beside others it does not move as alone with the same lr: {where}"
        )

    def later_group(self) -> None:
        params, alone = _parameters(), _parameters()
        optimizer = self.factory(params[:2])
        self.take(optimizer, params[:2], range(5))
        optimizer.add_param_group({"params": params[2:]})
        self.take(optimizer, params, range(5, 10))
        for part, steps in ((alone[:2], range(10)), (alone[2:], range(5, 10))):
            self.take(self.factory(part), part, steps)
        where = _differs(params, alone, 1e-9)
        _demand(where is None, f"with a group added after 5 steps it does not move as alone: {where}")

    def scheduler(self) -> None:
        ends = []
        for last in (1.0, 0.5):
            params = _parameters()
            optimizer = self.factory(params)
            factors = [1.0, 1.0, last, 0.0]
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t, f=factors: f[min(t, 3)])
            for t in range(3):
                self.take(optimizer, params, range(t, t + 1))
                schedule.step()
            ends.append(_clones(params))
            self.take(optimizer, params, range(3, 4))
            where = _differs(params, ends[-1])
            _demand(where is None, f"the scheduler has set lr to 0 and a step still moves: {where}")
        moved = _differs(*ends)
        _demand(
            moved is not None, "a step with half the lr, set by a scheduler, is the step with the whole lr"
        )

    def foreach(self) -> None:
        ends = []
        for chosen in (True, False):
            params = _parameters() + _parameters(dtype=torch.float32)
            optimizer = self.factory(params)
            for group in optimizer.param_groups:
                group["foreach"] = chosen
                if "fused" in group:
                    group["fused"] = False
            self.take(optimizer, params, range(20))
            ends.append([param.detach() for param in params])
        where = _differs(ends[0][: len(SHAPES)], ends[1][: len(SHAPES)], 1e-11)
        where = where or _differs(ends[0][len(SHAPES) :], ends[1][len(SHAPES) :], 1e-4)
        _demand(where is None, f"foreach=True does not take the steps of foreach=False: {where}")

    def no_gradient(self) -> None:
        (optimizer, params), (twin, twins) = self.parted(), self.parted()
        self.take(optimizer, params[1:], range(3, 5))
        where = _differs(params[:1], twins[:1])
        _demand(where is None, f"a parameter whose grad is None was moved: {where}")
        _demand(_differs(params[1:], twins[1:]) is not None, "parameters with a gradient were not moved")
        self.take(optimizer, params[:1], range(5, 8))
        self.take(twin, twins[:1], range(5, 8))
        where = _differs(params[:1], twins[:1])
        _demand(where is None, f"a parameter's state was changed while its grad was None: {where}")

    def parted(self) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
        """The first parameter in a group of its own, since counters may belong to groups; after three steps."""
        params = _parameters()
        optimizer = self.factory([{"params": params[:1]}, {"params": params[1:]}])
        self.take(optimizer, params, range(3))
        return optimizer, params

    def kind(self, device: str, dtype: torch.dtype) -> None:
        params = _parameters(device, dtype)
        optimizer = self.factory(params)
        start = float(_loss(params, 0).detach())
        self.take(optimizer, params, range(200))
        end = float(_loss(params, 0).detach())
        _demand(end < 0.9 * start, f"the loss went from {start:.4g} to {end:.4g} in 200 steps")
        for param in params:
            kept = (param.dtype, param.device.type, param.is_leaf, param.requires_grad)
            wanted = (dtype, torch.device(device).type, True, True)
            _demand(kept == wanted, f"a parameter is now {kept}, it was {wanted}")
            for key, value in optimizer.state[param].items():
                if isinstance(value, Tensor) and value.dim():
                    _demand(value.device == param.device, f"{key} is on {value.device}, not {param.device}")

    def quadratic(self, steps: int, reduction: float) -> None:
        params = _parameters()
        self.converges(self.factory(params), params, _loss, steps, reduction)

    def rosenbrock(self, steps: int, reduction: float, lr: float | None) -> None:
        def valley(params: Sequence[Tensor], step: int) -> Tensor:
            x, y = params
            return (1 - x).square() + 100 * (y - x.square()).square()

        params = [nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (-1.2, 1.0)]
        rate = self.lr() / 1000 if lr is None else lr
        self.converges(self.factory([{"params": params, "lr": rate}]), params, valley, steps, reduction)

    def converges(self, optimizer: Any, params: list[Any], loss: Any, steps: int, reduction: float) -> None:
        start = float(loss(params, 0).detach())
        for done in range(0, steps, 100):
            self.take(optimizer, params, range(done, min(done + 100, steps)), loss)
            if float(loss(params, 0).detach()) <= reduction * start:
                return
        end = float(loss(params, 0).detach())
        wanted = f"at most {reduction * start:.4g} was asked for"
        _demand(False, f"the loss went from {start:.4g} to {end:.4g} in {steps} steps; {wanted}")


def _unequal(a: Any, b: Any, path: str = "") -> str | None:
    """Return the first place where two states differ, or None."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
        return None if same else f"{path} differs"
    if isinstance(a, dict) and isinstance(b, dict):
        if set(a) != set(b):
            return f"{path} has the keys {sorted(map(str, a))} and {sorted(map(str, b))}"
        return next((w for key in a if (w := _unequal(a[key], b[key], f"{path}[{key!r}]"))), None)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((w for i, (x, y) in pairs if (w := _unequal(x, y, f"{path}[{i}]"))), None)
    return None if type(a) is type(b) and a == b else f"{path} is {a!r} and {b!r}"
