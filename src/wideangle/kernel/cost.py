"""The cost model: per layer the cheaper exact method, and how many samples fit in memory at once."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch

from wideangle.errors import InputError

if TYPE_CHECKING:
    from wideangle.kernel._capture import Layout
    from wideangle.kernel._cover import Cover

__all__ = [
    "BLOCK",
    "HELD",
    "Machine",
    "Work",
    "choose_methods",
    "chunk_size",
    "free_memory",
    "layer_bytes",
    "machine",
    "memory_limit",
    "pass_bytes",
    "sample_bytes",
    "work",
]

Method = Literal["factorised", "per-sample"]
BLOCK = 64  # samples whose factors should lie in memory at once, whatever the limit
HELD = 0.6  # share of the memory for rows that stay while columns pass by
_PASS_BYTES = 256 * 2**20
_SMALLEST_PASS, _LARGEST_PASS = 16, 1024


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        names = os.sysconf_names
        if "SC_PHYS_PAGES" not in names:
            return 4 * 2**30
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def memory_limit(max_memory: int | float | None, device: torch.device) -> int:
    """Return the bytes that may be used: `max_memory`, or a quarter of what is free.

    Raises:
        InputError: `max_memory` is not positive.
    """
    if max_memory is None:
        return free_memory(device) // 4
    number = isinstance(max_memory, (int, float)) and not isinstance(max_memory, bool)
    if not number or not 0 < max_memory < float("inf"):
        raise InputError(f"max_memory is {max_memory!r}; give a positive number of bytes, such as 2 * 10**9")
    return int(max_memory)


def _sizes(cover: Cover) -> tuple[int, int, int]:
    """Return groups, fan-in K and fan-out O (per group) of a layer."""
    groups = int(getattr(cover.module, "groups", 1))
    weight, bias = cover.module._parameters.get("weight"), cover.module._parameters.get("bias")
    if weight is not None:
        weight = weight.T if cover.rule.transposed else weight
        return groups, weight[0].numel(), weight.shape[0] // groups
    assert bias is not None
    return groups, 0, bias.shape[0] // groups


@dataclass(frozen=True)
class Machine:
    """What one micro-benchmark found: multiply-adds and bytes a second of large products and copies."""

    multiply_adds: float
    bytes: float

    @property
    def balance(self) -> float:
        """Multiply-adds in the time a byte moves, to a power of two: so that the choice of methods repeats."""
        return 2.0 ** round(math.log2(self.multiply_adds / self.bytes))


@lru_cache
def machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Return how fast this machine multiplies and copies, measured once in a process, in some 30 ms."""
    size = 1024 if device.type == "cuda" else 512
    a = torch.ones(size, size, device=device, dtype=dtype)
    far = torch.ones(2**23, device=device, dtype=torch.float32)
    there = torch.empty_like(far)
    product = _fastest(lambda: a @ a, device)
    moved = _fastest(lambda: there.copy_(far), device)
    return Machine(size**3 / product, 2 * far.nbytes / moved)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    best = math.inf
    for _ in range(5):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return max(best, 1e-9)


@dataclass(frozen=True)
class Work:
    """What a method costs for one layer: multiply-adds of the pass and of the Gram matrix, and bytes moved."""

    factors: float
    gram: float
    moved: float

    def total(self, balance: float) -> float:
        """Return everything in multiply-adds."""
        return self.factors + self.gram + balance * self.moved


def choose_methods(
    layout: Layout,
    samples: int,
    outputs: int,
    trace: bool,
    limit: int | None = None,
    together: int = BLOCK,
) -> dict[str, Method]:
    """Return for each covered layer the cheaper method, within memory where that helps.

    per-sample:  n C T g K O + n^2/2 C^q g K O        factorised:  n^2/2 g T^2 (K + C^q O)

    multiply-adds, with q = 1 for the trace kernel and 2 for the full one, and to them the bytes moved (see
    `work`), in the exchange rate that a micro-benchmark found. A layer with one position is always factorised.
    Where the factors of `together` samples would exceed `limit`, layers that are smaller factorised are kept so.

    Args:
        layout: the model's layout.
        samples: n.
        outputs: C, the number of logits differentiated.
        trace: whether only the sum over outputs is wanted.
        limit: bytes for factors.
        together: how many samples' factors must lie in memory at once: all for a cache, a block for a matrix.
    """
    balance = machine(layout.device, layout.dtype).balance
    methods: dict[str, Method] = {
        c.name: _cheaper(c, layout, samples, outputs, trace, balance) for c in layout.covers
    }
    if limit is None:
        return methods
    savings = []
    for cover in layout.covers:
        if methods[cover.name] == "per-sample" and cover.rule.gradient is None:
            large = _layer_numbers(cover, layout, "per-sample", outputs)
            small = _layer_numbers(cover, layout, "factorised", outputs)
            savings.append((large - small, cover.name))
    for saving, name in sorted(savings, reverse=True):
        if saving <= 0 or min(samples, together) * sample_bytes(layout, methods, outputs) <= limit:
            break
        methods[name] = "factorised"
    return methods


