"""The operator against the matrix, cached and streamed, and kernels of some or random outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn
from zoo import MODELS, DictInput, fresh, normal, tokens

from wideangle.errors import InputError
from wideangle.kernel import (
    TangentKernel,
    condition_interval,
    factors,
    random_outputs,
    tangent_kernel,
    top_eigenpairs,
)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", ["cached", "streamed"])
@pytest.mark.parametrize("name", MODELS)
def test_products_diagonal_and_trace_are_those_of_the_matrix(name: str, method):
    build, data = MODELS[name]
    model, x = fresh(build()), data()
    K = tangent_kernel(model, x)
    n, outputs = K.shape[:2]
    matrix = K.reshape(n * outputs, -1)
    op = TangentKernel(model, x, method=method)
    assert op.shape == tuple(matrix.shape)
    v = normal(n * outputs, 3)
    for shaped in (v, v[:, 0], v[:, 1].reshape(n, outputs)):
        expected = (matrix @ shaped.reshape(n * outputs, -1)).reshape(shaped.shape)
        assert relative(op @ shaped, expected) < 1e-10
    assert relative(op.diagonal(), matrix.diagonal().reshape(n, outputs)) < 1e-10
    assert op.trace() == pytest.approx(float(matrix.trace()), rel=1e-10)
    assert relative(op.to_dense(), matrix) < 1e-10


def test_small_chunks_and_a_model_left_as_found():
    build, data = MODELS["mlp"]
    model, x = fresh(build()), data()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole, small = (TangentKernel(model, x, method="streamed") for _ in range(2))
    small._engine.size = 2  # type: ignore[union-attr]
    v = normal(whole.shape[0])
    assert relative(small @ v, whole @ v) < 1e-12
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_scipy_takes_it():
    build, data = MODELS["mlp"]
    model, x = fresh(build()), data()
    op = TangentKernel(model, x, method="streamed")
    found = eigsh(op.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(op.to_dense())[-2:]
    assert np.sort(found) == pytest.approx(expected.numpy(), rel=1e-8)


def test_the_cache_is_taken_where_it_fits():
    model, x = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3)), torch.rand(50, 20)
    assert TangentKernel(model, x).method == "cached"
    lean = TangentKernel(model, x, max_memory=30_000)
    assert (lean.method, lean.nbytes) == ("streamed", 0)
    with pytest.raises(InputError, match=r"more than max_memory = .*method='streamed'"):
        TangentKernel(model, x, max_memory=25_000, method="cached")
    with pytest.raises(InputError, match="gram_to_disk"):
        lean.to_dense()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fast"}, "method is 'fast'; choose"),
        ({"group": object()}, "needs torch.distributed"),
        ({"outputs": [3]}, "outputs=3, but the model has 3 outputs"),
        ({"outputs": []}, "choose 'full'"),
        ({"outputs": torch.ones(2, 5)}, r"shape \(2, 5\).*\(R, 3\)"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        TangentKernel(nn.Linear(4, 3), torch.ones(5, 4), **options)
    op = TangentKernel(nn.Linear(4, 3), torch.ones(5, 4))
    with pytest.raises(InputError, match="cannot multiply a kernel of 5 samples and 3 outputs"):
        op @ torch.ones(14)


def test_dict_inputs():
    model, x = fresh(DictInput()), {"ids": tokens(6, 4), "mask": normal(6, 4).sign()}
    op = TangentKernel(model, x, method="streamed", output="logits")
    assert relative(op @ torch.ones(op.shape[0], dtype=torch.float64), op.to_dense().sum(1)) < 1e-10


def test_some_outputs_and_combinations_of_them():
    build, data = MODELS["conv wide"]
    model, x = fresh(build()), data()
    K = tangent_kernel(model, x)
    picked = tangent_kernel(model, x, outputs=[2, 0])
    assert relative(picked, K[:, [2, 0]][:, :, :, [2, 0]]) < 1e-10
    rows = normal(4, K.shape[1])
    mixed = tangent_kernel(model, x, outputs=rows)
    assert relative(mixed, torch.einsum("rc,icjd,sd->irjs", rows, K, rows)) < 1e-10
    op = TangentKernel(model, x, outputs=rows, method="streamed")
    assert relative(op.to_dense(), mixed.reshape(op.shape)) < 1e-10


def test_random_outputs_give_the_trace_kernel_in_the_mean():
    build, data = MODELS["mlp"]
    model, x = fresh(build()), data()
    exact = tangent_kernel(model, x, outputs="trace")
    count = factors(model, x).outputs
    draws = [
        factors(model, x, outputs=random_outputs(count, 4, seed)).gram(kind="trace") for seed in range(200)
    ]
    spread = torch.stack(draws).std(0) / len(draws) ** 0.5
    assert bool(((torch.stack(draws).mean(0) - exact).abs() < 5 * spread + 1e-12).all())


def test_vocabularies_are_not_looped_over():
    model = nn.Linear(3, 3000)
    with pytest.raises(InputError, match=r"3000 outputs a sample.*random_outputs\(3000, 32\)"):
        tangent_kernel(model, torch.ones(2, 3), outputs="trace")
    assert tangent_kernel(model, torch.ones(2, 3), outputs=[0, 2999]).shape == (2, 2, 2, 2)


@pytest.mark.parametrize("method", ["cached", "streamed"])
def test_eigenpairs_and_condition_of_the_operator(method):
    build, data = MODELS["mlp"]
    model, x = fresh(build()), data()
    op = TangentKernel(model, x, method=method)
    values = torch.linalg.eigvalsh(op.to_dense()).flip(0)
    found = top_eigenpairs(op, 3, tolerance=1e-8)
    assert found.values == pytest.approx(values[:3].numpy(), rel=1e-7)
    again = top_eigenpairs(op, 3, start=found, tolerance=1e-6)
    assert again.products <= 2
    assert again.values == pytest.approx(values[:3].numpy(), rel=1e-5)
    whole = condition_interval(op)
    assert whole.smallest_low <= max(float(values[-1]), 0.0) <= whole.smallest_high
    lean = condition_interval(op, dense_limit=4)
    assert (lean.method, lean.smallest_low) == ("Lanczos bound", 0.0)
    assert lean.smallest_high >= float(values[-1])


class _Cube(torch.autograd.Function):
    """A layer of the user's with a backward pass that can be differentiated, and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class NoForwardMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.two(_Cube.apply(self.one(x)))


