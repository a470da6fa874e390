"""The tangent kernel as an operator: products, diagonal and trace without its matrix, on one process or many."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from wideangle.errors import InputError
from wideangle.kernel._factors import Factors, as_vector, collect, fitting, needed_bytes
from wideangle.kernel._group import Ranks, shard
from wideangle.kernel._model import OutputPick, batch_size, batches, largest
from wideangle.kernel._pass import Outputs, Setting, collect_chunk, device_of, prepare, with_reroutes
from wideangle.kernel._stream import Stream
from wideangle.kernel.cost import BLOCK, memory_limit
from wideangle.kernel.gram import tangent_kernel

__all__ = ["Method", "TangentKernel"]

Method = Literal["auto", "cached", "streamed"]


class TangentKernel:
    """The full tangent kernel of a model on data, K = J J^T, by its products: K is never formed.

        K v = J (J^T v),   K[i C + c, j C + d] = <d f_c(x_i)/dw, d f_d(x_j)/dw>

    "cached" makes the factors once and multiplies with them: 20 to 200 times faster a product than a
    backward pass, memory n sum(K + C O) numbers. "streamed" holds nothing but the data and one vector of
    weights: a product is one backward and one forward-mode pass over the data, chunk by chunk. "auto" takes
    the cache where it fits half of `max_memory`. A cache is of the weights as they were; a streamed product
    is of the weights as they are.

    With `group`, every process calls this with the same model and data; each holds the factors of its own
    samples only, J^T v is summed over the processes, and every process gets every result.

    Cost: a product with k columns is two passes over the factors, or k (one forward, one backward and one
    forward-mode pass) over the data.

    Args:
        model: any module whose output for a sample does not depend on the other samples.
        x: n inputs: a tensor, a dict of tensors, or an iterable of batches.
        outputs: as for `factors`: all logits, or some, or combinations of them.
        output: which part of a tuple, dict or ModelOutput holds the logits.
        params: parameters to differentiate by; all that require a gradient where left out.
        max_memory: bytes for the factors; a quarter of the free memory where left out.
        method: "auto", "cached" or "streamed".
        group: a `torch.distributed` process group, such as `torch.distributed.group.WORLD`.

    Attributes:
        samples, outputs: n and C (rows of combinations, if those were given).
        shape: (n C, n C); dtype and device are those of the model.
        method: "cached" or "streamed".

    Raises:
        InputError: as for `factors`; "cached" where the factors do not fit; fewer samples than processes.
        RankError: another process stopped answering.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> K = TangentKernel(model, torch.ones(5, 3), method="streamed")
        >>> K.shape, (K @ torch.ones(10)).shape
        ((10, 10), torch.Size([10]))

    Reference: Novak, Sohl-Dickstein, Schoenholz 2022 (products with the kernel).
    """

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        *,
        outputs: Outputs = "full",
        output: OutputPick = None,
        params: Any = None,
        max_memory: int | None = None,
        method: Method = "auto",
        group: Any = None,
    ):
        if method not in ("auto", "cached", "streamed"):
            raise InputError(f"method is {method!r}; choose 'auto', 'cached' or 'streamed'")
        items = batches(x, device_of(model))
        self.samples = sum(batch_size(item) for item in items)
        self._ranks = Ranks.of(group)
        self._edges = self._ranks.edges(self.samples)
        self._lengths = [b - a for a, b in pairwise(self._edges)]
        self._rows = slice(self._edges[self._ranks.rank], self._edges[self._ranks.rank + 1])
        self._every, self._items = items, shard(items, self._rows.start, self._rows.stop)
        self._limit = self._ranks.least(memory_limit(max_memory, device_of(model)))
        self._options = {"outputs": outputs, "output": output, "params": params, "limit": self._limit}
        self._model = model
        self.method = self._chosen(method)
        self._setting, self._engine = self._ranks.agreed(self._made)
        self.outputs = self._setting.outputs
        self.dtype, self.device = self._setting.layout.dtype, self._setting.layout.device
        self.shape = (self.samples * self.outputs,) * 2

    def _ready(self, rerouted: tuple[str, ...], factors_too: bool, together: int = BLOCK) -> Setting:
        mine = sum(batch_size(item) for item in self._items)
        return prepare(
            self._model,
            largest(self._items),
            mine,
            rerouted=rerouted,
            needs_factors=factors_too,
            together=together,
            **self._options,
        )

    @torch.inference_mode(False)
    def _chosen(self, method: Method) -> Literal["cached", "streamed"]:
        """Return the same method on every process: cached where the factors of each fit."""
        if method == "streamed":
            return "streamed"
        mine = sum(batch_size(item) for item in self._items)
        room = self._limit if method == "cached" else self._limit // 2

        def need(rerouted: tuple[str, ...]) -> int:
            must = method == "cached"
            setting = fitting(lambda count: self._ready(rerouted, must, count), self._items, mine, room)
            return needed_bytes(setting, largest(self._items), mine, room)

        needed = self._ranks.most(with_reroutes(need))
        if needed <= room:
            return "cached"
        if method == "cached":
            raise InputError(
                f"the factors of {mine} samples need about {needed / 2**20:.0f} MiB, more than max_memory = "
                f"{self._limit / 2**20:.0f} MiB; use method='streamed', or more memory"
            )
        return "streamed"

    @torch.inference_mode(False)
    def _made(self, rerouted: tuple[str, ...]) -> tuple[Setting, Factors | Stream]:
        if self.method == "streamed":
            setting = self._ready(rerouted, False)
            return setting, Stream(setting, self._items, self._limit)
        mine = sum(batch_size(item) for item in self._items)
        setting = fitting(lambda count: self._ready(rerouted, True, count), self._items, mine, self._limit)
        return setting, collect(setting, self._items)

    def __repr__(self) -> str:
        share = f", rank {self._ranks.rank} of {self._ranks.size}" if self._ranks.size > 1 else ""
        return f"TangentKernel({self.samples} samples, {self.outputs} outputs, {self.method}{share})"

    @property
    def T(self) -> TangentKernel:  # noqa: N802 - the name operators have everywhere
        """The transpose: the kernel is symmetric."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of factors this process holds."""
        return self._engine.nbytes if isinstance(self._engine, Factors) else 0

    @torch.inference_mode(False)
    def __matmul__(self, v: Tensor) -> Tensor:
        """Return K v for v of shape (n C,), (n, C) or (n C, k), in v's precision."""
        v = as_vector(v, self.device, self.dtype)
        size, full = self.shape[0], (self.samples, self.outputs)
        if v.shape not in {(size,), full} and (v.dim() != 2 or v.shape[0] != size):
            raise InputError(
                f"cannot multiply a kernel of {self.samples} samples and {self.outputs} outputs with shape "
                f"{tuple(v.shape)}; give ({size},), {full} or ({size}, k)"
            )
        columns = v.reshape(size, -1).T.reshape(-1, *full)
        if not columns.shape[0]:
            return v.clone()
        pulled = self._engine.pull(columns[:, self._rows].contiguous())
        if self._ranks.size > 1:
            pulled = self._summed(pulled, len(columns), columns.dtype)
        product = self._engine.push(pulled).to(v.dtype).expand(len(columns), -1, self.outputs)
        product = self._ranks.join(product.permute(1, 2, 0).contiguous(), self._lengths)  # (n, C, k)
        return product.reshape(v.shape)

    def _summed(self, pulled: dict[str, Tensor], columns: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return J^T v summed over the processes, every parameter of every process present."""
        layout = self._setting.layout
        names = sorted({*layout.fallback, *(name for cover in layout.covers for name in cover.names)})
        blank = {
            name: torch.zeros(columns, *layout.shape(name), dtype=dtype, device=self.device)
            for name in names
            if name not in pulled
        }
        every = {**pulled, **blank}
        self._ranks.add([every[name] for name in names])
        return every

    @torch.inference_mode(False)
    def diagonal(self) -> Tensor:
        """Return K[i,c,i,c], shape (n, C), float64. Cost: that of the factors, chunk by chunk."""
        if isinstance(self._engine, Factors):
            return self._ranks.join(self._engine.diagonal(), self._lengths)

        def work(rerouted: tuple[str, ...]) -> Tensor:
            setting = self._ready(rerouted, True)
            parts = []
            for item in self._items:
                for start in range(0, batch_size(item), setting.chunk):
                    part = shard([item], start, start + setting.chunk)[0]
                    parts.append(Factors(setting, [collect_chunk(setting, part)]).diagonal())
            return torch.cat(parts)

        return self._ranks.join(with_reroutes(work), self._lengths)

    def trace(self) -> float:
        """Return the sum of the diagonal: the mean of |df/dw|^2 times n. Cost: as `diagonal`."""
        return float(self.diagonal().sum())

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return K as a matrix (n C, n C); with `group`, every process makes all of it.

        Raises:
            InputError: it does not fit `max_memory`; `kernel.gram_to_disk` writes it to a file.
        """
        size = self.shape[0]
        need = size * size * dtype.itemsize
        if need > self._limit:
            raise InputError(
                f"the kernel of {size} x {size} needs {need / 2**20:.0f} MiB, more than max_memory = "
                f"{self._limit / 2**20:.0f} MiB; write it to a file with kernel.gram_to_disk, or use products"
            )
        if isinstance(self._engine, Factors) and self._ranks.size == 1:
            return self._engine.gram(dtype=dtype).reshape(size, size)
        options = {**self._options, "max_memory": self._options["limit"]}
        del options["limit"]
        if isinstance(options["outputs"], str) and options["outputs"] == "trace":
            options["outputs"] = "full"
        return tangent_kernel(self._model, self._every, dtype=dtype, **options).reshape(size, size)

    def gram(self, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return K as (n, C, n, C), as `Factors.gram` does; see `to_dense`."""
        return self.to_dense(dtype).reshape(self.samples, self.outputs, self.samples, self.outputs)

    def to_scipy(self) -> Any:
        """Return a `scipy.sparse.linalg.LinearOperator` in float64; vectors come from and go to the host."""
        from scipy.sparse.linalg import LinearOperator

        def product(vector: np.ndarray) -> np.ndarray:
            v = torch.as_tensor(np.asarray(vector), device=self.device).to(self.dtype)
            return (self @ v).detach().to("cpu", torch.float64).numpy()

        return LinearOperator(self.shape, matvec=product, rmatvec=product, matmat=product, dtype=np.float64)  # type: ignore[call-arg]
