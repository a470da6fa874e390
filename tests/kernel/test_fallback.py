"""Which parameters keep their layer's rule, and how the others are differentiated where vmap cannot follow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from zoo import fresh, normal

from wideangle.kernel import factors


def whole_batch_kernel(model: nn.Module, x: Tensor) -> Tensor:
    """The kernel from the Jacobian of the whole batch: the model sees no sample alone."""

    def forward(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,)).flatten(1)

    parts = torch.func.jacrev(forward)(dict(model.named_parameters()))
    j = torch.cat([part.flatten(2) for part in parts.values()], dim=2)
    return torch.einsum("icp,jdp->icjd", j, j)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)


class Rounded(Net):
    """Takes one step in single precision, as softmax and norms often do: its gradients are that coarse."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.softmax(self.a(x).float(), dim=1).double())


def test_single_precision_within_a_model_costs_no_rule():
    model, x = fresh(Rounded()), normal(7, 4)
    cache, expected = factors(model, x), whole_batch_kernel(model, x)
    assert cache.fallback == ()
    assert (cache.gram() - expected).norm() < 1e-6 * expected.norm()


def test_double_precision_throughout_is_checked_as_such():
    """A gradient that the rule has wrong in the sixth digit is found where nothing rounds so coarsely."""

    class Slightly(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x) + 1e-6 * F.linear(x, self.a.weight)
            return self.b(torch.tanh(h))

    model, x = fresh(Slightly()), normal(5, 4)
    assert factors(model, x).fallback == ("a.weight", "a.bias")


class Tied(Net):
    """Shares a weight between two layers, of which one or both are called."""

    def __init__(self, both: bool):
        super().__init__()
        self.c, self.both = nn.Linear(4, 4, bias=False), both
        self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) if self.both else x
        return self.b(torch.tanh(self.c(x)))


@pytest.mark.parametrize(("both", "fallback"), [(False, ()), (True, ("a.weight",))])
def test_a_tied_weight_keeps_its_rule_where_one_layer_uses_it(both: bool, fallback: tuple[str, ...]):
    model, x = fresh(Tied(both)), normal(5, 4)
    cache, expected = factors(model, x), whole_batch_kernel(model, x)
    assert cache.fallback == fallback
    assert (cache.gram() - expected).norm() < 1e-10 * expected.norm()


class TiedLater(Tied):
    """Uses the second layer of a tied weight only in a batch that the probe does not hold."""

    def forward(self, x: Tensor) -> Tensor:
        again = self.a(x) * (x[:, :1] > 1) if bool((x[:, 0] > 1).any()) else 0.0
        return self.b(torch.tanh(self.c(x) + again))


def test_a_tied_weight_used_by_another_layer_later_on():
    model, x = fresh(TiedLater(True)), normal(9, 4).clamp(-0.9, 0.9)
    x[7, 0] = 2.0
    cache, expected = factors(model, x), whole_batch_kernel(model, x)
    assert "a.weight" in cache.fallback
    assert (cache.gram() - expected).norm() < 1e-10 * expected.norm()


class OddAlone(nn.Module):
    """Looks at its data, which vmap cannot follow; a sample alone is refused, or served otherwise."""

    def __init__(self, refuses: bool):
        super().__init__()
        self.scale, self.head, self.refuses = nn.Parameter(torch.ones(4)), nn.Linear(4, 3), refuses

    def forward(self, x: Tensor) -> Tensor:
        alone = len(x) == 1 and bool(x.sum() < 1e9)
        if alone and self.refuses:
            raise ValueError("give me company")
        return self.head(torch.tanh(self.scale * x)) * (2.0 if alone else 1.0)


@pytest.mark.parametrize("refuses", [True, False])
def test_a_sample_alone_is_not_taken_for_one_in_company(refuses: bool):
    model, x = fresh(OddAlone(refuses)), normal(5, 4)
    cache, expected = factors(model, x), whole_batch_kernel(model, x)
    assert cache.fallback == ("scale",)
    assert (cache.gram() - expected).norm() < 1e-10 * expected.norm()


class ShiftNorm(nn.Module):
    """Called a norm, with one weight, but not linear in it: the rule for scales is wrong for it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.square()


class GatedRMSNorm(ShiftNorm):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * self.weight * gate


class ChannelNorm(ShiftNorm):
    """Scales the first dimension after the samples, not the last, and writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2.0) * self.weight[:, None]


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = GatedRMSNorm(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x, torch.tanh(x)))


def test_what_only_looks_like_a_known_layer():
    for model, shape, fallback in (
        (nn.Sequential(ShiftNorm(), nn.Linear(4, 2)), (5, 4), "0.weight"),
        (Gated(), (5, 4), "norm.weight"),
        (nn.Sequential(nn.Linear(3, 3), ChannelNorm(), nn.Linear(3, 2)), (5, 4, 3), "1.weight"),
        (nn.Sequential(nn.Linear(3, 4), ChannelNorm(), nn.Linear(4, 2)), (5, 4, 3), "1.weight"),
    ):
        x = normal(*shape)
        cache, expected = factors(fresh(model), x), whole_batch_kernel(model, x)
        assert cache.fallback == (fallback,)
        assert (cache.gram() - expected).norm() < 1e-10 * expected.norm()
