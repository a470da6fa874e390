"""MaSS against slow twins of every published form of it, on mini-batches and on networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from wideangle.optim import MaSS, MassParameters
from wideangle.seeds import generator

STEPS = 300
SETTINGS = [(0.05, 3.0), (0.05, 1.0), (0.2, 2.5), (0.4, 1.2)]
FORMS = [{"foreach": True}, {"foreach": False}, {"fused": True}, {"capturable": True, "foreach": True}]
Pair = tuple[Tensor, Tensor]
Gradient = Callable[[int, Tensor], Tensor]


def drawn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(3, "mass", name, *shape), dtype=torch.float64)


@pytest.fixture(scope="module")
def problem() -> tuple[Gradient, Tensor, float]:
    """Gradients of half the mean square over batches of 4 of 30 samples; the start; a stable step."""
    x, y = drawn(30, 6), drawn(30, name="y")
    batches = torch.randint(30, (STEPS, 4), generator=generator(3, "mass", "batches"))
    rows = [(x[batch], y[batch]) for batch in batches]

    def gradient(t: int, w: Tensor) -> Tensor:
        a, b = rows[t]
        return a.T @ (a @ w - b) / len(a)

    return gradient, drawn(6, name="start"), 0.5 / float(x.square().sum(1).max())


# Each twin yields (u, w) after every step, written as its source writes it, in no common code.


def two_variables(gradient: Gradient, u: Tensor, p: MassParameters) -> Iterator[Pair]:
    w = u.clone()
    for t in range(STEPS):
        g = gradient(t, u)
        new = u - p.eta1 * g
        u = (1 + p.gamma) * new - p.gamma * w + p.eta2 * g
        w = new
        yield u, w


def slow_iterate(gradient: Gradient, u: Tensor, p: MassParameters) -> Iterator[Pair]:
    v, eta, alpha = u.clone(), p.lr, p.alpha
    delta = eta / (alpha * p.kappa_tilde)
    for t in range(STEPS):
        g = gradient(t, u)
        w = u - eta * g
        v = (1 - alpha) * v + alpha * u - delta * g
        u = (alpha * v + w) / (1 + alpha)
        yield u, w


def one_buffer(gradient: Gradient, u: Tensor, p: MassParameters) -> Iterator[Pair]:
    displacement = torch.zeros_like(u)
    for t in range(STEPS):
        g = gradient(t, u)
        displacement = p.gamma * displacement - (p.gamma * p.eta1 - p.eta2) * g
        u = u - p.eta1 * g + displacement
        yield u, u - displacement


def accelerated_sgd(gradient: Gradient, u: Tensor, p: MassParameters) -> Iterator[Pair]:
    """Kidambi et al. 2018, with short step lr, kappa, xi and the small constant 1."""
    short, kappa, xi = p.lr, 1 / (p.alpha**2 * p.kappa_tilde), 1 / (p.alpha * p.kappa_tilde)
    beta = xi / kappa
    average = u.clone()
    for t in range(STEPS):
        g = gradient(t, u)
        w = u - short * g
        average = (1 - beta) * average + beta * (u - short * kappa * g)
        u = w / (1 + beta) + beta / (1 + beta) * average
        yield u, w


def agnes(gradient: Gradient, u: Tensor, p: MassParameters) -> Iterator[Pair]:
    """Gupta, Siegel, Wojtowytsch 2024: x' = x + step v;  x = x' - correction g;  v = momentum (v - g)."""
    step, velocity = p.eta1 - p.eta2 / p.gamma, torch.zeros_like(u)
    for t in range(STEPS):
        g = gradient(t, u)
        w = u - p.eta1 * g
        velocity = p.gamma * (velocity - g)
        u = w + step * velocity
        yield u, w


def quasi_hyperbolic(gradient: Gradient, u: Tensor, p: MassParameters) -> Iterator[Pair]:
    """Ma, Yarats 2019; it has no w of its own."""
    delta = p.lr / (p.alpha * p.kappa_tilde)
    step, nu, beta = (p.lr + delta) / 2, (delta - p.lr) / (delta + p.lr), p.gamma
    average = torch.zeros_like(u)
    for t in range(STEPS):
        g = gradient(t, u)
        w = u - p.lr * g
        average = beta * average + (1 - beta) * g
        u = u - step * ((1 - nu) * g + nu * average)
        yield u, w


def ours(gradient: Gradient, u: Tensor, p: MassParameters, **options: object) -> Iterator[Pair]:
    param = nn.Parameter(u.clone())
    optimiser = MaSS([param], p.lr, p.alpha, p.kappa_tilde, **options)
    for t in range(STEPS):
        param.grad = gradient(t, param.detach())
        optimiser.step()
        with optimiser.eval_params():
            w = param.detach().clone()
        yield param.detach().clone(), w


@pytest.mark.parametrize(("alpha", "kappa_tilde"), SETTINGS)
@pytest.mark.parametrize(
    "twin", [two_variables, slow_iterate, one_buffer, accelerated_sgd, agnes, quasi_hyperbolic]
)
def test_every_published_form_takes_the_same_steps(problem, twin, alpha, kappa_tilde):
    gradient, start, lr = problem
    p = MassParameters(lr, alpha, kappa_tilde)
    for (u, w), (their_u, their_w) in zip(ours(gradient, start, p), twin(gradient, start, p), strict=True):
        torch.testing.assert_close(u, their_u, rtol=0, atol=1e-10)
        torch.testing.assert_close(w, their_w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.filterwarnings("ignore:alpha")
def test_every_form_of_the_step_is_the_two_variable_form_also_against_the_gradient(
    problem, options, monkeypatch
):
    if "capturable" in options:  # as on a device: by arithmetic with the tensor
        monkeypatch.setattr("wideangle.optim._mass_step._readable", lambda *a: False)
    gradient, start, lr = problem
    for alpha, kappa_tilde in [(0.05, 3.0), (0.05, 60.0)]:
        p = MassParameters(lr, alpha, kappa_tilde)
        *_, (u, w) = ours(gradient, start, p, **options)
        *_, (their_u, their_w) = two_variables(gradient, start, p)
        torch.testing.assert_close(u, their_u, rtol=0, atol=1e-10)
        torch.testing.assert_close(w, their_w, rtol=0, atol=1e-10)


def against_sgd(problem, options: dict, kappa_tilde: float, momentum: float) -> tuple[Tensor, Tensor]:
    gradient, start, lr = problem
    a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = MaSS([a], lr, 0.05, kappa_tilde, **options)
    theirs = torch.optim.SGD([b], lr, momentum=momentum, nesterov=momentum > 0, **options)
    for t in range(STEPS):
        a.grad, b.grad = gradient(t, a.detach()), gradient(t, b.detach())
        mine.step()
        theirs.step()
    if momentum:
        torch.testing.assert_close(
            mine.state[a]["momentum_buffer"], theirs.state[b]["momentum_buffer"], rtol=1e-12, atol=1e-13
        )
    return a.detach(), b.detach()


@pytest.mark.parametrize("options", FORMS[:3], ids=str)
def test_kappa_tilde_one_is_nesterov_sgd(problem, options):
    a, b = against_sgd(problem, options, 1.0, 0.95 / 1.05)
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    if options.get("fused"):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", FORMS[:3], ids=str)
def test_kappa_tilde_one_over_alpha_is_plain_sgd(problem, options):
    with pytest.warns(UserWarning, match="plain SGD"):
        a, b = against_sgd(problem, options, 20.0, 0.0)
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_the_first_step_is_damped_unlike_torch_s():
    """u1 = u0 - (eta1 + gamma eta1 - eta2) g; torch's dampening leaves the first gradient whole."""
    p = MassParameters(0.1, 0.05, 3.0)
    u = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    u.grad = torch.ones(1, dtype=torch.float64)
    MaSS([u], p.lr, p.alpha, p.kappa_tilde).step()
    assert u.item() == pytest.approx(-(p.eta1 + p.gamma * p.eta1 - p.eta2), rel=1e-14)


