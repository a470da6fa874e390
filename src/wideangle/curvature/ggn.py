"""The Gauss-Newton matrix of a loss: in the parameters, and through the kernel in the outputs (size nC)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wideangle.curvature._chunks import Part
from wideangle.curvature._operator import CurvatureOperator, Product, flatten
from wideangle.errors import InputError
from wideangle.kernel._factors import Factors
from wideangle.kernel._push import Mode, pick_tensor, push_forward
from wideangle.kernel._stream import pads
from wideangle.kernel.lanczos import TopEigenpairs, lanczos_eigenpairs

__all__ = ["GaussNewton", "ggn_blocks", "ggn_product", "ggn_top_eigenpair", "output_root"]


class GaussNewton(CurvatureOperator):
    """The Gauss-Newton matrix G of a loss in the parameters of any model, as an operator.

        G v = J^T D (J v),   J = df/dw,   D = the Hessian of L(f) = loss_fn(f, y) in the outputs f

    The loss Hessian without the term of the network's own curvature, H = G + sum r grad^2 f: positive
    semi-definite where the loss is convex in the outputs. D is taken by autograd, so any loss will do.
    Weights, mode, chunks and processes as for `LossHessian`.

    Cost: one forward and two backward passes once, then about two backward passes a product with the graph
    kept; with chunks, a forward-mode, a forward and a backward pass over the data a product.

    Args:
        model: any module.
        loss_fn: "mse", "cross-entropy", or a function (output, y) -> scalar, twice differentiable in output.
        x: n inputs, a tensor or a dict of tensors, or (with y=None) a loader of (x, y) pairs.
        y: n targets.
        **options: params, output, chunk, reduction, dtype, max_memory, group of `LossHessian`.

    Raises:
        InputError: as `LossHessian`; a model that returns no single tensor and no `output=`.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> GaussNewton(model, "mse", torch.eye(2), torch.zeros(2, 1)).product(torch.tensor([1.0, 3.0])).tolist()
        [1.0, 3.0]

    Reference: Schraudolph 2002, "Fast curvature matrix-vector products", Section 3.
    """

    def _outputs(self, leaves: dict[str, Tensor], part: Part) -> Tensor:
        return pick_tensor(self._raw(leaves, part.x), self._output)

    def _bend(self, z: Tensor, part: Part) -> Product:
        """Return the product with D at the outputs z."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(
                part.weight * self._loss_of(point, part.y), point, create_graph=True
            )

        def product(change: Tensor) -> Tensor:
            if not slope.requires_grad:  # a loss linear in the outputs
                return torch.zeros_like(change)
            found = torch.autograd.grad(slope, point, change, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(change) if found is None else found

        return product

    def _prepared(self, part: Part) -> Product:
        with torch.enable_grad():
            leaves = self._leaves()
            points = list(leaves.values())
            z = self._outputs(leaves, part)
            self._check_dependence(z)
            blank = torch.zeros_like(z, requires_grad=True)
            pulled = torch.autograd.grad(z, points, blank, create_graph=True, allow_unused=True)
        bend = self._bend(z, part)

        def product(direction: Tensor) -> Tensor:
            pieces = direction.split([point.numel() for point in points])
            live = [(g, v.view_as(g)) for g, v in zip(pulled, pieces, strict=True) if g is not None]
            (change,) = torch.autograd.grad(
                [g for g, _ in live], blank, [v for _, v in live], retain_graph=True
            )
            found = torch.autograd.grad(z, points, bend(change), retain_graph=True, allow_unused=True)
            return flatten(found, points)

        return product

    def _passing(self, part: Part, direction: Tensor) -> Tensor:
        unit = self.unflatten(direction)
        mode: Mode = "reverse" if pads(self._model) else "auto"
        z, change, _ = push_forward(lambda w: self._outputs(w, part), self.weights, unit, mode)
        bent = self._bend(z, part)(change.detach())
        with torch.enable_grad():
            leaves = self._leaves()
            z = self._outputs(leaves, part)
            self._check_dependence(z)
            points = list(leaves.values())
            found = torch.autograd.grad(z, points, bent, allow_unused=True)
        return flatten(found, points)

    def _check_dependence(self, z: Any) -> None:
        if not z.requires_grad:
            raise InputError("the outputs do not depend on the parameters chosen; check params=")


def output_root(logits: Tensor, loss: str) -> Tensor:
    """Return S with S_i S_i^T = the loss Hessian of sample i in its outputs, times n; shape (n, C, C).

    mse: S_i = sqrt(2/C) I;   cross-entropy: S_i = diag(sqrt p_i) - p_i sqrt(p_i)^T, p = softmax(logits)

    Args:
        logits: (n, C).
        loss: "mse" (torch.nn.MSELoss) or "cross-entropy", both averaged over samples.

    Raises:
        InputError: another loss.

    Example:
        >>> root = output_root(torch.zeros(1, 2, dtype=torch.float64), "cross-entropy")
        >>> (root[0] @ root[0].T).round(decimals=9).tolist()
        [[0.25, -0.25], [-0.25, 0.25]]
    """
    samples, outputs = logits.shape
    if loss == "mse":
        eye = torch.eye(outputs, dtype=logits.dtype, device=logits.device) * (2.0 / outputs) ** 0.5
        return eye.expand(samples, outputs, outputs)
    if loss == "cross-entropy":
        p = torch.softmax(logits, dim=1)
        return torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)
    raise InputError(f"unknown loss {loss!r}; choose 'mse' or 'cross-entropy'")


