"""AcceleratedGradient: equal to the solver and to torch's SGD, its state, and what it warns of."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.optim import AcceleratedGradient, accelerated
from wideangle.seeds import generator

METHODS = ("nesterov", "heavy_ball", "chebyshev")


def draw(*shape: int, name: str = "") -> Tensor:
    return torch.randn(*shape, generator=generator(0, "optimiser", name, *shape), dtype=torch.float64)


def quadratic(*parts: Tensor) -> tuple[Tensor, Tensor, list[nn.Parameter]]:
    """H, b and the parameters of 1/2 w^T H w - b^T w, w split into the parts' shapes."""
    p = sum(part.numel() for part in parts)
    root = draw(p, p, name="root")
    return root @ root.T / p, draw(p, name="b"), [nn.Parameter(part.clone()) for part in parts]


def closure_of(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def flat(params: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in params])


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_on_a_quadratic_it_is_the_solver(method: str, foreach: bool):
    H, b, params = quadratic(draw(2, 3), draw(4))
    top = float(torch.linalg.eigvalsh(H)[-1])
    start = flat(params)
    optimiser = AcceleratedGradient(params, 1 / top, 50.0, method, foreach=foreach)

    def loss() -> Tensor:
        w = torch.cat([p.flatten() for p in params])
        return w @ H @ w / 2 - b @ w

    closure = closure_of(optimiser, loss)
    for steps in range(1, 131):  # over the second look at the noise
        optimiser.step(closure)
        if steps in (1, 2, 7, 99, 100, 101, 130):
            want = accelerated.solve_quadratic(H, b, top, 50.0, method, steps=steps, start=start).solution
            with optimiser.eval_params():
                assert flat(params).numpy() == pytest.approx(want, abs=1e-12)
    before = flat(params)
    with optimiser.eval_params():
        pass
    assert torch.equal(flat(params), before)


@pytest.mark.parametrize("method", ["nesterov", "heavy_ball"])
def test_stationary_methods_are_torch_sgd(method: str):
    """Nesterov is SGD(nesterov=True, momentum=gamma); the heavy ball SGD(momentum=gamma^2) at a longer step."""
    H, b, params = quadratic(draw(5))
    twin = nn.Parameter(params[0].detach().clone())
    k, lr = 7.0, 0.05
    gamma = (k - 1) / (k + 1)
    ours = AcceleratedGradient(params, lr, k * k, method, weight_decay=0.01)
    scale = 1.0 if method == "nesterov" else 4 * k * k / (k + 1) ** 2
    momentum = gamma if method == "nesterov" else gamma**2
    theirs = torch.optim.SGD(
        [twin], lr * scale, momentum=momentum, nesterov=method == "nesterov", weight_decay=0.01
    )
    schedules = [torch.optim.lr_scheduler.StepLR(o, 4, 0.5) for o in (ours, theirs)]
    for _ in range(12):
        ours.step(closure_of(ours, lambda: params[0] @ H @ params[0] / 2 - b @ params[0]))
        theirs.step(closure_of(theirs, lambda: twin @ H @ twin / 2 - b @ twin))
        for schedule in schedules:
            schedule.step()
        assert params[0].detach().numpy() == pytest.approx(twin.detach().numpy(), abs=1e-13)


def network() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(draw(*p.shape, name=str(k)) / 2)
    return model, draw(10, 3), draw(10, 2)


@pytest.mark.parametrize("method", METHODS)
def test_state_round_trip_goes_on_as_if_nothing_had_been(method: str):
    model, x, y = network()
    options = {"lr": 0.05, "kappa_hat": 30.0, "method": method}
    optimiser = AcceleratedGradient(model.parameters(), **options)
    for _ in range(98):
        optimiser.step(closure_of(optimiser, lambda: nn.functional.mse_loss(model(x), y)))
    twin, _, _ = network()
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed = AcceleratedGradient(twin.parameters(), lr=1.0, kappa_hat=2.0)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    copied, third = copy.deepcopy((optimiser, model))
    assert copied._before is None
    for _ in range(5):  # over step 100
        for opt, net in ((optimiser, model), (resumed, twin), (copied, third)):
            opt.step(closure_of(opt, lambda net=net: nn.functional.mse_loss(net(x), y)))
    with optimiser.eval_params(), resumed.eval_params():
        for p, q, _ in zip(model.parameters(), twin.parameters(), third.parameters(), strict=True):
            assert torch.equal(p, q)
    for p, q in zip(model.parameters(), third.parameters(), strict=True):
        assert torch.equal(p, q)


