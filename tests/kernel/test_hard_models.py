"""Models built to make a hooked kernel silently wrong, or to be left changed; each once went wrong or could."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import fresh, normal, tokens

from wideangle.errors import InputError, NumericsError
from wideangle.kernel import factors, tangent_kernel
from wideangle.kernel.lanczos import lanczos_eigenpairs, top_eigenpairs


def whole_batch_kernel(model: nn.Module, x: Tensor) -> Tensor:
    """The kernel from plain backward passes through the whole batch: no per-sample call anywhere."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    z = model(x).reshape(len(x), -1)
    rows = []
    for value in z.flatten():
        parts = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for p, g in zip(wanted, parts, strict=True)
                ]
            )
        )
    j = torch.stack(rows)
    return (j @ j.T).view(*z.shape, *z.shape)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class RegisteredTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class GatedReuse(Net):
    """Uses a weight a second time, but only for samples the probe does not hold."""

    def forward(self, x: Tensor) -> Tensor:
        extra = F.linear(x, self.a.weight) * (x[:, :1] > 1.0)
        return self.b(torch.tanh(self.a(x) + extra))


class Sorted(Net):
    """Works on the samples in another order than they came."""

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return super().forward(x[order])[order.argsort()]


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.mix(x.transpose(0, 1)))
        return self.head(h[0] * (x[:, 0, :1] > 0))


class Checkpointed(Net):
    def __init__(self, reentrant: bool = False):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.a, x, use_reentrant=self.reentrant)
        return self.b(torch.tanh(h))


class DifferentiatesInside(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        energy = torch.tanh(self.a(x)).square().sum()
        force = torch.autograd.grad(energy, x, create_graph=True)[0]
        return self.b(force)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.aux, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(2, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0][:, -1]


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        x[x < 0] = 0
        x.sub_(0.1)
        return super().forward(x)


class Squeezed(Net):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class NormWithoutBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.LayerNorm(4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(x)))


def _rows(n: int = 9) -> Tensor:
    x = normal(n, 4)
    x[4:, 0] += 2.0
    x[:4, 0] = torch.tensor([-3.0, -2.0, -1.0, 0.0], dtype=x.dtype)
    return x


CASES = {
    "registered twice": (RegisteredTwice, _rows),
    "gated reuse": (GatedReuse, _rows),
    "sorted": (Sorted, lambda: torch.cat([_rows()[:4], _rows()[4:].flip(0)])),
    "sequence first": (SequenceFirst, lambda: normal(4, 4, 3)),
    "checkpoint": (Checkpointed, lambda: normal(4, 4)),
    "differentiates inside": (DifferentiatesInside, lambda: normal(5, 4)),
    "unused parameters": (Unused, lambda: normal(4, 5, 3)),
    "norm without bias": (NormWithoutBias, _rows),
    "spectral norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)),
        _rows,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_kernel_is_right_and_the_model_untouched(name: str):
    build, data = CASES[name]
    model, x = fresh(build()), data()
    objects, values = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    expected = whole_batch_kernel(model, x)
    for _ in range(2):
        found = tangent_kernel(model, x)
        assert (found - expected).norm() < 1e-10 * expected.norm()
    v = normal(*expected.shape[:2])
    product = torch.einsum("icjd,jd->ic", expected, v)
    assert (factors(model, x) @ v - product).norm() < 1e-10 * product.norm()
    assert all(objects[key] is parameter for key, parameter in model.named_parameters())
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    assert all(torch.equal(values[key], value) for key, value in model.state_dict().items())


def test_both_kinds_of_checkpoint_give_the_same():
    kinds = [tangent_kernel(fresh(Checkpointed(r)), normal(4, 4).requires_grad_()) for r in (False, True)]
    assert torch.equal(*kinds)


def test_inputs_are_left_as_they_are():
    model, x = fresh(InPlace()), normal(6, 4)
    before = x.clone()
    found = tangent_kernel(model, x)
    assert torch.equal(x, before)
    expected = whole_batch_kernel(model, x.clone())
    assert (found - expected).norm() < 1e-10 * expected.norm()


def test_chunks_of_one_left_over_sample_do_not_arise():
    model, x = fresh(Squeezed()), normal(65, 4)
    expected = whole_batch_kernel(model, x)
    assert (tangent_kernel(model, x) - expected).norm() < 1e-10 * expected.norm()


def test_embedding_with_many_positions_and_few_tokens():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 3, padding_idx=0), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embed(x)).sum(1))

    model, x = fresh(Bag()), tokens(8, 40)
    expected = whole_batch_kernel(model, x)
    assert (tangent_kernel(model, x) - expected).norm() < 1e-10 * expected.norm()
    trace = torch.einsum("icjc->ij", expected)
    assert (tangent_kernel(model, x, outputs="trace") - trace).norm() < 1e-10 * trace.norm()


def test_integer_vectors_are_taken_as_numbers():
    cache = factors(fresh(Net()), normal(5, 4))
    labels = torch.eye(3, dtype=torch.long)[torch.tensor([0, 1, 2, 0, 1])]
    assert torch.equal(cache @ labels, cache @ labels.double())
    assert torch.equal(cache @ labels.numpy().astype(float), cache @ labels.double())


