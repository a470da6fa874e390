"""One measurement of the curvature benchmark in a process of its own: a method on a case, as one line of JSON.

    python curvature_methods.py METHOD MODEL QUANTITY N TOLERANCE THREADS

A method finds the largest eigenvalue of the cross-entropy Hessian, or its spectral
density in 100 Lanczos steps. Products are counted and residuals measured by the same plain double backward.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cases import OUTPUTS, SHAPES, drawn
from torch import Tensor, nn

STEPS = 100


class Case:
    """A model with its data, and what checks a result: a plain Hessian-vector product that is not counted."""

    def __init__(self, name: str, n: int):
        self.model = drawn(name).eval()
        self.x = torch.rand(n, *SHAPES[name], generator=torch.Generator().manual_seed(1))
        self.y = torch.arange(n) % OUTPUTS
        self.loss = nn.CrossEntropyLoss()
        self.parameters = list(self.model.parameters())
        self.size = sum(p.numel() for p in self.parameters)

    def hessian(self) -> Callable[[Tensor], Tensor]:
        """Return v -> H v by double backward over a graph that is kept: what everyone writes by hand."""
        slopes = torch.autograd.grad(
            self.loss(self.model(self.x), self.y), self.parameters, create_graph=True
        )
        flat = torch.cat([slope.reshape(-1) for slope in slopes])

        def product(v: Tensor) -> Tensor:
            found = torch.autograd.grad(flat, self.parameters, v, retain_graph=True)
            return torch.cat([part.reshape(-1) for part in found])

        return product

    def residual(self, value: float, vector: Any) -> float:
        """Return |H v - value v| / |value|."""
        v = torch.as_tensor(np.asarray(vector), dtype=torch.float32).reshape(-1)
        v = v / v.norm()
        return float((self.hessian()(v) - value * v).norm()) / abs(value)


class Counted:
    """A product that counts its calls."""

    def __init__(self, product: Callable[[Any], Any]):
        self.product, self.count = product, 0

    def __call__(self, v: Any, *rest: Any, **options: Any) -> Any:
        """Return the product, counted."""
        self.count += 1
        return self.product(v, *rest, **options)


def ours(case: Case, quantity: str, tolerance: float) -> dict[str, Any]:
    """Wideangle."""
    from wideangle.curvature import LossHessian, sharpness, spectral_density

    if quantity == "top":
        found = sharpness(case.model, "cross-entropy", case.x, case.y, tolerance=tolerance)
        return {"value": found.value, "vector": found.vector, "products": found.products}
    density = spectral_density(LossHessian(case.model, "cross-entropy", case.x, case.y), STEPS)
    return {"value": density.highest, "products": density.products}


def recipe(case: Case, quantity: str, tolerance: float) -> dict[str, Any]:
    """The graph kept, scipy's eigsh: the recipe of forums and tutorials, which has no density."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    product = Counted(case.hessian())
    linear = LinearOperator(
        (case.size, case.size),
        matvec=lambda v: product(torch.as_tensor(v.reshape(-1), dtype=torch.float32)).numpy(),
        dtype=np.float32,
    )
    values, vectors = eigsh(linear, k=1, which="LA", tol=tolerance)
    return {"value": float(values[0]), "vector": vectors[:, 0], "products": product.count}


def curvlinops(case: Case, quantity: str, tolerance: float) -> dict[str, Any]:
    """curvlinops: its Hessian operator under eigsh, and its spectral density."""
    from curvlinops import HessianLinearOperator, lanczos_approximate_spectrum
    from scipy.sparse.linalg import eigsh

    operator = HessianLinearOperator(
        case.model, case.loss, case.parameters, [(case.x, case.y)], check_deterministic=False
    )
    counted = Counted(operator._matmat)
    operator._matmat = counted
    if quantity == "top":
        values, vectors = eigsh(operator.to_scipy(), k=1, which="LA", tol=tolerance)
        return {"value": float(values[0]), "vector": vectors[:, 0], "products": counted.count}
    grid, _ = lanczos_approximate_spectrum(operator, STEPS)
    return {"value": float(grid[-1]), "products": counted.count}


def pyhessian(case: Case, quantity: str, tolerance: float) -> dict[str, Any]:
    """PyHessian: power iteration with its own stopping rule, and its spectral density."""
    from pyhessian import hessian as module
    from pyhessian.hessian import hessian

    namespace = sys.modules[hessian.__module__]
    counted = Counted(namespace.hessian_vector_product)
    namespace.hessian_vector_product = counted
    del module
    tool = hessian(case.model, case.loss, data=(case.x, case.y), cuda=False)
    if quantity == "top":
        values, vectors = tool.eigenvalues(maxIter=1000, tol=tolerance)
        flat = torch.cat([part.reshape(-1) for part in vectors[0]])
        return {"value": values[0], "vector": flat.numpy(), "products": counted.count}
    nodes, _ = tool.density(iter=STEPS)
    return {"value": float(np.max(nodes)), "products": counted.count}


IMPORTS = {  # made before the clock starts
    "wideangle": ("wideangle.curvature",),
    "recipe": ("scipy.sparse.linalg",),
    "curvlinops": ("curvlinops", "scipy.sparse.linalg"),
    "pyhessian": ("pyhessian",),
}
METHODS = {"wideangle": ours, "recipe": recipe, "curvlinops": curvlinops, "pyhessian": pyhessian}


def main() -> None:
    method, model, quantity, n, tolerance, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    case = Case(model, int(n))
    case.hessian()(torch.ones(case.size))  # the first pass pays for what torch sets up once
    for module in IMPORTS[method]:
        importlib.import_module(module)
    begun = time.perf_counter()
    found = METHODS[method](case, quantity, float(tolerance))
    found["seconds"] = time.perf_counter() - begun
    if "vector" in found:
        found["residual"] = case.residual(found["value"], found.pop("vector"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
