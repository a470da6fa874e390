"""Matrices, operators and functions as one thing, v -> H v, with what they are checked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from wideangle.errors import InputError
from wideangle.kernel.spectrum import as_matrix

__all__ = ["Product", "product_of"]

Product = Callable[[Tensor], Tensor]


def product_of(matvec: Any, b: Tensor) -> Product:
    """Return v -> H v for a matrix, an operator or a function."""
    if sparse.issparse(matvec) or (torch.is_tensor(matvec) and matvec.layout is not torch.strided):
        raise InputError(
            "H is a sparse matrix; give the function v -> H v instead: `lambda v: H @ v` for one of torch, "
            "`lambda v: torch.from_numpy(H @ v.numpy())` for one of scipy"
        )
    if torch.is_tensor(matvec) or isinstance(matvec, np.ndarray):
        return _of_matrix(as_matrix(matvec), b)
    operator: Any = matvec
    if hasattr(operator, "__matmul__"):
        return _checked(lambda v: operator @ v)
    if hasattr(operator, "product"):
        return _checked(
            lambda v: (
                operator.product(v)
                if v.dim() == 1
                else torch.stack([operator.product(column) for column in v.T], dim=1)
            )
        )
    if callable(operator):
        return _checked(operator)
    raise InputError(
        f"matvec is a {type(matvec).__name__}; give a matrix, an operator with @ or .product, or a function v -> H v"
    )


def _of_matrix(matrix: Tensor, b: Tensor) -> Product:
    if len(matrix) != len(b):
        raise InputError(f"H is {tuple(matrix.shape)}, b has {len(b)} rows; they must fit")
    matrix = matrix.to(b.device, b.dtype)
    size, apart = float(matrix.abs().max()), float((matrix - matrix.T).abs().max())
    if apart > math.sqrt(torch.finfo(b.dtype).eps) * size:
        raise InputError(
            f"H is not symmetric: H - H^T has an entry of {apart:.4g}, H itself up to {size:.4g}; for least squares "
            "pass H = A^T A and b = A^T y"
        )
    return lambda v: matrix @ v


def _checked(product: Callable[..., Any]) -> Product:
    def shaped(v: Tensor) -> Tensor:
        found = product(v)
        if not torch.is_tensor(found) or found.shape != v.shape:
            got = tuple(found.shape) if hasattr(found, "shape") else type(found).__name__
            raise InputError(
                f"the product of H with a tensor {tuple(v.shape)} gave {got}; give one of that shape"
            )
        return found.detach().to(v.dtype)

    return shaped
