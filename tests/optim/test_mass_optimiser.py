"""MaSS as an optimiser: state, groups, schedules, precision, the w iterate, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.optim import MaSS, MassParameters
from wideangle.seeds import generator

P = MassParameters(0.1, 0.05, 3.0)


def drawn(*shape: int, name: str | int = "x", dtype: torch.dtype = torch.float64) -> Tensor:
    draws = generator(4, "optimiser", name, *shape)
    return torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(drawn(*shape, dtype=dtype)) for shape in [(4, 3), (5,), (), (0, 2)]]


def take(optimiser: torch.optim.Optimizer, steps: range) -> None:
    """Steps with gradients that depend on the step's number alone."""
    for t in steps:
        for group in optimiser.param_groups:
            for param in group["params"]:
                param.grad = drawn(*param.shape, name=t, dtype=param.dtype)
        optimiser.step()


def values(params: list[nn.Parameter]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def same(a: list, b: list) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def buffers(optimiser: MaSS) -> list[Tensor]:
    params = [param for group in optimiser.param_groups for param in group["params"]]
    return [optimiser.state[param]["momentum_buffer"].clone() for param in params]


@pytest.fixture(params=[True, False], ids=["read", "arithmetic"])
def tensors_are_read(request, monkeypatch) -> None:
    """An lr tensor on the CPU is read; with `arithmetic` it is not, as on a device."""
    if not request.param:
        monkeypatch.setattr("wideangle.optim._mass_step._readable", lambda *a: False)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    "decay", [{}, {"weight_decay": 0.3}, {"weight_decay": 0.3, "decoupled_weight_decay": True}]
)
@pytest.mark.parametrize(
    "form", ["foreach", "loop", "fused", "tensor foreach", "tensor loop", "tensor fused"]
)
@pytest.mark.usefixtures("tensors_are_read")
def test_decay_and_maximize_against_the_formula(form, decay, maximize):
    kind = {"foreach": {"foreach": True}, "loop": {"foreach": False}, "fused": {"fused": True}}[
        form.split()[-1]
    ]
    u = nn.Parameter(drawn(6))
    optimiser = MaSS([u], **vars(P), maximize=maximize, capturable="tensor" in form, **decay, **kind)
    twin, p = drawn(6), torch.zeros(6, dtype=torch.float64)
    for t in range(20):
        g = drawn(6, name=t)
        u.grad = g.clone()
        optimiser.step()
        assert torch.equal(u.grad, g), "the gradient is left as it was"
        g = -g if maximize else g
        if "decoupled_weight_decay" in decay:
            twin = twin - P.lr * 0.3 * twin
        elif decay:
            g = g + 0.3 * twin
        p = P.gamma * p - (P.gamma * P.eta1 - P.eta2) * g
        w = twin - P.eta1 * g
        twin = w + p
        torch.testing.assert_close(u.detach(), twin, rtol=0, atol=1e-12)
        with optimiser.eval_params():
            torch.testing.assert_close(u.detach(), w, rtol=0, atol=1e-12)


def test_the_multi_tensor_form_is_the_loop_bit_for_bit_also_in_a_group_of_two_types():
    results = []
    for foreach in (True, False):
        params = [*parameters(torch.float32), *parameters()]
        optimiser = MaSS(params, **vars(P), foreach=foreach, weight_decay=0.1)
        take(optimiser, range(10))
        results.append(values(params) + buffers(optimiser))
    assert same(*results)


def test_one_buffer_a_parameter_and_no_more():
    params = parameters()
    optimiser = MaSS(params, **vars(P))
    take(optimiser, range(2))
    held = [value for state in optimiser.state.values() for value in state.values()]
    assert [h.shape for h in held] == [p.shape for p in params]


def test_a_parameter_without_gradient_rests_and_a_zero_gradient_decays():
    a, b = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimiser = MaSS([a, b], **vars(P))
    take(optimiser, range(3))
    (u, _), (c, d) = values([a, b]), buffers(optimiser)
    a.grad, b.grad = None, torch.zeros_like(b)
    before = b.detach().clone()
    optimiser.step()
    assert torch.equal(a, u)
    assert torch.equal(buffers(optimiser)[0], c)
    torch.testing.assert_close(buffers(optimiser)[1], P.gamma * d)
    torch.testing.assert_close(b.detach(), before - P.lr * P.gamma**2 * d)