def test_groups_keep_their_own_values_and_frozen_parameters_stay():
    w, v, idle = nn.Parameter(draw(3)), nn.Parameter(draw(3)), nn.Parameter(draw(3))
    kept = idle.detach().clone()
    optimiser = AcceleratedGradient(
        [{"params": [w], "kappa_hat": 1.0}, {"params": [v, idle], "lr": 0.2, "method": "chebyshev"}],
        lr=0.1,
        kappa_hat=9.0,
    )
    starts = w.detach().clone(), v.detach().clone()
    for _ in range(3):
        optimiser.step(closure_of(optimiser, lambda: (w @ w + v @ v) / 2))
    assert w.detach().numpy() == pytest.approx((starts[0] * 0.9**3).numpy())
    left = float(accelerated.residual_polynomial(0.2, 3, 9.0, "chebyshev"))
    assert v.detach().numpy() == pytest.approx((starts[1] * left).numpy())
    assert torch.equal(idle, kept)
    assert idle not in optimiser.state
    # a group that comes later starts its own recurrence
    late = nn.Parameter(draw(3))
    optimiser.add_param_group({"params": [late], "method": "chebyshev", "lr": 0.2})
    first = late.detach().clone()
    for _ in range(2):
        optimiser.step(closure_of(optimiser, lambda: (w @ w + late @ late) / 2))
    left = float(accelerated.residual_polynomial(0.2, 2, 9.0, "chebyshev"))
    assert late.detach().numpy() == pytest.approx((first * left).numpy())


def test_a_zero_gradient_still_moves_and_maximize_climbs():
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimiser = AcceleratedGradient([w], 0.1, 25.0, "heavy_ball")
    optimiser.step(closure_of(optimiser, lambda: w.sum()))
    before = w.detach().clone()
    optimiser.step(closure_of(optimiser, lambda: (0 * w).sum()))
    assert (w < before).all()
    up = nn.Parameter(torch.ones(2, dtype=torch.float64))
    climbing = AcceleratedGradient([up], 0.1, 25.0, maximize=True)
    climbing.step(closure_of(climbing, lambda: -(up @ up) / 2))
    down = nn.Parameter(torch.ones(2, dtype=torch.float64))
    falling = AcceleratedGradient([down], 0.1, 25.0)
    falling.step(closure_of(falling, lambda: (down @ down) / 2))
    assert torch.equal(up, down)


def test_eval_params_uses_the_step_that_was_taken():
    w = nn.Parameter(draw(4))
    optimiser = AcceleratedGradient([w], 0.3, 16.0)
    with optimiser.eval_params():  # before any step: nothing to show
        pass
    for _ in range(3):
        before = w.detach().clone()
        optimiser.step(closure_of(optimiser, lambda: w @ w / 2))
        optimiser.param_groups[0]["lr"] = 0.1 + optimiser.param_groups[0]["lr"] / 2
        with optimiser.eval_params():
            lr = optimiser.param_groups[0]["last_lr"]
            assert w.detach().numpy() == pytest.approx(((1 - lr) * before).numpy())
    u = w.detach().clone()
    with pytest.raises(KeyError), optimiser.eval_params():
        raise KeyError
    assert torch.equal(w, u)


def counted(
    optimiser: AcceleratedGradient, loss: Callable[[], Tensor]
) -> tuple[Callable[[], Tensor], list[int]]:
    calls = [0]
    inner = closure_of(optimiser, loss)

    def closure() -> Tensor:
        calls[0] += 1
        return inner()

    return closure, calls


