"""Zero-search training: the recommended MaSS, no trial run, against grids of 20 settings a method.

    python benchmarks/bench_zero_search.py --size cpu                  # everything, hours; resumes where it was
    python benchmarks/bench_zero_search.py --size smoke                # one small task, half a minute
    python benchmarks/bench_zero_search.py --size cpu --grid-only --methods sgd adam
    python benchmarks/bench_zero_search.py --size cpu --table --markdown
    python benchmarks/bench_zero_search.py --size cpu --again recommended   # that method's runs once more

Every method sees the same initial weights and batches. The grid is run on seed 0; the target of a task is the
training loss that tuned SGD (lowest last loss) reaches at 80 % of the budget of ten passes; each method's
winner is the setting that needs the fewest passes to it (then the lowest last loss); a grid run without
progress in its first four passes ends there. Winners, the recommendation and the rivals without tuning are run
on seeds 1, 2, 3. A target that is not reached is infinite, and so is one of a run that later diverged. Each
run is a file in the results folder: what is there is not run again. Needs WIDEANGLE_DATA.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
import zero_search_table as table
from zero_search_methods import BY_NAME, METHODS, TUNED, Method, NotAvailableError, setting_name
from zero_search_runs import GRID_SEED, Record, Run, Store, passes_to, perform
from zero_search_tasks import PASSES, TASKS, HeldOutError, Task, chosen

from wideangle.files import write_atomically


@dataclass(frozen=True)
class Size:
    """How much is run: passes, every how manyth setting of a grid, and the seeds of the comparison."""

    passes: int
    stride: int
    seeds: tuple[int, ...]


SIZES = {"cpu": Size(PASSES, 1, (1, 2, 3)), "smoke": Size(2, 5, (1,))}
SMOKE_TASK = "digits-mlp-mse-8"


def options_from(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    names = [method.name for method in METHODS]
    parser.add_argument("--size", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help=f"of {', '.join(t.name for t in TASKS)}")
    parser.add_argument(
        "--methods", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}"
    )
    parser.add_argument("--results", help="folder of the runs; runs/zero_search, for smoke a temporary one")
    parser.add_argument("--grid-only", action="store_true", help="the grids on seed 0 and nothing else")
    parser.add_argument(
        "--again", nargs="+", choices=names, default=[], metavar="NAME", help="run these anew"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--table", action="store_true", help="no run, only the table of what is there")
    parser.add_argument("--markdown", action="store_true", help="print the table as markdown")
    parser.add_argument("--json", default="bench_zero_search.json")
    options = parser.parse_args(arguments)
    try:
        wanted = options.tasks or ([SMOKE_TASK] if options.size == "smoke" else None)
        options.tasks = chosen(wanted)
    except (ValueError, HeldOutError) as error:
        parser.error(str(error))
    return options


def grid(task: Task, method: Method, size: Size) -> list[Run]:
    """Return the runs of a method's grid on a task."""
    settings = method.settings[:: size.stride]
    return [Run(task, method.name, tuple(s.items()), GRID_SEED, size.passes) for s in settings]


def compared(task: Task, method: Method, store: Store, size: Size) -> list[Run]:
    """Return the runs on the seeds of the comparison; none while the method's grid is not complete."""
    setting = method.settings[0]
    if method.tuned:
        best = winner(task, method, store, size)
        if best is None:
            return []
        setting = best["setting"]
    return [Run(task, method.name, tuple(setting.items()), seed, size.passes) for seed in size.seeds]


def stored(runs: Iterable[Run], store: Store) -> list[Record] | None:
    """Return the records of runs; None where one is missing."""
    records = [store.read(run.name) for run in runs]
    return None if None in records else [record for record in records if record is not None]


def target(task: Task, store: Store, size: Size) -> Record | None:
    """Return the target of a task; None while SGD's grid is not complete."""
    records = stored(grid(task, BY_NAME["sgd"], size), store)
    return records and store.target(task, records, size.passes)


def winner(task: Task, method: Method, store: Store, size: Size) -> Record | None:
    """Return the run of a method's grid with the fewest passes to the target, then the lowest last loss."""
    aim, records = target(task, store, size), stored(grid(task, method, size), store)
    if aim is None or records is None:
        return None
    return min(records, key=lambda r: (passes_to(r, aim["loss"]), r["final_loss"]))


def perform_all(runs: list[Run], store: Store, options: argparse.Namespace) -> None:
    """Perform runs that are not stored, in `options.jobs` processes; a method that is missing is said once."""
    missing: dict[str, str] = {}

    def said(run: Run, result: Callable[[], Record]) -> None:
        try:
            print(table.run_text(run.name, result()), flush=True)
        except NotAvailableError as error:
            if run.method not in missing:
                print(f"{run.method}: not available, {error}", flush=True)
            missing[run.method] = str(error)

    left = [r for r in runs if r.method in options.again or store.read(r.name) is None]
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them stored", flush=True)
    if options.jobs == 1:
        for run in left:
            if run.method not in missing:
                said(run, lambda run=run: perform(run, store, True))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(perform, run, store, True): run for run in left}
        for future in as_completed(futures):
            said(futures[future], future.result)


def summary_of(options: argparse.Namespace, store: Store, size: Size) -> list[table.Row]:
    """Return a row of the table for every task, from what is stored."""
    rows = []
    for task in options.tasks:
        records = {
            method.name: stored(runs, store) if (runs := compared(task, method, store, size)) else None
            for method in METHODS
        }
        edges = [
            f"{method.name} {setting_name(best['setting'])}"
            for method in METHODS
            if method.tuned
            and (best := winner(task, method, store, size))
            and at_edge(method, best["setting"])
        ]
        rows.append(table.row_of(task.name, target(task, store, size), records, edges))
    return rows


def at_edge(method: Method, setting: dict[str, float]) -> bool:
    """Return whether a setting has the lowest or the highest learning rate among those that differ by it alone."""
    rates = [s["lr"] for s in method.settings if {**s, "lr": 0} == {**setting, "lr": 0}]
    return setting["lr"] in (min(rates), max(rates))


def main(arguments: list[str] | None = None) -> None:
    options = options_from(arguments)
    size = SIZES[options.size]
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        fallback = (
            temporary if options.size == "smoke" else Path(__file__).resolve().parents[1] / "runs/zero_search"
        )
        store = Store(options.results or fallback)
        methods = [BY_NAME[name] for name in options.methods]
        if not options.table:
            tuned = [BY_NAME[name] for name in TUNED if name in options.methods]
            searches = [run for method in tuned for task in options.tasks for run in grid(task, method, size)]
            perform_all(searches, store, options)
        if not (options.table or options.grid_only):
            runs = [r for task in options.tasks for m in methods for r in compared(task, m, store, size)]
            perform_all(runs, store, options)
        rows = summary_of(options, store, size)
    report = {
        "torch": torch.__version__,
        "size": options.size,
        "rows": rows,
        "summary": table.summary(rows),
    }
    print(table.markdown(rows) if options.markdown else table.text(rows))
    where = write_atomically(Path(options.json), json.dumps(report, indent=1))
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes; written to {where}")


if __name__ == "__main__":
    main()
