"""Our tangent kernel beside the torch.func recipe and the matrix-product floor, in one run.

    python benchmarks/bench_kernel.py [--json bench_kernel.json] [--repeats 5] [--threads 2]

Same weights, same data, same run; float32 sums for every method, so that all do the same arithmetic. The
recipe is the Jacobian contraction (vmap of jacrev over functional_call, einsum over parameters) and, for
the trace, one vmap(grad) per output with G G^T. The floor is the time the machine's own matrix product
needs for the multiply-adds of the layerwise contraction alone: no kernel code can be below it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from wideangle import nets, seeds
from wideangle.files import write_atomically
from wideangle.kernel import tangent_kernel


def recipe(model: nn.Module, x: Tensor, trace: bool) -> Tensor:
    """The Jacobian contraction as the torch.func tutorial describes it."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (sample.unsqueeze(0),)).squeeze(0)

    jacobians = torch.func.vmap(torch.func.jacrev(one), (None, 0))(parameters, x)
    form = "icp,jcp->ij" if trace else "icp,jdp->icjd"
    parts = [torch.einsum(form, j.flatten(2), j.flatten(2)) for j in jacobians.values()]
    return torch.stack(parts).sum(0)


def recipe_per_output(model: nn.Module, x: Tensor, trace: bool) -> Tensor:
    """One vmap(grad) per output, the Gram of each added up: the leaner recipe for the trace."""
    if not trace:
        return recipe(model, x, trace)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    total = torch.zeros(len(x), len(x))
    for c in range(model(x[:1]).shape[1]):

        def one(weights: dict[str, Tensor], sample: Tensor, c: int = c) -> Tensor:
            return torch.func.functional_call(model, weights, (sample.unsqueeze(0),))[0, c]

        gradients = torch.func.vmap(torch.func.grad(one), (None, 0))(parameters, x)
        flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
        total += flat @ flat.T
    return total


def matmul_rate() -> float:
    """Multiply-adds a second of a large float32 matrix product on this machine."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 1024**3 / median_seconds(lambda: a @ b, 9)


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def contraction_multiply_adds(model: nn.Module, x: Tensor, trace: bool) -> float:
    """Multiply-adds of the symmetric layerwise contraction, n^2/2 (K + C^q O) per Linear; per-sample for conv."""
    n, outputs = len(x), model(x[:1]).shape[1]
    wide = outputs if trace else outputs**2
    total = 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            total += n * n / 2 * (module.in_features + wide * module.out_features)
        elif isinstance(module, nn.Conv2d):
            total += n * n / 2 * wide * module.weight.numel()
    return total


def cases() -> dict[str, tuple[nn.Module, tuple[int, ...], dict[str, int]]]:
    draws = seeds.generator(0, "bench")
    mlp = nets.MLP(784, 10, width=512, depth=2, generator=draws)
    return {
        "MLP 784-512-512-10": (mlp, (784,), {"small": 128, "large": 1024}),
        "conv net 1x28x28": (nets.build("conv", (1, 28, 28), 10), (1, 28, 28), {"small": 128, "large": 256}),
        "residual net 1x28x28": (nets.build("resnet", (1, 28, 28), 10), (1, 28, 28), {"small": 64}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="bench_kernel.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rate = matmul_rate()
    print(
        f"torch {torch.__version__}, {options.threads} threads, {rate / 1e9:.0f} G multiply-adds/s in float32"
    )
    head = f"{'model':22} {'kernel':6} {'n':>5} {'ours s':>8} {'recipe s':>9} {'ratio':>7} {'floor s':>8} {'error':>8}"
    print(head)
    rows = []
    for name, (model, shape, sizes) in cases().items():
        for trace in (True, False):
            for label, n in sizes.items():
                x = torch.rand(n, *shape, generator=seeds.generator(1, "x"))
                kind = "trace" if trace else "full"
                ours = median_seconds(
                    lambda m=model, x=x, k=kind: tangent_kernel(m, x, outputs=k, dtype=torch.float32),
                    options.repeats,
                )
                theirs, error = None, None
                if label == "small":
                    method = recipe_per_output if trace else recipe
                    theirs = median_seconds(lambda m=model, x=x, t=trace, f=method: f(m, x, t), 1)
                    exact = tangent_kernel(model, x, outputs=kind)
                    found = tangent_kernel(model, x, outputs=kind, dtype=torch.float32)
                    error = float((found - exact).norm() / exact.norm())
                floor = contraction_multiply_adds(model, x, trace) / rate
                rows.append(
                    {"model": name, "kernel": kind, "n": n, "ours": ours, "recipe": theirs, "floor": floor}
                )
                shown = f"{theirs:9.3f} {theirs / ours:6.1f}x" if theirs else f"{'':9} {'':7}"
                wrong = f"{error:8.0e}" if error is not None else ""
                print(f"{name:22} {kind:6} {n:5} {ours:8.3f} {shown} {floor:8.3f} {wrong}", flush=True)
    where = write_atomically(Path(options.json), json.dumps({"rate": rate, "rows": rows}, indent=1))
    print(f"written to {where}")


if __name__ == "__main__":
    main()
