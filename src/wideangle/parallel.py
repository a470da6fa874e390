"""One map over independent tasks: in this process, in worker processes, or on a Ray cluster.

The work is done by joblib. Threads are counted too: jobs times threads a job never exceed the cores.
"""

from __future__ import annotations

import importlib
import itertools
import pickle
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar

import torch

from wideangle.errors import InputError, MissingExtraError, RankError, WideangleError
from wideangle.names import unknown_name
from wideangle.progress import track

__all__ = ["Backend", "as_finished", "core_count", "parallel_map"]

Task = TypeVar("Task")
Value = TypeVar("Value")
Backend = Literal["local", "ray"]

_in_worker = False


def core_count() -> int:
    """Return how many cores this process may use (affinity, container limits, LOKY_MAX_CPU_COUNT).

    Example:
        >>> core_count() >= 1
        True
    """
    import joblib

    return joblib.cpu_count()


def parallel_map(
    function: Callable[[Task], Value],
    tasks: Iterable[Task],
    *,
    jobs: int | None = None,
    backend: Backend = "local",
    name: Callable[[Task], str] = repr,
    description: str = "tasks",
) -> list[Value]:
    """Return [function(task) for task in tasks], computed by several processes at once.

    Every worker process gets cores // jobs threads (at least one) for torch and BLAS, so that jobs and
    threads together do not exceed the cores; with one job everything runs in this process, whose threads
    are left alone. To save results one by one, take `as_finished`.

    Cost: starting a worker takes seconds (it imports torch); workers stay for later calls. The function,
    the tasks and the results are copied between processes.

    Args:
        function: of one task. Closures and lambdas may be used; random numbers must come from the task.
        tasks: a list or any other iterable; a generator is read to its end first.
        jobs: processes at a time; None takes one a core, at most one a task, and 1 inside a worker.
        backend: "local", or "ray" for the Ray cluster this process is connected to (jobs=None: its cores).
        name: what to call a task in an error message.
        description: a few words for the progress bar.

    Returns:
        The results in the order of the tasks.

    Raises:
        InputError: jobs below one, an unknown backend, tasks that are no iterable, something that cannot be
            copied to a worker.
        MissingExtraError: backend "ray" and Ray is not installed.
        RankError: a worker process died.
        Exception: what the function raised, with the task named; its own type is kept.

    Example:
        >>> parallel_map(lambda n: n * n, [3, 4], jobs=1)
        [9, 16]
    """
    results: dict[int, Value] = {}
    for index, value in as_finished(
        function, tasks, jobs=jobs, backend=backend, name=name, description=description
    ):
        results[index] = value
    return [results[index] for index in range(len(results))]


def as_finished(
    function: Callable[[Task], Value],
    tasks: Iterable[Task],
    *,
    jobs: int | None = None,
    backend: Backend = "local",
    name: Callable[[Task], str] = repr,
    description: str = "tasks",
) -> Iterator[tuple[int, Value]]:
    """Return an iterator over (index, function(task)) in the order in which tasks are finished.

    As `parallel_map`, for callers who save each result. After an error no further task is begun; those
    under way are finished and yielded, then the error is raised. Ctrl-C, or leaving the loop, stops the
    workers; what was yielded stays with the caller.

    Args:
        function: as for `parallel_map`, as are all others.
        tasks: a list or any other iterable.
        jobs: processes at a time.
        backend: "local" or "ray".
        name: what to call a task in an error message.
        description: a few words for the progress bar.

    Returns:
        The iterator.

    Raises:
        InputError: as `parallel_map`, at the call; the other errors come from the iterator.

    Example:
        >>> dict(as_finished(str.upper, ["a", "b"], jobs=1))
        {0: 'A', 1: 'B'}
    """
    if backend not in ("local", "ray"):
        raise unknown_name("backend", backend, ("local", "ray"))
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise InputError(f"jobs must be a whole number of at least 1, got {jobs!r}; None takes one a core")
    listed = _listed(tasks)
    if backend == "ray":
        _register_ray()
    count = jobs or (1 if _in_worker else core_count())
    if backend == "local" and min(count, len(listed)) <= 1:
        steps = _here(function, listed, name)
    else:
        steps = _in_workers(function, listed, jobs, backend, name)
    return track(steps, description, total=len(listed))


def _listed(tasks: Iterable[Task]) -> Sequence[Task]:
    if isinstance(tasks, Sequence):
        return tasks
    if not isinstance(tasks, Iterable):
        raise InputError(f"tasks must be a list or another iterable, got a {type(tasks).__name__}")
    return list(tasks)