def _cheaper(cover: Cover, layout: Layout, samples: int, outputs: int, trace: bool, balance: float) -> Method:
    if cover.rule.gradient is not None:
        return "per-sample"
    if cover.rule.lookup or layout.positions[cover.name] <= 1:
        return "factorised"
    explicit, implicit = (
        work(cover, layout, method, samples, outputs, trace).total(balance)
        for method in ("per-sample", "factorised")
    )
    return "per-sample" if explicit <= implicit else "factorised"


def work(cover: Cover, layout: Layout, method: Method, samples: int, outputs: int, trace: bool) -> Work:
    """Return what a layer's share of the kernel costs by a method; the Gram matrix by its lower half.

    The bytes: per-sample gradients are written and read, 2 n C g K O numbers; factorised, the products of
    positions are, 2 n^2/2 g T^2 (1 + C^q).
    """
    half = samples**2 / 2
    wide = outputs if trace else outputs * outputs
    positions, size = max(1, layout.positions[cover.name]), layout.dtype.itemsize
    if cover.rule.gradient is not None:
        count = sum(layout.shape(name).numel() for name in cover.names)
        return Work(
            samples * outputs * positions * count, half * wide * count, 2 * samples * outputs * count * size
        )
    groups, fan_in, fan_out = _sizes(cover)
    area = groups * fan_in * fan_out
    if method == "per-sample":
        return Work(
            samples * outputs * positions * area, half * wide * area, 2 * samples * outputs * area * size
        )
    pairs = half * groups * positions**2
    # tokens are compared, not multiplied; with one position the products stay in cache
    inner = wide * fan_out + (0 if cover.rule.lookup else fan_in)
    return Work(0.0, pairs * inner, 2 * pairs * (1 + wide) * size if positions > 1 else 0.0)


def _layer_numbers(cover: Cover, layout: Layout, method: Method, outputs: int) -> int:
    """Return how many numbers one sample's factors of one layer hold."""
    if method == "per-sample":
        return outputs * sum(layout.shape(name).numel() for name in cover.names)
    positions = max(1, layout.positions[cover.name])
    if cover.rule.lookup:
        return positions * (2 + outputs * layout.shape(cover.names[0])[-1])
    groups, fan_in, fan_out = _sizes(cover)
    return positions * groups * (fan_in + outputs * fan_out)


def layer_bytes(cover: Cover, layout: Layout, method: Method, outputs: int) -> int:
    """Return the bytes of one sample's factors of one layer."""
    return _layer_numbers(cover, layout, method, outputs) * layout.dtype.itemsize


def sample_bytes(layout: Layout, methods: dict[str, Method], outputs: int) -> int:
    """Return the bytes of factors one sample needs."""
    total = sum(_layer_numbers(cover, layout, methods[cover.name], outputs) for cover in layout.covers)
    total += outputs * sum(layout.shape(name).numel() for name in layout.fallback)
    return total * layout.dtype.itemsize


def pass_bytes(layout: Layout, methods: dict[str, Method], outputs: int) -> int:
    """Return the bytes one sample needs while its factors are made: graph, gradients of all logits, factors."""
    return (4 + outputs) * layout.activation_bytes + 2 * sample_bytes(layout, methods, outputs)


def chunk_size(layout: Layout, methods: dict[str, Method], outputs: int, limit: int) -> int:
    """Return how many samples one pass takes: large enough for fast products, and within `limit` bytes.

    Raises:
        InputError: one sample alone needs more than `limit`.
    """
    each = pass_bytes(layout, methods, outputs)
    if each > limit:
        raise InputError(
            f"one sample needs about {each / 2**20:.0f} MiB, more than max_memory = {limit / 2**20:.0f} MiB; "
            "raise max_memory, or select fewer outputs or parameters"
        )
    preferred = min(_LARGEST_PASS, max(_SMALLEST_PASS, _PASS_BYTES // each))
    return max(1, min(preferred, limit // (4 * each)))