def test_groups_have_their_own_values_and_later_groups_start_at_rest():
    a, b, c = (nn.Parameter(drawn(3)) for _ in range(3))
    optimiser = MaSS(
        [{"params": [a]}, {"params": [b], "lr": 0.01, "kappa_tilde": 5.0}, {"params": []}], **vars(P)
    )
    take(optimiser, range(3))
    optimiser.add_param_group({"params": [c], "alpha": 0.1})
    take(optimiser, range(3, 6))
    for param, settings, steps in [
        (a, P, range(6)),
        (b, MassParameters(0.01, P.alpha, 5.0), range(6)),
        (c, MassParameters(P.lr, 0.1, P.kappa_tilde), range(3, 6)),
    ]:
        alone = nn.Parameter(drawn(3))
        take(MaSS([alone], **vars(settings)), steps)
        assert torch.equal(param, alone)
    with pytest.raises(InputError, match=r"kappa_tilde is 0\.5"):
        optimiser.add_param_group({"params": [nn.Parameter(drawn(2))], "kappa_tilde": 0.5})
    assert len(optimiser.param_groups) == 4


def test_a_closure_is_run_once_with_gradients_on():
    w = nn.Parameter(torch.tensor([3.0]))
    optimiser, calls = MaSS([w], 0.1), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimiser.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimiser.step(closure)
    assert loss.item() == 9.0
    assert calls == [True]
    assert w.item() < 3


@pytest.mark.parametrize("way", ["memory", "file"])
@pytest.mark.parametrize("foreach", [True, False])
def test_a_resumed_training_gives_the_same_bits(way, foreach):
    params = parameters()
    optimiser = MaSS(params, **vars(P), foreach=foreach, restart=True)
    take(optimiser, range(5))
    state = optimiser.state_dict()
    if way == "file":
        torch.save(state, file := io.BytesIO())
        file.seek(0)
        state = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(value) for value in values(params)]
    other = MaSS(resumed, 0.7, 0.3, 1.5, foreach=not foreach)
    other.load_state_dict(state)
    take(optimiser, range(5, 9))  # must not move the state loaded by the other
    take(other, range(5, 9))
    assert same(values(params), values(resumed))
    assert other.param_groups[0]["foreach"] is foreach


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alone(copied):
    params = parameters()
    optimiser = MaSS(params, **vars(P))
    take(optimiser, range(3))
    other = copied(optimiser)
    take(optimiser, range(3, 5))
    with other.eval_params():
        pass
    take(other, range(3, 5))
    assert same(values(params), values(other.param_groups[0]["params"]))
    with pytest.warns(UserWarning, match="against the gradient"):
        other.add_param_group({"params": [nn.Parameter(drawn(2))], "kappa_tilde": 30.0})


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.usefixtures("tensors_are_read")
def test_a_scheduler_s_drop_scales_the_displacement_or_starts_anew(restart, capturable):
    u = nn.Parameter(drawn(4))
    optimiser = MaSS([u], **vars(P), restart=restart, capturable=capturable)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: [1.0, 1.0, 2.0, 0.25, 0.25][t])
    twin, c = drawn(4), torch.zeros(4, dtype=torch.float64)
    for t, factor in enumerate([1.0, 1.0, 2.0, 0.25, 0.25]):
        g = drawn(4, name=t)
        if restart and t == 3:  # as if the optimiser were made anew, as the authors do
            c = torch.zeros_like(c)
        c = P.gamma * c + P.gain * g
        twin = twin - factor * P.lr * (g + c)
        u.grad = g
        optimiser.step()
        torch.testing.assert_close(u.detach(), twin, rtol=0, atol=1e-14)
        if t < 4:
            scheduler.step()


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}], ids=str)
def test_no_tensor_is_read_on_the_host_when_capturable(options):
    """Tensors of the meta device have no content: whoever reads one fails, as a CUDA graph would."""
    params = [nn.Parameter(torch.zeros(3, device="meta")) for _ in range(2)]
    optimiser = MaSS(params, 0.1, capturable=True, restart=True, weight_decay=0.1, **options)
    other = MaSS(params, 0.1, capturable=True, weight_decay=0.1, decoupled_weight_decay=True, **options)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        optimiser.step()
        other.step()
        with optimiser.eval_params():
            pass
    optimiser.retune(MassParameters(0.05, 0.1, 2.0))
    with pytest.raises(RuntimeError, match="item"):
        params[0].sum().item()


