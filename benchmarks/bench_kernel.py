"""Our tangent kernel beside its peers and the recipes, cell by cell: same weights, same data, same run.

    python benchmarks/bench_kernel.py                      # everything, about 45 minutes
    python benchmarks/bench_kernel.py --quick              # every method on 32 samples, minutes
    python benchmarks/bench_kernel.py --peers none         # ourselves alone
    python benchmarks/bench_kernel.py --cells mlp-trace --peers torch_func vivit

Every method runs in a process of its own, a peer's in an environment of its own (benchmarks/.envs, made on
first use), so that a crash, a lack of memory or of time is a row with its reason. float32 sums for all. Errors
are relative to the float64 Jacobian kernel on 32 points. Ratio: a rival's seconds over ours.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cases
import floors
import table
import torch
from cells import CELLS, Cell, chosen, hopeless
from environments import NotInstalledError, python_of

from wideangle.files import write_atomically

HERE = Path(__file__).resolve().parent
OWN = ("ours", "torch_func")  # run by this interpreter
PEERS = ("torch_func", "neural_tangents", "vivit", "nngeometry", "curvlinops", "opacus")


def options_from(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--cells", nargs="+", metavar="NAME", help=f"of {', '.join(c.name for c in CELLS)}")
    parser.add_argument("--peers", nargs="+", default=["all"], choices=("all", "none", *PEERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for a method on a cell")
    parser.add_argument("--memory", type=float, default=default_memory(), help="GB a method may take")
    parser.add_argument("--json", default="bench_kernel.json")
    parser.add_argument("--quick", action="store_true", help="32 samples, to try the code")
    options = parser.parse_args(arguments)
    if "all" in options.peers:
        options.peers = list(PEERS)
    elif "none" in options.peers:
        options.peers = []
    try:
        options.chosen = chosen(options.cells, options.quick)
    except ValueError as error:
        parser.error(str(error))
    return options


def default_memory() -> float:
    """Return three fifths of this machine's memory in GB; 0, no limit, where it is not known."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.6 / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return 0.0


def methods_for(cell: Cell, peers: list[str]) -> list[tuple[str, str]]:
    """Return (peer, method) for everything that can do a cell, ourselves first."""
    found = []
    for peer in ("ours", *peers):
        methods = importlib.import_module(f"peers.{peer}").METHODS
        found += [
            (peer, name) for name, m in methods.items() if cell.kind in m.kinds and cell.model in m.models
        ]
    return found


def run(peer: str, method: str, case: Path, cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Return the row of one method on one cell, or a row that says why there is none."""
    try:
        python = Path(sys.executable) if peer in OWN else python_of(peer)
    except NotInstalledError as error:
        return {"failed": f"not installed: {error}"}
    command = [str(python), "-m", "peers", peer, method, str(case), cell.kind, str(cell.n)]
    for name in ("threads", "repeats", "memory"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--budget", str(options.timeout / 10)]
    surroundings = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        surroundings[name] = str(options.threads)
    if peer not in OWN:
        surroundings.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        command,
        cwd=HERE,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=options.timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        return last_row(out) or {"failed": f"not done in {options.timeout:.0f} s", "exhausted": True}
    except BaseException:
        process.kill()
        raise
    return outcome(process.returncode, out, err)


def last_row(out: str) -> dict[str, Any] | None:
    """Return the row that a process printed last."""
    lines = [line for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    return json.loads(lines[-1]) if lines else None


def outcome(code: int, out: str, err: str) -> dict[str, Any]:
    """Return the row that a process printed last, or the reason of its death."""
    if row := last_row(out):
        return row
    if code == -signal.SIGKILL:
        return {"failed": "killed by the system, likely for memory", "exhausted": True}
    said = [line for line in err.splitlines() if line.strip()] or ["no message"]
    how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return {"failed": f"{how}: {said[-1].strip()[:200]}"}


def compared(row: dict[str, Any], ours: dict[str, Any] | None) -> dict[str, Any]:
    """Return a row with a note where its timed result is not the one we found."""
    if ours and "norm" in row and abs(row["norm"] - ours["norm"]) > 1e-3 * abs(ours["norm"]):
        row["note"] = f"norm {row['norm']:.4g}, ours {ours['norm']:.4g}"
    return row


def floor_of(cell: Cell, rates: dict[str, float]) -> float | None:
    """Return the floor of a cell in seconds; None for eigenpairs."""
    model, sample = cases.architecture(cell.model), torch.zeros(cases.SHAPES[cell.model])
    if cell.kind in ("trace", "full"):
        work = floors.contraction_multiply_adds(model, sample, cell.n, cases.OUTPUTS, cell.kind)
        return work / rates["multiply_adds"]
    if cell.kind == "product":
        return floors.product_bytes(model, sample, cell.n, cases.OUTPUTS) / rates["bytes"]
    return None


def write_cases(folder: Path, wanted: list[Cell]) -> dict[str, Path]:
    """Return the case file of every model used, written by a process whose memory is then free again."""
    files = {}
    for model in dict.fromkeys(cell.model for cell in wanted):
        n = max(cell.n for cell in wanted if cell.model == model)
        files[model] = folder / f"{model}.npz"
        subprocess.run(
            [sys.executable, str(HERE / "cases.py"), model, str(files[model]), "--n", str(n)], check=True
        )
    return files


def main() -> None:
    options = options_from()
    torch.set_num_threads(options.threads)
    rates = {"multiply_adds": floors.matmul_rate(), "bytes": floors.read_rate()}
    print(
        f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads: "
        f"{rates['multiply_adds'] / 1e9:.0f} G multiply-adds/s, {rates['bytes'] / 1e9:.1f} GB/s read; "
        f"{options.memory:g} GB and {options.timeout:g} s a method",
        flush=True,
    )
    seen: dict[tuple[str, str], dict[tuple[str, str, int], float]] = {}
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        files = write_cases(Path(name), options.chosen)
        for cell in options.chosen:
            floor = floor_of(cell, rates)
            print(table.heading(cell, floor), flush=True)
            rows: list[dict[str, Any]] = []
            ours: dict[str, Any] | None = None
            for peer, method in methods_for(cell, options.peers):
                past = seen.setdefault((peer, method), {})
                reason = hopeless(cell, past, options.timeout)
                found = {"failed": reason} if reason else run(peer, method, files[cell.model], cell, options)
                exhausted = math.inf if found.get("exhausted") else None
                if (seconds := found.get("first_seconds", exhausted)) is not None:
                    past[cell.model, cell.kind, cell.n] = seconds
                row = {"peer": peer, "method": method, "kind": cell.kind, **compared(found, ours)}
                if peer == "ours" and "seconds" in row:
                    ours = row
                rows.append(row)
                print(table.row_text(row, ours and ours["seconds"]), flush=True)
            verdict = table.judged(cell, rows, len(methods_for(cell, list(PEERS))) - 1)
            entries.append({"cell": cell, "floor": floor, "verdict": verdict, "rows": rows})
            written = [{**asdict(e["cell"]), **{k: e[k] for k in e if k != "cell"}} for e in entries]
            report = {
                "torch": torch.__version__,
                "threads": options.threads,
                "rates": rates,
                "cells": written,
            }
            where = write_atomically(Path(options.json), json.dumps(report, indent=1))
    print(table.summary(entries))
    print(f"\nwritten to {where}")


if __name__ == "__main__":
    main()
