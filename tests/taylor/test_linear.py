from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from wideangle.errors import InputError
from wideangle.losses import hessian_factor
from wideangle.taylor import Linearized, linearize


def _gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draw(model: nn.Module, seed: int = 0) -> nn.Module:
    gen = _gen(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=gen, dtype=torch.float64))
    return model.double()


class _Square(torch.autograd.Function):
    """An old-style function: no forward-mode rule, no functorch support."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        return 2 * x * grads[0]


class _SquareLayer(nn.Module):
    def forward(self, x):
        return _Square.apply(x)


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)))


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.block(x).mean(1))


def _case(name: str) -> tuple[nn.Module, torch.Tensor]:
    gen = _gen(7)
    vectors = torch.randn(5, 4, generator=gen, dtype=torch.float64)
    images = torch.randn(5, 1, 5, 5, generator=gen, dtype=torch.float64)
    tokens = torch.randn(5, 3, 4, generator=gen, dtype=torch.float64)
    conv = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(18, 2)
    )
    cases = {
        "tanh": (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), vectors),
        "relu-inplace": (nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)), vectors),
        "batchnorm-train": (conv, images),
        "batchnorm-eval": (copy.deepcopy(conv).eval(), images),
        "no-forward-mode": (nn.Sequential(nn.Linear(4, 6), _SquareLayer(), nn.Linear(6, 2)), vectors),
        "tied": (_Tied(), torch.tensor([0, 4, 2, 1, 3])),
        "called-twice": (_Twice(), vectors),
        "attention-eval": (_Attention().eval(), tokens),
        "attention-train": (_Attention(), tokens),
    }
    model, x = cases[name]
    return _draw(model), x


CASES = (
    "tanh",
    "relu-inplace",
    "batchnorm-train",
    "batchnorm-eval",
    "no-forward-mode",
    "tied",
    "called-twice",
    "attention-eval",
    "attention-train",
)


def _jacobian(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One backward pass an output, on a copy: rows are outputs, columns the flat parameters."""
    model = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    out = model(x).reshape(-1)
    rows = [torch.autograd.grad(o, parameters, retain_graph=True) for o in out]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def _flat(parameters) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def _move(expansion: Linearized, seed: int = 3) -> torch.Tensor:
    gen = _gen(seed)
    with torch.no_grad():
        for p in expansion.parameters():
            p.add_(torch.randn(p.shape, generator=gen, dtype=torch.float64))
    return _flat(expansion.parameters())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", ["auto", "reverse"])
def test_value_and_gradient_are_those_of_the_explicit_jacobian(name, mode):
    model, x = _case(name)
    expansion = linearize(model, mode=mode)
    value = copy.deepcopy(model)(x).detach()
    assert torch.allclose(expansion(x), value, rtol=0, atol=1e-14)
    start = _flat(model.parameters())
    moved = _move(expansion)
    jacobian = _jacobian(model, x)
    out = expansion(x)
    expected = value + (jacobian @ (moved - start)).view_as(value)
    assert torch.allclose(out, expected, rtol=1e-12, atol=1e-12)
    pull = torch.randn(out.shape, generator=_gen(5), dtype=torch.float64)
    gradient = torch.autograd.grad((out * pull).sum(), list(expansion.parameters()))
    assert torch.allclose(_flat(gradient), jacobian.T @ pull.reshape(-1), rtol=1e-12, atol=1e-12)


def test_the_fall_back_is_taken_only_where_forward_mode_is_missing():
    for name, expected in (("tanh", "auto"), ("no-forward-mode", "reverse")):
        model, x = _case(name)
        expansion = linearize(model)
        expansion(x)
        assert expansion._mode == expected
    model, x = _case("no-forward-mode")
    with pytest.raises(RuntimeError):
        linearize(model, mode="forward")(x)


@pytest.mark.parametrize("name", CASES)
def test_it_is_linear_in_the_parameters(name):
    model, x = _case(name)
    expansion = linearize(model)
    start, value = _flat(model.parameters()), expansion(x).detach()
    moved = _move(expansion)
    first = expansion(x).detach() - value
    with torch.no_grad():
        nn.utils.vector_to_parameters(start - 2.5 * (moved - start), expansion.parameters())
    second = expansion(x).detach() - value
    assert float(first.abs().max()) > 1e-2
    assert torch.allclose(second, -2.5 * first, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["tanh", "batchnorm-train", "tied", "attention-eval"])
def test_gradient_descent_follows_the_closed_form(name):
    """r_t = (I - eta c K)^t r_0, the linear algebra done by numpy on an explicit Jacobian."""
    import numpy as np

    model, x = _case(name)
    outputs = 5 if name == "tied" else 2
    target = torch.randn(5, outputs, generator=_gen(9), dtype=torch.float64)
    jacobian = _jacobian(model, x).numpy()
    kernel = jacobian @ jacobian.T
    constant = hessian_factor("mse", 5, outputs)
    eta = 1.5 / (constant * np.linalg.eigvalsh(kernel)[-1])
    residual = (copy.deepcopy(model)(x) - target).detach().numpy().reshape(-1)
    expansion = linearize(model)
    optimizer = torch.optim.SGD(expansion.parameters(), lr=eta)
    propagator = np.eye(len(kernel)) - eta * constant * kernel
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.mse_loss(expansion(x), target).backward()
        optimizer.step()
        residual = propagator @ residual
    found = (expansion(x) - target).detach().numpy().reshape(-1)
    assert np.abs(found - residual).max() < 1e-10
    assert np.linalg.norm(found) < 0.9 * np.linalg.norm((copy.deepcopy(model)(x) - target).detach().numpy())


