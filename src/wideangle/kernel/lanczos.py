"""Largest eigenpairs of operators known by their products only, residuals checked.

Without a start by scipy's Lanczos, from nearly right vectors by the block method of `_block`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from wideangle.errors import ConvergenceError, InputError, NumericsError
from wideangle.kernel._block import block_eigenpairs, working_dtype
from wideangle.result import Result

__all__ = ["KernelOperator", "TopEigenpairs", "lanczos_eigenpairs", "top_eigenpairs"]


@runtime_checkable
class KernelOperator(Protocol):
    """What a full kernel K (nC x nC, symmetric) must offer where only its products are used.

    `K @ v` takes v of shape (nC,) or (nC, m), sample-major (entry i C + c: sample i, output c), in the
    operator's dtype and on its device, and returns K v of the same shape. `Factors` is one.
    """

    @property
    def samples(self) -> int:
        """The number of samples, n."""
        ...

    @property
    def outputs(self) -> int:
        """The number of outputs of a sample, C."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the products."""
        ...

    @property
    def device(self) -> torch.device:
        """Where vectors are taken and returned."""
        ...

    def __matmul__(self, v: Tensor, /) -> Tensor: ...


def rounding(dtype: torch.dtype) -> float:
    """Return what a product with a kernel loses relative to its largest eigenvalue: 1e-5 in float32."""
    return 84 * torch.finfo(dtype).eps


_GLANCE = (4, 16)  # Lanczos steps, at least and at most, of the first look for missed copies


@dataclass(frozen=True)
class TopEigenpairs(Result):
    """The k largest eigenvalues, descending, with their vectors and residuals.

    `vectors` holds one unit vector a column; `residuals[i]` is |A v_i - value_i v_i|; `products` counts the
    products with A.
    """

    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    residuals: np.ndarray = field(default_factory=lambda: np.zeros(0))
    products: int = 0


def lanczos_eigenpairs(
    product: Callable[[Tensor], Tensor],
    size: int,
    *,
    k: int = 1,
    tolerance: float = 1e-4,
    start: Tensor | np.ndarray | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    max_products: int | None = None,
) -> TopEigenpairs:
    """Return the k algebraically largest eigenpairs of a symmetric operator, each with its residual.

    |A v - theta v| <= tolerance * |theta_1| is checked with one more product for each pair, never assumed.

    Cost: some 10 to 40 products; host memory of about 20 vectors of `size` float64 numbers.

    Args:
        product: v -> A v on tensors of shape (size,).
        size: N, the dimension of A.
        k: how many pairs, at least 1; dense if k is not below `size`.
        tolerance: the residual allowed, relative to the largest value.
        start: a vector to start from, such as the last eigenvector found; a fixed one where left out.
        device: where `product` takes its vectors.
        dtype: the precision in which `product` takes its vectors.
        max_products: give up after so many products.

    Raises:
        InputError: k or the start do not fit the size.
        ConvergenceError: a residual above the tolerance when the products are used up.
        NumericsError: a product holds non-finite numbers.

    Example:
        >>> scale = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
        >>> round(float(lanczos_eigenpairs(lambda v: scale * v, 4).values[0]), 6)
        3.0

    Reference: Lehoucq, Sorensen, Yang 1998 (ARPACK, through scipy.sparse.linalg.eigsh).
    """
    _check_count(k, size)
    with _one_pool():
        return _lanczos(product, size, k, tolerance, start, torch.device(device), dtype, max_products)


@contextmanager
def _one_pool() -> Iterator[None]:
    """Keep numpy's and scipy's own threads to one: beside torch's they would share the same cores, and spin."""
    from threadpoolctl import ThreadpoolController

    pools = ThreadpoolController()
    own = [
        lib.filepath for lib in pools.lib_controllers if "scipy" in lib.filepath or "numpy" in lib.filepath
    ]
    with pools.select(filepath=own).limit(limits=1):
        yield


