"""What one step of MaSS costs beside torch's SGD with Nesterov momentum, on the same tensors.

Rounds are interleaved: in each, every method takes the same number of steps, in an order that rotates. A ratio
is the median over the rounds of this method's time to that of SGD(foreach=True) in the same round, so that
what disturbs a round disturbs both. Before each, outside the clock, gradients are set anew and buffers to zero:
SGD's foreach form adds its buffer into the gradients, which would grow without end. The form with lr as a tensor
is judged against SGD with a tensor lr. The exit status is 1 where a judged row misses the goal.
`python benchmarks/bench_optim_step.py --help` lists the options.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wideangle.files import write_atomically
from wideangle.optim import MaSS
from wideangle.seeds import generator

GOAL = 1.05
BASE, TENSOR_BASE = "SGD foreach", "SGD foreach tensor lr"
SIZES = (100_000, 10_000_000)
TENSORS = {"few": 8, "many": 1000}
LR = 1e-6  # the weights hardly move
Maker = Callable[[list[Tensor]], torch.optim.Optimizer]


def sgd(**options: Any) -> Maker:
    return lambda params: torch.optim.SGD(params, LR, momentum=0.9, nesterov=True, **options)


def sgd_with_tensor(**options: Any) -> Maker:
    return lambda params: torch.optim.SGD(
        params, torch.tensor(LR, device=params[0].device), momentum=0.9, nesterov=True, **options
    )


def ours(**options: Any) -> Maker:
    return lambda params: MaSS(params, LR, 0.05, 3.0, **options)


METHODS: dict[str, Maker] = {
    BASE: sgd(foreach=True),
    "SGD loop": sgd(foreach=False),
    "SGD fused": sgd(fused=True),
    TENSOR_BASE: sgd_with_tensor(foreach=True),
    "MaSS": ours(),
    "MaSS foreach": ours(foreach=True),
    "MaSS loop": ours(foreach=False),
    "MaSS fused": ours(fused=True),
    "MaSS check_finite": ours(check_finite=True),
    "MaSS foreach check_finite": ours(foreach=True, check_finite=True),
    "MaSS foreach tensor lr": ours(foreach=True, capturable=True),
}
LOW_PRECISION: dict[str, Maker] = {
    "bf16 SGD foreach": sgd(foreach=True),
    "bf16 MaSS foreach": ours(foreach=True),
    "bf16 MaSS, float32 state": ours(state_dtype=torch.float32),
}
JUDGED = {"MaSS": BASE, "MaSS foreach": BASE, "MaSS foreach tensor lr": TENSOR_BASE}


class Subject:
    """One optimiser on parameters of its own, with a gradient for each."""

    def __init__(self, make: Maker, size: int, tensors: int, dtype: torch.dtype, device: str) -> None:
        draws = generator(0, "step", size, tensors)
        shape = (size // tensors,)
        self.params = [torch.nn.Parameter(self._drawn(shape, draws, dtype, device)) for _ in range(tensors)]
        self.source = [self._drawn(shape, draws, dtype, device) for _ in range(tensors)]
        self.device = device
        self.buffers: list[Tensor] = []
        self.optimiser = make(self.params)  # type: ignore[arg-type]
        self.renew()
        self.seconds(2)
        self.buffers = [self.optimiser.state[param]["momentum_buffer"] for param in self.params]

    @staticmethod
    def _drawn(shape: tuple[int, ...], draws: torch.Generator, dtype: torch.dtype, device: str) -> Tensor:
        return torch.randn(shape, generator=draws).to(device, dtype)

    def renew(self) -> None:
        """Set the gradients to what they were, and the buffers to zero."""
        for buffer in self.buffers:
            buffer.zero_()
        for param, gradient in zip(self.params, self.source, strict=True):
            if param.grad is None:
                param.grad = gradient.clone()
            else:
                param.grad.copy_(gradient)

    def seconds(self, steps: int) -> float:
        """Return the seconds a step takes, over so many."""
        self.wait()
        start = time.perf_counter()
        for _ in range(steps):
            self.optimiser.step()
        self.wait()
        return (time.perf_counter() - start) / steps

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure(
    methods: dict[str, Maker],
    size: int,
    tensors: int,
    dtype: torch.dtype,
    device: str,
    rounds: int,
    steps: int,
) -> list[dict[str, Any]]:
    """Return a row for each method: median and least microseconds a step, and the ratios to its base."""
    subjects = {name: Subject(make, size, tensors, dtype, device) for name, make in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            subjects[name].renew()
            times[name].append(subjects[name].seconds(steps))
    return [
        {
            "method": name,
            "device": device,
            "parameters": size,
            "tensors": tensors,
            "median_us": 1e6 * statistics.median(found),
            "least_us": 1e6 * min(found),
            "base": base,
            "ratio": statistics.median(a / b for a, b in zip(found, times[base], strict=True)),
            "ratio_of_least": min(found) / min(times[base]),
        }
        for name, found in times.items()
        for base in [JUDGED.get(name, names[0])]
    ]


def text(row: dict[str, Any]) -> str:
    verdict = ""
    if row["method"] in JUDGED:
        verdict = f"{'met' if row['ratio'] <= GOAL else 'MISSED'} against {row['base']}"
    return (
        f"  {row['method']:28} {row['median_us']:10.1f} {row['least_us']:10.1f} "
        f"{row['ratio']:7.3f} {row['ratio_of_least']:9.3f}  {verdict}"
    ).rstrip()


def main() -> int:
    """Measure, print and write the rows; return 1 where a judged one misses the goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100,000 parameters only, few rounds")
    parser.add_argument("--rounds", type=int, help="rounds of every method")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads on the CPU (1)")
    parser.add_argument("--output", default="optim_step.json", help="the rows as JSON (optim_step.json)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for size in SIZES[:1] if options.quick else SIZES:
            for label, tensors in TENSORS.items():
                rounds = options.rounds or (10 if options.quick else 40 if size > 1e6 else 100)
                steps = 2 if size > 1e6 else 10
                print(f"\n{size:,} parameters in {label} ({tensors}) tensors, {device}, {rounds} rounds")
                print(f"  {'method':28} {'median us':>10} {'least us':>10} {'ratio':>7} {'of least':>9}")
                for methods, dtype in ((METHODS, torch.float32), (LOW_PRECISION, torch.bfloat16)):
                    found = measure(methods, size, tensors, dtype, device, rounds, steps)
                    print("\n".join(map(text, found)), flush=True)
                    rows += found
    judged = [row for row in rows if row["method"] in JUDGED]
    worst = max(judged, key=lambda row: row["ratio"])
    print(
        f"\ngoal {GOAL}: met by {sum(r['ratio'] <= GOAL for r in judged)} of {len(judged)} rows; worst",
        end=" ",
    )
    print(f"{worst['ratio']:.3f}, {worst['method']}, {worst['parameters']:,} in {worst['tensors']} tensors")
    about = {"torch": torch.__version__, "threads": options.threads, "goal": GOAL, "base": BASE}
    print("written to", write_atomically(options.output, json.dumps({**about, "rows": rows}, indent=1)))
    return int(worst["ratio"] > GOAL)


if __name__ == "__main__":
    sys.exit(main())
