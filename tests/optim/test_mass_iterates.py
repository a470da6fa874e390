"""MaSS: the w iterate, new parameters in the middle, low precision, and what is refused or warned of."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from wideangle.errors import InputError
from wideangle.optim import MaSS, MassParameters, constants_from_data
from wideangle.optim.mass import mass
from wideangle.seeds import generator

P = MassParameters(0.1, 0.05, 3.0)


def drawn(*shape: int, name: str | int = "x", dtype: torch.dtype = torch.float64) -> Tensor:
    draws = generator(5, "iterates", name, *shape)
    return torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype)


def take(optimiser: MaSS, steps: range, scale: float = 1.0) -> None:
    for t in steps:
        for group in optimiser.param_groups:
            for param in group["params"]:
                param.grad = (scale * drawn(*param.shape, name=t)).to(param.dtype)
        optimiser.step()


def b_of(optimiser: MaSS, param: Tensor) -> Tensor:
    """b = (w - u) / lr, as `eval_params` shows it."""
    u = param.detach().clone()
    with optimiser.eval_params():
        return (param.detach() - u) / optimiser.param_groups[0]["last_lr"]


def test_before_the_first_step_w_is_u():
    w = nn.Parameter(drawn(3))
    with MaSS([w], 0.1).eval_params():
        assert torch.equal(w, drawn(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_u_comes_back_bit_for_bit_also_after_an_exception(dtype):
    a, b = nn.Parameter(drawn(50, dtype=dtype)), nn.Parameter(drawn(2, 3, dtype=dtype))
    optimiser = MaSS([{"params": [a]}, {"params": [b], "lr": 0.7}], **vars(P))
    take(optimiser, range(4))
    before = [a.detach().clone(), b.detach().clone()]
    shown = []

    def fail() -> None:
        shown.append(a.detach().clone())
        raise KeyError

    with pytest.raises(KeyError), optimiser.eval_params():
        fail()
    assert not torch.equal(shown[0], before[0])
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    with optimiser.eval_params():
        pass
    take(optimiser, range(4, 5))


def test_w_is_that_of_the_last_step_also_after_the_schedule_has_moved_on():
    u = nn.Parameter(drawn(3))
    optimiser = MaSS([u], **vars(P))
    take(optimiser, range(3))
    before = u.detach().clone()
    take(optimiser, range(3, 4))
    optimiser.param_groups[0]["lr"] = 1e-3
    with optimiser.eval_params():
        torch.testing.assert_close(u.detach(), before - P.lr * drawn(3, name=3), rtol=1e-13, atol=0)


def test_within_eval_params_nothing_may_step_or_load():
    w = nn.Parameter(drawn(3))
    optimiser = MaSS([w], 0.1)
    take(optimiser, range(2))
    before = w.detach().clone()
    with optimiser.eval_params():
        with pytest.raises(InputError, match="eval_params within eval_params"), optimiser.eval_params():
            pass
        with pytest.raises(InputError, match="step within"):
            optimiser.step()
        with pytest.raises(InputError, match="load_state_dict within"):
            optimiser.load_state_dict(optimiser.state_dict())
    assert torch.equal(w, before)


@pytest.mark.parametrize("capturable", [False, True])
def test_retuning_keeps_u_and_b_and_is_no_drop_of_lr(capturable):
    u = nn.Parameter(drawn(4))
    optimiser = MaSS([u], **vars(P), restart=True, capturable=capturable)
    take(optimiser, range(5))
    b, before = b_of(optimiser, u), u.detach().clone()
    new = MassParameters(0.03, 0.2, 1.5)
    optimiser.retune(new)
    assert torch.equal(u, before)
    torch.testing.assert_close(b_of(optimiser, u), b, rtol=1e-12, atol=1e-14)
    g = drawn(4, name=9)
    u.grad = g.clone()
    optimiser.step()
    b = new.gamma * b + new.gain * g
    torch.testing.assert_close(u.detach(), before - new.lr * (g + b), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(b_of(optimiser, u), b, rtol=1e-11, atol=1e-13)


class Measured:
    """What the constructor asks of measured constants."""

    def mass(self, batch_size: int) -> MassParameters:
        return MassParameters(0.1 * batch_size, 0.01 * batch_size, 2.0)


def test_constants_give_the_parameters_for_the_batch():
    params = [nn.Parameter(drawn(2)), nn.Parameter(drawn(2))]
    optimiser = MaSS.from_constants(params, Measured(), 4, weight_decay=0.5)
    group = optimiser.param_groups[0]
    assert [group[key] for key in ("lr", "alpha", "kappa_tilde", "weight_decay")] == [0.4, 0.04, 2.0, 0.5]
    optimiser.add_param_group({"params": [nn.Parameter(drawn(2))]})
    optimiser.retune(Measured(), 8, group=1)
    assert [group["lr"] for group in optimiser.param_groups] == [0.4, 0.8]
    with pytest.raises(InputError, match="batch_size is missing"):
        optimiser.retune(Measured())
    with pytest.raises(InputError, match="batch_size is 3, but the parameters are given"):
        optimiser.retune(P, 3)


def test_measured_constants_of_linear_data_are_taken_as_they_are():
    x = drawn(12, 5)
    constants = constants_from_data(x, loss="half_mean")
    w = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimiser = MaSS.from_constants([w], constants, 3)
    h = x.T @ x / 12
    assert optimiser.param_groups[0]["smoothness"] == pytest.approx(float(torch.linalg.eigvalsh(h)[-1]))
    for _ in range(400):
        w.grad = h @ (w.detach() - drawn(5, name="target"))
        optimiser.step()
    torch.testing.assert_close(w.detach(), drawn(5, name="target"), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="diverges there"):
        MaSS.from_constants([w], constants, 3, lr=2.01 / constants.smoothness)


def test_etas_give_the_same_optimiser():
    a, b = nn.Parameter(drawn(3)), nn.Parameter(drawn(3))
    one, other = MaSS([a], **vars(P)), MaSS.from_etas([b], P.eta1, P.eta2, P.gamma)
    take(one, range(30))
    take(other, range(30))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_a_step_above_two_over_l_is_refused_wherever_it_is_set():
    params = [nn.Parameter(drawn(2))]
    message = r"lr is 0\.51, above 2/L = 0\.5 for the measured L = 4"
    with pytest.raises(InputError, match=message):
        MaSS(params, 0.51, smoothness=4.0)
    with pytest.raises(InputError, match=message):
        MaSS.from_constants(params, Measured(), 1, lr=0.51, smoothness=4.0)
    optimiser = MaSS(params, 0.5, smoothness=4.0)
    with pytest.raises(InputError, match=message):
        optimiser.add_param_group({"params": [nn.Parameter(drawn(2))], "lr": 0.51})
    with pytest.raises(InputError, match=message):
        optimiser.retune(MassParameters(0.51, 0.1, 2.0), smoothness=4.0)
    assert optimiser.param_groups[0]["lr"] == 0.5
    optimiser.retune(MassParameters(0.51, 0.1, 2.0))
    with pytest.raises(InputError, match="smoothness L is -1"):
        MaSS(params, 0.1, smoothness=-1.0)


@pytest.mark.parametrize("foreach", [True, False, None])
def test_a_master_in_single_precision_keeps_small_steps(foreach):
    """Steps of 1e-4 beside weights of about 1 are lost in bfloat16, whose spacing there is 1/128."""

    def run(dtype: torch.dtype, **options: object) -> Tensor:
        u = nn.Parameter(torch.ones(20, dtype=dtype))
        optimiser = MaSS([u], 1e-4, 0.05, 3.0, foreach=foreach, **options)
        for t in range(200):
            u.grad = (1 + 0.1 * drawn(20, name=t)).to(torch.bfloat16).to(dtype)
            optimiser.step()
        return u.detach()

    exact = run(torch.float32)
    assert torch.equal(run(torch.bfloat16, state_dtype=torch.float32), exact.bfloat16())
    assert bool((run(torch.bfloat16) == 1).all())
    assert float(exact.max()) < 0.95


def test_the_master_is_saved_shown_and_follows_other_hands():
    def made() -> tuple[nn.Parameter, MaSS]:
        u = nn.Parameter(drawn(40, dtype=torch.bfloat16))
        return u, MaSS([u, nn.Parameter(drawn(2, dtype=torch.float32))], 0.01, state_dtype=torch.float32)

    u, optimiser = made()
    take(optimiser, range(5))
    assert {value.dtype for state in optimiser.state.values() for value in state.values()} == {torch.float32}
    assert [set(state) for state in optimiser.state.values()] == [
        {"momentum_buffer", "master"},
        {"momentum_buffer"},
    ]
    v, resumed = made()
    resumed.load_state_dict(optimiser.state_dict())
    v.data.copy_(u)
    before = u.detach().clone()
    master = optimiser.state[u]["master"].clone()
    with optimiser.eval_params():
        shown = master + 0.01 * (0.95 / 1.05) * optimiser.state[u]["momentum_buffer"]
        assert torch.equal(u, shown.bfloat16())
    assert torch.equal(u, before)
    take(optimiser, range(5, 8), 0.1)
    take(resumed, range(5, 8), 0.1)
    assert torch.equal(optimiser.state[u]["master"], resumed.state[v]["master"])
    with torch.no_grad():
        u.fill_(3.0)
    take(optimiser, range(8, 9), 0.0)
    moved = optimiser.state[u]["momentum_buffer"] * 0.01 * (0.95 / 1.05)
    torch.testing.assert_close(optimiser.state[u]["master"], 3 - moved)


def test_many_parameters_in_higher_precision_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr("wideangle.optim._mass_step._AT_ONCE", {"cpu": 5})
    params = [nn.Parameter(drawn(n, dtype=torch.bfloat16)) for n in (3, 4, 9, 0, 1)]
    plain = [nn.Parameter(p.detach().float()) for p in params]
    take(MaSS(params, 0.1, state_dtype=torch.float32), range(1))
    take(MaSS(plain, 0.1), range(1))
    for low, high in zip(params, plain, strict=True):
        torch.testing.assert_close(low.float(), high, rtol=0.02, atol=0.02)
        assert not torch.equal(low, drawn(*low.shape, dtype=torch.bfloat16)) or low.numel() == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0; it must be positive"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": torch.ones(2)}, r"lr is a tensor of shape \(2,\)"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.0}, "gamma = 0, no momentum"),
        ({"kappa_tilde": 0.9}, "kappa_tilde is 0.9"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"state_dtype": torch.int32}, "state_dtype is torch.int32"),
        ({"foreach": True, "fused": True}, "foreach=True and fused=True exclude each other"),
        ({"foreach": True, "differentiable": True}, "plain loop only"),
        ({"capturable": True, "check_finite": True}, "waits for the device"),
        ({"restart": True, "differentiable": True}, "zeroed in place"),
        ({"params": []}, "params is empty; pass"),
        ({"params": [{"params": []}, {"params": []}]}, "all 2 groups are empty"),
        ({"params": [torch.zeros(2, dtype=torch.complex64)]}, "is complex; the method"),
        ({"params": [torch.zeros(2, 2).to_sparse()]}, "is sparse"),
        ({"params": [torch.zeros(2, dtype=torch.int64)]}, "of type torch.int64"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_with_the_reason(changed, message):
    with pytest.raises(InputError, match=message):
        MaSS(**({"params": [torch.zeros(2)], "lr": 0.1} | changed))


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.1])
def test_gamma_lies_between_zero_and_one(gamma):
    with pytest.raises(InputError, match="gamma is"):
        MaSS.from_etas([torch.zeros(2)], 0.1, 0.0, gamma)


def test_sparse_gradients_are_refused_before_anything_moves():
    table, w = nn.Embedding(5, 2, sparse=True), nn.Parameter(drawn(2))
    optimiser = MaSS([{"params": [w]}, {"params": table.parameters()}], 0.1)
    (table(torch.tensor([1])).square().sum() + w.square().sum().float()).backward()
    with pytest.raises(InputError, match=r"parameter 0 of group 1.*sparse"):
        optimiser.step()
    assert torch.equal(w, drawn(2))


def test_the_state_of_another_optimiser_is_refused():
    w = nn.Parameter(drawn(2))
    with pytest.raises(InputError, match=r"no \['alpha', 'kappa_tilde'\]"):
        MaSS([w], 0.1).load_state_dict(torch.optim.SGD([w], 0.1).state_dict())


def test_the_fused_kernel_is_kept_from_tensors_it_would_mix_up():
    results = []
    for options in ({}, {"foreach": False}):
        w = nn.Parameter(drawn(2, 3, 4, 4).to(memory_format=torch.channels_last))
        w.grad = drawn(2, 3, 4, 4, name="g")
        MaSS([w], 0.1, **options).step()
        results.append(w.detach())
    assert torch.equal(*results)
    with pytest.raises(InputError, match="not contiguous"):
        MaSS([w], 0.1, fused=True).step()


@pytest.mark.parametrize("turned", range(3))
def test_the_fused_kernel_refuses_whichever_tensor_lies_otherwise(turned):
    tensors = [torch.zeros(2, 3).T.contiguous() if i != turned else torch.zeros(2, 3).T for i in range(3)]
    u, g, c = ([tensor] for tensor in tensors)
    with pytest.raises(InputError, match="not contiguous"):
        mass(u, g, c, lr=0.1, alpha=0.1, kappa_tilde=2.0, fused=True)


def test_no_gain_from_momentum_is_warned_of_once_with_its_meaning():
    groups = [{"params": [nn.Parameter(drawn(2))]}, {"params": [nn.Parameter(drawn(2))]}]
    with pytest.warns(UserWarning, match=r"0\.05 \* 20 = 1, not below 1: this is plain SGD") as found:
        optimiser = MaSS(groups, 0.1, 0.05, 20.0)
    assert len(found) == 1
    assert found[0].filename == __file__
    with pytest.warns(UserWarning, match="against the gradient"):
        optimiser.add_param_group({"params": [nn.Parameter(drawn(2))], "kappa_tilde": 30.0})
    with pytest.warns(UserWarning, match="plain SGD"):
        optimiser.retune(MassParameters(0.1, 1.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimiser.retune(P)
        MaSS([nn.Parameter(drawn(2))], 0.1, 0.05, 19.9)


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_without_momentum_it_is_gradient_descent(options):
    u, c = torch.ones(3), torch.zeros(3)
    for _ in range(3):
        mass([u], [torch.ones(3)], [c], lr=0.1, alpha=1.0, kappa_tilde=1.0, **options)
    torch.testing.assert_close(u, torch.full((3,), 0.7))
