"""The model as a function of its parameters: batches in, logits (b, C) out, nothing changed behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from wideangle.errors import InputError, WideangleError

__all__ = [
    "Batch",
    "OutputPick",
    "batch_size",
    "batches",
    "check_model",
    "copied",
    "explained",
    "from_numpy",
    "largest",
    "logits",
    "select_parameters",
    "take",
]

Batch = Tensor | dict[str, Tensor]
OutputPick = int | str | Callable[[Any], Tensor] | None


def batch_size(batch: Batch) -> int:
    """Return the number of samples in a batch (a tensor, or a dict of tensors with one first dimension)."""
    if isinstance(batch, Tensor):
        if batch.dim() == 0:
            raise InputError("x is a single number; expected samples along the first dimension")
        return batch.shape[0]
    sizes = {key: value.shape[0] if value.dim() else 0 for key, value in batch.items()}
    if len(set(sizes.values())) != 1:
        raise InputError(f"the tensors of a dict batch need one common first dimension, got {sizes}")
    return next(iter(sizes.values()))


def from_numpy(x: np.ndarray) -> Tensor:
    """Return an array of numbers as a tensor; floats take torch's default type, as torch's own layers do.

    Raises:
        InputError: the array holds no numbers.
    """
    try:
        tensor = torch.as_tensor(x)
    except TypeError as error:
        raise InputError(f"x is an array of {x.dtype}; give numbers") from error
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def largest(items: list[Batch]) -> Batch:
    """Return the batch with the most numbers a sample, by which memory is planned."""

    def numbers(batch: Batch) -> float:
        tensors = batch.values() if isinstance(batch, dict) else [batch]
        return sum(tensor.numel() for tensor in tensors) / batch_size(batch)

    return max(items, key=numbers)


def take(batch: Batch, rows: slice | Tensor) -> Batch:
    """Return some samples of a batch."""
    if isinstance(batch, Tensor):
        return batch[rows]
    return {key: value[rows] for key, value in batch.items()}


def copied(batch: Batch) -> Batch:
    """Return a copy of a batch, detached from any graph."""
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    return {key: value.detach().clone() for key, value in batch.items()}


def _as_batch(item: Any) -> Batch:
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, Tensor):
        return item
    if isinstance(item, Mapping):
        kept = {str(key): value for key, value in item.items() if value is not None}
        for key, value in kept.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"the dict batch holds {key!r}, a {type(value).__name__}; only tensors with one row a sample "
                    "can be passed (fix other arguments in a wrapper around the model)"
                )
        return kept
    raise InputError(
        f"cannot use a {type(item).__name__} as a batch; give a tensor, a dict of tensors, or an iterable "
        "of those or of (x, y) pairs"
    )


def _check_finite(batch: Batch) -> None:
    for key, value in batch.items() if isinstance(batch, dict) else [("x", batch)]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = (~torch.isfinite(value)).flatten(1).any(1) if value.dim() > 1 else ~torch.isfinite(value)
            raise InputError(
                f"{key} holds non-finite numbers in {int(bad.sum())} of {len(bad)} samples (first: sample "
                f"{int(bad.nonzero()[0])}); remove or impute them"
            )


def batches(x: Any, device: torch.device) -> list[Batch]:
    """Return `x` as a list of batches on `device`: a tensor, a dict, or any iterable (a DataLoader)."""
    if isinstance(x, np.ndarray):
        x = from_numpy(x)
    items = [x] if isinstance(x, (Tensor, Mapping)) else x
    if not isinstance(items, Iterable) or isinstance(items, (str, bytes)):
        raise InputError(
            f"x is a {type(x).__name__}; give a tensor, a dict of tensors or an iterable of batches"
        )
    result: list[Batch] = []
    for item in items:
        batch = _as_batch(item)
        _check_finite(batch)
        moved = batch.to(device) if isinstance(batch, Tensor) else {k: v.to(device) for k, v in batch.items()}
        if batch_size(moved):
            result.append(moved)
    if not result:
        raise InputError("x holds no samples")
    return _merged(result)


def _merged(items: list[Batch]) -> list[Batch]:
    """Join neighbouring batches of one shape, so that small batches do not make small tiles."""
    joined: list[list[Batch]] = []
    for item in items:
        if joined and _form(joined[-1][0]) == _form(item):
            joined[-1].append(item)
        else:
            joined.append([item])
    return [_joined(run) for run in joined]


def _form(batch: Batch) -> Any:
    if isinstance(batch, Tensor):
        return batch.shape[1:], batch.dtype
    return {key: (value.shape[1:], value.dtype) for key, value in batch.items()}


def _joined(run: list[Batch]) -> Batch:
    first = run[0]
    if len(run) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat([one for one in run if isinstance(one, Tensor)])
    return {key: torch.cat([one[key] for one in run if isinstance(one, dict)]) for key in first}


def check_model(model: nn.Module) -> None:
    """Refuse a model that has no tangent kernel as it stands: random or batch-coupled layers, bad weights.

    Raises:
        InputError: train-mode BatchNorm or dropout, non-finite or integer weights, uninitialised layers.
    """
    for name, module in model.named_modules():
        _check_layer(name, module)
        if not module.training:
            continue
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"layer {name!r} ({kind}) is in train mode, where each sample's output depends on the whole "
                "batch and no per-sample gradient exists; call model.eval() first"
            )
        rate = (
            getattr(module, "dropout", 0.0)
            if not isinstance(module, nn.modules.dropout._DropoutNd)
            else module.p
        )
        if isinstance(rate, float) and rate > 0:
            raise InputError(
                f"layer {name!r} ({kind}) drops units at random (p={rate}) in train mode, so the tangent "
                "kernel is random too; call model.eval() first"
            )
    devices = {parameter.device: name for name, parameter in model.named_parameters()}
    if len(devices) > 1:
        shown = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise InputError(f"the model lies on several devices ({shown}); move it to one with model.to(device)")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(f"parameter {name!r} is not initialised yet; run one forward pass first")
        if parameter.is_inference():
            raise InputError(
                f"parameter {name!r} was made in inference mode and cannot be differentiated; build or load the model "
                "outside torch.inference_mode()"
            )
        if parameter.is_complex():
            raise InputError(
                f"parameter {name!r} is complex; the kernel of complex weights is not defined here"
            )
        if not bool(torch.isfinite(parameter).all()):
            count = int((~torch.isfinite(parameter)).sum())
            raise InputError(
                f"parameter {name!r} holds {count} non-finite numbers of {parameter.numel()}; reload or "
                "re-initialise the model"
            )


def _check_layer(name: str, module: nn.Module) -> None:
    """Refuse layers whose own rules for gradients or statistics leave no tangent kernel."""
    kind = type(module).__name__
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        if module.max_norm is not None:
            raise InputError(
                f"layer {name!r} ({kind}) changes its own weights in the forward pass (max_norm); set max_norm=None"
            )
        if module.scale_grad_by_freq:
            raise InputError(
                f"layer {name!r} ({kind}) scales its gradient by token counts of the batch (scale_grad_by_freq), "
                "which is no derivative; set scale_grad_by_freq=False"
            )
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        raise InputError(
            f"layer {name!r} ({kind}) has no running statistics, so each sample's output depends on its batch in "
            "any mode; use track_running_stats=True"
        )


def select_parameters(model: nn.Module, params: Any) -> list[str]:
    """Return the names of the parameters to differentiate by.

    Args:
        model: the network.
        params: None for all that require a gradient; else one name, several names, or a predicate on
            names. A name stands for itself and for everything below it ("layers.0").

    Raises:
        InputError: nothing is selected, or a name matches no parameter.
    """
    named = dict(model.named_parameters())
    canonical = {id(parameter): name for name, parameter in named.items()}
    every = {  # all names a parameter goes by, tied ones included
        name: canonical[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    if params is None:
        chosen = [name for name, parameter in named.items() if parameter.requires_grad]
    elif callable(params):
        picked = {every[name] for name in every if params(name)}
        chosen = [name for name in named if name in picked]
    else:
        if not isinstance(params, (str, list, tuple, set, frozenset)):
            raise InputError(
                f"params is a {type(params).__name__}; give a name, several names or a predicate"
            )
        wanted = [params] if isinstance(params, str) else list(params)
        for want in wanted:
            if not any(name == want or name.startswith(f"{want}.") for name in every):
                shown = ", ".join(list(named)[:8])
                raise InputError(
                    f"no parameter is called {want!r}; the model has {shown}{' ...' * (len(named) > 8)}"
                )
        picked = {every[n] for n in every if any(n == want or n.startswith(f"{want}.") for want in wanted)}
        chosen = [name for name in named if name in picked]
    if not chosen:
        raise InputError(
            f"no parameter is selected: the model has {len(named)}, none of them chosen or requiring a "
            "gradient; pass params= or set requires_grad"
        )
    return chosen


def logits(raw: Any, output: OutputPick, samples: int) -> Tensor:
    """Return the (b, C) logits within what a model returned.

    Raises:
        InputError: a tuple, dict or ModelOutput without `output=`, a pick that is not there, a tensor
            whose first dimension is not the batch, or an output that is not floating point.
    """
    if output is not None and not isinstance(raw, Tensor):
        raw = _pick(raw, output)
    elif callable(output):
        raw = output(raw)
    if not isinstance(raw, Tensor):
        hint = "output=0" if isinstance(raw, (tuple, list)) else "output='logits'"
        keys = f" with {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else ""
        raise InputError(
            f"the model returns a {type(raw).__name__}{keys}, not a tensor; say which part holds the "
            f"logits, for example {hint} (--output on the command line)"
        )
    if raw.dim() == 0 or raw.shape[0] != samples:
        raise InputError(
            f"the model returns shape {tuple(raw.shape)} for {samples} samples; its first dimension must be "
            "the sample"
        )
    if not raw.is_floating_point():
        raise InputError(
            f"the model returns {raw.dtype}; the kernel needs differentiable logits, not classes"
        )
    return raw.reshape(samples, -1)


def _pick(raw: Any, output: OutputPick) -> Any:
    if callable(output):
        return output(raw)
    try:
        if isinstance(output, str) and not isinstance(raw, Mapping):
            return getattr(raw, output)
        return raw[output]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise InputError(f"the model's {type(raw).__name__} has no part {output!r}") from error


@contextmanager
def plain_attention() -> Iterator[None]:
    """Run attention and weight normalisation by their plain formulas, and checkpointed blocks directly.

    The fused paths of attention skip sub-modules or lack a derivative; that of weight normalisation has no
    forward mode and a wrong second derivative. A checkpointed block is computed again in the backward pass,
    when hooks and replaced weights are gone.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", _once),
            mock.patch.object(checkpoint, "CheckpointFunction", _Direct),
            mock.patch.object(torch, "_weight_norm", _weight_norm),
            mock.patch("torch.nn.utils.weight_norm._weight_norm", _weight_norm),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _once(*args: Any, **options: Any) -> Iterator[None]:
    """Stand in for what wraps a checkpointed block: nothing before it, nothing after it."""
    yield


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


