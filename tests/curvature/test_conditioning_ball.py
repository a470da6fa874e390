"""Uniform conditioning: analytic bounds against Hessians written out, and what follows from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from wideangle import nets
from wideangle.curvature import _smooth, hessian_bound, uniform_conditioning
from wideangle.errors import InputError
from wideangle.kernel import jacobian


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(widths, outputs=1, activation="tanh", seed=0, bias=False, d=3):
    gen = torch.Generator().manual_seed(seed)
    return nets.MLP(d, outputs, width=widths, activation=activation, bias=bias, generator=gen).double()


def split(model: nn.Module) -> tuple[torch.Tensor, Callable]:
    """The weights as one vector, and f_c(x_i) as a function of it."""
    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()])

    def value(w, one, c):
        pieces = w.split([p.numel() for p in named.values()])
        weights = {n: piece.view(p.shape) for (n, p), piece in zip(named.items(), pieces, strict=True)}
        return torch.func.functional_call(model, weights, (one[None],))[0, c]

    return flat, value


def hessian_norms(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Every |grad^2 f_c(x_i)|_2 from the matrix itself, (n, C)."""
    flat, value = split(model)
    rows = []
    for one in x:
        table = [torch.func.hessian(value)(flat, one, c) for c in range(model(x).shape[1])]
        rows.append(torch.stack([torch.linalg.matrix_norm(H.detach(), 2) for H in table]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", sorted(_smooth.DERIVATIVES))
def test_derivative_bounds(name):
    z = torch.linspace(-12, 12, 48001, dtype=torch.float64, requires_grad=True)
    values = _smooth.FUNCTIONS[name](z)
    for bound in _smooth.DERIVATIVES[name]:
        if values.requires_grad:
            (values,) = torch.autograd.grad(values.sum(), z, create_graph=True)
        else:
            values = torch.zeros_like(z)
        largest = float(values.detach().abs().max())
        assert largest <= bound * (1 + 1e-12)
        assert largest >= bound * (1 - 2e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_two_layers_are_exact_at_the_point(bias):
    x = draw(4, 3)
    model = net([7], outputs=2, bias=bias)
    assert torch.allclose(hessian_bound(model, x), hessian_norms(model, x), rtol=1e-8)
    # the formula of the chapter, by hand for output 0 and sample 0
    if not bias:
        k1, k2 = model.scales
        z = k1 * model.hidden[0].weight.detach() @ x[0]
        t, s = torch.tanh(z), k1 * float(x[0].norm())
        a = k2 * model.head.weight.detach()[0] * (-2 * t * (1 - t**2)) * s**2
        b = k2 * (1 - t**2) * s
        exact = float(((a.abs() + (a**2 + 4 * b**2).sqrt()) / 2).max())
        assert float(hessian_bound(model, x)[0, 0]) == pytest.approx(exact, rel=1e-8)


NETS = [
    ([5], "tanh", False),
    ([5], "gelu", True),
    ([4, 4], "tanh", False),
    ([4, 3], "erf", True),
    ([3, 3, 3], "swish", False),
    ([3, 4, 3], "tanh", True),
]


def moved(model: nn.Module, radius: float, seed: int) -> nn.Module:
    """A copy with its weights moved by `radius` in a random direction."""
    gen = torch.Generator().manual_seed(seed)
    steps = [torch.randn(p.shape, generator=gen, dtype=torch.float64) for p in model.parameters()]
    size = math.sqrt(sum(float(s.square().sum()) for s in steps))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p, s in zip(other.parameters(), steps, strict=True):
            p += radius / size * s
    return other


def climbed(model: nn.Module, x: torch.Tensor, radius: float, steps: int = 6) -> float:
    """The largest |grad^2 f_0(x_0)| that projected ascent on the sphere finds."""
    start, value = split(model)
    w, best = start.clone(), 0.0
    for _ in range(steps + 1):
        values, vectors = torch.linalg.eigh(torch.func.hessian(value)(w, x[0], 0).detach())
        k = int(values.abs().argmax())
        best, v, sign = max(best, float(values[k].abs())), vectors[:, k], float(values[k].sign())

        def quadratic(w, v=v, sign=sign):
            slope = torch.func.grad(lambda u: value(u, x[0], 0))
            return sign * (v * torch.func.jvp(slope, (w,), (v,))[1]).sum()

        up = torch.func.grad(quadratic)(w).detach()
        w = start + radius / float(up.norm()) * up
    return best


@pytest.mark.parametrize(("widths", "activation", "bias"), NETS)
def test_bounds_hold_over_the_ball(widths, activation, bias):
    x = draw(3, 3)
    for seed in range(2):
        model = net(widths, activation=activation, bias=bias, seed=seed, outputs=2)
        for radius in (0.0, 0.3, 1.5):
            bound = hessian_bound(model, x, radius)
            for k in range(3):
                assert bool((hessian_norms(moved(model, radius * (k + 1) / 3, k), x) <= bound).all())
    model = net(widths, activation=activation, bias=bias, seed=3)
    for radius in (0.3, 1.5):
        assert climbed(model, x, radius) <= float(hessian_bound(model, x, radius)[0, 0])


def twin(model: nets.MLP, x: torch.Tensor, c: int, radius: float) -> float:
    """The bound of three weight layers, term by term as it is derived, tanh, with biases."""
    top1, top2, top3 = 1.0, 4 / (3 * math.sqrt(3)), 2.0
    (k1, k2, k3), (W1, W2), V = model.scales, (h.weight.detach() for h in model.hidden), model.head.weight
    N2, v = float(torch.linalg.matrix_norm(W2, 2)), V.detach()[c]
    z1 = k1 * W1 @ x + model.hidden[0].bias.detach()
    h1 = torch.tanh(z1)
    z2 = k2 * W2 @ h1 + model.hidden[1].bias.detach()
    h2, a1, a2 = torch.tanh(z2), 1 - torch.tanh(z1) ** 2, 1 - torch.tanh(z2) ** 2
    # how far z_1, h_1, z_2, h_2 go in the ball
    p1 = math.sqrt(k1**2 * float(x @ x) + 1)
    shift1 = radius * p1
    size1 = float(h1.norm()) + top1 * shift1
    p2 = math.sqrt(k2**2 * size1**2 + 1)
    shift2 = radius * math.sqrt(k2**2 * float(h1 @ h1) + 1) + k2 * (N2 + radius) * top1 * shift1
    p3 = math.sqrt(k3**2 * (float(h2.norm()) + top1 * shift2) ** 2 + 1)
    assert p3 > 0
    steep1 = min(top1, max(float(a) + top2 * shift1 for a in a1))
    steep2 = min(top1, max(float(a) + top2 * shift2 for a in a2))
    bends1 = [min(top2, abs(float(-2 * t * a)) + top3 * shift1) for t, a in zip(h1, a1, strict=True)]
    bends2 = [min(top2, abs(float(-2 * t * a)) + top3 * shift2) for t, a in zip(h2, a2, strict=True)]
    # df/dh_2 = k_3 v and df/dh_1 = k_2 W_2^T (act' * df/dh_2), with what the ball adds
    b2, add2 = k3 * v, k3 * radius
    s2 = a2 * b2
    more = top1 * add2 + top2 * float(b2.abs().max()) * shift2
    b1, add1 = k2 * W2.T @ s2, k2 * (radius * float(s2.norm()) + (N2 + radius) * more)
    tau1 = max((abs(float(b)) + add1) * bend for b, bend in zip(b1, bends1, strict=True))
    tau2 = max((abs(float(b)) + add2) * bend for b, bend in zip(b2, bends2, strict=True))
    # |z_1'| <= p1 u_1, |z_2'| <= p2 u_2 + k2 N steep1 p1 u_1
    q = k2 * (N2 + radius) * steep1 * p1
    form = np.zeros((3, 3))
    form[0, 0] = tau1 * p1**2 + tau2 * q**2
    form[1, 1] = tau2 * p2**2
    form[0, 1] = form[1, 0] = tau2 * p2 * q + (float(s2.norm()) + more) * k2 * steep1 * p1
    form[0, 2] = form[2, 0] = k3 * steep2 * q
    form[1, 2] = form[2, 1] = k3 * steep2 * p2
    return float(np.linalg.eigvalsh(form)[-1])


def test_the_deep_bound_is_the_one_derived():
    x = draw(3, 3)
    for seed, radius in ((0, 0.0), (1, 0.02), (2, 0.4)):
        model = net([6, 5], outputs=2, bias=True, seed=seed)
        by_hand = [[twin(model, one, c, radius) for c in range(2)] for one in x]
        assert hessian_bound(model, x, radius).numpy() == pytest.approx(np.array(by_hand), rel=1e-8)


def test_bounds_are_not_idle():
    """Close above the truth for two layers even at a distance, within a small factor for three."""
    x = draw(1, 3)
    shallow, deep = net([24], seed=1), net([16, 16], seed=1)
    assert float(hessian_bound(shallow, x, 0.5)) < 2.5 * climbed(shallow, x, 0.5)
    assert float(hessian_bound(deep, x)) < 8 * float(hessian_norms(deep, x))


def test_bounds_fall_with_width():
    x = draw(2, 3)
    for depth, slope in ((1, -0.35), (2, -0.3)):
        values = [float(hessian_bound(net([m] * depth), x, 1.0).max()) for m in (64, 1024)]
        assert math.log(values[1] / values[0]) / math.log(16) < slope


def test_a_sequential_has_the_bound_of_the_same_net():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 4), nn.SiLU()))
    model.append(nn.Linear(4, 2)).double()
    x = draw(3, 3)
    assert bool((hessian_norms(model, x) <= hessian_bound(model, x)).all())
    linear = nn.Linear(3, 2).double()
    assert float(hessian_bound(linear, x, 5.0).max()) == 0.0


