"""The Gauss-Newton matrix of a loss, reached through the tangent kernel: same non-zero spectrum, size nC."""

from __future__ import annotations

import torch
from torch import Tensor

from wideangle.errors import InputError
from wideangle.kernel._factors import Factors
from wideangle.kernel.lanczos import TopEigenpairs, lanczos_eigenpairs

__all__ = ["ggn_blocks", "ggn_product", "ggn_top_eigenpair", "output_root"]


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