def test_tied_names_select_the_shared_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model, x = fresh(model), normal(5, 4)
    both = tangent_kernel(model, x, params=["0.weight", "2.bias"])
    assert (tangent_kernel(model, x, params="2") - both).norm() < 1e-10 * both.norm()


def test_cross_products_of_factors_that_do_not_belong_together():
    model, x = fresh(Net()), normal(5, 4)
    with pytest.raises(InputError, match="do not belong together"):
        factors(model, x, params="a").gram(factors(model, x))
    with pytest.raises(InputError, match="do not belong together"):
        factors(model, x, outputs=0).gram(factors(model, x, outputs="sum"))


def test_cross_products_where_the_methods_differ():
    model = fresh(nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 9, 3)))
    x = normal(40, 2, 3, 3)
    expected = whole_batch_kernel(model, x)
    for forced in ("factorised", "per-sample"):
        few, many = factors(model, x[:2]), factors(model, x)
        from dataclasses import replace

        from wideangle.kernel._factors import collect

        setting = replace(few._setting, methods={**few._setting.methods, "0": forced})
        cross = collect(setting, [x[:2]]).gram(many)
        assert (cross - expected[:2]).norm() < 1e-10 * expected[:2].norm()
        back = many.gram(collect(setting, [x[:2]]))
        assert (back - expected[:, :, :2]).norm() < 1e-10 * expected[:, :, :2].norm()


def test_variable_lengths_in_a_loader():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.mix(self.embed(x))).mean(1))

    model = fresh(Mean())
    batches = [tokens(2, 1), tokens(3, 5, seed=2), tokens(2, 3, seed=3)]
    from wideangle.kernel import jacobian_kernel

    expected = jacobian_kernel(model, batches)
    assert (tangent_kernel(model, batches) - expected).norm() < 1e-10 * expected.norm()


def test_inference_mode_and_half_precision():
    model, x = fresh(Net()), normal(5, 4)
    expected = tangent_kernel(model, x)
    with torch.inference_mode():
        assert torch.equal(tangent_kernel(model, x.clone()), expected)
    rough = tangent_kernel(copy.deepcopy(model).bfloat16(), x.bfloat16())
    assert (rough - expected).norm() < 0.1 * expected.norm()


def test_multiple_eigenvalues_are_counted():
    scale = torch.tensor([3.0, 3, 3, 2.9, *np.linspace(1, 2, 40)], dtype=torch.float64)
    found = lanczos_eigenpairs(lambda v: scale * v, len(scale), k=5, tolerance=1e-8)
    assert np.allclose(found.values, [3, 3, 3, 2.9, 2.0])
    cache = factors(fresh(Net()), normal(20, 4), params="b")
    full = torch.linalg.eigvalsh(cache.gram().reshape(60, 60)).flip(0)
    assert np.allclose(top_eigenpairs(cache, 6, tolerance=1e-8).values, full[:6])


class Causal(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cumsum(0))


class Standardised(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - x.mean(0)) / x.std(0))


class Hidden(Net):
    def __init__(self):
        super().__init__()
        self.kept = [self.a.weight]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(x, self.kept[0])[:, :3]


def test_models_without_a_kernel_are_refused():
    x = normal(6, 4)
    with pytest.raises(InputError, match="batch-coupled"):
        tangent_kernel(fresh(Causal()), x)
    with pytest.raises(InputError, match="batch-coupled"):
        tangent_kernel(fresh(Standardised()), x)
    hidden = Hidden()
    with torch.no_grad():
        for parameter in hidden.parameters():
            parameter.copy_(torch.ones_like(parameter))
    with pytest.raises(InputError, match="through a reference that is no attribute"):
        tangent_kernel(hidden, x.float())
    with pytest.raises(InputError, match="no running statistics"):
        tangent_kernel(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(), x.float()
        )
    limited = nn.Embedding(7, 3, max_norm=0.5)
    before = limited.weight.clone()
    with pytest.raises(InputError, match="max_norm"):
        tangent_kernel(limited, tokens(4, 2))
    assert torch.equal(limited.weight, before)
    with pytest.raises(InputError, match="is complex"):
        tangent_kernel(nn.Linear(4, 2, dtype=torch.complex64), x.to(torch.complex64))


def test_arguments_are_checked():
    model, x = fresh(Net()), normal(5, 4)
    with pytest.raises(InputError, match="holds 'flag', a bool"):
        tangent_kernel(model, {"x": x, "flag": True})
    for limit in ("1GB", float("inf"), float("nan"), -1, True):
        with pytest.raises(InputError, match="positive number of bytes"):
            tangent_kernel(model, x, max_memory=limit)
    with pytest.raises(InputError, match="params is a int"):
        tangent_kernel(model, x, params=3)
    with pytest.raises(InputError, match="need a floating-point type"):
        tangent_kernel(model, x, dtype=torch.long)
    with pytest.raises(InputError, match="cannot take this data"):
        tangent_kernel(model, x, normal(3, 5))
    with pytest.raises(NumericsError, match="overflows"):
        tangent_kernel(nn.Linear(4, 1).double(), x * 1e200)
    with pytest.raises(InputError, match="cannot multiply a kernel of 5 samples"):
        factors(model, x) @ torch.ones(4)