def test_the_closure_is_evaluated_twice_at_step_1_and_every_100th():
    w = nn.Parameter(draw(4))
    optimiser = AcceleratedGradient([w], 0.3, 16.0)
    closure, calls = counted(optimiser, lambda: w @ w / 2)
    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(205):
            before = calls[0]
            optimiser.step(closure)
            counts.append(calls[0] - before)
    assert [t + 1 for t, count in enumerate(counts) if count == 2] == [1, 100, 200]
    assert set(counts) == {1, 2}


def test_noise_in_the_closure_is_warned_of_at_step_1():
    model, x, y = network()
    noisy = nn.Sequential(model, nn.Dropout(0.3))
    optimiser = AcceleratedGradient(model.parameters(), 0.01, 16.0)
    with pytest.warns(UserWarning, match=r"at step 1: mini-batches, dropout .* use MaSS"):
        optimiser.step(closure_of(optimiser, lambda: nn.functional.mse_loss(noisy(x), y)))


def test_a_loop_over_mini_batches_is_seen_at_step_100():
    """Each closure repeats its own batch: only the point of the step before shows the difference."""
    model, x, y = network()
    optimiser = AcceleratedGradient(model.parameters(), 0.01, 16.0)

    def batch(t: int) -> Callable[[], Tensor]:
        rows = slice(0, 5) if t % 2 else slice(5, 10)
        return closure_of(optimiser, lambda: nn.functional.mse_loss(model(x[rows]), y[rows]))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(1, 100):
            optimiser.step(batch(t))
    twin, copied = copy.deepcopy((model, optimiser))
    with pytest.warns(UserWarning, match="at step 100: mini-batches"):
        optimiser.step(batch(100))
    # and the look leaves no trace: a twin that cannot look back takes the same step
    copied.step(closure_of(copied, lambda: nn.functional.mse_loss(twin(x[5:]), y[5:])))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    assert optimiser._before is None


@pytest.mark.parametrize(("relative", "dtype", "warned"), [
    (3e-6, torch.float64, True),
    (3e-7, torch.float64, False),
    (3e-6, torch.float32, True),
    (3e-7, torch.float32, False),
    (0.02, torch.bfloat16, False),
    (0.3, torch.bfloat16, True),
])  # fmt: skip
def test_the_bound_knows_the_precision(relative: float, dtype: torch.dtype, warned: bool):
    w = nn.Parameter(torch.ones(1, dtype=dtype))
    optimiser = AcceleratedGradient([w], 0.1, 4.0)
    factors = iter([1.0, 1.0 + relative])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimiser.step(closure_of(optimiser, lambda: (w * next(factors)).sum()))
    assert bool(found) is warned
    if warned and dtype == torch.float32:
        assert "sums in no fixed order" in str(found[0].message)
    if warned and dtype == torch.float64:
        assert "no fixed order" not in str(found[0].message)


def test_a_closure_that_does_not_clear_the_gradients_is_told():
    w = nn.Parameter(torch.ones(2))
    optimiser = AcceleratedGradient([w], 0.1, 4.0)

    def closure() -> None:
        (w @ w).backward()

    with pytest.warns(UserWarning, match="must clear the gradients"):
        optimiser.step(closure)


def test_an_exception_in_the_second_evaluation_leaves_the_parameters():
    w = nn.Parameter(draw(3))
    optimiser = AcceleratedGradient([w], 0.3, 16.0)
    closure = closure_of(optimiser, lambda: w @ w / 2)
    for _ in range(99):
        optimiser.step(closure)
    before, fails = w.detach().clone(), iter([True])

    def broken() -> Tensor:
        if next(fails, False):
            raise RuntimeError("out of memory")
        return closure()

    with pytest.raises(RuntimeError, match="out of memory"):
        optimiser.step(broken)
    assert torch.equal(w, before)
    optimiser.step(broken)
    assert not torch.equal(w, before)