def _lanczos(
    product: Callable[[Tensor], Tensor],
    size: int,
    k: int,
    tolerance: float,
    start: Tensor | np.ndarray | None,
    device: torch.device,
    dtype: torch.dtype,
    max_products: int | None,
) -> TopEigenpairs:
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    count = 0

    def apply(vector: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        if max_products is not None and count > max_products:
            raise ConvergenceError(
                f"max_products={max_products} products were not enough for {k} eigenpairs to {tolerance:g}; raise it, "
                "or the tolerance"
            )
        image = product(torch.as_tensor(np.ravel(vector), device=device).to(dtype))
        if not bool(torch.isfinite(image).all()):
            raise NumericsError(
                "a product with the operator is not finite; check the weights, or use float64"
            )
        return image.detach().to("cpu", torch.float64).numpy()

    if size <= max(2 * k + 1, 12):
        dense = np.stack([apply(column) for column in np.eye(size)], axis=1)
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    else:
        if start is None:
            first = np.random.default_rng(0).standard_normal(size)
        else:
            first = np.ravel(torch.as_tensor(start).detach().to("cpu", torch.float64).numpy())
            if first.size != size:
                raise InputError(f"start has {first.size} entries, the operator has size {size}")
        if not bool(apply(first).any()):
            return TopEigenpairs(np.zeros(k), np.eye(size)[:, :k], np.zeros(k), count)
        operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)  # type: ignore[call-arg]
        basis = min(size, max(2 * k + 1, 12))
        rounds = None if max_products is None else max(1, max_products // basis)
        try:
            values, vectors = eigsh(
                operator,
                k=k,
                which="LA",
                v0=first,
                ncv=basis,
                tol=tolerance / 4,  # type: ignore[arg-type]
                maxiter=rounds,
            )
        except ArpackNoConvergence as error:
            raise ConvergenceError(
                f"{len(error.eigenvalues)} of {k} eigenpairs converged to {tolerance:g} in {count} products; "
                "raise the tolerance or max_products"
            ) from error
        values, vectors = values[::-1], vectors[:, ::-1]
        if k > 1:
            values, vectors = _with_multiplicities(apply, values, vectors, tolerance)
    images = np.stack([apply(column) for column in vectors.T], axis=1)
    residuals = np.linalg.norm(images - vectors * values, axis=0)
    scale = max(float(np.abs(values).max()), 1e-300)
    if bool((residuals > (tolerance + rounding(dtype)) * scale).any()):
        raise ConvergenceError(
            f"the residual {residuals.max() / scale:.2g} is above the tolerance {tolerance:g} after {count} "
            "products; use float64 or raise the tolerance"
        )
    return TopEigenpairs(values.copy(), vectors.copy(), residuals, count)


def _with_multiplicities(
    apply: Callable[[np.ndarray], np.ndarray], values: np.ndarray, vectors: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs with copies of multiple eigenvalues that one Krylov space cannot see.

    What is found is moved out of the way (deflated), and a search from another start must find nothing
    above the smallest value kept; what it does find takes its place.
    """
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    size, k = vectors.shape
    draws = np.random.default_rng(1)
    for _ in range(2 * k):
        basis = vectors

        def deflated(v: np.ndarray, basis: np.ndarray = basis) -> np.ndarray:
            inside = basis.T @ v
            image = apply(v - basis @ inside)
            return image - basis @ (basis.T @ image)

        start = draws.standard_normal(size)
        start -= basis @ (basis.T @ start)
        if _clearly_below(deflated, start, values[-1]):
            break
        operator = LinearOperator((size, size), matvec=deflated, dtype=np.float64)  # type: ignore[call-arg]
        try:
            value, vector = eigsh(operator, k=1, which="LA", v0=start, ncv=min(size, 20), tol=tolerance / 4)  # type: ignore[arg-type]
        except ArpackError as error:
            if "Starting vector is zero" in str(error):
                break  # nothing is left beside what was found
            raise ConvergenceError(
                f"the search for copies of eigenvalue {values[-1]:.4g} did not converge to {tolerance:g} ({error}); "
                "raise the tolerance"
            ) from error
        if value[0] <= values[-1] * (1 + tolerance) + 1e-300:
            break
        vector = vector[:, 0] - basis @ (basis.T @ vector[:, 0])
        vector /= np.linalg.norm(vector)
        values, vectors = np.append(values, value[0]), np.column_stack([vectors, vector])
        order = np.argsort(-values)[:k]
        values, vectors = values[order], vectors[:, order]
    return values, vectors


def _clearly_below(apply: Callable[[np.ndarray], np.ndarray], start: np.ndarray, value: float) -> bool:
    """Return whether a few Lanczos steps show the largest eigenvalue well below a value.

    theta + 4 beta |s| < value, with the Ritz value theta and its residual beta |s|, after four steps or more
    """
    basis, diagonal, beside = [start / np.linalg.norm(start)], [], []
    for step in range(1, _GLANCE[1] + 1):
        image = apply(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        for vector in basis:  # orthogonal to all of the few, twice
            image = image - vector * (vector @ image)
        for vector in basis:
            image = image - vector * (vector @ image)
        beta = float(np.linalg.norm(image))
        inner = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        thetas, columns = np.linalg.eigh(inner)
        bound = beta * abs(columns[-1, -1])
        if beta <= 1e-12 * max(abs(value), 1e-300):
            return bool(thetas[-1] < value)
        if thetas[-1] >= value:
            return False
        if step >= _GLANCE[0] and thetas[-1] + 4 * bound < value:
            return True
        beside.append(beta)
        basis.append(image / beta)
    return False


def top_eigenpairs(
    op: KernelOperator,
    k: int = 1,
    *,
    tolerance: float = 1e-4,
    start: Tensor | np.ndarray | TopEigenpairs | None = None,
    max_products: int | None = None,
) -> TopEigenpairs:
    """Return the k largest eigenpairs of the full kernel (nC x nC) without forming it.

    K v_i = lambda_i v_i, i = 1..k; vectors are sample-major: entry i C + c belongs to sample i, output c

    Without `start` by Lanczos. With `start`, the eigenvectors of a kernel close to this one, by a block
    method that begins with all of them and stops as soon as the residuals pass: while a network trains,
    the pairs of the last call give those of the next in one to three block products. A result carries as
    many approximate eigenvectors on as its start had columns, so begin with more pairs than are wanted:
    the largest C eigenvalues of a kernel of C outputs are often a cluster, far above the rest, and
    `top_eigenpairs(op, C)` gives a start that holds all of it. On an MLP on 128 digits, five steps of SGD
    apart, k = 1 or 3 from such a start took 2 or 3 products at tolerance 1e-2 to 1e-4; from k vectors
    only, 2 to 5 at 1e-2, 3 to 7 at 1e-3 and 5 to 8 at 1e-4.

    What is guaranteed: |K v_i - lambda_i v_i| <= tolerance * lambda_1 for each pair (plus what float32
    products lose), so K has an eigenvalue that close to each value. That no larger eigenvalue was missed
    is not guaranteed: a Krylov space holds nothing of what its start is orthogonal to. A random column
    beside the start makes that unlikely: an eigenvalue well above the k-th value returned comes out even
    if the start is orthogonal to its eigenvectors. Eigenvalues within a few tolerances of the k-th value
    may stand for one another, and that value be off by as much.

    Cost: without `start` about 20 products, each two passes over the factors. With it, one to three block
    products, the first of k' + 1 columns, the others of up to k + 1 (columns cost as vectors do where the
    products are bound by arithmetic), and up to 2 (6 k + k' + 1) vectors of memory, at least 40, on the
    operator's device.

    Args:
        op: `Factors` made with outputs="full", or any `KernelOperator`.
        k: how many pairs.
        tolerance: residual allowed, relative to lambda_1.
        start: (nC,) or (nC, k') approximate eigenvectors, not necessarily orthonormal, or an earlier result.
        max_products: give up after so many products; 300 with a start where left out.

    Returns:
        A `TopEigenpairs`; with a start `products` counts block products.

    Raises:
        InputError: k does not fit the size; the tolerance is not positive; the start has another size, is
            not finite or is zero.
        ConvergenceError: the tolerance was not reached.
        NumericsError: a product holds non-finite numbers.

    Example:
        >>> from wideangle.kernel import factors
        >>> cache = factors(torch.nn.Linear(3, 2, bias=False).double(), torch.eye(3, dtype=torch.float64))
        >>> found = top_eigenpairs(cache)
        >>> [round(float(v), 6) for v in found.values]
        [1.0]
        >>> round(float(top_eigenpairs(cache, start=found).values[0]), 6)
        1.0

    Reference: Saad 2011, Numerical Methods for Large Eigenvalue Problems, chapters 5 and 7.
    """
    if not all(hasattr(op, name) for name in ("samples", "outputs", "dtype", "device", "__matmul__")):
        raise InputError(f"op is a {type(op).__name__}; give factors(model, x) or a TangentKernel")
    size = op.samples * op.outputs
    if isinstance(tolerance, (str, bool)) or not tolerance > 0:
        raise InputError(f"the tolerance is {tolerance!r}; a residual relative to lambda_1 must be positive")
    if max_products is not None and max_products < 1:
        raise InputError(f"max_products={max_products} leaves no product to work with; give at least 1")
    if start is None:
        return lanczos_eigenpairs(
            lambda v: op @ v,
            size,
            k=k,
            tolerance=tolerance,
            device=op.device,
            dtype=op.dtype,
            max_products=max_products,
        )
    _check_count(k, size)
    first = _start_columns(start, size, torch.device(op.device))
    values, vectors, residuals, count = block_eigenpairs(
        lambda block: (op @ block.to(op.dtype)).detach().to(first.dtype),
        first,
        k,
        tolerance=tolerance + rounding(op.dtype),
        max_products=max_products,
    )
    arrays = [found.to("cpu", torch.float64).numpy() for found in (values, vectors[:, :k], residuals)]
    result = TopEigenpairs(arrays[0], arrays[1].copy(), arrays[2], count)
    result.__dict__["_carried"] = vectors
    return result


def _start_columns(start: Tensor | np.ndarray | TopEigenpairs, size: int, device: torch.device) -> Tensor:
    """Return a start as columns (size, k') on the device, checked."""
    if isinstance(start, TopEigenpairs):
        start = start.__dict__.get("_carried", start.vectors)
    try:
        given = torch.as_tensor(start).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"start is a {type(start).__name__}; give vectors or an earlier result") from error
    if given.dim() not in (1, 2) or given.shape[0] != size or given.numel() == 0 or given.is_complex():
        raise InputError(
            f"start has shape {tuple(given.shape)} {given.dtype}; the operator takes real vectors of {size} "
            f"entries: give ({size},), ({size}, k) or an earlier result for as many samples and outputs"
        )
    columns = given.reshape(size, -1).to(device, working_dtype(device))
    if not bool(torch.isfinite(columns).all()):
        wrong = int((~torch.isfinite(columns)).sum())
        raise InputError(f"start has {wrong} non-finite entries; leave it out to begin without one")
    if not bool(columns.any()):
        raise InputError("start is zero, so it points nowhere; leave it out to begin without one")
    return columns / columns.abs().max()


def _check_count(k: int, size: int) -> None:
    whole = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
    if not whole or not 1 <= k <= size:
        raise InputError(
            f"k={k!r} eigenpairs of an operator of size {size}; k must be a whole number between 1 and the size"
        )