def test_it_is_not_plain_sgd_in_disguise(problem):
    """In two third-party versions of MaSS every move of w is a multiple of the present gradient."""
    gradient, u, lr = problem
    steps = list(ours(gradient, u, MassParameters(lr, 0.05, 3.0)))
    apart = []
    for t in range(2, 60):
        g = gradient(t, steps[t - 1][0])
        moved = steps[t][1] - steps[t - 1][1]
        apart.append(float((moved - (moved @ g) / (g @ g) * g).norm() / moved.norm()))
    assert sorted(apart)[5] > 0.1


class Attention(nn.Module):
    """Embedding tied to the output, one attention block."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.output = nn.Linear(8, 7)
        self.output.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        return self.output(self.norm(h + self.attention(h, h, h)[0])).flatten(1)


def conv() -> nn.Module:
    layers = [nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3)).to(memory_format=torch.channels_last)


MODELS = {
    "conv and BatchNorm": (conv, lambda t: drawn(8, 2, 6, 6, name=str(t))),
    "attention with tied weights": (
        Attention,
        lambda t: torch.randint(7, (8, 4), generator=generator(1, t)),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, *FORMS[:2]], ids=str)
def test_networks_are_trained_as_by_the_two_variable_form(name, options):
    make, batch = MODELS[name]
    with torch.random.fork_rng():
        model = make().double()
    with torch.no_grad():
        for place, param in model.named_parameters():
            if param.dim() > 1:
                param.copy_(drawn(*param.shape, name=place) / param[0].numel() ** 0.5)
            elif place.endswith("bias"):
                param.zero_()
    twin = copy.deepcopy(model)
    p = MassParameters(0.02, 0.1, 2.0)
    optimiser = MaSS(model.parameters(), p.lr, p.alpha, p.kappa_tilde, **options)
    w = [param.detach().clone() for param in twin.parameters()]
    losses = []
    for t in range(25):
        x = batch(t)
        optimiser.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        gradients = torch.autograd.grad(twin(x).square().mean(), list(twin.parameters()))
        with torch.no_grad():
            for i, (u, g) in enumerate(zip(twin.parameters(), gradients, strict=True)):
                new = u - p.eta1 * g
                u.copy_((1 + p.gamma) * new - p.gamma * w[i] + p.eta2 * g)
                w[i] = new
    assert losses[-1] < 0.5 * losses[0]
    for mine, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    with optimiser.eval_params():
        for mine, theirs in zip(model.parameters(), w, strict=True):
            torch.testing.assert_close(mine.detach(), theirs, rtol=0, atol=1e-10)