def test_not_finite_is_an_error_and_the_parameters_stay():
    w = nn.Parameter(torch.ones(2))
    optimiser = AcceleratedGradient([w], 0.1, 4.0)
    with pytest.raises(NumericsError, match="gradient at step 1 is not finite"):
        optimiser.step(closure_of(optimiser, lambda: (w * math.nan).sum()))
    assert torch.equal(w, torch.ones(2))


def test_float32_and_mixed_types_train():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    c = nn.Parameter(torch.ones(2, 2))
    optimiser = AcceleratedGradient([a, b, c], 0.5, 9.0, foreach=True)
    for _ in range(60):
        optimiser.step(closure_of(optimiser, lambda: (a @ a + b @ b + (c * c).sum()) / 2))
    assert all(float(p.detach().abs().max()) < 1e-6 for p in (a, b, c))
    assert optimiser.state[b]["momentum_buffer"].dtype == torch.float64


def test_full_batch_training_is_faster_than_gradient_descent():
    model, x, y = network()
    losses = {}
    for kappa_hat in (1.0, 100.0):
        net = copy.deepcopy(model)
        optimiser = AcceleratedGradient(net.parameters(), 0.1, kappa_hat)
        closure = closure_of(optimiser, lambda net=net: nn.functional.mse_loss(net(x), y))
        for _ in range(300):
            optimiser.step(closure)
        with optimiser.eval_params():
            losses[kappa_hat] = nn.functional.mse_loss(net(x), y).item()
    assert losses[100.0] < losses[1.0] / 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"kappa_hat": 0.5}, "kappa_hat is 0.5"),
        ({"kappa_hat": 1.0, "method": "chebyshev"}, "has no length"),
        ({"method": "adam"}, "unknown method"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"params": []}, "params is empty"),
        ({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]}, "complex64"),
    ],
)
def test_bad_input_is_refused(change: dict, words: str):
    given = {"params": [nn.Parameter(torch.ones(2))], "lr": 0.1, "kappa_hat": 4.0} | change
    with pytest.raises(InputError, match=words):
        AcceleratedGradient(**given)


def test_bad_steps_are_refused():
    w = nn.Parameter(torch.ones(2))
    optimiser = AcceleratedGradient([w], 0.1, 4.0)
    with pytest.raises(InputError, match=r"needs a closure .* use MaSS"):
        optimiser.step()
    with pytest.raises(InputError, match="kappa_hat is 0"):
        optimiser.add_param_group({"params": [nn.Parameter(torch.ones(2))], "kappa_hat": 0.0})
    assert len(optimiser.param_groups) == 1
    optimiser.param_groups[0]["kappa_hat"] = 0.2
    with pytest.raises(InputError, match=r"kappa_hat is 0\.2"):
        optimiser.step(closure_of(optimiser, lambda: w @ w))
    table = nn.Embedding(5, 2, sparse=True)
    sparse = AcceleratedGradient(table.parameters(), 0.1, 4.0)
    with pytest.raises(InputError, match="sparse=False"):
        sparse.step(closure_of(sparse, lambda: table(torch.tensor([1, 2])).sum()))


def test_a_changed_kappa_hat_is_followed():
    """Chebyshev's and Nesterov's groups can be retuned between steps, for example for the steps that are left."""
    values = np.array([1.0, 0.1])
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimiser = AcceleratedGradient([w], 1.0, 4.0)
    closure = closure_of(optimiser, lambda: (w * w * torch.as_tensor(values)).sum() / 2)
    for t in range(40):
        optimiser.param_groups[0]["kappa_hat"] = 4.0 if t < 20 else 10.0
        optimiser.step(closure)
    now, before = np.ones(2), np.ones(2)
    gammas = [(k - 1) / (k + 1) for k in [2.0] * 20 + [math.sqrt(10.0)] * 20]
    u = now
    for gamma in gammas:
        now, before = u - values * u, now
        u = now + gamma * (now - before)
    assert w.detach().numpy() == pytest.approx(u, abs=1e-12)
