"""The curvature operators against explicit matrices, curvlinops, and themselves in chunks and processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import MODELS, DictInput, fresh, normal, tokens

from wideangle.curvature import GaussNewton, LossHessian, OutputHessian
from wideangle.errors import InputError
from wideangle.kernel import jacobian
from wideangle.seeds import generator
from wideangle.targets import loss_function, prepare_targets

ROOT = Path(__file__).parents[2]
SMOOTH = ["linear", "conv1d norms", "batchnorm2d", "called twice", "conv called twice", "tied embedding"]
SMOOTH += ["sequence with norms", "attention", "weight norm", "recurrent", "residual"]


def vector(size: int, seed: int = 5) -> Tensor:
    return torch.randn(size, generator=generator(seed, "v"), dtype=torch.float64)


def case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    build, data = MODELS[name]
    model, x = fresh(build()), data()
    outputs = model(x).reshape(len(x), -1).shape[1]
    return model, x, torch.arange(len(x)) % outputs


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def dense_ggn(model: nn.Module, loss: str, x: Tensor, y: Tensor) -> Tensor:
    """J^T D J, each part written out: D by a Hessian of the loss in the outputs."""
    J = jacobian(model, x).reshape(-1, sum(p.numel() for p in model.parameters()))
    z = model(x).detach()

    def of_outputs(flat: Tensor) -> Tensor:
        outputs = flat.reshape(z.shape)
        return loss_function(loss)(outputs, prepare_targets(y, z[0].numel(), loss, z.dtype))

    D = torch.autograd.functional.hessian(of_outputs, z.reshape(-1))
    return J.T @ D @ J


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("flattened tokens",)])
def test_gauss_newton_equals_its_three_factors(name, loss):
    model, x, y = case(name)
    if model(x).dim() != 2 or (loss == "cross-entropy" and model(x).shape[1] == 1):
        pytest.skip("the named losses want outputs (n, C), cross-entropy two of them")
    dense = dense_ggn(model, loss, x, y)
    whole = GaussNewton(model, loss, x, y)
    parts = GaussNewton(model, loss, x, y, chunk=2)
    assert (whole.chunks, parts.chunks) == (1, -(-len(x) // 2))
    v = vector(whole.size)
    assert relative(whole @ v, dense @ v) < 1e-10
    assert relative(parts @ v, dense @ v) < 1e-10


def test_gauss_newton_and_the_residual_s_output_hessian_make_the_loss_hessian():
    model, x, y = case("attention")
    z = model(x).detach()
    residual = 2 * (z - prepare_targets(y, z.shape[1], "mse", z.dtype)) / z.numel()
    v = vector(LossHessian(model, "mse", x, y).size)
    total = GaussNewton(model, "mse", x, y) @ v + OutputHessian(model, x, residual) @ v
    assert relative(total, LossHessian(model, "mse", x, y) @ v) < 1e-12


@pytest.mark.parametrize("name", SMOOTH)
def test_output_hessian_is_the_second_derivative_of_one_output(name):
    model, x, _ = case(name)
    one = x[:1]
    operator = OutputHessian(model, one, 1)
    names = list(operator.weights)
    flat = torch.cat([operator.weights[n].reshape(-1) for n in names])

    def output(w: Tensor) -> Tensor:
        raw = torch.func.functional_call(model, operator.unflatten(w), (one,))
        return raw.reshape(-1)[1]

    v, step = vector(len(flat)), 1e-5
    gradient = torch.func.grad(output)
    slope = (gradient(flat + step * v) - gradient(flat - step * v)) / (2 * step)
    assert float((operator @ v - slope).norm()) < 1e-6 * max(1.0, float(slope.norm()))


def test_weights_of_the_outputs_in_every_form():
    model, x, _ = case("attention")
    v = vector(OutputHessian(model, x, 0).size)
    columns = [OutputHessian(model, x, c) @ v for c in range(3)]
    mix = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    expected = sum(m * column for m, column in zip(mix, columns, strict=True))
    assert relative(OutputHessian(model, x, mix) @ v, expected) < 1e-12
    assert relative(OutputHessian(model, x, mix.expand(5, 3)) @ v, expected) < 1e-12
    assert relative(OutputHessian(model, x, mix.expand(5, 3), chunk=2) @ v, expected) < 1e-12
    for wrong, text in ((None, "3 outputs; say which"), (3, "numbered from 0"), (mix[:2], "2 weights for 3")):
        with pytest.raises(InputError, match=text):
            OutputHessian(model, x, wrong) @ v
    with pytest.raises(InputError, match=r"x has 5 samples and y has 4"):
        OutputHessian(model, x, mix.expand(4, 3))


@pytest.mark.parametrize("kind", [LossHessian, GaussNewton])
def test_against_curvlinops(kind):
    curvlinops = pytest.importorskip("curvlinops")
    oracle = {LossHessian: curvlinops.HessianLinearOperator, GaussNewton: curvlinops.GGNLinearOperator}[kind]
    draws = generator(3, "curvlinops")
    model = fresh(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)))
    x = torch.randn(12, 1, 6, 6, generator=draws, dtype=torch.float64)
    y = torch.arange(12) % 4
    loader = [(x[:5], y[:5]), (x[5:], y[5:])]
    weights = list(model.parameters())
    theirs = oracle(model, nn.CrossEntropyLoss(), weights, loader, check_deterministic=False)
    v = vector(sum(p.numel() for p in model.parameters()))
    for ours in (
        kind(model, "cross-entropy", x, y),
        kind(model, "cross-entropy", loader, None),
        kind(model, nn.CrossEntropyLoss(), x, y, chunk=5),
    ):
        assert relative(ours @ v, theirs @ v) < 1e-10
    assert kind(model, "cross-entropy", loader, None).chunks == 2


def test_a_loss_of_one_s_own_and_one_without_curvature():
    model, x, _ = case("called twice")
    y = normal(5, 2, seed=3)
    own = GaussNewton(model, lambda z, t: (z - t).pow(4).sum(), x, y, reduction="sum")
    z = model(x).detach()
    J = jacobian(model, x).reshape(-1, own.size)
    v = vector(own.size)
    assert relative(own @ v, J.T @ (12 * (z - y).pow(2).reshape(-1) * (J @ v))) < 1e-12
    flat = GaussNewton(model, lambda z, t: z.sum(), x, None)
    assert torch.equal(flat @ v, torch.zeros_like(v))


@pytest.mark.parametrize("kind", [LossHessian, GaussNewton])
def test_memory_decides_the_chunks_and_not_the_result(kind):
    model, x, y = fresh(nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 3))), normal(400, 4), None
    y = torch.arange(400) % 3
    whole = kind(model, "mse", x, y)
    small = kind(model, "mse", x, y, max_memory=100_000)
    assert whole.chunks == 1
    assert 4 < small.chunks < 200
    v = vector(whole.size)
    assert relative(small @ v, whole @ v) < 1e-12
    assert kind(model, "mse", x, y, max_memory=1).chunks == 400


def test_memory_of_a_product_does_not_grow_with_the_samples():
    """Autograd's saved bytes at any one time, chunked, are those of a chunk."""
    model = fresh(nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 3)))

    def most(samples: int) -> int:
        x, y = normal(samples, 4), torch.arange(samples) % 3
        operator = LossHessian(model, "mse", x, y, max_memory=200_000)
        held, top = 0, 0

        class Counted:
            def __init__(self, tensor):
                nonlocal held, top
                self.tensor = tensor.detach()
                held += tensor.numel() * tensor.element_size()
                top = max(top, held)

            def __del__(self):
                nonlocal held
                held -= self.tensor.numel() * self.tensor.element_size()

        with torch.autograd.graph.saved_tensors_hooks(Counted, lambda box: box.tensor):
            operator @ vector(operator.size)
        return top

    assert most(1600) < 1.2 * most(400)