class _Direct:
    """Stands in for the checkpoint that recomputes: the block is called as it is."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """Return the block's output."""
        return function(*args)


@contextmanager
def explained(batch: Batch) -> Iterator[None]:
    """Turn what a model raises on a batch it cannot take into an InputError that shows the batch."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, WideangleError):
            raise
        named = batch if isinstance(batch, dict) else {"x": batch}
        shown = ", ".join(f"{key} {tuple(value.shape)} {value.dtype}" for key, value in named.items())
        text = " ".join(str(error).split())[:300]
        raise InputError(
            f"the model cannot take this data ({shown}): {type(error).__name__}: {text}; reshape or convert x"
        ) from error


def call(model: nn.Module, parameters: dict[str, Tensor], batch: Batch | tuple[Any, ...]) -> Any:
    """Return the model's raw output with the given parameters (or buffers); the model itself is left alone.

    Every module is given its tensors once, however many names it is registered under; a parameter shared
    by several modules is given to each of them.
    """
    state: dict[str, Tensor] = {}
    given = {id(parameter): parameters.get(name, parameter) for name, parameter in model.named_parameters()}
    copies = {id(buffer): parameters.get(name, buffer).clone() for name, buffer in model.named_buffers()}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for local, parameter in module._parameters.items():
            if parameter is not None:
                state[prefix + local] = given[id(parameter)]
        for local, buffer in module._buffers.items():
            if buffer is not None:
                state[prefix + local] = copies[id(buffer)]
    if isinstance(batch, dict):
        return torch.func.functional_call(model, state, (), batch, tie_weights=False)
    args = batch if isinstance(batch, tuple) else (batch,)
    return torch.func.functional_call(model, state, args, tie_weights=False)
