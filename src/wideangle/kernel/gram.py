"""The tangent kernel of any module, exact, without its Jacobian where a layer's structure avoids it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._factors import collect, measured_bytes
from wideangle.kernel._model import Batch, OutputPick, batch_size, batches, largest, take
from wideangle.kernel._pass import Outputs, Setting, device_of, prepare, with_reroutes
from wideangle.kernel._structures import Kind
from wideangle.kernel.cost import HELD, memory_limit, sample_bytes

__all__ = ["tangent_kernel"]

_PASSING = 0.1  # share of the memory for columns that pass by


@torch.inference_mode(False)
def tangent_kernel(
    model: nn.Module,
    x1: Any,
    x2: Any = None,
    *,
    outputs: Outputs = "full",
    reduction: Literal["sum", "mean"] = "sum",
    output: OutputPick = None,
    params: Any = None,
    dtype: torch.dtype = torch.float64,
    max_memory: int | None = None,
) -> Tensor:
    """Return the tangent kernel of a model, the Gram matrix of its parameter gradients.

    full:   K[i,c,j,d] = <d f_c(x1_i)/dw, d f_d(x2_j)/dw>, shape (n1, C, n2, C)
    trace:  sum_c K[i,c,j,c], shape (n1, n2); with reduction="mean" divided by C
    sum:    sum_{c,d} K[i,c,j,d]: the kernel of the summed output, a pseudo-kernel; "mean" divides by C^2
    k:      K[i,k,j,k], shape (n1, n2)

    Cost: one forward and C data-gradient backward passes, then per layer n^2 (K + C O) multiply-adds for
    the trace and n^2 (K + C^2 O) for the full kernel (K, O the layer's fan-in and fan-out), half of it by
    symmetry. Peak memory is estimated first: where the factors of all samples would not fit, blocks of
    samples are passed again instead.

    Args:
        model: any module whose output for a sample does not depend on the other samples. Its state is left
            as found.
        x1: samples: a tensor (n1, ...), a dict of tensors, or an iterable of batches (a DataLoader).
        x2: other samples for a cross-kernel; left out, the kernel is symmetric by construction.
        outputs: "full", "trace", "sum" or the number of one output; several numbers, or rows (R, C) of
            combinations of logits such as `random_outputs` gives: then (n1, R, n2, R).
        reduction: whether "trace" and "sum" add over outputs or average.
        output: which part of the model's return value holds the logits: an index, a key or a function.
            Logits of more than two dimensions are flattened to (n, C).
        params: None for every parameter that requires a gradient; else names (a name includes all below
            it) or a predicate on names.
        dtype: precision of the sums; the factors themselves keep the model's precision.
        max_memory: bytes that result and factors may take; a quarter of the free memory where left out.

    Returns:
        The kernel, in `dtype`, on the model's device.

    Raises:
        InputError: a random or batch-coupled model (train-mode BatchNorm, dropout), non-finite data or
            weights, a tuple or dict output without `output=`, or a result larger than `max_memory`.
        NumericsError: the model returns non-finite numbers.

    Example:
        >>> model = nn.Linear(3, 2, bias=False)
        >>> tangent_kernel(model, torch.ones(4, 3), outputs="trace")[0, 1].item()
        6.0

    Reference: Jacot, Gabriel, Hongler 2018; structured contractions after Novak et al. 2022.
    """
    if reduction not in ("sum", "mean"):
        raise InputError(f"reduction is {reduction!r}; choose 'sum' or 'mean'")
    word = outputs if isinstance(outputs, str) else None
    if reduction == "mean" and word not in ("trace", "sum"):
        raise InputError(f"reduction='mean' goes with outputs='trace' or 'sum', not with {outputs!r}")
    if not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype}; sums over parameters need a floating-point type")
    device = device_of(model)
    first = batches(x1, device)
    second = None if x2 is None else batches(x2, device)
    limit = memory_limit(max_memory, device)

    def work(rerouted: tuple[str, ...]) -> tuple[Tensor, int]:
        samples = max(_count(first), _count(second or first))
        setting = prepare(
            model,
            largest(first),
            samples,
            outputs=outputs,
            output=output,
            params=params,
            limit=limit,
            rerouted=rerouted,
        )
        kind: Kind = "trace" if word == "trace" else "full"
        wide = setting.outputs**2 if kind == "full" else 1
        size = _count(first) * _count(second or first) * wide * dtype.itemsize
        if size > limit:
            raise InputError(
                f"the kernel itself needs {size / 2**20:.0f} MiB, more than max_memory = {limit / 2**20:.0f} "
                "MiB; raise max_memory, use fewer samples, outputs='trace', or products with "
                "factors(model, x) @ v"
            )
        return _fill(setting, first, second, kind, dtype, limit - size), setting.layout.outputs

    kernel, count = with_reroutes(work)
    # no entry of a Gram matrix is larger than its largest diagonal one
    shown = kernel if second is not None else kernel.flatten(0, kernel.dim() // 2 - 1).flatten(1).diagonal()
    if not bool(torch.isfinite(shown).all()):
        raise NumericsError(
            f"the kernel overflows {dtype}: gradients are too large; scale the inputs or weights"
        )
    if word == "sum" or isinstance(outputs, int):
        kernel = kernel[:, 0, :, 0]
    if reduction == "mean":
        kernel = kernel / (count if word == "trace" else count**2)
    return kernel


def _count(items: list[Batch]) -> int:
    return sum(batch_size(item) for item in items)


def _fill(
    setting: Setting,
    first: list[Batch],
    second: list[Batch] | None,
    kind: Kind,
    dtype: torch.dtype,
    spare: int,
) -> Tensor:
    """Return the kernel: from all factors where they fit, else from a tall block of rows and passing columns."""
    each = max(1, sample_bytes(setting.layout, setting.methods, setting.outputs))
    total = _count(first) + _count(second or [])
    if total * each > HELD * spare:
        each = measured_bytes(setting, largest(first))
    if total * each <= HELD * spare:
        theirs = None if second is None else collect(setting, second)
        return collect(setting, first).gram(theirs, kind=kind, dtype=dtype)
    tall, narrow = (max(setting.chunk, int(share * spare / each)) for share in (HELD, _PASSING))
    wide = (setting.outputs,) if kind == "full" else ()
    shape = (_count(first), *wide, _count(second or first), *wide)
    result = torch.empty(shape, dtype=dtype, device=setting.layout.device)
    axis = len(wide) + 1
    for top, row in _blocks(first, tall):
        mine, height = collect(setting, [row]), batch_size(row)
        if second is None:
            result[top : top + height].narrow(axis, top, height).copy_(mine.gram(kind=kind, dtype=dtype))
        for left, column in _blocks(
            first if second is None else second, narrow, top if second is None else None
        ):
            width = batch_size(column)
            tile = mine.gram(collect(setting, [column]), kind=kind, dtype=dtype)
            result[top : top + height].narrow(axis, left, width).copy_(tile)
            if second is None:
                mirror = tile.permute(2, 3, 0, 1) if kind == "full" else tile.T
                result[left : left + width].narrow(axis, top, height).copy_(mirror)
    return result


def _blocks(items: list[Batch], size: int, stop: int | None = None) -> Iterator[tuple[int, Batch]]:
    """Yield blocks of samples with the number of their first one, up to the sample `stop`."""
    start = 0
    for item in items:
        count = batch_size(item)
        last = count if stop is None else min(count, stop - start)
        for a in range(0, max(last, 0), size):
            yield start + a, take(item, slice(a, min(a + size, last)))
        start += count
