"""What a peer's module is made of: the task it gets and the methods it offers. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

TOP = 10  # eigenpairs asked for
TOLERANCE = 1e-4  # of the eigenpairs' residuals, relative


@dataclass(frozen=True)
class Task:
    """A case file and how much of it: the first n inputs.

    x: (n, ...) float32; v: (n C,) float32, sample-major; weights by name as in the module's state.
    """

    path: Path
    kind: str
    name: str
    x: np.ndarray
    v: np.ndarray
    exact: np.ndarray

    @classmethod
    def read(cls, path: str | Path, kind: str, n: int) -> Task:
        """Return the task of a case file."""
        with np.load(path) as case:
            task = cls(Path(path), kind, str(case["name"]), case["x"], case["v"], case["exact"])
        return task.first(n)

    @property
    def outputs(self) -> int:
        """C, the number of logits."""
        return self.exact.shape[1]

    def first(self, n: int) -> Task:
        """Return the same task on fewer inputs."""
        return replace(self, x=self.x[:n], v=self.v[: n * self.outputs])

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights by name."""
        with np.load(self.path) as case:
            return {k.removeprefix("weight/"): case[k] for k in case.files if k.startswith("weight/")}

    def model(self) -> Any:
        """Return the model as a torch module."""
        from cases import load_model

        return load_model(self.path)

    def inputs(self) -> Any:
        """Return the inputs as a torch tensor."""
        import torch

        return torch.from_numpy(self.x)

    def expected(self) -> np.ndarray:
        """Return the exact answer for the points checked: kernel, product or eigenvalues, float64."""
        n, outputs = self.exact.shape[:2]
        square = self.exact.reshape(n * outputs, n * outputs)
        if self.kind == "trace":
            return np.einsum("icjc->ij", self.exact)
        if self.kind == "product":
            return square @ self.v[: n * outputs].astype(np.float64)
        if self.kind == "eigen":
            return np.linalg.eigvalsh(square)[::-1][:TOP]
        return self.exact


@dataclass(frozen=True)
class Method:
    """One way of a peer to compute something.

    start: gets the task, does what is needed once (counted as set-up), returns the work that is timed.
    kinds: the kinds of cell it can do; models: the models it can take.
    arrange: from what the work returns to (n, C, n, C), (n, n), (n C,) or the ten eigenvalues, as an array.
    compiles: whether the set-up is compilation, whose memory is not counted.
    """

    start: Callable[[Task], Callable[[], Any]]
    kinds: tuple[str, ...]
    arrange: Callable[[Any], Any] = lambda result: result
    models: tuple[str, ...] = ("mlp", "cnn")
    compiles: bool = False


def largest_values(product: Callable[[Any], Any], size: int) -> np.ndarray:
    """Return the ten largest eigenvalues by scipy's Lanczos; `product` takes and returns torch vectors."""
    import torch
    from scipy.sparse.linalg import LinearOperator, eigsh

    def apply(vector: np.ndarray) -> np.ndarray:
        image = product(torch.from_numpy(np.ravel(vector)).float())
        return image.detach().double().numpy()

    operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)  # type: ignore[call-arg]
    start = np.random.default_rng(0).standard_normal(size)
    values, _ = eigsh(operator, k=TOP, which="LA", v0=start, tol=TOLERANCE)  # type: ignore[arg-type]
    return values[::-1]
