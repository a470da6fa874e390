"""The Hessian of a loss in the parameters of any model, as an operator: double backward, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wideangle.errors import InputError, NumericsError
from wideangle.kernel._model import (
    Batch,
    OutputPick,
    batch_size,
    call,
    plain_attention,
    select_parameters,
    take,
)
from wideangle.kernel._push import pick_tensor
from wideangle.targets import loss_function, prepare_targets

__all__ = ["LossFunction", "LossHessian", "refuse_random"]

LossFunction = Callable[[Any, Any], Tensor]


class LossHessian:
    """The Hessian H of a loss in the parameters of any model, as an operator one multiplies with.

        H v = d/dt grad L(w + t v) at t = 0,   L(w) = loss_fn(model(x; w), y)

    Products come from double backward: exact, also for indefinite H; for ReLU the Hessian exists almost
    everywhere and lacks what the kinks add. The weights are copied when the operator is made; later
    changes of the model do not reach it. A model in train mode is taken so: BatchNorm uses the statistics
    of the batch and is differentiated through them, its running statistics are left alone.

    Cost: one forward and one backward pass once, then about two backward passes a product; the graph
    stays in memory. With `chunk`, all passes are repeated for each product and memory is that of a chunk.

    Args:
        model: any module.
        loss_fn: "mse", "cross-entropy" (`wideangle.targets`), or a function (output, y) -> scalar.
        x: n inputs, a tensor or a dict of tensors.
        y: n targets; for a loss given by name, as `prepare_targets` takes them. May be None for a
            function that ignores it.
        params: which parameters: None for all that require a gradient, or names, or a predicate.
        output: which part of a tuple, dict or ModelOutput is the output.
        chunk: samples a pass; None takes all at once.
        reduction: "mean" where loss_fn averages over samples, "sum" where it sums: how chunks add up.
        dtype: compute in this type; None keeps the model's.

    Raises:
        InputError: dropout in train mode, chunks of a model whose samples are coupled, y that does not fit.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> hessian = LossHessian(model, "mse", x, y)
        >>> hessian.product(torch.tensor([1.0, 3.0])).tolist()
        [1.0, 3.0]

    Reference: Pearlmutter 1994, "Fast exact multiplication by the Hessian", Section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: str | LossFunction,
        x: Batch,
        y: Any,
        *,
        params: Any = None,
        output: OutputPick = None,
        chunk: int | None = None,
        reduction: str = "mean",
        dtype: torch.dtype | None = None,
    ):
        refuse_random(model)
        self._model, self._output, self._dtype = model, output, dtype
        self._loss_fn = loss_fn
        self._chunks = _chunks(model, x, y, chunk, reduction)
        chosen = select_parameters(model, params)
        self.weights = {name: self._cast(model.get_parameter(name).detach().clone()) for name in chosen}
        self._fixed = {
            name: self._cast(tensor.detach())
            for name, tensor in model.named_parameters()
            if name not in self.weights
        }
        self._graph: tuple[Tensor, list[Tensor], tuple[Tensor | None, ...]] | None = None

    @property
    def size(self) -> int:
        """Number of parameters p; H is p x p."""
        return sum(tensor.numel() for tensor in self.weights.values())

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(iter(self.weights.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type in which products are computed."""
        return next(iter(self.weights.values())).dtype

    def loss(self) -> float:
        """Return L(w)."""
        return sum(float(self._parts(*part)[0].detach()) for part in self._chunks)

    def gradient(self) -> Tensor:
        """Return the gradient of L at w, flat, in the order of `weights`."""
        total = self._zeros()
        for part in self._chunks:
            _, leaves, slopes = self._parts(*part)
            total += _flatten(slopes, leaves).detach()
        return total

    def product(self, vector: Tensor) -> Tensor:
        """Return H v for a flat vector of p numbers, in the type and on the device of `vector`.

        Raises:
            InputError: the vector has another length than p.
        """
        if vector.shape != (self.size,):
            raise InputError(f"the vector has shape {tuple(vector.shape)}; expected ({self.size},)")
        direction = vector.to(self.device, self.dtype)
        total = self._zeros()
        for part in self._chunks:
            _, leaves, slopes = self._parts(*part)
            total += _second(slopes, leaves, direction)
        return total.to(vector.device, vector.dtype)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return H v, or H V column by column for a (p, k) matrix."""
        if vector.ndim == 2:
            return torch.stack([self.product(column) for column in vector.T], dim=1)
        return self.product(vector)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the pieces of a flat vector, shaped and named as the parameters."""
        pieces = vector.split([tensor.numel() for tensor in self.weights.values()])
        return {n: piece.view_as(w) for (n, w), piece in zip(self.weights.items(), pieces, strict=True)}

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor if self._dtype is None or not tensor.is_floating_point() else tensor.to(self._dtype)

    def _moved(self, x: Batch) -> Batch:
        if isinstance(x, dict):
            return {key: self._cast(value.to(self.device)) for key, value in x.items()}
        return self._cast(x.to(self.device))

    def _zeros(self) -> Tensor:
        return torch.zeros(self.size, dtype=self.dtype, device=self.device)

    def _parts(
        self, x: Batch, y: Any, weight: float
    ) -> tuple[Tensor, list[Tensor], tuple[Tensor | None, ...]]:
        if self._graph is not None:
            return self._graph
        with torch.enable_grad(), plain_attention():
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.weights.items()}
            buffers = {name: self._cast(b).clone() for name, b in self._model.named_buffers()}
            loss = weight * self._evaluate({**buffers, **self._fixed, **leaves}, x, y)
            points = list(leaves.values())
            slopes = torch.autograd.grad(loss, points, create_graph=True, allow_unused=True)
        if len(self._chunks) == 1:
            self._graph = (loss, points, slopes)
        return loss, points, slopes

    def _evaluate(self, state: dict[str, Tensor], x: Batch, y: Any) -> Tensor:
        raw = call(self._model, state, self._moved(x))
        if isinstance(self._loss_fn, str):
            outputs = pick_tensor(raw, self._output)
            width = outputs[0].numel()
            targets = prepare_targets(torch.as_tensor(y).to(self.device), width, self._loss_fn, outputs.dtype)
            loss = loss_function(self._loss_fn)(outputs, targets)
        else:
            picked = raw if self._output is None else pick_tensor(raw, self._output)
            loss = self._loss_fn(picked, self._cast(y.to(self.device)) if isinstance(y, Tensor) else y)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError(
                f"loss_fn must return one number, got {getattr(loss, 'shape', type(loss).__name__)}"
            )
        if not bool(torch.isfinite(loss.detach())):
            raise NumericsError(
                f"the loss is {float(loss.detach())} at these weights; check weights and inputs"
            )
        if not loss.requires_grad:
            raise InputError("the loss does not depend on the parameters chosen; check params= and loss_fn")
        return loss


def _chunks(
    model: nn.Module, x: Batch, y: Any, chunk: int | None, reduction: str
) -> list[tuple[Batch, Any, float]]:
    samples = batch_size(x)
    if samples == 0:
        raise InputError("x holds no samples")
    if y is not None and len(y) != samples:
        raise InputError(f"x has {samples} samples and y has {len(y)}; they must be equal")
    if reduction not in ("mean", "sum"):
        raise InputError(f"unknown reduction {reduction!r}; choose mean or sum")
    if chunk is None or chunk >= samples:
        return [(x, y, 1.0)]
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    coupled = [name for name, module in model.named_modules() if module.training and _is_batch_norm(module)]
    if coupled:
        raise InputError(
            f"layer {coupled[0]!r} couples the samples of a batch in train mode, so chunks would change the "
            "loss; pass chunk=None or call model.eval()"
        )
    parts = []
    for begin in range(0, samples, chunk):
        rows = slice(begin, begin + chunk)
        size = min(chunk, samples - begin)
        weight = size / samples if reduction == "mean" else 1.0
        parts.append((take(x, rows), None if y is None else y[rows], weight))
    return parts


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def refuse_random(model: nn.Module) -> None:
    """Refuse a model that draws random numbers at each call: dropout in train mode."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        plain = isinstance(module, nn.modules.dropout._DropoutNd)
        rate = module.p if plain else getattr(module, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            raise InputError(
                f"layer {name!r} ({type(module).__name__}) drops units at random (p={rate}) in train mode, "
                "so the model is another function at every call; set that layer, or the model, to eval()"
            )


def _flatten(pieces: tuple[Tensor | None, ...], like: list[Tensor]) -> Tensor:
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(pieces, like, strict=True)]
    return torch.cat([piece.reshape(-1) for piece in filled])


def _second(slopes: tuple[Tensor | None, ...], leaves: list[Tensor], direction: Tensor) -> Tensor:
    live = [
        (g, v)
        for g, v in zip(slopes, _split(direction, leaves), strict=True)
        if g is not None and g.requires_grad
    ]
    if not live:
        return torch.zeros_like(direction)
    found = torch.autograd.grad(
        [g for g, _ in live], leaves, [v for _, v in live], retain_graph=True, allow_unused=True
    )
    return _flatten(found, leaves)


def _split(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]