def test_the_step_beyond_the_critical_one_diverges_and_below_it_does_not():
    model, x = _case("tanh")
    target = torch.zeros(5, 2, dtype=torch.float64)
    jacobian = _jacobian(model, x)
    top = float(torch.linalg.eigvalsh(jacobian @ jacobian.T)[-1])
    critical = 2 / (hessian_factor("mse", 5, 2) * top)
    losses = {}
    for factor in (0.9, 1.1):
        expansion = linearize(model)
        optimizer = torch.optim.SGD(expansion.parameters(), lr=factor * critical)
        history = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(expansion(x), target)
            history.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
        losses[factor] = history
    assert losses[0.9][-1] < losses[0.9][0]
    assert losses[1.1][-1] > 10 * losses[1.1][0]


@pytest.mark.parametrize("name", CASES)
def test_the_model_is_left_as_found(name):
    model, x = _case(name)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expansion = linearize(model)
    _move(expansion)
    expansion(x).sum().backward()
    expansion.eval()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(next(model.parameters()).grad, torch.ones_like(next(model.parameters())))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert model.training == ("eval" not in name)


def test_later_training_of_the_model_does_not_reach_the_expansion():
    model, x = _case("tanh")
    expansion = linearize(model)
    before = expansion(x).detach()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    assert torch.equal(expansion(x), before)


def test_names_state_and_types():
    model, x = _case("tied")
    expansion = linearize(model)
    assert [n for n, _ in expansion.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert expansion._origin.embed.weight is expansion._origin.head.weight
    _move(expansion)
    twin = linearize(_draw(_Tied(), seed=4))
    twin.load_state_dict(expansion.state_dict())
    assert torch.equal(twin(x), expansion(x))
    small = copy.deepcopy(expansion).float()
    assert small(x).dtype == torch.float32
    assert torch.allclose(small(x).double(), expansion(x), atol=1e-4)
    again = pickle.loads(pickle.dumps(expansion))
    assert torch.equal(again(x), expansion(x))


def test_train_and_eval_switch_the_layers():
    model, x = _case("batchnorm-train")
    expansion = linearize(model)
    assert expansion.training
    expansion.eval()
    assert torch.allclose(expansion(x), copy.deepcopy(model).eval()(x), atol=1e-14)
    expansion.train()
    assert torch.allclose(expansion(x), copy.deepcopy(model)(x), atol=1e-14)
    expansion.eval()
    assert torch.allclose(expansion(x), copy.deepcopy(model).eval()(x), atol=1e-14)


def test_frozen_parameters_are_constants():
    model, x = _case("tanh")
    model[0].requires_grad_(False)
    expansion = linearize(model)
    assert [n for n, _ in expansion.named_parameters()] == ["2.weight", "2.bias"]
    moved = _move(expansion)
    expected = model(x).detach().reshape(-1) + _jacobian(model, x) @ (moved - _flat(model[2].parameters()))
    assert torch.allclose(expansion(x).reshape(-1), expected, atol=1e-12)
    assert [n for n, _ in linearize(_case("tanh")[0], params="2.bias").named_parameters()] == ["2.bias"]


def test_no_gradient_mode_works_and_keeps_no_graph():
    for name in ("tanh", "no-forward-mode"):
        model, x = _case(name)
        expansion = linearize(model)
        _move(expansion)
        expected = expansion(x).detach()
        with torch.no_grad():
            value = expansion(x)
        assert not value.requires_grad
        assert torch.equal(value, expected)


def test_an_optimiser_of_any_kind_trains_it():
    model, x = _case("relu-inplace")
    expansion = linearize(model)
    target = torch.zeros(5, 2, dtype=torch.float64)
    optimizer = torch.optim.Adam(expansion.parameters(), lr=0.05)
    first = None
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(expansion(x), target)
        first = first or float(loss.detach())
        loss.backward()
        optimizer.step()
    assert first is not None
    assert float(loss.detach()) < 0.01 * first


def test_bad_input_is_refused():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2).double()

        def forward(self, x):
            return self.layer(x), x

    x = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="output=0"):
        linearize(Pair())(x)
    assert linearize(Pair(), output=0)(x).shape == (3, 2)
    with pytest.raises(InputError, match="mode"):
        linearize(Pair(), mode="sideways")
    with pytest.raises(InputError, match="no parameter"):
        linearize(nn.Tanh())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linearize(Pair(), output=0)(x[:, :2])
    clean = nn.Linear(2, 2)
    clean.note = clean.weight * 2
    with pytest.raises(InputError, match="copied"):
        linearize(clean)
