"""Eigenvalues of a kernel, with a verdict on which of them are above rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wideangle.errors import InputError, NumericsError
from wideangle.result import Result

__all__ = ["Spectrum", "as_matrix", "condition_number", "effective_rank", "eigenpairs", "project"]

Array = np.ndarray
_FACTOR_CONSTANT = 16.0  # largest |E|^2 / (eps^2 tr K) measured on float32 nets of depth 1 to 30: 7


@dataclass(frozen=True)
class Spectrum(Result):
    """The eigenvalues of a kernel, largest first, and what they say about its rank and conditioning.

    `eigenvalues` are as computed; those at or below `resolution` count as zero everywhere in the
    library, and their eigenvectors mean nothing. `outputs` is C where the kernel was a full one,
    (n C) x (n C) and sample-major, else 1. The eigenvectors are kept on the object (`vectors`), not
    in its JSON form: a record read back has none.

    Example:
        >>> print(eigenpairs(np.diag([3.0, 1.0])))
        Spectrum
          eigenvalues       [3, 1]
          resolution        1.332e-15
          rank              2
          rank deficient    no
          condition number  3
          effective rank    1.6
          outputs           1
    """

    eigenvalues: Array
    resolution: float
    rank: int
    rank_deficient: bool
    condition_number: float
    effective_rank: float
    outputs: int = 1

    @property
    def vectors(self) -> Array | None:
        """The eigenvectors as columns, in the order of `eigenvalues`; None where not kept."""
        return self.__dict__.get("_vectors")

    @property
    def size(self) -> int:
        """The number of eigenvalues, n or n C."""
        return len(self.eigenvalues)

    @property
    def samples(self) -> int:
        """The number of samples, n."""
        return self.size // self.outputs

    @property
    def resolved(self) -> Array:
        """The eigenvalues with those at or below the resolution replaced by zero."""
        return np.where(self.eigenvalues > self.resolution, self.eigenvalues, 0.0)


def as_matrix(K: Any) -> Tensor:
    """Return a kernel as a matrix: (n, n) as it is, a full (n, C, n, C) one as (n C, n C), sample-major.

        M[i C + c, j C + d] = K[i, c, j, d]

    Cost: none, where the kernel is contiguous.

    Args:
        K: tensor or array, (n, n) or (n, C, n, C), real, finite.

    Returns:
        A floating-point matrix on the device of K (integers become float64).

    Raises:
        InputError: another shape, no sample, or a complex kernel.
        NumericsError: a non-finite entry.

    Example:
        >>> as_matrix(torch.zeros(3, 2, 3, 2)).shape
        torch.Size([6, 6])
    """
    kernel = torch.as_tensor(K).detach()
    square = kernel.dim() == 2 and kernel.shape[0] == kernel.shape[1]
    full = kernel.dim() == 4 and kernel.shape[:2] == kernel.shape[2:]
    if not (square or full) or kernel.numel() == 0 or kernel.is_complex():
        raise InputError(
            f"a kernel is real, (n, n) or (n, C, n, C), got {tuple(kernel.shape)} {kernel.dtype}; "
            "a cross kernel (x1 and x2 given) has no spectrum"
        )
    if not kernel.is_floating_point():
        kernel = kernel.to(torch.float64)
    if not bool(torch.isfinite(kernel).all()):
        raise NumericsError(
            f"the kernel has {int((~torch.isfinite(kernel)).sum())} non-finite entries; check the model's "
            "outputs on these samples for overflow, scale the inputs, or compute in float64"
        )
    return kernel.reshape(kernel.shape[0] * kernel.shape[1], -1) if full else kernel


def eigenpairs(
    K: Any,
    vectors: bool = True,
    resolution: float | None = None,
    *,
    factor_dtype: torch.dtype = torch.float64,
    outputs: int | None = None,
) -> Spectrum:
    """Return the spectrum of a kernel, largest eigenvalue first, computed in float64.

        K v_i = lambda_i v_i,   kappa = lambda_1 / lambda_n,   effective rank = (sum lambda)^2 / sum lambda^2

    An eigenvalue at or below the resolution is zero; if there is one, the kernel is rank-deficient and
    kappa = inf. The resolution is the largest of

        n eps lambda_1            eps of K's dtype: what the eigenvalue solver and the entries of K lose
        16 eps_f^2 tr K           eps_f of factor_dtype: what the gradients K was built from had lost
        |lambda_min|              where it is negative: a Gram matrix has no negative eigenvalue

    The second: K = J J^T formed in float64 from a J with relative rounding errors E has singular values
    off by at most |E|, so eigenvalues below |E|^2 are unresolved; |E|^2 / (eps^2 tr K) was 0.005 to 7 on
    float32 nets of 1 to 30 layers (ReLU, GELU, tanh up to 10 layers). A net that amplifies perturbations
    from layer to layer exceeds it (30 tanh layers: 6000): give `resolution` yourself or use float64.
    Duplicated samples come out at 1e-15 K_ii or below, and are called rank-deficient either way.

    Cost: about 9 n^3 multiply-adds with vectors, 4/3 n^3 without; three n x n float64 matrices.

    Args:
        K: kernel, (n, n) or full (n, C, n, C); tensor or array. Symmetrised before use.
        vectors: keep the eigenvectors on the result.
        resolution: overrides the rule above, in units of K.
        factor_dtype: precision in which the gradients behind K were computed.
        outputs: C, for a full kernel that is given as its (n C, n C) matrix, sample-major; read off the
            shape of an (n, C, n, C) kernel, and 1 otherwise.

    Returns:
        A `Spectrum`.

    Raises:
        InputError: not a square kernel; not symmetric beyond rounding; clearly not positive
            semi-definite (lambda_min < -0.01 lambda_1); a negative resolution; `outputs` that do not
            divide the size.
        NumericsError: a non-finite entry, or the eigenvalue solver failed.

    Example:
        >>> twice = torch.ones(2, 2)      # the same sample two times
        >>> eigenpairs(twice).condition_number
        inf

    Reference: Weyl's inequality for singular values; kernel conditioning as in Liu & Hui 2023
    (arXiv 2305.08813), section 4, which divides by the smallest computed eigenvalue whatever its size.
    """
    matrix = as_matrix(K)
    eps = torch.finfo(matrix.dtype).eps
    outputs = outputs or (int(np.shape(K)[1]) if np.ndim(K) == 4 else 1)
    if outputs < 1 or len(matrix) % outputs:
        raise InputError(f"a kernel of size {len(matrix)} cannot have {outputs} outputs a sample")
    values, columns = _eigh(symmetric_part(matrix), vectors)
    if values[-1] < -0.01 * abs(values).max():
        raise InputError(
            f"the matrix is no kernel: its eigenvalues go from {values[-1]:.4g} to {values[0]:.4g}, "
            "but a Gram matrix has none below zero"
        )
    if resolution is None:
        factor = factor_error(float(values.sum()), factor_dtype) ** 2
        resolution = float(max(len(values) * eps * values[0], factor, -values[-1]))
    elif not resolution >= 0:
        raise InputError(f"the resolution is an eigenvalue size and must be zero or more, got {resolution}")
    return _verdict(values, columns, resolution, outputs)


def factor_error(trace: float, dtype: torch.dtype) -> float:
    """Return by how much rounding moves the singular values of a J computed in `dtype`; `trace` = |J|_F^2."""
    return math.sqrt(_FACTOR_CONSTANT * max(trace, 0.0)) * torch.finfo(dtype).eps


def symmetric_part(matrix: Tensor) -> Tensor:
    """Return the symmetric part in float64 after a check that the rest is rounding."""
    size, apart = float(matrix.abs().max()), float((matrix - matrix.T).abs().max())
    if apart > math.sqrt(torch.finfo(matrix.dtype).eps) * size:
        raise InputError(
            f"the kernel is not symmetric: K - K^T has an entry of {apart:.4g}, K itself up to {size:.4g}"
        )
    matrix = matrix.to(torch.float64)
    return (matrix + matrix.T) / 2


def _eigh(matrix: Tensor, vectors: bool) -> tuple[Array, Array | None]:
    """Return eigenvalues (and eigenvectors), largest first; the matrix is scaled to size one on the way."""
    scale = float(matrix.abs().max()) or 1.0
    try:
        if not vectors:
            return torch.linalg.eigvalsh(matrix / scale).flip(0).cpu().numpy() * scale, None
        values, columns = torch.linalg.eigh(matrix / scale)
    except RuntimeError as error:
        raise NumericsError(
            f"the eigenvalue solver failed on a {len(matrix)} x {len(matrix)} kernel ({error}); "
            "try a subset of the samples or the CPU"
        ) from error
    return values.flip(0).cpu().numpy() * scale, columns.flip(1).cpu().numpy()


def _verdict(values: Array, columns: Array | None, resolution: float, outputs: int) -> Spectrum:
    kept = values[values > resolution]
    deficient = len(kept) < len(values)
    relative = kept / kept[0] if len(kept) else kept
    result = Spectrum(
        eigenvalues=values,
        resolution=resolution,
        rank=len(kept),
        rank_deficient=deficient,
        condition_number=math.inf if deficient else float(values[0] / values[-1]),
        effective_rank=float(relative.sum() ** 2 / (relative**2).sum()) if len(kept) else 0.0,
        outputs=outputs,
    )
    if columns is not None:
        result.__dict__["_vectors"] = columns
    return result


def condition_number(K: Any, *, factor_dtype: torch.dtype = torch.float64) -> float:
    """Return lambda_max / lambda_min of a kernel, or inf where it is rank-deficient.

        kappa = lambda_1 / lambda_n

    Gradient descent on the linearised squared loss needs of the order of kappa steps for its slowest
    mode. Cost: 4/3 n^3 multiply-adds for a kernel, nothing for a `Spectrum`.

    Args:
        K: kernel, (n, n) or (n, C, n, C), or its `Spectrum`.
        factor_dtype: as for `eigenpairs`.

    Returns:
        kappa >= 1.

    Raises:
        InputError: as for `eigenpairs`.
        NumericsError: as for `eigenpairs`.

    Example:
        >>> condition_number(torch.diag(torch.tensor([4.0, 1.0])))
        4.0
    """
    found = K if isinstance(K, Spectrum) else eigenpairs(K, vectors=False, factor_dtype=factor_dtype)
    return found.condition_number


def effective_rank(K: Any) -> float:
    """Return the participation ratio of a kernel's eigenvalues.

        (sum_i lambda_i)^2 / sum_i lambda_i^2

    Between 1 (one mode carries everything) and n (all equal). Cost: as for `condition_number`.

    Args:
        K: kernel, (n, n) or (n, C, n, C), or its `Spectrum`.

    Returns:
        The effective rank; 0 for a kernel of zeros.

    Raises:
        InputError: as for `eigenpairs`.
        NumericsError: as for `eigenpairs`.

    Example:
        >>> effective_rank(torch.eye(5))
        5.0
    """
    return (K if isinstance(K, Spectrum) else eigenpairs(K, vectors=False)).effective_rank


def project(spectrum: Spectrum, target: Any) -> Array:
    """Return the coefficients of a target in the eigenvectors, one row a mode, one column an output.

        coefficients[i, c] = v_i . target[:, c]

    Cost: n^2 multiply-adds an output.

    Args:
        spectrum: with its vectors.
        target: (n,) or (n, C) for a kernel of n samples that serves each output alike; (n, C) or
            (n C,) for a full kernel, which gives a single column.

    Returns:
        float64 array of shape (size, columns).

    Raises:
        InputError: the spectrum has no vectors, the sizes do not match, or the target is not finite.

    Example:
        >>> project(eigenpairs(torch.diag(torch.tensor([2.0, 1.0]))), torch.tensor([3.0, 0.0])).shape
        (2, 1)
    """
    if spectrum.vectors is None:
        raise InputError("this spectrum has no eigenvectors; compute it with eigenpairs(K, vectors=True)")
    values = torch.as_tensor(target).detach().to("cpu", torch.float64).numpy()
    if values.ndim in (1, 2) and values.shape[0] == spectrum.size:
        columns = values.reshape(spectrum.size, -1)
    elif values.ndim == 2 and values.size == spectrum.size and values.shape[1] == spectrum.outputs:
        columns = values.reshape(-1, 1)
    else:
        raise InputError(
            f"a target of shape {values.shape} does not fit a kernel of {spectrum.samples} samples and "
            f"{spectrum.outputs} outputs ({spectrum.size} eigenvalues)"
        )
    if not np.isfinite(columns).all():
        raise InputError(f"the target has {int((~np.isfinite(columns)).sum())} non-finite entries")
    return spectrum.vectors.T @ columns