def test_certificate_bounds_the_kernel_on_the_ball():
    x, radius = draw(3, 3), 0.2
    model = net([256], outputs=2)
    found = uniform_conditioning(model, x, radius=radius)
    assert found.certified
    assert found.mu >= found.mu_paper
    assert found.mu < found.lambda_0
    K0 = jacobian(model, x).reshape(6, -1)
    for k in range(5):
        other = moved(model, radius, k)
        J = jacobian(other, x).reshape(6, -1)
        assert float(torch.linalg.svdvals(J)[-1]) ** 2 >= found.mu
        assert float(torch.linalg.svdvals(J)[0]) <= found.lipschitz
        assert float(torch.linalg.matrix_norm(J @ J.T - K0 @ K0.T, 2)) <= found.kernel_change
        assert float(torch.linalg.matrix_norm(J - K0, 2)) <= found.smoothness * radius
    paper = found.lambda_0 - 2 * found.lipschitz * math.sqrt(6) * found.hessian * radius
    assert found.mu_paper == pytest.approx(paper, rel=1e-12)
    assert found.smoothness == pytest.approx(float(hessian_bound(model, x, radius).norm()), rel=1e-12)
    weyl = (math.sqrt(found.lambda_0) - found.smoothness * radius) ** 2
    assert found.mu == pytest.approx(max(weyl, paper), rel=1e-12)
    assert type(found).from_json(found.to_json()) == found