def test_operators_in_scipy_and_of_dicts_and_chosen_parameters():
    model, x = fresh(DictInput()), {"ids": tokens(6, 5), "mask": torch.ones(6, 5, dtype=torch.float64)}
    y = torch.arange(6) % 3
    with pytest.raises(InputError, match="output="):
        GaussNewton(model, "mse", x, y) @ torch.ones(43, dtype=torch.float64)
    operator = GaussNewton(model, "mse", x, y, output="logits")
    host = operator.to_scipy()
    v = vector(operator.size)
    assert np.allclose(host @ v.numpy(), (operator @ v).numpy(), rtol=1e-13)
    assert np.allclose(host @ np.stack([v, v], 1), (operator @ torch.stack([v, v], 1)).numpy())


def test_what_cannot_be_used_is_said():
    model, x, y = case("mlp")
    for kind in (LossHessian, GaussNewton):
        with pytest.raises(InputError, match=r"expected \(51,\)"):
            kind(model, "mse", x, y) @ torch.ones(4)
        with pytest.raises(InputError, match="reduction"):
            kind(model, "mse", x, y, reduction="median")
        with pytest.raises(InputError, match="loader of"):
            kind(model, "mse", [x, x], None)
        with pytest.raises(InputError, match="holds no samples"):
            kind(model, "mse", x[:0], y[:0])
        with pytest.raises(InputError, match="chunk must be at least 1"):
            kind(model, "mse", x, y, chunk=0)
        with pytest.raises(InputError, match=r"do(es)? not depend"):
            kind(nn.Sequential(model, Detached()), "mse", x, y) @ torch.ones(51, dtype=torch.float64)
    coupled = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    assert GaussNewton(coupled, "mse", x, y, max_memory=1).chunks == 1
    with pytest.raises(InputError, match="couples the samples"):
        GaussNewton(coupled, "mse", x, y, chunk=2)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


