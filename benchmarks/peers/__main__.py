"""Time one method of one peer on one cell, in a process of its own, and print one line of JSON.

    python -m peers PEER METHOD CASE.npz KIND N [--threads 2] [--repeats 3] [--budget 30] [--memory 16]

seconds: median wall time of a call after a warm-up; peak_mb: the largest resident memory less the one before;
error: relative Frobenius error against the float64 Jacobian kernel on the points checked; norm: of the result
that was timed, so that two methods can be compared at full size.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import json
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from peers.task import Method, Task

FEW = 4  # inputs of the very first call, which loads what a library loads on first use


def as_array(result: Any) -> np.ndarray:
    """Return a result of any framework as a float64 array."""
    if hasattr(result, "detach"):
        result = result.detach().numpy()
    return np.asarray(result, dtype=np.float64)


def norm_of(result: Any) -> float:
    """Return the Frobenius norm, summed in float64 without a float64 copy of the whole."""
    if hasattr(result, "detach"):
        result = result.detach().numpy()
    array = np.asarray(result)
    rows = array.reshape(len(array), -1) if array.flags.c_contiguous else array
    return float(np.sqrt(sum(float(np.square(row, dtype=np.float64).sum()) for row in rows)))


def resident_mb() -> float:
    """Return the memory resident now, and forget the largest seen so far where the system allows it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
    return _status("VmRSS:") or peak_mb()


def peak_mb() -> float:
    """Return the largest memory resident since `resident_mb` was called last."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return _status("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def _status(field: str) -> float:
    try:
        with open("/proc/self/status") as file:
            return next((float(line.split()[1]) / 1024 for line in file if line.startswith(field)), 0.0)
    except OSError:
        return 0.0


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return wall seconds, processor seconds and the result of one call."""
    gc.collect()
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - processor, result


def measure(method: Method, task: Task, checked: Task, repeats: int, budget: float) -> dict[str, Any]:
    """Return what one method needs for a task, and how far off it is on the points checked."""
    method.start(task.first(FEW))()
    gc.collect()
    before = resident_mb()
    setup, _, work = timed(lambda: method.start(task))
    if method.compiles:
        gc.collect()
        before = resident_mb()
    runs = [timed(work)]
    norm = norm_of(method.arrange(runs[0][2]))
    warm, processor = runs[0][:2]
    runs.clear()  # lets the result go
    for _ in range(min(repeats, int(budget / max(warm, 1e-9)))):
        runs.append((*timed(work)[:2], None))
    peak = peak_mb() - before
    row = {
        "seconds": statistics.median(run[0] for run in runs) if runs else warm,
        "processor_seconds": statistics.median(run[1] for run in runs) if runs else processor,
        "runs": len(runs),
        "first_seconds": warm,
        "setup_seconds": setup,
        "peak_mb": max(peak, 0.0),
        "error": None,
        "norm": norm,
    }
    tell(row)  # should time run out in the check
    found = as_array(method.arrange(method.start(checked)()))
    expected = checked.expected()
    return {**row, "error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected))}


def tell(row: dict[str, Any]) -> None:
    """Print a row; the last one printed counts."""
    print("\n" + json.dumps(row), flush=True)


def reason_of(error: Exception) -> str:
    """Return one line that says what went wrong."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, MemoryError) or "allocat" in text or "RESOURCE_EXHAUSTED" in text:
        asked = re.search(r"allocate?(?:ing)? (\d+) bytes", text)
        return f"out of memory, asked for {int(asked[1]) / 2**30:.1f} GB more" if asked else "out of memory"
    return text[:300]


def limit(gigabytes: float) -> None:
    """Let an allocation above a limit fail in this process, rather than take the machine down."""
    if hasattr(resource, "RLIMIT_DATA") and gigabytes > 0:
        size = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def use_threads(count: int) -> None:
    """Keep to some cores from now on; JAX takes as many threads as it sees cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer")
    parser.add_argument("method")
    parser.add_argument("case")
    parser.add_argument("kind")
    parser.add_argument("n", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds for all repeats")
    parser.add_argument("--memory", type=float, default=0.0, help="gigabytes allowed; 0 for no limit")
    options = parser.parse_args()
    limit(options.memory)
    use_threads(options.threads)
    module = importlib.import_module(f"peers.{options.peer}")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(options.threads)
    method = module.METHODS[options.method]
    task = Task.read(options.case, options.kind, options.n)
    checked = Task.read(options.case, options.kind, len(task.exact))
    row: dict[str, Any]
    try:
        row = measure(method, task, checked, options.repeats, options.budget)
    except Exception as error:
        reason = reason_of(error)
        row = {"failed": reason, "exhausted": reason.startswith("out of memory")}
    row["version"] = {name: importlib.metadata.version(name) for name in module.PACKAGES}
    tell(row)


if __name__ == "__main__":
    main()
