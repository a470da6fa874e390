"""Sizes where a kernel fits no memory: products, eigenpairs, Gram matrices on disk.

    WIDEANGLE_DATA=... python benchmarks/bench_scale.py [--size cpu|paper] [--only product ...] [--folder DIR]

product       K v of a conv net on 60,000 MNIST images, streamed, within 4 GiB; timed in forward passes
eigenpairs    the ten largest of the full kernel at n = 10,000 (nC = 100,000)
disk          a trace Gram matrix at n = 4,000, killed with -9 half way and resumed
mlp           a trace Gram matrix of an MLP at n = 20,000, to disk

Size "paper" takes 60,000 images for the eigenpairs, and Gram matrices of n = 20,000 (conv) and 60,000 (MLP);
it prints first how much disk that needs. "smoke" takes a few hundred of each, to try the program.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wideangle import data, nets
from wideangle.data import Dataset
from wideangle.errors import InputError
from wideangle.files import write_atomically
from wideangle.kernel import TangentKernel, gram_to_disk, tangent_kernel, top_eigenpairs

SIZES = {
    "smoke": {"product": 2000, "eigenpairs": 300, "disk": 400, "mlp": 600},
    "cpu": {"product": 60_000, "eigenpairs": 10_000, "disk": 4000, "mlp": 20_000},
    "paper": {"product": 60_000, "eigenpairs": 60_000, "disk": 20_000, "mlp": 60_000},
}


def images(n: int) -> Dataset:
    """Return n images of MNIST."""
    return data.load("mnist", n=n, seed=0)


def peak_gib() -> float:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def product(n: int, folder: Path) -> dict[str, Any]:
    """One K v, streamed, beside a forward pass over the same images in the same chunks."""
    some = images(n)
    model = nets.build("conv", some, seed=0)
    kernel = TangentKernel(model, some.x, method="streamed", max_memory=2**30)
    v = torch.randn(kernel.shape[0], generator=torch.Generator().manual_seed(0))
    begun = time.perf_counter()
    with torch.no_grad():
        for part in some.x.split(256):
            model(part)
    forward = time.perf_counter() - begun
    begun = time.perf_counter()
    kernel @ v
    seconds = time.perf_counter() - begun
    return {
        "size": kernel.shape[0],
        "seconds": seconds,
        "forward seconds": forward,
        "in forwards": seconds / forward,
    }


def eigenpairs(n: int, folder: Path) -> dict[str, Any]:
    """The ten largest eigenpairs of the full kernel, by whatever products `TangentKernel` picks."""
    some = images(n)
    kernel = TangentKernel(nets.build("conv", some, seed=0), some.x)
    found = top_eigenpairs(kernel, k=10, tolerance=1e-4)
    worst = float(found.residuals.max() / found.values[0])
    return {
        "size": kernel.shape[0],
        "method": kernel.method,
        "products": found.products,
        "largest": float(found.values[0]),
        "tenth": float(found.values[-1]),
        "worst residual / largest": worst,
    }


def disk(n: int, folder: Path) -> dict[str, Any]:
    """A conv net's trace kernel to disk: killed when half of its tiles are written, then finished."""
    path = folder / "conv.npy"
    command = [sys.executable, __file__, "--write", str(n), str(path)]
    begun = time.perf_counter()
    with subprocess.Popen(command) as run:
        done = path.with_name(path.name + ".part.done")
        share = 0.0
        while run.poll() is None and share < 0.5:
            time.sleep(0.2)
            flags = np.fromfile(done, np.uint8) if done.exists() else np.zeros(1)
            side = int(len(flags) ** 0.5)
            share = np.count_nonzero(flags) / max(side * (side + 1) / 2, 1)
        run.send_signal(signal.SIGKILL)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    file = write(n, path)
    rest = time.perf_counter() - begun
    few = images(n).x[:64]
    exact = tangent_kernel(nets.build("conv", images(n), seed=0), few, outputs="trace").numpy()
    apart = float(np.linalg.norm(file.open()[:64, :64] - exact) / np.linalg.norm(exact))
    return {
        "tiles before the kill": file.reused,
        "tiles after": file.computed,
        "seconds before": first,
        "seconds after": rest,
        "error of 64 rows": apart,
    }


def write(n: int, path: Path) -> Any:
    """Write the conv net's trace kernel of n images."""
    some = images(n)
    return gram_to_disk(nets.build("conv", some, seed=0), some.x, path, max_memory=2 * 2**30)


def mlp(n: int, folder: Path) -> dict[str, Any]:
    """A large MLP's trace kernel to disk."""
    some = images(n)
    model = nets.build("mlp", some, seed=0)
    begun = time.perf_counter()
    file = gram_to_disk(model, some.x, folder / "mlp.npy", max_memory=4 * 2**30)
    seconds = time.perf_counter() - begun
    exact = tangent_kernel(model, some.x[:64], outputs="trace").numpy()
    apart = float(np.linalg.norm(file.open()[:64, :64] - exact) / np.linalg.norm(exact))
    size = Path(file.path).stat().st_size / 2**30
    return {"file [GiB]": size, "tiles": file.computed, "seconds": seconds, "error of 64 rows": apart}


JOBS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "product": product,
    "eigenpairs": eigenpairs,
    "disk": disk,
    "mlp": mlp,
}


def main() -> None:
    """Run the jobs one after the other, each in a process of its own, and write what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--only", choices=list(JOBS), action="append")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the Gram matrices go; a temporary folder else"
    )
    parser.add_argument("--json", type=Path, default=Path("bench_scale.json"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", nargs=2, metavar=("N", "PATH"), help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.write:
        write(int(options.write[0]), Path(options.write[1]))
        return
    if options.job:
        found = JOBS[options.job](SIZES[options.size][options.job], options.folder)
        print(json.dumps({**found, "peak [GiB]": peak_gib()}))
        return
    try:
        images(1)
    except InputError as error:
        sys.exit(f"error: {error}")
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    chosen, sizes = options.only or list(JOBS), SIZES[options.size]
    need = sum(4 * sizes[job] ** 2 for job in ("disk", "mlp") if job in chosen) / 2**30
    free = shutil.disk_usage(folder).free / 2**30
    print(f"needs {need:.1f} GiB of disk in {folder}, which has {free:.1f} GiB free", flush=True)
    rows = {}
    for job in chosen:
        print(f"\n{job}, n = {sizes[job]:,}", flush=True)
        command = [sys.executable, __file__, "--size", options.size, "--job", job, "--folder", str(folder)]
        begun = time.perf_counter()
        run = subprocess.run([*command, "--threads", str(options.threads)], stdout=subprocess.PIPE, text=True)
        if run.returncode:
            print(f"  failed with exit code {run.returncode}")
            continue
        rows[job] = {**json.loads(run.stdout.splitlines()[-1]), "wall seconds": time.perf_counter() - begun}
        for name, value in rows[job].items():
            print(f"  {name:26} {value:,.4g}" if isinstance(value, float) else f"  {name:26} {value}")
    print(f"\nwritten to {write_atomically(options.json, json.dumps(rows, indent=1))}")
    if options.folder is None:
        shutil.rmtree(folder)
    if len(rows) < len(chosen):
        sys.exit(1)


if __name__ == "__main__":
    main()