def ggn_product(factors: Factors, root: Tensor, v: Tensor) -> Tensor:
    """Return (1/n) S^T K S v, the Gauss-Newton matrix seen in the nC outputs.

    The p x p matrix (1/n) J^T S S^T J and this one share their non-zero eigenvalues.

    Args:
        factors: the factor cache with all outputs.
        root: S as `output_root` returns it.
        v: (nC,) or (n, C).

    Example:
        >>> from wideangle.kernel import factors
        >>> cache = factors(torch.nn.Linear(2, 2, bias=False), torch.eye(2))
        >>> ggn_product(cache, output_root(torch.zeros(2, 2), "mse"), torch.ones(2, 2)).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    w = torch.einsum("icd,id->ic", root, v.reshape(root.shape[:2]))
    w = factors @ w
    return (torch.einsum("icd,ic->id", root, w) / root.shape[0]).reshape(v.shape)


def ggn_top_eigenpair(
    factors: Factors, logits: Tensor, loss: str, *, tolerance: float = 1e-3
) -> TopEigenpairs:
    """Return the largest eigenvalue of the Gauss-Newton matrix of a loss, with its vector in output space.

    lambda_max( (1/n) S^T K S ), equal to lambda_max(c K), c = 2/(nC), for "mse"

    Cost: about 20 products with K.

    Args:
        factors: the factor cache with all outputs.
        logits: the model's outputs (n, C) at the same weights.
        loss: "mse" or "cross-entropy".
        tolerance: residual allowed, relative to the value.

    Raises:
        InputError: unknown loss, or logits that do not fit the factors.
        ConvergenceError: the tolerance was not reached.

    Example:
        >>> from wideangle.kernel import factors
        >>> model, x = torch.nn.Linear(3, 2, bias=False), torch.eye(3)
        >>> round(float(ggn_top_eigenpair(factors(model, x), model(x), "mse").values[0]), 4)
        0.3333

    Reference: Schraudolph 2002 (Gauss-Newton for convex losses); for cross-entropy the Gauss-Newton matrix
    is the loss Hessian without the term of the network's own curvature.
    """
    if tuple(logits.shape) != (factors.samples, factors.outputs):
        raise InputError(
            f"logits of shape {tuple(logits.shape)} do not fit {factors.samples} samples and {factors.outputs} outputs"
        )
    root = output_root(logits.detach().to(factors.dtype), loss)
    return lanczos_eigenpairs(
        lambda v: ggn_product(factors, root, v),
        factors.samples * factors.outputs,
        tolerance=tolerance,
        device=factors.device,
        dtype=factors.dtype,
    )


def ggn_blocks(factors: Factors, logits: Tensor, loss: str) -> Tensor:
    """Return S_i^T K_ii S_i for every sample, shape (n, C, C): the curvature of each sample's own loss.

    Args:
        factors: the factor cache with all outputs.
        logits: the model's outputs (n, C).
        loss: "mse" or "cross-entropy".

    Example:
        >>> from wideangle.kernel import factors
        >>> model, x = torch.nn.Linear(3, 2, bias=False), torch.eye(3)
        >>> ggn_blocks(factors(model, x), model(x), "mse")[0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    root = output_root(logits.detach().to(torch.float64), loss)
    return root.mT @ factors.blocks(torch.float64) @ root
