"""The top Hessian eigenvalue and the spectral density beside PyHessian, curvlinops and the plain recipe.

    python benchmarks/bench_curvature.py [--n 256] [--repeats 3] [--json bench_curvature.json]

Each rival runs first, with its own default tolerance; its residual |H v - value v| / value is measured, and we
are asked for that residual. The columns are products with the Hessian and seconds, each over ours: above 1 the
rival needs more. Every measurement is a process of its own, rivals in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from environments import HERE, NotInstalledError, python_of

RIVALS = {"recipe": 1e-2, "curvlinops": 1e-2, "pyhessian": 1e-3}  # with the tolerance each is given
ENVIRONMENTS = {"curvlinops": "curvlinops", "pyhessian": "pyhessian"}
SECONDS = 600
FINEST = 1e-5  # float32 products resolve no smaller residual


def measure(
    method: str, model: str, quantity: str, n: int, tolerance: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the median run of a method in processes of its own, or why there is none."""
    try:
        python = python_of(ENVIRONMENTS[method]) if method in ENVIRONMENTS else Path(sys.executable)
    except NotInstalledError as error:
        return {"failed": f"not installed: {error}"}
    words = [method, model, quantity, str(n), str(tolerance), str(options.threads)]
    command = [str(python), str(HERE / "curvature_methods.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    runs = []
    for _ in range(options.repeats):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if "Error" in line] or lines
            return {"failed": errors[-1][:90] if errors else f"exit status {done.returncode}"}
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {**runs[0], "seconds": statistics.median(run["seconds"] for run in runs)}


def compared(model: str, quantity: str, rival: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return a rival's run, ours at its residual, and the ratios."""
    theirs = measure(rival, model, quantity, options.n, RIVALS[rival], options)
    row: dict[str, Any] = {"model": model, "quantity": quantity, "rival": rival, "theirs": theirs}
    if "failed" in theirs:
        return row
    tolerance = max(theirs.get("residual", 1e-2), FINEST)
    mine = measure("wideangle", model, quantity, options.n, tolerance, options)
    row["ours"] = mine
    if "failed" not in mine:
        row["products"] = theirs["products"] / mine["products"]
        row["seconds"] = theirs["seconds"] / mine["seconds"]
    return row


def text(row: dict[str, Any]) -> str:
    """Return the printed line of a row."""
    head = f"{row['model']:5} {row['quantity']:8} {row['rival']:11}"
    for side in ("theirs", "ours"):
        if "failed" in row.get(side, {}):
            return f"{head} {side}: {row[side]['failed']}"
    parts = []
    for side in ("theirs", "ours"):
        run = row[side]
        residual = f"{run['residual']:.0e}" if "residual" in run else "-"
        parts.append(f"{run['products']:4d} {run['seconds']:8.3f} {residual:>6} {run['value']:9.4g}")
    return f"{head} {parts[0]}  |  {parts[1]}  |  {row['products']:5.2f}x {row['seconds']:6.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"], choices=("mlp", "cnn"))
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=tuple(RIVALS))
    parser.add_argument("--json", default="bench_curvature.json")
    parser.add_argument("--quick", action="store_true", help="32 samples once, to try the code")
    options = parser.parse_args()
    if options.quick:
        options.n, options.repeats, options.models = 32, 1, ["cnn"]
    print(f"n = {options.n}, {options.threads} threads, median of {options.repeats}")
    sides = " ".join(
        f"{name:>{width}}" for name, width in (("products", 8), ("s", 4), ("resid", 6), ("value", 9))
    )
    print(f"{'':26} theirs {sides} | ours {sides} | products, seconds over ours")
    rows = []
    for model in options.models:
        for quantity in ("top", "density"):
            for rival in options.rivals:
                if (quantity, rival) == ("density", "recipe"):
                    continue  # there is none
                rows.append(compared(model, quantity, rival, options))
                print(text(rows[-1]), flush=True)
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