def test_no_mu_comes_with_its_reason():
    x = draw(3, 3)
    far = uniform_conditioning(net([16]), x, radius=5.0)
    assert far.mu is None
    assert not far.certified
    assert far.method == "analytic"
    assert "radius below about" in far.reason
    same = uniform_conditioning(net([64]), torch.cat([x, x]), radius=0.01)
    assert same.mu is None
    assert not same.certified
    assert "rank 3 of 6" in same.reason


def test_a_certified_ball_holds_a_solution_and_descent_finds_it_at_the_rate():
    x = torch.eye(2, 3, dtype=torch.float64)
    model = net([4096], seed=2)
    y = model(x).detach() + 0.02
    found = uniform_conditioning(model, x, y, radius=None)
    assert found.certified
    assert found.solution_inside
    assert found.solution_radius <= found.radius
    assert found.residual == pytest.approx(0.02 * math.sqrt(2), rel=1e-9)
    assert found.step == pytest.approx(1 / (found.lipschitz**2 + found.smoothness * found.residual))
    params, start = list(model.parameters()), [p.detach().clone() for p in model.parameters()]
    first = float((model(x) - y).square().sum()) / 2
    for t in range(40):
        loss = (model(x) - y).square().sum() / 2
        assert float(loss.detach()) <= found.rate**t * first + 1e-30
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            p.data -= found.step * g
    way = math.sqrt(sum(float((p - s).detach().square().sum()) for p, s in zip(params, start, strict=True)))
    assert way < found.solution_radius
    narrow = uniform_conditioning(net([8]), x, y, radius=None)
    assert narrow.mu is None or not narrow.solution_inside
    assert "no ball of radius" in narrow.reason
    assert narrow.radius < 10


