"""The cost model: per layer the cheaper exact method, and how many samples fit in memory at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import torch

from wideangle.errors import InputError

if TYPE_CHECKING:
    from wideangle.kernel._capture import Layout
    from wideangle.kernel._cover import Cover

__all__ = ["choose_methods", "chunk_size", "free_memory", "memory_limit", "pass_bytes", "sample_bytes"]

Method = Literal["factorised", "per-sample"]
_PASS_BYTES = 512 * 2**20
_SMALLEST_PASS, _LARGEST_PASS = 16, 256


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
    if isinstance(max_memory, (str, bool)) or not 0 < max_memory < float("inf"):
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


def choose_methods(
    layout: Layout, samples: int, outputs: int, trace: bool, limit: int | None = None
) -> dict[str, Method]:
    """Return for each covered layer the method with fewer multiply-adds, within memory where that helps.

    per-sample:  n C T g K O + n^2 C^q g K O        factorised:  n^2 g T^2 (K + C^q O)

    with q = 1 for the trace kernel and 2 for the full one; a layer with one position is always factorised.
    Where the factors of all samples would exceed `limit`, layers that are smaller factorised are kept so.

    Args:
        layout: the model's layout.
        samples: n.
        outputs: C, the number of logits differentiated.
        trace: whether only the sum over outputs is wanted.
        limit: bytes for the factors of all samples.
    """
    methods: dict[str, Method] = {
        c.name: _fewer_operations(c, layout, samples, outputs, trace) for c in layout.covers
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
        if saving <= 0 or samples * sample_bytes(layout, methods, outputs) <= limit:
            break
        methods[name] = "factorised"
    return methods


def _fewer_operations(cover: Cover, layout: Layout, samples: int, outputs: int, trace: bool) -> Method:
    if cover.rule.gradient is not None:
        return "per-sample"
    positions = layout.positions[cover.name]
    if cover.rule.lookup or positions <= 1:
        return "factorised"
    wide = outputs if trace else outputs * outputs
    groups, fan_in, fan_out = _sizes(cover)
    area = groups * fan_in * fan_out
    explicit = samples * outputs * positions * area + samples**2 * wide * area
    implicit = samples**2 * groups * positions**2 * (fan_in + wide * fan_out)
    return "per-sample" if explicit <= implicit else "factorised"


def _layer_numbers(cover: Cover, layout: Layout, method: Method, outputs: int) -> int:
    """Return how many numbers one sample's factors of one layer hold."""
    if method == "per-sample":
        return outputs * sum(layout.shape(name).numel() for name in cover.names)
    positions = max(1, layout.positions[cover.name])
    if cover.rule.lookup:
        return positions * (2 + outputs * layout.shape(cover.names[0])[-1])
    groups, fan_in, fan_out = _sizes(cover)
    return positions * groups * (fan_in + outputs * fan_out)


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
