"""Several processes on one kernel: who holds which samples, and what they send each other."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wideangle.errors import InputError, RankError
from wideangle.kernel._model import Batch, batch_size, take
from wideangle.kernel._pass import with_reroutes

__all__ = ["Ranks", "shard"]


@dataclass(frozen=True)
class Ranks:
    """The processes that share a kernel: this one's number, and how many there are; one where group is None."""

    group: Any = None
    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, group: Any) -> Ranks:
        """Return the ranks of a `torch.distributed` process group.

        Raises:
            InputError: torch.distributed is not initialised.
        """
        if group is None:
            return cls()
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise InputError(
                "group= needs torch.distributed: call torch.distributed.init_process_group() first, under torchrun"
            )
        try:
            return cls(group, dist.get_rank(group), dist.get_world_size(group))
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(
                f"group is a {type(group).__name__}, no process group of torch.distributed"
            ) from error

    def edges(self, samples: int, step: int = 1) -> list[int]:
        """Return where the shards of `samples` begin and end, at multiples of `step`.

        Raises:
            InputError: a rank would have no samples.
        """
        pieces = -(-samples // step)
        if pieces < self.size:
            raise InputError(
                f"{samples} samples in pieces of {step} cannot be shared by {self.size} processes: rank "
                f"{self.size - 1} would have no samples; use at most {pieces} processes"
            )
        return [min(samples, step * (pieces * r // self.size)) for r in range(self.size)] + [samples]

    def agreed(self, work: Callable[[tuple[str, ...]], Any]) -> Any:
        """Run `work(rerouted)` with the same parameters in the fallback on every rank; see `with_reroutes`."""
        used: list[tuple[str, ...]] = []

        def noted(names: tuple[str, ...]) -> Any:
            used.append(names)
            return work(names)

        found = with_reroutes(noted)
        wanted = tuple(sorted({name for names in self.every(used[-1]) for name in names}))
        return found if set(wanted) == set(used[-1]) else work(wanted)

    def least(self, value: int) -> int:
        """Return the smallest of the ranks' values."""
        return -self.most(-value)

    def most(self, value: int) -> int:
        """Return the largest of the ranks' values."""
        return value if self.size == 1 else max(self.every(value))

    def every(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self.answering():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def add(self, tensors: list[Tensor]) -> None:
        """Sum tensors over the ranks, in place."""
        if self.size == 1:
            return
        import torch.distributed as dist

        with self.answering():
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.group)

    def join(self, part: Tensor, lengths: list[int]) -> Tensor:
        """Return the parts of all ranks joined along the first dimension."""
        if self.size == 1:
            return part
        import torch.distributed as dist

        longest = max(lengths)
        padded = part.new_zeros(longest, *part.shape[1:])
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in lengths]
        with self.answering():
            dist.all_gather(found, padded, group=self.group)
        return torch.cat([one[:length] for one, length in zip(found, lengths, strict=True)])

    def exchange(self, mine: Any, to: int, source: int, device: torch.device) -> Any:
        """Send an object to one rank while taking one from another, its tensors to `device`; None is sent too."""
        import torch.distributed as dist

        buffer = io.BytesIO()
        torch.save(mine, buffer)
        outgoing = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        with self.answering():
            sizes = torch.tensor([len(outgoing)]), torch.zeros(1, dtype=torch.long)
            self._swap(dist, sizes[0], sizes[1], to, source)
            incoming = torch.empty(int(sizes[1]), dtype=torch.uint8)
            self._swap(dist, outgoing, incoming, to, source)
        # what arrives was packed by this very library in another process of the same run
        return torch.load(io.BytesIO(incoming.numpy().tobytes()), map_location=device, weights_only=False)

    def _swap(self, dist: Any, outgoing: Tensor, incoming: Tensor, to: int, source: int) -> None:
        device = self._device(dist)
        sent, got = outgoing.to(device), incoming.to(device)
        there, here = (dist.get_global_rank(self.group, r) for r in (to, source))
        waits = [dist.isend(sent, there, group=self.group), dist.irecv(got, here, group=self.group)]
        for wait in waits:
            wait.wait()
        incoming.copy_(got)

    def _device(self, dist: Any) -> torch.device:
        nccl = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            import torch.distributed as dist

            with self.answering():
                dist.barrier(group=self.group)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Turn what torch.distributed raises when a rank is gone into a `RankError`."""
        try:
            yield
        except RuntimeError as error:
            text = " ".join(str(error).split())[:200]
            raise RankError(
                f"rank {self.rank} of {self.size} got no answer from another rank, which has stopped or lost its "
                f"connection ({text}); start all ranks again: finished tiles are kept"
            ) from error


def shard(items: list[Batch], start: int, stop: int) -> list[Batch]:
    """Return the samples from `start` to `stop` of several batches."""
    found, first = [], 0
    for item in items:
        size = batch_size(item)
        a, b = max(start - first, 0), min(stop - first, size)
        if a < b:
            found.append(take(item, slice(a, b)))
        first += size
    return found
