"""One kernel on several processes: products, and the Gram matrix on disk, against a single process.

    torchrun --nproc-per-node 2 examples/distributed_kernel.py [--samples 2000] [--out kernel.npy]

Every process loads the same data; each holds the factors of its own samples only. With `--check` (the
default) rank 0 computes everything again by itself and prints the largest relative difference.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from wideangle import data, nets
from wideangle.errors import RankError
from wideangle.kernel import TangentKernel, factors, gram_to_disk


def main() -> None:
    """Compute on all processes, compare on the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--outputs", default="trace", choices=["trace", "full"])
    parser.add_argument("--out", default=None, help="where the Gram matrix goes; a temporary folder else")
    parser.add_argument("--no-check", dest="check", action="store_false")
    options = parser.parse_args()

    torch.set_num_threads(max(1, (os.cpu_count() or 2) // int(os.environ.get("WORLD_SIZE", "1"))))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    place = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    some = data.load(options.data, n=options.samples, seed=0)
    model, x = nets.build(options.model, some, seed=0).double().to(place), some.x.double().to(place)
    folder: list[str | None] = [None]
    if rank == 0:
        folder[0] = str(Path(options.out).parent) if options.out else tempfile.mkdtemp()
    dist.broadcast_object_list(folder)
    path = Path(str(folder[0])) / (Path(options.out).name if options.out else "kernel.npy")

    try:
        kernel = TangentKernel(model, x, method="cached", group=dist.group.WORLD)
        v = torch.randn(kernel.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        product = kernel @ v.to(place)
        file = gram_to_disk(
            model, x, path, outputs=options.outputs, dtype=torch.float64, group=dist.group.WORLD
        )
    except RankError as error:
        raise SystemExit(f"rank {rank}: {error}") from None

    shares: list[tuple[int, int]] = [(0, 0)] * size
    dist.all_gather_object(shares, (kernel.nbytes, file.entries))
    if rank == 0:
        held, done = (sum(share[k] for share in shares) for k in (0, 1))
        for number, (factor_bytes, entries) in enumerate(shares):
            share = f"{entries / done:.1%} of the entries" if done else "nothing to compute"
            print(f"rank {number}: {factor_bytes / held:.1%} of the factors, {share}")
        print(f"{file.computed} tiles computed by rank 0, {file.reused} found in {path}")
    if rank == 0 and options.check:
        alone = factors(model, x)
        expected = alone.gram(kind=options.outputs).reshape(file.side, file.side).cpu().numpy()
        apart = np.linalg.norm(file.open() - expected) / np.linalg.norm(expected)
        single = alone @ v.to(place)
        print(f"Gram matrix against one process: {apart:.1e} relative")
        print(f"product against one process: {float((product - single).norm() / single.norm()):.1e} relative")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
