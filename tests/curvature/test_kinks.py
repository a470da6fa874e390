"""Which functions have kinks: against slopes on both sides, in layers, and what is no kink of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from wideangle import nets
from wideangle.curvature import hessian_bound, hessian_norm
from wideangle.curvature._trace import kinks
from wideangle.errors import InputError
from wideangle.seeds import generator


class Then(nn.Module):
    """A linear layer and a function of what it returns."""

    def __init__(self, function, rows: int = 4):
        super().__init__()
        self.first, self.function = nn.Linear(4, rows).double(), function

    def forward(self, x):
        return self.function(self.first(x))


X = torch.randn(1, 4, generator=generator(0, "x"), dtype=torch.float64)

ELEMENTWISE = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": functional.gelu,
    "gelu tanh": nn.GELU("tanh"),
    "silu": functional.silu,
    "silu in place": nn.SiLU(inplace=True),
    "mish": functional.mish,
    "softplus": functional.softplus,
    "logsigmoid": functional.logsigmoid,
    "tanhshrink": functional.tanhshrink,
    "softsign": functional.softsign,
    "erf": torch.erf,
    "elu": nn.ELU(),
    "elu 1 in place": nn.ELU(1.0, inplace=True),
    "elu 1.5": nn.ELU(1.5),
    "elu 0.5": lambda z: functional.elu(z, 0.5),
    "elu_ 2": lambda z: functional.elu_(z.clone(), 2.0),
    "celu": nn.CELU(),
    "celu 2": nn.CELU(2.0),
    "selu": nn.SELU(),
    "relu": torch.relu,
    "relu method": lambda z: z.relu(),
    "relu in place": nn.ReLU(inplace=True),
    "relu operator": lambda z: torch.ops.aten.relu.default(z),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(),
    "leaky_relu 1": nn.LeakyReLU(1.0),
    "leaky_relu 0.5": lambda z: functional.leaky_relu(z, 0.5),
    "rrelu": nn.RReLU(),
    "threshold": nn.Threshold(0.5, 0.0),
    "functional threshold": lambda z: functional.threshold(z, 0.0, 0.0),
    "hardtanh": nn.Hardtanh(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardshrink": nn.Hardshrink(),
    "softshrink": nn.Softshrink(),
    "clamp min": lambda z: z.clamp(min=0),
    "clamp": lambda z: torch.clamp(z, -1, 1),
    "clip": lambda z: torch.clip(z, -1, 1),
    "clamp_min": lambda z: torch.clamp_min(z, 0),
    "clamp_ max": lambda z: z.clone().clamp_max_(1),
    "abs": abs,
    "absolute": torch.absolute,
    "maximum": lambda z: torch.maximum(z, 0 * z),
    "minimum": lambda z: torch.minimum(z, 0 * z),
    "max of two": lambda z: torch.max(z, -z),
    "min of two": lambda z: torch.min(z, -z),
    "fmax": lambda z: torch.fmax(z, -z),
    "sign": torch.sign,
    "round": torch.round,
    "frac": torch.frac,
    "square": torch.square,
    "square root": lambda z: (z**2 + 1).sqrt(),
}


def jump(function) -> float:
    """The largest jump of the function or of its slope at a multiple of 1/2, the places of all kinks above."""
    places = torch.arange(-7, 7.5, 0.5, dtype=torch.float64)
    sides = []
    for step in (-1e-9, 1e-9):
        z = (places + step).requires_grad_()
        module = function.eval() if isinstance(function, nn.Module) else function
        value = module(z.clone())
        slope = torch.autograd.grad(value.sum(), z, allow_unused=True)[0]
        sides.append(torch.stack([value.detach(), slope]))
    return float((sides[1] - sides[0]).abs().max())


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_kinks_are_where_the_slope_jumps(name):
    function = ELEMENTWISE[name]
    size = jump(function)
    assert size > 0.01 or size < 1e-6
    assert bool(kinks(Then(function), X)) is (size > 0.01)


IMAGE = torch.randn(1, 1, 6, 6, generator=generator(0, "image"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda z: z.amax(1), "amax"),
        (lambda z: z.max(1).values, "max"),
        (lambda z: z.sort(1).values, "sort"),
        (lambda z: z.topk(2).values, "topk"),
        (lambda z: z.median(1).values, "median"),
        (lambda z: z.norm(p=1, dim=1), "norm"),
        (lambda z: torch.linalg.vector_norm(z, float("inf"), dim=1), "linalg_vector_norm"),
        (nn.MaxPool1d(2), "max_pool1d"),
        (nn.AdaptiveMaxPool1d(2), "adaptive_max_pool1d"),
        (lambda z: nn.MaxPool2d(2)(z.view(1, 1, 2, 2)), "max_pool2d"),
        (lambda z: functional.max_pool2d(z.view(1, 1, 2, 2), 2), "max_pool2d"),
        (lambda z: torch.max_pool2d(z.view(1, 1, 2, 2), 2), "max_pool2d"),
        (lambda z: nn.MaxPool2d(2, return_indices=True)(z.view(1, 1, 2, 2))[0], "max_pool2d_with_indices"),
        (lambda z: nn.AdaptiveMaxPool2d(1)(z.view(1, 1, 2, 2)), "adaptive_max_pool2d"),
        (lambda z: nn.MaxPool3d((1, 2, 2))(z.view(1, 1, 1, 2, 2)), "max_pool3d"),
        (lambda z: nn.AdaptiveMaxPool3d(1)(z.view(1, 1, 1, 2, 2)), "adaptive_max_pool3d"),
        (nn.PReLU().double(), "prelu"),
    ],
)
def test_functions_of_several_numbers(function, name):
    assert kinks(Then(function), X) == [name]


def test_relu_squared_is_left_to_the_caller():
    model = Then(lambda z: torch.relu(z) ** 2)
    assert jump(model.function) < 1e-6
    assert kinks(model, X) == ["relu"]
    assert hessian_norm(model, X, allow_kinks=True).value > 0


SEQUENCE = torch.randn(1, 3, 4, generator=generator(0, "sequence"), dtype=torch.float64)


def attended(z):
    return functional.scaled_dot_product_attention(z[:, None], z[:, None], z[:, None])


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Then(nn.LayerNorm(4).double()), X),
        (Then(nn.GroupNorm(2, 4).double()), X),
        (Then(nn.BatchNorm1d(4).double()), X),
        (Then(lambda z: functional.normalize(z, dim=1)), X),
        (Then(lambda z: z.norm(dim=1)), X),
        (Then(lambda z: torch.linalg.vector_norm(z, dim=1)), X),
        (Then(lambda z: z.softmax(1)), X),
        (Then(lambda z: z.logsumexp(1)), X),
        (Then(nn.GLU()), X),
        (Then(nn.AvgPool1d(2)), X),
        (Then(nn.AdaptiveAvgPool1d(2)), X),
        (Then(lambda z: z.detach().abs() * z), X),
        (Then(attended), SEQUENCE),
        (nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True, dtype=torch.float64), SEQUENCE),
        (nn.GRU(4, 3, batch_first=True).double(), SEQUENCE),
        (nn.LSTM(4, 3, batch_first=True).double(), SEQUENCE),
        (nn.RNN(4, 3, batch_first=True).double(), SEQUENCE),
        (nn.Sequential(nn.ReLU(), nn.MaxPool1d(2), nn.Linear(2, 1).double()), X),  # kinks of the inputs only
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 1)).double(), IMAGE),
        (nets.Transformer((1, 6, 6), 2, width=8, heads=2).double(), IMAGE),
    ],
)  # fmt: skip
def test_smooth_layers_have_none(model, x):
    assert kinks(model, x) == []


@pytest.mark.parametrize(
    ("model", "x", "name"),
    [
        (nn.RNN(4, 3, nonlinearity="relu", batch_first=True), SEQUENCE, "rnn_relu"),
        (nn.RNNCell(4, 3, nonlinearity="relu"), X, "rnn_relu_cell"),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), SEQUENCE, "relu"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 1)), IMAGE,
         "max_pool2d"),
        (nn.Sequential(nn.Linear(4, 8), nn.ELU(1.5), nn.Linear(8, 1)), X, "elu"),
    ],
)  # fmt: skip
def test_layers_with_kinks_have_no_hessian_norm(model, x, name):
    model = model.double().eval()
    assert kinks(model, x) == [name]
    with pytest.raises(InputError, match=rf"{name} has kinks.*linearity_gap"):
        hessian_norm(model, x)


def test_the_bound_refuses_what_the_norm_does():
    clipped = Then(lambda z: z.clamp(-1, 1))
    with pytest.raises(InputError, match=r"the model uses clamp.*kinks"):
        hessian_bound(clipped, X)


def test_the_pass_leaves_the_model_as_found():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.ReLU()).double().train()
    model[0].bias.requires_grad_(False)
    with torch.no_grad():
        assert kinks(model, X) == ["relu"]
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    assert all(p.grad is None for p in model.parameters())
    assert int(model[1].num_batches_tracked) == 0
