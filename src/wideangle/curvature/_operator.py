"""What the curvature operators share: a model's parameters as one vector, its data in chunks, the processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.curvature._chunks import LEAST, Part, as_batch, chunk_size, ends, parts
from wideangle.curvature._trace import first_tensor
from wideangle.errors import InputError, NumericsError
from wideangle.kernel._group import Ranks
from wideangle.kernel._model import (
    Batch,
    OutputPick,
    batch_size,
    call,
    explained,
    plain_attention,
    select_parameters,
)
from wideangle.kernel._push import pick_tensor
from wideangle.kernel.cost import memory_limit
from wideangle.targets import loss_function, prepare_targets

__all__ = ["CurvatureOperator", "LossFunction", "Product", "flatten", "refuse_random"]

LossFunction = Callable[[Any, Any], Tensor]
Product = Callable[[Tensor], Tensor]


class CurvatureOperator(ABC):
    """A symmetric p x p matrix of second derivatives, as an operator: a sum over samples, never formed.

    Weights and buffers are copied when the operator is made; later changes of them do not reach it. Where all
    samples are taken in one pass, the graph is kept between products; otherwise each product is one pass
    over the data, chunk by chunk, and memory is that of a chunk. With `group`, every process calls this
    with the same model and data and works on its own samples; every process gets every result.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: str | LossFunction,
        x: Any,
        y: Any,
        *,
        params: Any = None,
        output: OutputPick = None,
        chunk: int | None = None,
        reduction: str = "mean",
        dtype: torch.dtype | None = None,
        max_memory: int | None = None,
        group: Any = None,
    ):
        refuse_random(model)
        self._model, self._output, self._dtype = model, output, dtype
        self._loss_fn, self._sums = loss_fn, reduction == "sum"
        self._ranks = Ranks.of(group)
        chosen = select_parameters(model, params)
        with torch.inference_mode(False):
            every = {name: self._cast(p.detach().clone()) for name, p in model.named_parameters()}
            self._buffers = {name: self._cast(b.detach().clone()) for name, b in model.named_buffers()}
        self.weights = {name: every.pop(name) for name in chosen}
        self._fixed = every
        self._kept: Product | None = None
        x = as_batch(x, self.dtype)
        self._parts = parts(model, x, y, chunk, reduction, self._ranks)
        self._refuse_changing()
        large = chunk is None and batch_size(self._parts[0].x) > LEAST
        apart = self.chunks > 1 or self._ranks.size > 1
        splits = (
            self._ranks.least(self._splits()) if large or apart else False
        )  # every process asks once, or none
        if large and splits:
            limit = memory_limit(max_memory, self.device)
            size = chunk_size(model, self._parts[0], self._probe, limit)
            if size is not None:
                self._parts = parts(model, x, y, size, reduction, self._ranks)
        elif apart and not splits:
            raise InputError(
                f"the loss of some samples is no {reduction} over samples (weighted classes, ignored targets, or "
                "targets that loss_fn holds itself), so it cannot be taken in parts; leave chunk and group out, or "
                f"give a loss that is a {reduction} and takes its targets as y"
            )

    @property
    def size(self) -> int:
        """Number of parameters p; the matrix is p x p."""
        return sum(tensor.numel() for tensor in self.weights.values())

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p)."""
        return self.size, self.size

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(iter(self.weights.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type in which products are computed."""
        return next(iter(self.weights.values())).dtype

    @property
    def chunks(self) -> int:
        """Passes a product takes on this process; 1 where the graph is kept."""
        return len(self._parts)

    @torch.inference_mode(False)
    def product(self, vector: Tensor) -> Tensor:
        """Return the matrix times a flat vector of p numbers, in the type and on the device of `vector`.

        Raises:
            InputError: the vector has another length than p.
        """
        if vector.shape != (self.size,):
            raise InputError(f"the vector has shape {tuple(vector.shape)}; expected ({self.size},)")
        direction = vector.to(self.device, self.dtype)
        if self.chunks == 1:
            if self._kept is None:
                self._kept = self._prepared(self._parts[0])
            total = self._kept(direction)
        else:
            total = self._summed(self._passing(part, direction) for part in self._parts)
        self._ranks.add([total])
        return total.to(vector.device, vector.dtype)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector, or column by column with a (p, k) matrix."""
        if vector.ndim == 2:
            return torch.stack([self.product(column) for column in vector.T], dim=1)
        return self.product(vector)

    def to_scipy(self) -> Any:
        """Return a `scipy.sparse.linalg.LinearOperator` in float64; vectors come from and go to the host."""
        from scipy.sparse.linalg import LinearOperator

        def product(vector: np.ndarray) -> np.ndarray:
            v = torch.as_tensor(np.ascontiguousarray(vector), dtype=torch.float64)
            return (self @ v).detach().cpu().numpy()

        return LinearOperator(self.shape, matvec=product, rmatvec=product, matmat=product, dtype=np.float64)  # type: ignore[call-arg]

    def move(self, step: Tensor) -> None:
        """Move the weights by a flat step of p numbers; the model is left alone."""
        pieces = self.unflatten(step.detach().to(self.device, self.dtype))
        self.weights = {name: weight + pieces[name] for name, weight in self.weights.items()}
        self._forget()
        if not all(bool(torch.isfinite(weight).all()) for weight in self.weights.values()):
            raise NumericsError("the weights moved are not finite; use a smaller step")

    def _forget(self) -> None:
        self._kept = None

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the pieces of a flat vector, shaped and named as the parameters."""
        pieces = vector.split([tensor.numel() for tensor in self.weights.values()])
        return {n: piece.view_as(w) for (n, w), piece in zip(self.weights.items(), pieces, strict=True)}

    @abstractmethod
    def _prepared(self, part: Part) -> Product:
        """Return the product with one part's matrix; what it needs is kept inside it."""

    def _passing(self, part: Part, direction: Tensor) -> Tensor:
        """Return one product with one part's matrix, keeping nothing."""
        return self._prepared(part)(direction)

    def _probe(self, part: Part) -> None:
        """Do what takes the memory that a part needs."""
        self._prepared(part)

    def _splits(self) -> bool:
        """Tell whether the loss of some samples is the mean (or sum) of the losses of its parts."""
        if isinstance(self._loss_fn, str):
            return True
        try:
            three = ends(self._parts)
            if three is None:
                return False
            with torch.no_grad():
                low, high, both = (float(self._value(part)) for part in three)
        except Exception:  # a loss that wants all samples at once, or has no value on these
            return False
        sizes = [batch_size(part.x) for part in three]
        whole = low + high if self._sums else (sizes[0] * low + sizes[1] * high) / sizes[2]
        return abs(both - whole) <= 1e3 * torch.finfo(self.dtype).eps * (abs(low) + abs(high))

    def _value(self, part: Part) -> Tensor:
        return self._loss_fn(self._picked(self._raw(self.weights, part.x)), self._targets(part.y))  # type: ignore[operator]

    def _refuse_changing(self) -> None:
        """Refuse a model in train mode whose outputs differ from call to call; the random state is left as it was."""
        if not self._model.training:
            return
        few = self._parts[0].rows(slice(0, 4)).x
        with torch.no_grad(), torch.random.fork_rng():
            first, second = (first_tensor(self._raw(self.weights, few)) for _ in range(2))
        if (
            first is not None
            and second is not None
            and not torch.equal(first.nan_to_num(), second.nan_to_num())
        ):
            raise InputError(
                f"the {type(self._model).__name__} in train mode returns other outputs at each call (dropout, or "
                "random numbers of its own), so it is another function each time; call model.eval() first"
            )

    def _summed(self, terms: Iterable[Tensor]) -> Tensor:
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for term in terms:
            total += term
        return total

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor if self._dtype is None or not tensor.is_floating_point() else tensor.to(self._dtype)

    def _moved(self, x: Batch) -> Batch:
        if isinstance(x, dict):
            return {key: self._cast(value.to(self.device)) for key, value in x.items()}
        return self._cast(x.to(self.device))

    def _leaves(self) -> dict[str, Tensor]:
        return {name: tensor.detach().requires_grad_() for name, tensor in self.weights.items()}

    def _raw(self, leaves: dict[str, Tensor], x: Batch) -> Any:
        """Return what the model returns at the given weights."""
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        with plain_attention(), explained(x):
            return call(self._model, {**buffers, **self._fixed, **leaves}, self._moved(x))

    def _targets(self, y: Any) -> Any:
        return self._cast(y.to(self.device)) if isinstance(y, Tensor) else y

    def _picked(self, raw: Any) -> Any:
        """Return the part of the model's output that the loss sees."""
        if isinstance(self._loss_fn, str) or self._output is not None:
            return pick_tensor(raw, self._output)
        return raw

    def _loss_of(self, outputs: Any, y: Any) -> Tensor:
        """Return the loss of a part's outputs, checked."""
        if isinstance(self._loss_fn, str):
            width = outputs[0].numel()
            targets = prepare_targets(torch.as_tensor(y).to(self.device), width, self._loss_fn, outputs.dtype)
            loss = loss_function(self._loss_fn)(outputs, targets)
        else:
            loss = self._loss_fn(outputs, self._targets(y))
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


def flatten(pieces: tuple[Tensor | None, ...], like: list[Tensor]) -> Tensor:
    """Return the pieces as one vector, zeros where there is none."""
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(pieces, like, strict=True)]
    return torch.cat([piece.reshape(-1) for piece in filled])
