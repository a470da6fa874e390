"""Hessians in the parameters of a model, as operators: of a loss, and of the model's outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wideangle.curvature._chunks import Part
from wideangle.curvature._operator import CurvatureOperator, LossFunction, Product, flatten
from wideangle.errors import InputError
from wideangle.kernel._model import Batch, OutputPick, batch_size, logits

__all__ = ["LossHessian", "OutputHessian", "hessian_product"]

Graph = tuple[Tensor, list[Tensor], tuple[Tensor | None, ...]]


class LossHessian(CurvatureOperator):
    """The Hessian H of a loss in the parameters of any model, as an operator one multiplies with.

        H v = d/dt grad L(w + t v) at t = 0,   L(w) = loss_fn(model(x; w), y)

    Products come from double backward: exact, also for indefinite H; for ReLU the Hessian exists almost
    everywhere and lacks what the kinks add. Weights and buffers are copied when the operator is made; later
    changes of them do not reach it. A model in train mode is taken so: BatchNorm uses the statistics
    of the batch and is differentiated through them, its running statistics are left alone.

    Cost: one forward and one backward pass once, then about two backward passes a product; the graph
    stays in memory. Where it does not fit `max_memory`, or with `chunk`, all passes are repeated for each
    product and memory is that of a chunk, whatever n. With `group`, a product costs a process its share.

    Args:
        model: any module.
        loss_fn: "mse", "cross-entropy" (`wideangle.targets`), or a function (output, y) -> scalar.
        x: n inputs, a tensor or a dict of tensors, or (with y=None) a loader of (x, y) pairs, whose batches
            are kept.
        y: n targets; for a loss given by name, as `prepare_targets` takes them. With None a function gets
            None, and all samples in one pass unless `chunk` is given.
        params: which parameters: None for all that require a gradient, or names, or a predicate.
        output: which part of a tuple, dict or ModelOutput is the output.
        chunk: samples a pass; None takes as many as fit `max_memory`, and all at once where the loss of a
            part is no part of the loss (weighted classes, ignored targets).
        reduction: "mean" where loss_fn averages over samples, "sum" where it sums: how chunks add up.
        dtype: compute in this type; None keeps the model's.
        max_memory: bytes for the graph; a quarter of the free memory where left out.
        group: a `torch.distributed` process group, such as `torch.distributed.group.WORLD`.

    Raises:
        InputError: dropout in train mode, chunks of a model whose samples are coupled or of a loss that is no
            mean (or sum) over samples, y that does not fit.
        RankError: another process stopped answering.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> hessian = LossHessian(model, "mse", x, y)
        >>> hessian.product(torch.tensor([1.0, 3.0])).tolist()
        [1.0, 3.0]

    Reference: Pearlmutter 1994, "Fast exact multiplication by the Hessian", Section 3.
    """

    _graph: Graph | None = None

    @torch.inference_mode(False)
    def loss(self) -> float:
        """Return L(w)."""
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        for part in self._parts:
            total += self._slopes(part)[0].detach()
        self._ranks.add([total])
        return float(total)

    @torch.inference_mode(False)
    def gradient(self) -> Tensor:
        """Return the gradient of L at w, flat, in the order of `weights`."""
        graphs = (self._slopes(part) for part in self._parts)
        total = self._summed(flatten(slopes, leaves).detach() for _, leaves, slopes in graphs)
        self._ranks.add([total])
        return total

    def _slopes(self, part: Part) -> Graph:
        """Return a part's loss, the leaves and its gradient with the graph that leads to it."""
        if self._graph is not None:
            return self._graph
        with torch.enable_grad():
            leaves = self._leaves()
            loss = part.weight * self._loss_of(self._picked(self._raw(leaves, part.x)), part.y)
            points = list(leaves.values())
            slopes = torch.autograd.grad(loss, points, create_graph=True, allow_unused=True)
        if self.chunks == 1 and part is self._parts[0]:
            self._graph = (loss, points, slopes)
        return loss, points, slopes

    def _prepared(self, part: Part) -> Product:
        _, leaves, slopes = self._slopes(part)
        return lambda direction: _second(slopes, leaves, direction)

    def _probe(self, part: Part) -> None:
        self._slopes(part)

    def _forget(self) -> None:
        self._kept, self._graph = None, None


