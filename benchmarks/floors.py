"""What the machine itself needs for the arithmetic and the reading: yardsticks for the times measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def median_seconds(work: Callable[[], object], repeats: int = 9) -> float:
    """Return the median wall seconds of a call, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def matmul_rate(size: int = 1024) -> float:
    """Return the multiply-adds a second of a large float32 matrix product on this machine."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    return size**3 / median_seconds(lambda: a @ b)


def read_rate(megabytes: int = 256) -> float:
    """Return the bytes a second at which a sum reads float32 numbers from memory."""
    numbers = torch.ones(megabytes * 2**18)
    return numbers.nbytes / median_seconds(numbers.sum)


def layer_sizes(model: nn.Module, sample: Tensor) -> list[tuple[nn.Module, int, int]]:
    """Return the Linear and Conv2d layers with the numbers in one sample's input and output."""
    found: list[tuple[nn.Module, int, int]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((layer, inputs[0][0].numel(), output[0].numel()))

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        model(sample.unsqueeze(0))
    for hook in hooks:
        hook.remove()
    return found


def contraction_multiply_adds(model: nn.Module, sample: Tensor, n: int, outputs: int, kind: str) -> float:
    """Return the multiply-adds of the symmetric layerwise contraction, C passes through the net left out.

    Linear K -> O:  n^2 / 2 (K + C O) for the trace, n^2 / 2 (K + C^2 O) for the full kernel
    Conv2d:         n^2 / 2 C P or n^2 / 2 C^2 P from per-sample gradients of its P weights

    A yardstick rather than a bound: where a layer's gradients are known beforehand (the last layer's are
    one-hot) even less is needed.
    """
    wide = outputs if kind == "trace" else outputs**2
    total = 0.0
    for layer, inner, outer in layer_sizes(model, sample):
        if isinstance(layer, nn.Linear):
            total += n * n / 2 * (inner + wide * outer)
        elif isinstance(layer, nn.Conv2d):
            total += n * n / 2 * wide * layer.weight.numel()
    return total


def product_bytes(model: nn.Module, sample: Tensor, n: int, outputs: int) -> float:
    """Return the bytes that K v reads from stored float32 factors, once for J^T v and once for J u.

    2 * 4 n sum over layers of min(inputs + C outputs, C P), P the layer's weights: what is stored for a
    sample is its inputs and C gradients, or C gradients of the weights where these are fewer numbers.
    """
    total = 0
    for layer, inner, outer in layer_sizes(model, sample):
        weights = sum(p.numel() for p in layer.parameters())
        total += min(inner + outputs * outer, outputs * weights)
    return 2.0 * 4.0 * n * total
