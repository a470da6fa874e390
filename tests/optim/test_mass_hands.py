"""MaSS where others lay hands on what it holds: weights, lr tensors, loaded states, wrong kinds of arguments."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wideangle.errors import InputError
from wideangle.optim import MaSS, MassParameters, constants_from_data
from wideangle.seeds import generator

P = MassParameters(0.1, 0.05, 3.0)


def drawn(*shape: int, name: str | int = "x", dtype: torch.dtype = torch.float64) -> Tensor:
    draws = generator(6, "hands", name, *shape)
    return torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype)


def take(optimiser: MaSS, steps: range, scale: float = 1.0) -> None:
    for t in steps:
        for group in optimiser.param_groups:
            for param in group["params"]:
                param.grad = (scale * drawn(*param.shape, name=t)).to(param.dtype)
        optimiser.step()


def low(steps: int = 3) -> tuple[nn.Parameter, MaSS]:
    """Weights in bfloat16 with a master in single precision, after some steps."""
    u = nn.Parameter(drawn(30, dtype=torch.bfloat16))
    optimiser = MaSS([u], 0.01, state_dtype=torch.float32)
    take(optimiser, range(steps))
    return u, optimiser


def moved_by(optimiser: MaSS, u: Tensor, before: Tensor) -> Tensor:
    """What a step with gradient zero leaves of weights `before`: u - lr gamma c, c the buffer after it."""
    return before - 0.01 * P.gamma * optimiser.state[u]["momentum_buffer"]


def filled(u: nn.Parameter) -> None:
    with torch.no_grad():
        u.fill_(5.0)


def through_data(u: nn.Parameter) -> None:
    """Moves no version counter."""
    u.data.fill_(5.0)


def replaced(u: nn.Parameter) -> None:
    u.data = torch.full_like(u, 5.0)


def vector(u: nn.Parameter) -> None:
    nn.utils.vector_to_parameters(torch.full((30,), 5.0, dtype=torch.bfloat16), [u])


@pytest.mark.parametrize("change", [filled, through_data, replaced, vector])
@pytest.mark.parametrize("shown", [False, True])
def test_weights_changed_by_other_hands_are_stepped_from_and_shown(change: Callable, shown: bool):
    u, optimiser = low()
    change(u)
    if shown:
        with optimiser.eval_params():
            w = 5 + 0.01 * P.gamma * optimiser.state[u]["momentum_buffer"]
            assert torch.equal(u, w.bfloat16())
        assert bool((u == 5).all())
    take(optimiser, range(3, 4), 0.0)
    five = torch.full((30,), 5.0)
    torch.testing.assert_close(optimiser.state[u]["master"], moved_by(optimiser, u, five))


@pytest.mark.parametrize("how", ["load", "deepcopy", "pickle"])
def test_weights_loaded_after_the_optimiser_s_state_win(how: str):
    u, optimiser = low()
    if how == "load":
        v = nn.Parameter(u.detach().clone())
        other = MaSS([v], 0.01, state_dtype=torch.float32)
        other.load_state_dict(optimiser.state_dict())
    else:
        other = copy.deepcopy(optimiser) if how == "deepcopy" else pickle.loads(pickle.dumps(optimiser))
        v = other.param_groups[0]["params"][0]
    filled(v)
    take(other, range(3, 4), 0.0)
    torch.testing.assert_close(other.state[v]["master"], moved_by(other, v, torch.full((30,), 5.0)))


def test_entries_that_nobody_changed_keep_the_digits_of_their_master():
    (u, optimiser), (v, twin) = low(), low()
    with torch.no_grad():
        u[:10] = 5.0
    for each in (optimiser, twin):
        take(each, range(3, 4))
    assert torch.equal(optimiser.state[u]["master"][10:], twin.state[v]["master"][10:])
    assert not torch.equal(u[10:].float(), optimiser.state[u]["master"][10:])  # there are digits to keep


def test_lr_tensors_belong_to_one_group_and_not_to_the_caller():
    lr = torch.tensor(0.1, dtype=torch.float64)
    params = [nn.Parameter(drawn(2)) for _ in range(2)]
    optimiser = MaSS([{"params": [p]} for p in params], lr, capturable=True)
    optimiser.retune(MassParameters(0.03, 0.1, 2.0), group=0)
    assert [float(group["lr"]) for group in optimiser.param_groups] == [0.03, 0.1]
    assert float(lr) == 0.1
    lr.fill_(7.0)
    assert float(optimiser.param_groups[1]["lr"]) == 0.1
    take(optimiser, range(1))
    copied = MaSS([nn.Parameter(drawn(2))], torch.tensor([2]))  # a whole number, of one dimension
    assert copied.param_groups[0]["lr"].shape == ()
    assert copied.param_groups[0]["lr"].is_floating_point()


def test_a_differentiable_lr_is_the_caller_s_of_whatever_shape():
    for shape in ((), (1,)):
        lr = torch.full(shape, 0.1, dtype=torch.float64, requires_grad=True)
        u = torch.tensor(2.0, dtype=torch.float64)
        optimiser = MaSS([torch.zeros_like(u)], lr, differentiable=True)
        optimiser.param_groups[0]["params"] = [u]
        u.grad = torch.tensor(3.0, dtype=torch.float64)
        optimiser.step()
        (slope,) = torch.autograd.grad(u, lr)
        assert slope.shape == shape
        # u' = u - lr (g + gamma c), c = s g
        share = P.gain / P.gamma
        assert float(slope.sum()) == pytest.approx(-3.0 * (1 + P.gamma * share))
        with pytest.raises(InputError, match="requires a gradient"):
            optimiser.retune(P)


def test_a_capturable_lr_lies_with_the_parameters_also_when_it_is_loaded():
    """The meta device stands for CUDA: what lies on it lies elsewhere than on the CPU."""
    far = [nn.Parameter(torch.zeros(3, device="meta"))]
    given = MaSS(far, torch.tensor(0.1), capturable=True)
    assert given.param_groups[0]["lr"].device.type == "meta"
    for capturable in (True, False):
        near = MaSS([nn.Parameter(torch.zeros(3))], 0.3, capturable=capturable, restart=True)
        take(near, range(2))
        loaded = MaSS(far, 0.1, capturable=True)
        loaded.load_state_dict(near.state_dict())
        group = loaded.param_groups[0]
        kept = [group[key] for key in ("lr", "last_lr", "restart_below")]
        assert isinstance(group["lr"], Tensor)
        assert {value.device.type for value in kept if isinstance(value, Tensor)} == {"meta"}
        assert near.param_groups[0]["capturable"] is capturable


def test_a_loaded_float_lr_becomes_the_tensor_of_a_capturable_optimiser():
    u, v = nn.Parameter(drawn(3)), nn.Parameter(drawn(3))
    plain, captured = MaSS([u], 0.3), MaSS([v], 0.1, capturable=True)
    take(plain, range(2))
    captured.load_state_dict(plain.state_dict())
    assert isinstance(captured.param_groups[0]["lr"], Tensor)
    assert float(captured.param_groups[0]["lr"]) == 0.3
    plain.load_state_dict(captured.state_dict())
    assert not plain.param_groups[0]["capturable"]
    checked = MaSS([u], 0.3, check_finite=True)
    with pytest.raises(InputError, match="exclude each other"):
        captured.load_state_dict(checked.state_dict())
    assert captured.param_groups[0]["check_finite"] is False


def test_retuning_keeps_the_guard_of_measured_constants():
    constants = constants_from_data(drawn(12, 5), loss="half_mean")
    optimiser = MaSS.from_constants([nn.Parameter(drawn(5))], constants, 3)
    optimiser.retune(constants, 4)
    assert optimiser.param_groups[0]["smoothness"] == constants.smoothness

    class Wrong:
        smoothness = constants.smoothness

        def mass(self, batch_size: int) -> MassParameters:
            return MassParameters(2.1 / self.smoothness, 0.1, 2.0)

    before = optimiser.param_groups[0]["lr"]
    with pytest.raises(InputError, match="above 2/L"):
        optimiser.retune(Wrong(), 4)
    assert optimiser.param_groups[0]["lr"] == before
    optimiser.retune(Wrong(), 4, smoothness=constants.smoothness / 2)
    assert optimiser.param_groups[0]["smoothness"] == constants.smoothness / 2


def test_a_parameter_given_twice_is_shown_once_and_comes_back():
    u = nn.Parameter(drawn(3))
    with pytest.warns(UserWarning, match="duplicate"):
        optimiser = MaSS([{"params": [u, u]}], **vars(P))
    take(optimiser, range(2))
    before = u.detach().clone()
    with optimiser.eval_params():
        w = before + P.lr * P.gamma * optimiser.state[u]["momentum_buffer"]
        torch.testing.assert_close(u.detach(), w, rtol=1e-14, atol=0)
    assert torch.equal(u, before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": "a"}, "lr is 'a', of type str; it must be a real number"),
        ({"lr": None}, "lr is None"),
        ({"lr": 1j}, "lr is 1j"),
        ({"lr": torch.tensor(1j)}, "lr is a tensor of shape .*complex64"),
        ({"alpha": "a"}, "alpha is 'a'"),
        ({"alpha": None}, "alpha is None"),
        ({"alpha": torch.tensor(0.1)}, "alpha is tensor"),
        ({"kappa_tilde": "3"}, "kappa_tilde is '3'"),
        ({"weight_decay": None}, "weight_decay is None"),
        ({"state_dtype": "float32"}, "state_dtype is 'float32'"),
        ({"smoothness": "a"}, "smoothness is 'a'"),
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind_are_named(changed: dict, message: str):
    given = {"lr": 0.1} | changed
    with pytest.raises(InputError, match=message):
        MaSS([nn.Parameter(drawn(2))], **given)


def test_retuning_and_constants_name_what_is_wrong():
    params = [nn.Parameter(drawn(2))]
    optimiser = MaSS(params, **vars(P))
    constants = constants_from_data(drawn(12, 5), loss="half_mean")
    calls = [
        (lambda: optimiser.retune(object(), 4), "object is neither MassParameters nor"),
        (lambda: optimiser.retune((0.1, 0.2, 0.3)), "tuple is neither .*from_etas"),
        (lambda: optimiser.retune(P, group=5), "group is 5"),
        (lambda: optimiser.retune(P, group=0.0), r"group is 0\.0"),
        (lambda: optimiser.retune(P, smoothness="a"), "smoothness is 'a'"),
        (lambda: MaSS.from_constants(params, constants, 1.5), r"batch_size is 1\.5"),
        (lambda: MaSS.from_constants(params, constants, True), "batch_size is True"),
        (lambda: MaSS.from_constants(params, constants, "a"), "batch_size is 'a'"),
        (lambda: MaSS.from_constants(params, constants, 0), "batch_size is 0"),
    ]
    for call, message in calls:
        with pytest.raises(InputError, match=message):
            call()
    assert [optimiser.param_groups[0][key] for key in vars(P)] == list(vars(P).values())
    optimiser.retune(P, group=-1)


def test_the_warning_points_at_the_caller_whatever_made_the_optimiser():
    class Small:
        def mass(self, batch_size: int) -> MassParameters:
            return MassParameters(0.1, 0.5, 3.0)

    params = [nn.Parameter(drawn(2))]
    optimiser = MaSS(params, **vars(P))
    p = Small().mass(1)
    calls = [
        lambda: MaSS(params, **vars(p)),
        lambda: MaSS.from_constants(params, Small(), 1),
        lambda: MaSS.from_etas(params, p.eta1, p.eta2, p.gamma),
        lambda: optimiser.retune(p),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match="against the gradient") as found:
            call()
        assert [warning.filename for warning in found] == [__file__]