def test_a_compiled_step_follows_the_schedule():
    results = []
    for compiled in (True, False):
        params = [nn.Parameter(drawn(3)), nn.Parameter(drawn(2, 2))]
        optimiser = MaSS(params, **vars(P), capturable=True, foreach=False)
        step = torch.compile(optimiser.step, backend="eager") if compiled else optimiser.step
        for t in range(4):
            for param in params:
                param.grad = drawn(*param.shape, name=t)
            step()
            optimiser.param_groups[0]["lr"].mul_(0.5)
        results.append(values(params))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


def test_a_gradient_scaler_unscales_and_skips():
    def run(scaled: bool) -> tuple[list[Tensor], list[Tensor]]:
        w = nn.Parameter(drawn(4, dtype=torch.float32))
        optimiser = MaSS([w], 0.05, check_finite=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for t in range(6):
            if t == 3 and not scaled:
                continue
            optimiser.zero_grad()
            loss = (w * drawn(4, name=t, dtype=torch.float32)).square().sum() / (t != 3)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update(1024.0)
        return [w.detach()], buffers(optimiser)

    assert all(same(a, b) for a, b in zip(run(True), run(False), strict=True))


@pytest.mark.parametrize("foreach", [True, False, None])
def test_a_non_finite_gradient_is_refused_with_everything_kept(foreach):
    a, b, c = (nn.Parameter(drawn(3, 2)) for _ in range(3))
    groups = [{"params": [("first", a)], "lr": 0.2}, {"params": [("second", b), ("third", c)]}]
    optimiser = MaSS(groups, **vars(P), check_finite=True, restart=True, foreach=foreach)
    take(optimiser, range(2))
    optimiser.param_groups[0]["lr"] = 0.01
    before, held = values([a, b, c]), buffers(optimiser)
    for bad in (float("nan"), float("inf"), -float("inf")):
        c.grad[1, 1] = bad
        with pytest.raises(NumericsError, match=r"parameter 1 of group 1 \(third\), of shape \(3, 2\)"):
            optimiser.step()
        assert same(values([a, b, c]), before)
        assert same(buffers(optimiser), held)
    c.grad = torch.full((1, 1), 1e308, dtype=torch.float64).expand(3, 2)
    optimiser.step()  # large, and expanded, but finite


def test_the_check_leaves_the_bits_of_the_gradients():
    results = []
    for check in (True, False):
        params = [*parameters(), *parameters(torch.bfloat16), *parameters(torch.float32)]
        take(MaSS(params, **vars(P), check_finite=check), range(4))
        results.append(values(params))
    assert same(*results)


def test_autograd_passes_through_the_steps():
    def final(start: Tensor, lr: Tensor) -> Tensor:
        u = start.clone()
        optimiser = MaSS(
            [{"params": [torch.zeros(3, dtype=torch.float64)]}], 0.1, 0.2, 2.0, differentiable=True
        )
        group = optimiser.param_groups[0]
        group["params"], group["lr"] = [u], lr
        for _ in range(4):
            at = u.clone()  # the step changes u itself
            (u.grad,) = torch.autograd.grad((at.sin() * at).sum() + at.prod(), at, create_graph=True)
            optimiser.step()
        return u

    start = drawn(3).requires_grad_()
    assert torch.autograd.gradcheck(
        final, (start, torch.tensor(0.1, dtype=torch.float64, requires_grad=True))
    )
