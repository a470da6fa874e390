from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from wideangle.curvature import LossHessian, hessian_product, sharpness
from wideangle.curvature._lanczos import Space, top_pair
from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.targets import loss_function, prepare_targets


def _gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draw(model: nn.Module, seed: int = 0, scale: float = 0.5) -> nn.Module:
    gen = _gen(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=gen, dtype=torch.float64))
    return model.double()


class _Tokens(nn.Module):
    """Attention over token vectors: softmax inside, layer norm, mean over positions."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.block(x).mean(1))


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)))


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def _case(name: str):
    gen = _gen(7)
    y = torch.tensor([0, 1, 2, 1, 0, 2])
    vectors = torch.randn(6, 5, generator=gen, dtype=torch.float64)
    images = torch.randn(6, 1, 5, 5, generator=gen, dtype=torch.float64)
    tokens = torch.randn(6, 3, 4, generator=gen, dtype=torch.float64)
    conv = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(18, 3)
    )
    cases = {
        "tanh": (nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), vectors),
        "relu": (nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), vectors),
        "batchnorm-train": (conv, images),
        "batchnorm-eval": (copy.deepcopy(conv).eval(), images),
        "attention": (_Tokens(), tokens),
        "tied": (_Tied(), torch.tensor([0, 1, 2, 3, 4, 0])),
        "lstm": (_Recurrent(), tokens[..., :3].contiguous()),
    }
    model, x = cases[name]
    return _draw(model), x, y


CASES = ("tanh", "relu", "batchnorm-train", "batchnorm-eval", "attention", "tied", "lstm")


def _dense(model: nn.Module, loss: str, x, y) -> np.ndarray:
    """The Hessian entry by entry from a flat parameter vector: independent of the code under test."""
    model = copy.deepcopy(model)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    shapes = [model.get_parameter(n).shape for n in names]
    flat = torch.cat([model.get_parameter(n).detach().reshape(-1) for n in names])
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def function(vector):
        parts = vector.split([s.numel() for s in shapes])
        state = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        fresh = {n: b.clone() for n, b in buffers.items()}
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            out = torch.func.functional_call(model, {**fresh, **state}, (x,))
        torch.backends.mha.set_fastpath_enabled(True)
        return loss_function(loss)(out, prepare_targets(y, 3 if out.shape[1] == 3 else 5, loss, out.dtype))

    return torch.autograd.functional.hessian(function, flat).numpy()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_products_and_sharpness_equal_the_dense_hessian(name, loss):
    model, x, y = _case(name)
    dense = _dense(model, loss, x, y)
    operator = LossHessian(model, loss, x, y)
    product = operator @ torch.eye(operator.size, dtype=torch.float64)
    assert np.abs(product.numpy() - dense).max() < 1e-12 * max(1, np.abs(dense).max())
    found = sharpness(model, loss, x, y, tolerance=1e-8)
    values = np.linalg.eigvalsh(dense)
    assert values[0] < 0 < values[-1]
    assert found.value == pytest.approx(values[-1], rel=1e-10)
    assert found.residual <= 1e-8 * found.value
    image = dense @ found.vector
    assert np.linalg.norm(image - found.value * found.vector) <= 2e-8 * found.value
    assert np.linalg.norm(found.vector) == pytest.approx(1, abs=1e-12)


def test_largest_is_algebraic_and_magnitude_is_the_other_end():
    # L = -3 a^2 + b^2/2 has the Hessian diag(-6, 1): the algebraic top is 1, the largest magnitude -6.
    model = nn.Linear(2, 1, bias=False).double()

    def loss(output, y):
        weight = output.reshape(-1)
        return -3 * weight[0] ** 2 + weight[1] ** 2 / 2

    x = torch.eye(2, dtype=torch.float64)
    assert sharpness(model, loss, x, None).value == pytest.approx(1, abs=1e-12)
    both = sharpness(model, loss, x, None, which="magnitude")
    assert both.value == pytest.approx(-6, abs=1e-12)
    assert both.critical_step == float("inf")


def test_scipy_finds_the_same_value_and_takes_the_operator():
    from scipy.sparse.linalg import LinearOperator, eigsh

    model, x, y = _case("tanh")
    operator = LossHessian(model, "mse", x, y)
    host = LinearOperator(
        (operator.size, operator.size),
        matvec=lambda v: operator.product(torch.as_tensor(v)).numpy(),
        dtype=float,
    )
    value = eigsh(host, k=1, which="LA", tol=1e-10, v0=np.ones(operator.size))[0][0]
    assert sharpness(model, "mse", x, y, tolerance=1e-8).value == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_model_is_left_as_found(name):
    model, x, y = _case(name)
    mark = next(model.parameters())
    mark.grad = torch.ones_like(mark)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    sharpness(model, "mse", x, y)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(mark.grad, torch.ones_like(mark))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("chunk", [1, 4, 6])
def test_chunks_add_up_to_the_whole(chunk):
    model, x, y = _case("tanh")
    vector = torch.randn(LossHessian(model, "mse", x, y).size, generator=_gen(1), dtype=torch.float64)
    whole = LossHessian(model, "cross-entropy", x, y)
    parts = LossHessian(model, "cross-entropy", x, y, chunk=chunk)
    assert torch.allclose(whole @ vector, parts @ vector, rtol=1e-12, atol=1e-13)
    assert torch.allclose(whole.gradient(), parts.gradient(), rtol=1e-12, atol=1e-13)
    assert parts.loss() == pytest.approx(whole.loss(), rel=1e-13)

    def total(output, target):
        return ((output - target) ** 2).sum()

    target = prepare_targets(y, 3, "mse")
    summed = hessian_product(model, total, x, target, vector, chunk=chunk, reduction="sum")
    assert torch.allclose(summed, 18 * hessian_product(model, "mse", x, y, vector), rtol=1e-12, atol=1e-12)


def test_gradient_is_the_gradient():
    model, x, y = _case("relu")
    loss = loss_function("mse")(model(x), prepare_targets(y, 3, "mse"))
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
    operator = LossHessian(model, "mse", x, y)
    assert torch.allclose(operator.gradient(), expected, rtol=1e-13, atol=1e-15)
    pieces = operator.unflatten(operator.gradient())
    assert {n: tuple(p.shape) for n, p in pieces.items()} == {
        n: tuple(p.shape) for n, p in model.named_parameters()
    }


def test_frozen_and_chosen_parameters_give_the_block():
    model, x, y = _case("tanh")
    dense = _dense(model, "mse", x, y)
    block = LossHessian(model, "mse", x, y, params="2") @ torch.eye(21, dtype=torch.float64)
    assert np.abs(block.numpy() - dense[36:, 36:]).max() < 1e-13
    model[0].requires_grad_(False)
    assert LossHessian(model, "mse", x, y).size == 21
    assert sharpness(model, "mse", x, y, tolerance=1e-8).value == pytest.approx(
        np.linalg.eigvalsh(dense[36:, 36:])[-1], rel=1e-10
    )


def test_float32_model_and_its_float64_computation():
    model, x, y = _case("batchnorm-train")
    exact = np.linalg.eigvalsh(_dense(model, "mse", x, y))[-1]
    small = model.float()
    assert sharpness(small, "mse", x.float(), y).value == pytest.approx(exact, rel=1e-3)
    lifted = sharpness(small, "mse", x.float(), y, dtype=torch.float64, tolerance=1e-8).value
    assert lifted == pytest.approx(exact, rel=1e-5)
    assert small[0].weight.dtype == torch.float32


def test_a_dict_input_and_a_picked_output():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, features):
            return {"logits": self.inner(features)}

    model, x, y = _case("tanh")
    whole = Wrapped(model)
    value = sharpness(whole, "mse", {"features": x}, y, output="logits").value
    assert value == pytest.approx(sharpness(model, "mse", x, y).value, rel=1e-12)
    with pytest.raises(InputError, match="output="):
        sharpness(whole, "mse", {"features": x}, y)


def test_a_warm_start_saves_products_and_still_finds_a_new_top():
    diagonal = torch.cat([torch.tensor([12.0, 10.0]), torch.linspace(0, 1, 500)]).double()
    noise = torch.randn(502, generator=_gen(3), dtype=torch.float64)
    options = {"tolerance": 1e-2, "max_products": 100}
    stale = torch.zeros(502, dtype=torch.float64)
    stale[1] = 1.0
    crossed = top_pair(lambda v: diagonal * v, stale, noise, **options)
    assert crossed.value == pytest.approx(12, rel=1e-3)
    spread = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    noise = torch.randn(2000, generator=_gen(3), dtype=torch.float64)
    cold = top_pair(lambda v: spread * v, noise, noise, tolerance=1e-3, max_products=400)
    warm = top_pair(lambda v: spread * v, cold.vector, noise, tolerance=1e-3, max_products=400)
    assert cold.converged
    assert warm.converged
    assert warm.products <= cold.products
    assert cold.value == pytest.approx(1, abs=2e-3)


def test_the_basis_stays_orthogonal_when_little_is_left_of_an_image():
    gen = _gen(2)
    unit = torch.randn(50, generator=gen, dtype=torch.float64)
    unit /= unit.norm()
    image = 1e9 * unit + torch.randn(50, generator=gen, dtype=torch.float64)
    rest, length = Space(50, unit, 24).grow(unit, image)
    assert length == pytest.approx(float(rest.norm()), rel=1e-12)
    assert abs(float(unit @ rest / rest.norm())) < 1e-14


def test_many_restarts_reach_a_clustered_top():
    clustered = torch.cat([torch.linspace(-3, 0.99, 400), torch.tensor([1.0])]).double()
    noise = torch.randn(401, generator=_gen(5), dtype=torch.float64)
    pair = top_pair(lambda v: clustered * v, noise, noise, tolerance=1e-6, max_products=4000)
    assert pair.products > 60
    assert pair.converged
    assert pair.value == pytest.approx(1, abs=1e-9)


def test_an_unreached_tolerance_is_never_silent():
    model, x, y = _case("attention")
    with pytest.raises(ConvergenceError, match="residual"):
        sharpness(model, "mse", x, y, tolerance=1e-10, max_products=9)
    flagged = sharpness(model, "mse", x, y, tolerance=1e-10, max_products=9, strict=False)
    assert not flagged.converged
    assert flagged.residual > 1e-10 * flagged.value
    assert type(flagged).from_json(flagged.to_json()).value == flagged.value


def test_a_loss_without_curvature_is_zero_not_an_error():
    model = nn.Linear(3, 1).double()
    found = sharpness(model, lambda output, y: output.sum(), torch.ones(2, 3, dtype=torch.float64), None)
    assert found.value == 0
    assert found.converged


def test_a_repeated_call_gives_the_same_bits():
    model, x, y = _case("relu")
    first, second = sharpness(model, "mse", x, y), sharpness(model, "mse", x, y)
    assert first.value == second.value
    assert np.array_equal(first.vector, second.vector)


def test_bad_input_is_refused():
    model, x, y = _case("tanh")
    with pytest.raises(InputError, match="drops units"):
        sharpness(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.1)).double(), "mse", x, y)
    coupled, images, labels = _case("batchnorm-train")
    with pytest.raises(InputError, match="chunk"):
        LossHessian(coupled, "mse", images, labels, chunk=2)
    with pytest.raises(InputError, match="6 samples and y has 2"):
        LossHessian(model, "mse", x, y[:2])
    with pytest.raises(InputError, match="shape"):
        hessian_product(model, "mse", x, y, torch.zeros(3))
    with pytest.raises(InputError, match="start"):
        sharpness(model, "mse", x, y, start=np.zeros(57))
    with pytest.raises(InputError, match="one number"):
        sharpness(model, lambda output, target: output, x, y)
    with pytest.raises(InputError, match="does not depend"):
        sharpness(model, lambda output, target: x.sum(), x, y)
    with pytest.raises(InputError, match="which"):
        sharpness(model, "mse", x, y, which="smallest")
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="loss is nan"):
        sharpness(model, "mse", x, y)