def test_products_where_forward_mode_is_missing():
    model, x = fresh(NoForwardMode()), normal(7, 4)
    op = TangentKernel(model, x, method="streamed")
    v = normal(op.shape[0])
    assert relative(op @ v, op.to_dense() @ v) < 1e-10


def test_a_model_on_two_devices_is_refused():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3, device="meta"))
    with pytest.raises(InputError, match=r"several devices \('0.bias' on cpu, '1.bias' on meta\)"):
        TangentKernel(model, torch.ones(3, 4))


def test_under_inference_mode():
    build, data = MODELS["mlp"]
    model, x = fresh(build()), data()
    op = TangentKernel(model, x, method="streamed")
    expected, v = op.to_dense(), normal(op.shape[0])
    with torch.inference_mode():
        w = v + 0.0
        assert relative(op.diagonal().reshape(-1), expected.diagonal()) < 1e-10
        assert relative(op @ w, expected @ v) < 1e-10
        assert relative(TangentKernel(model, x) @ w, expected @ v) < 1e-10
        made = nn.Linear(4, 3).double()
    with pytest.raises(InputError, match="made in inference mode"):
        TangentKernel(made, x)


class PaddedTie(nn.Module):
    """The embedding's padding row gets no gradient from the lookup, but some from the head it is tied to."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5, padding_idx=0)

    def forward(self, x):
        return torch.tanh(self.embed(x)).sum(1) @ self.embed.weight.T


def test_a_tied_padding_row():
    model, x = fresh(PaddedTie()), tokens(6, 4)
    assert bool((x == 0).any())
    op = TangentKernel(model, x, method="streamed")
    v = normal(op.shape[0])
    assert relative(op @ v, op.to_dense() @ v) < 1e-10
    assert relative(TangentKernel(model, x, method="cached") @ v, op.to_dense() @ v) < 1e-10


class SometimesBare(nn.Module):
    """Uses a layer's weight by itself, in sequences of length 4 only."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.one(x))
        bare = nn.functional.linear(h, self.two.weight)
        return self.two(h) if x.dim() < 3 else bare.mean(1)


def test_a_layer_used_otherwise_in_a_later_batch():
    model = fresh(SometimesBare())
    data = [normal(6, 4), normal(5, 3, 4)]
    op = TangentKernel(model, data, method="streamed")
    assert relative(op.diagonal().reshape(-1), op.to_dense().diagonal()) < 1e-10
    v = normal(op.shape[0])
    assert relative(op @ v, op.to_dense() @ v) < 1e-10


def test_the_trace_choice_gives_the_full_operator():
    build, data = MODELS["mlp"]
    model, x = fresh(build()), data()
    op = TangentKernel(model, x, outputs="trace", method="streamed")
    assert op.to_dense().shape == op.shape


@pytest.mark.parametrize("v", ["abc", None, torch.ones(15, device="meta"), torch.ones(15) * 1j])
def test_what_cannot_be_multiplied(v):
    op = TangentKernel(nn.Linear(4, 3), torch.ones(5, 4))
    with pytest.raises(InputError, match="cannot multiply a kernel with"):
        op @ v


@pytest.mark.parametrize(
    "outputs",
    [torch.tensor(1), [[1, 0, 0]], [1.5], [True, False, True], torch.ones(0, 3), torch.ones(3) > 0, 1j],
)
def test_outputs_that_name_none(outputs):
    with pytest.raises(InputError, match="outputs is"):
        TangentKernel(nn.Linear(4, 3), torch.ones(5, 4), outputs=outputs)


def test_outputs_from_numpy():
    model, x = fresh(nn.Linear(4, 3)), normal(5, 4)
    assert TangentKernel(model, x, outputs=np.array([0, 2])).outputs == 2
    assert TangentKernel(model, x, outputs=np.int64(1)).outputs == 1


@pytest.mark.parametrize("model", [None, nn.Linear(4, 3, device="meta")])
def test_models_that_are_none(model):
    with pytest.raises(InputError, match="the model"):
        TangentKernel(model, torch.ones(5, 4))


@pytest.mark.parametrize("k", [0, 16, 1.5, 2.0, True, None, "3"])
def test_counts_that_are_none(k):
    op = TangentKernel(nn.Linear(4, 3), torch.ones(5, 4))
    with pytest.raises(InputError, match="must be a whole number between 1 and the size"):
        top_eigenpairs(op, k)


def test_an_operator_of_rank_one():
    from wideangle.kernel import lanczos_eigenpairs

    top = torch.zeros(50, dtype=torch.float64)
    top[0] = 1.0
    found = lanczos_eigenpairs(lambda v: top * (top @ v), 50, k=2)
    assert found.values == pytest.approx([1.0, 0.0], abs=1e-12)
    with pytest.raises(InputError, match="op is a Tensor"):
        top_eigenpairs(torch.eye(4), 1)