def test_sampled_values_are_an_estimate():
    x, y = draw(3, 3), draw(3, 1, seed=1)
    model = net([64, 64])
    proven = uniform_conditioning(model, x, y, radius=0.05)
    seen = uniform_conditioning(model, x, y, radius=0.05, method="sampled", points=3)
    assert proven.certified
    assert not seen.certified
    assert "estimate" in seen.reason
    assert seen.hessian <= proven.hessian
    assert seen.lipschitz <= proven.lipschitz
    assert seen.lambda_seen <= seen.lambda_0
    assert seen.mu >= (proven.mu or 0.0)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x)

    own = uniform_conditioning(Own(), x, radius=0.05, points=2)
    assert not own.certified
    assert "Own" in own.reason
    with pytest.raises(InputError, match="no certificate"):
        uniform_conditioning(Own(), x, radius=0.05, method="analytic")


@pytest.mark.parametrize(
    "model",
    [nets.MLP(3, 1, width=8), nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(), nn.Linear(4, 1))],
)
def test_kinks_are_refused_and_the_gap_offered(model):
    for call in (uniform_conditioning, hessian_bound):
        with pytest.raises(InputError, match=r"kinks.*linearity_gap"):
            call(model, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh()), "non-linear function"),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Tanh(), nn.Linear(4, 1)), "two activations"),
        (nn.Sequential(nn.Linear(3, 4), nn.GELU("tanh"), nn.Linear(4, 1)), "GELU"),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)), "LayerNorm"),
        (nets.MLP(3, 1, width=4, activation="tanh", output_activation="tanh"), "non-linear function"),
        (nets.MLP(3, 1, width=4, activation=torch.sin), "no known bounds"),
        (nets.ConvNet((1, 4, 4), 2, width=2, activation="tanh"), "ConvNet"),
    ],
)
def test_what_has_no_bound_says_why(model, reason):
    x = torch.ones(2, 1, 4, 4) if isinstance(model, nets.ConvNet) else torch.ones(2, 3)
    with pytest.raises(InputError, match=reason):
        hessian_bound(model, x)


def test_shared_weights_and_hooks_have_no_bound():
    layer = nn.Linear(3, 3)
    tied = nn.Sequential(layer, nn.Tanh(), layer)
    with pytest.raises(InputError, match="share"):
        hessian_bound(tied, torch.ones(2, 3))
    hooked = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="hooks"):
        hessian_bound(hooked, torch.ones(2, 3))
    with pytest.raises(InputError, match="parts of a sample"):
        hessian_bound(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)), torch.ones(2, 5, 3))


def test_bad_settings_are_refused():
    x = draw(3, 3)
    for radius in (0.0, -1.0, math.inf):
        with pytest.raises(InputError, match="radius"):
            uniform_conditioning(net([8]), x, radius=radius)
    with pytest.raises(InputError, match="radius"):
        hessian_bound(net([8]), x, -1.0)
    with pytest.raises(InputError, match="needs y"):
        uniform_conditioning(net([8]), x, radius=None)
    with pytest.raises(InputError, match="unknown method"):
        uniform_conditioning(net([8]), x, method="guess")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="points=1"):
        uniform_conditioning(net([8]), x, method="sampled", points=1)