SHARED = """
import torch
import torch.distributed as dist
from torch import nn
from wideangle.curvature import GaussNewton, LossHessian, OutputHessian, spectral_norm
from wideangle.errors import InputError
dist.init_process_group("gloo")
model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)).double()
for k, p in enumerate(model.parameters()):
    p.data.copy_(torch.sin(torch.arange(p.numel()) + k).reshape(p.shape))
x, y = torch.linspace(-1, 1, 100, dtype=torch.float64).reshape(25, 4), torch.arange(25) % 3
v = torch.cos(torch.arange(99, dtype=torch.float64))
worst = 0.0
for make in (
    lambda **o: LossHessian(model, "cross-entropy", x, y, **o),
    lambda **o: GaussNewton(model, "cross-entropy", x, y, **o),
    lambda **o: OutputHessian(model, x, 1, **o),
):
    alone = make()
    for options in ({}, {"chunk": 4}):
        shared = make(group=dist.group.WORLD, **options)
        assert sum(len(part.x) for part in shared._parts) in (12, 13)
        worst = max(worst, float((shared @ v - alone @ v).norm() / (alone @ v).norm()))
hessian = LossHessian(model, "cross-entropy", x, y, group=dist.group.WORLD)
whole = LossHessian(model, "cross-entropy", x, y)
worst = max(worst, abs(hessian.loss() - whole.loss()), float((hessian.gradient() - whole.gradient()).norm()))
worst = max(worst, abs(spectral_norm(hessian).value - spectral_norm(whole).value))
uneven = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 9.0]).double())
try:
    LossHessian(model, uneven, x[:17], y[:17], group=dist.group.WORLD)  # 8 samples here, 9 there
    worst = 1.0
except InputError as error:
    assert "no mean over samples" in str(error)
print(f"worst {worst:.3g}", flush=True)
dist.barrier()
dist.destroy_process_group()  # without it, Gloo's threads abort some of the exits
"""


def test_two_processes_share_the_samples_and_get_the_same_numbers(tmp_path):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(27500 + os.getpid() % 2000), str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    found = [float(number) for number in re.findall(r"worst ([\d.e+-]+)", run.stdout)]
    assert len(found) == 2
    assert max(found) < 1e-12