def _here(
    function: Callable[[Task], Value], tasks: Sequence[Task], name: Callable[[Task], str]
) -> Iterator[tuple[int, Value]]:
    for index, task in enumerate(tasks):
        try:
            value = function(task)
        except Exception as error:
            _raise_named(error, name(task))
        yield index, value


@dataclass
class _Failure:
    """An exception on its way from a worker, with the text of its traceback."""

    index: int
    error: Exception
    trace: str


@dataclass
class _Terms:
    """What a worker is told to set before a task: as in the process that asks."""

    threads: int
    dtype: torch.dtype


def _attempt(function: Callable[[Any], Any], index: int, task: Any, terms: _Terms) -> Any:
    """Run one task in a worker; an exception comes back as a value, so that other results are kept."""
    global _in_worker
    _in_worker = True
    torch.set_num_threads(terms.threads)
    torch.set_default_dtype(terms.dtype)
    try:
        return index, function(task)
    except Exception as error:
        return _Failure(index, _portable(error), traceback.format_exc())


def _portable(error: Exception) -> Exception:
    """Return the exception, or one that says the same where it cannot be copied between processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _in_workers(
    function: Callable[[Task], Value],
    tasks: Sequence[Task],
    jobs: int | None,
    backend: Backend,
    name: Callable[[Task], str],
) -> Iterator[tuple[int, Value]]:
    import joblib
    from joblib.externals.loky.process_executor import BrokenProcessPool

    cores = core_count()
    count = min(jobs or cores, len(tasks)) if backend == "local" else jobs or -1
    terms = _Terms(max(1, cores // count) if backend == "local" else 1, torch.get_default_dtype())
    failures: list[_Failure] = []

    def calls() -> Iterator[Any]:
        for index, task in enumerate(tasks):
            if failures:
                return
            yield joblib.delayed(_attempt)(function, index, task, terms)

    results = _stream(calls(), count, terms.threads) if backend == "local" else _rounds(calls(), count)
    done = 0
    try:
        for outcome in results:
            if isinstance(outcome, _Failure):
                failures.append(outcome)
                continue
            done += 1
            yield outcome
    except BrokenProcessPool as error:
        raise RankError(
            f"a worker process died after {done} of {len(tasks)} tasks, perhaps for lack of memory; use fewer "
            f"jobs than {count}, or jobs=1 to see the task fail in this process"
        ) from error
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InputError(
            f"the function, a task or a result cannot be copied between processes ({error}); "
            "use jobs=1, or leave open files, locks and generators out of them"
        ) from error
    finally:
        results.close()
    if failures:
        first = failures[0]
        first.error.add_note(f"in a worker process:\n{first.trace}")
        _raise_named(first.error, name(tasks[first.index]))


def _stream(calls: Iterator[Any], count: int, threads: int) -> Generator[Any, None, None]:
    """Yield outcomes from local workers as they come; closing it stops the workers."""
    import joblib

    settings: dict[str, Any] = {"batch_size": 1, "pre_dispatch": "n_jobs", "max_nbytes": None}
    with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
        run = joblib.Parallel(n_jobs=count, return_as="generator_unordered", **settings)
    outcomes: Any = run(calls)
    try:
        for outcome in outcomes:  # noqa: UP028 - yield from would close it outside of the block below
            yield outcome
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # joblib tells that tasks were cancelled, as wanted
            outcomes.close()


def _rounds(calls: Iterator[Any], count: int) -> Generator[Any, None, None]:
    """Yield outcomes from Ray, whose joblib backend hands results over only when all it was given are done."""
    import joblib

    settings: dict[str, Any] = {"batch_size": 1, "max_nbytes": None}
    with joblib.parallel_config(backend="ray"):
        run = joblib.Parallel(n_jobs=count, **settings)
        size = 4 * joblib.effective_n_jobs(count)
    while batch := list(itertools.islice(calls, size)):
        outcomes: Any = run(batch)
        yield from outcomes


def _raise_named(error: Exception, task: str) -> NoReturn:
    shown = task if len(task) <= 100 else f"{task[:97]}..."
    if isinstance(error, WideangleError):
        raise type(error)(f"{shown}: {error}") from error
    error.add_note(f"in the task {shown}")
    raise error


def _register_ray() -> None:
    try:
        ray = importlib.import_module("ray.util.joblib")
    except ImportError as error:
        raise MissingExtraError(
            "backend='ray' needs Ray, which is not installed; pip install 'wideangle[federated]' brings it, "
            "or use backend='local'"
        ) from error
    ray.register_ray()
