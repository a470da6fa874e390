"""The conformance kit: sound optimisers pass every case, and each broken one fails the case made for it."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from wideangle.optim import MaSS
from wideangle.testing import OptimizerCase, optimizer_cases

SOUND = {
    "MaSS": (lambda p: MaSS(p, lr=0.1), {}),
    "MaSS restart": (
        lambda p: MaSS(p, lr=0.3, restart=True, weight_decay=1e-4, decoupled_weight_decay=True),
        {},
    ),
    "MaSS capturable": (lambda p: MaSS(p, lr=0.1, capturable=True, foreach=True), {}),
    "MaSS checked": (lambda p: MaSS(p, lr=0.1, check_finite=True, foreach=False), {}),
    "MaSS float64 state": (
        lambda p: MaSS(p, lr=0.1, state_dtype=torch.float64),
        {"dtypes": (torch.bfloat16, torch.float16)},
    ),
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), {}),
    "plain SGD": (lambda p: torch.optim.SGD(p, lr=0.5), {"steps": 20_000}),
    "Adam": (lambda p: torch.optim.Adam(p, lr=0.01), {"rosenbrock_lr": 0.05}),
}
ALL = [(name, case) for name, (make, options) in SOUND.items() for case in optimizer_cases(make, **options)]


@pytest.mark.parametrize(("name", "case"), ALL, ids=str)
def test_sound_optimisers_pass(name: str, case: OptimizerCase):
    case()


class Toy(torch.optim.Optimizer):
    """Gradient descent with momentum, right in all that is asked; each heir breaks one thing."""

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "foreach": False})

    def lr(self, group: dict) -> float:
        return group["lr"]

    def buffer(self, param: Tensor, place: int) -> Tensor:
        return self.state[param].setdefault("buffer", torch.zeros_like(param))

    def loss(self, closure: Any) -> Any:
        with torch.enable_grad():
            return None if closure is None else closure()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.loss(closure)
        for group in self.param_groups:
            for place, param in enumerate(group["params"]):
                if param.grad is not None:
                    buffer = self.buffer(param, place)
                    buffer.mul_(group["momentum"]).add_(param.grad)
                    param.sub_(buffer, alpha=self.lr(group))
        return loss


class ForgetsItsState(Toy):
    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict({**state_dict, "state": {}})


class KeepsItsFirstRate(Toy):
    def lr(self, group: dict) -> float:
        return self.defaults["lr"] if "initial_lr" in group else group["lr"]


class AnotherForeach(Toy):
    def lr(self, group: dict) -> float:
        return group["lr"] * (1.001 if group["foreach"] else 1.0)


class SharesItsState(Toy):
    def buffer(self, param: Tensor, place: int) -> Tensor:
        return (
            self.state.setdefault(place, {}).setdefault("buffer", torch.zeros_like(param)).resize_as_(param)
        )


class IgnoresClosures(Toy):
    def loss(self, closure: Any) -> Any:
        return None


class ClosesWithoutGradient(Toy):
    def loss(self, closure: Any) -> Any:
        return None if closure is None else closure()


class KeepsItsLoss(Toy):
    def loss(self, closure: Any) -> Any:
        super().loss(closure)


class IgnoresGroupRates(Toy):
    def lr(self, group: dict) -> float:
        return self.param_groups[0]["lr"]


class MovesWithoutGradient(Toy):
    def step(self, closure: Any = None) -> Any:
        for param, state in self.state.items():
            param.data.sub_(state["buffer"], alpha=1e-3 * (param.grad is None))
        return super().step(closure)


class DecaysWithoutGradient(Toy):
    """Leaves the weight and lets go of its buffer."""

    def step(self, closure: Any = None) -> Any:
        for param, state in self.state.items():
            if param.grad is None:
                state["buffer"].mul_(0.9)
        return super().step(closure)


class CopiesWithoutState(Toy):
    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "state": defaultdict(dict)}


class Climbs(Toy):
    def lr(self, group: dict) -> float:
        return -group["lr"]


class LosesItsSetting(Toy):
    """Its momentum is not in the saved groups."""

    def state_dict(self) -> dict:
        state = super().state_dict()
        return state | {"param_groups": [group | {"momentum": 0.5} for group in state["param_groups"]]}


class NeedsAClosure(Toy):
    def loss(self, closure: Any) -> Any:
        assert closure is not None, "no closure"
        return super().loss(closure)


BROKEN = {
    ForgetsItsState: {"state", "file", "resume"},
    LosesItsSetting: {"state", "file", "resume"},
    CopiesWithoutState: {"copies"},
    KeepsItsFirstRate: {"scheduler"},
    AnotherForeach: {"foreach"},
    SharesItsState: {"groups"},
    IgnoresGroupRates: {"groups"},
    IgnoresClosures: {"closure"},
    ClosesWithoutGradient: {"closure"},
    KeepsItsLoss: {"closure"},
    MovesWithoutGradient: {"no gradient"},
    DecaysWithoutGradient: {"no gradient"},
    Climbs: {"dtype float32", "dtype float64", "quadratic", "rosenbrock"},
}


def failures(make: Any, only: str | None = None, **options: Any) -> dict[str, str]:
    found = {}
    for case in optimizer_cases(make, **options):
        try:
            if only in (None, case.name):
                case()
        except AssertionError as error:
            found[case.name] = str(error)
    return found


def test_the_toy_passes_as_long_as_nothing_is_broken():
    assert failures(Toy) == {}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
def test_each_broken_optimiser_fails_the_case_made_for_it(broken):
    found = set(failures(broken, steps=2000))
    assert found >= BROKEN[broken]
    if broken is not SharesItsState:  # whose state then fits nothing else either
        assert found == BROKEN[broken]


def test_a_failure_says_what_is_wrong():
    assert (
        "a step still moves: parameter 0 of shape (4, 3) differs by"
        in failures(KeepsItsFirstRate, "scheduler")["scheduler"]
    )
    assert "did not call the closure" in failures(IgnoresClosures, "closure")["closure"]
    assert "['state'] has the keys ['0', '1', '2', '3'] and []" in failures(ForgetsItsState, "state")["state"]


def test_optimisers_that_need_a_closure_get_one():
    assert failures(NeedsAClosure, needs_closure=True) == {}
    assert "no closure" in failures(NeedsAClosure, "state")["state"]


def test_the_foreach_case_is_there_only_where_the_option_is():
    def names(make: Any) -> set[str]:
        return {case.name for case in optimizer_cases(make)}

    assert names(Toy) - names(lambda p: torch.optim.LBFGS([p[0]])) == {"foreach"}
    assert not any(name.startswith("device cpu") for name in names(Toy))
    assert "device cpu" in {case.name for case in optimizer_cases(Toy, dtypes=(torch.float64,))}
    with pytest.raises(ValueError, match="reduction 2"):
        optimizer_cases(Toy, reduction=2.0)


def test_the_kit_needs_no_test_framework():
    code = "import sys, wideangle.testing; print('pytest' in sys.modules, 'wideangle.optim' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