class OutputHessian(LossHessian):
    """The Hessian of a model's output, or of a sum of outputs, in its parameters, as an operator.

        H v = d/dt grad s(w + t v) at t = 0,   s(w) = sum_i sum_c weights_ic f_c(x_i; w)

    For one sample and one output this is the H of the papers on the transition to linearity; for weights
    that are a residual r it is the part sum_ic r_ic grad^2 f_c(x_i) of a loss Hessian that the Gauss-Newton
    matrix leaves out. Products, chunks and processes as for `LossHessian`.

    Args:
        model: any module without active dropout, taken in the mode it is in.
        x: n inputs, a tensor or a dict of tensors.
        weights: the number of an output (summed over the samples), C weights, or a tensor (n, C); None
            for a model with one output.
        **options: params, output, chunk, dtype, max_memory, group of `LossHessian`.

    Raises:
        InputError: as `LossHessian`; weights that do not fit the outputs.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
        >>> (OutputHessian(model, torch.tensor([[3.0]])) @ torch.eye(2)).tolist()
        [[0.0, 3.0], [3.0, 0.0]]

    Reference: Liu, Zhu and Belkin 2020 (arXiv 2010.01092), Section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Batch,
        weights: int | Tensor | None = None,
        *,
        output: OutputPick = None,
        **options: Any,
    ):
        pull = None if weights is None else torch.as_tensor(weights)
        if pull is not None and pull.dim() > 2:
            raise InputError(f"weights have shape {tuple(pull.shape)}; give a number, (C,) or (n, C)")
        each = pull is not None and pull.dim() == 2
        rows = pull if each else torch.zeros(batch_size(x))

        def combined(raw: Any, part: Tensor) -> Tensor:
            z = logits(raw, output, len(part))
            return (z * (part.to(z) if each else _mix(pull, z))).sum()

        self._pick = output
        super().__init__(model, combined, x, rows, reduction="sum", **options)

    def outputs(self, x: Batch) -> int:
        """Return the number C of the model's outputs, found by running it on `x`."""
        with torch.no_grad():
            return logits(self._raw(self.weights, x), self._pick, batch_size(x)).shape[1]


def _mix(weights: Tensor | None, z: Tensor) -> Tensor:
    """Return one weight for each output: those given, one for the output of that number, or 1."""
    outputs = z.shape[1]
    if weights is None:
        if outputs == 1:
            return z.new_ones(1)
        raise InputError(
            f"the model has {outputs} outputs; say which with weights=0, or give {outputs} weights"
        )
    if weights.dim() == 0:
        number = int(weights)
        if not 0 <= number < outputs:
            raise InputError(f"weights={number} but the model has {outputs} outputs, numbered from 0")
        return torch.nn.functional.one_hot(torch.tensor(number), outputs).to(z)
    if len(weights) != outputs:
        raise InputError(f"{len(weights)} weights for {outputs} outputs; give one for each")
    return weights.to(z)


def hessian_product(
    model: nn.Module, loss_fn: str | LossFunction, x: Batch, y: Any, vector: Tensor, **options: Any
) -> Tensor:
    """Return H v, the loss Hessian times one vector; for many vectors make a `LossHessian`.

        H v = d/dt grad L(w + t v) at t = 0,   L(w) = loss_fn(model(x; w), y)

    Cost: one forward and about three backward passes, memory of a backward pass through a gradient.

    Args:
        model: any module.
        loss_fn: "mse", "cross-entropy", or a function (output, y) -> scalar.
        x: n inputs, a tensor or a dict of tensors.
        y: n targets.
        vector: p numbers, flat, in the order of the parameters that require a gradient.
        **options: params, output, chunk, reduction, dtype, max_memory, group of `LossHessian`.

    Returns:
        A flat tensor of p numbers.

    Raises:
        InputError: as `LossHessian`; a vector of another length.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> hessian_product(model, "mse", torch.eye(2), torch.zeros(2, 1), torch.ones(2)).tolist()
        [1.0, 1.0]

    Reference: Pearlmutter 1994, Section 3.
    """
    return LossHessian(model, loss_fn, x, y, **options).product(vector)


def _second(slopes: tuple[Tensor | None, ...], leaves: list[Tensor], direction: Tensor) -> Tensor:
    pieces = direction.split([leaf.numel() for leaf in leaves])
    live = [
        (g, v.view_as(g)) for g, v in zip(slopes, pieces, strict=True) if g is not None and g.requires_grad
    ]
    if not live:
        return torch.zeros_like(direction)
    found = torch.autograd.grad(
        [g for g, _ in live], leaves, [v for _, v in live], retain_graph=True, allow_unused=True
    )
    return flatten(found, leaves)
