"""One map over tasks: order, threads, errors, and what is kept when something stops."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

from wideangle.errors import InputError, MissingExtraError, NumericsError, RankError
from wideangle.parallel import as_finished, core_count, parallel_map


def double_or_fail(number: int) -> int:
    if number < 0:
        raise NumericsError(f"{number} is negative")
    return 2 * number


def test_one_job_runs_here_in_order():
    seen = []
    assert parallel_map(lambda n: (seen.append(n), n * n)[1], [3, 1, 2], jobs=1) == [9, 1, 4]
    assert seen == [3, 1, 2]
    assert parallel_map(double_or_fail, [], jobs=1) == []
    assert parallel_map(double_or_fail, [5]) == [10]  # one task needs no worker


@pytest.mark.parametrize("jobs", [1, 2])
def test_tasks_may_be_any_iterable(jobs):
    assert parallel_map(double_or_fail, (n for n in (3, 1, 2)), jobs=jobs) == [6, 2, 4]
    assert parallel_map(double_or_fail, map(int, "12"), jobs=jobs) == [2, 4]
    assert parallel_map(str, np.array([2, 1]), jobs=jobs) == ["2", "1"]
    assert parallel_map(double_or_fail, iter(()), jobs=jobs) == []
    assert dict(as_finished(double_or_fail, {4: "a", 5: "b"}.keys(), jobs=jobs)) == {0: 8, 1: 10}
    with pytest.raises(InputError, match="tasks must be a list or another iterable, got a int"):
        as_finished(double_or_fail, 3, jobs=jobs)  # type: ignore[arg-type]


def test_workers_return_in_order_with_their_share_of_the_cores():
    factor, cores = 3, core_count()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = parallel_map(
            lambda n: (
                factor * n,
                os.getpid(),
                torch.get_num_threads(),
                os.environ["OMP_NUM_THREADS"],
                torch.zeros(1).dtype,
                [pid for (pid,) in parallel_map(lambda m: (os.getpid(),), [1, 2])],
            ),
            list(range(6)),
            jobs=2,
        )
    finally:
        torch.set_default_dtype(default)
    assert [entry[0] for entry in found] == [0, 3, 6, 9, 12, 15]
    share = max(1, cores // 2)
    for _, pid, threads, environment, dtype, inner in found:
        assert pid != os.getpid()
        assert (threads, environment, dtype) == (share, str(share), torch.float64)
        assert inner == [pid, pid]  # inside a worker, nothing more is started
    assert len({entry[1] for entry in found}) <= 2


def test_an_error_names_the_task_and_keeps_its_type():
    with pytest.raises(NumericsError, match="task -1: -1 is negative"):
        parallel_map(double_or_fail, [1, -1], jobs=1, name=lambda n: f"task {n}")
    with pytest.raises(ZeroDivisionError) as caught:
        parallel_map(lambda n: 1 // n, [1, 0], jobs=1)
    assert caught.value.__notes__ == ["in the task 0"]


def test_after_an_error_in_a_worker_finished_results_are_kept_and_none_is_begun(tmp_path):
    def task(number: int) -> int:
        (tmp_path / str(number)).touch()
        time.sleep(0.2 if number >= 10 else 0.0)
        return double_or_fail(number)

    kept = {}
    results = as_finished(task, [1, 2, -1, *range(10, 40)], jobs=2, name="task {}".format)
    with pytest.raises(NumericsError, match="task -1: -1 is negative") as caught:
        kept.update(results)
    assert kept.items() >= {0: 2, 1: 4}.items()
    assert len(list(tmp_path.iterdir())) < 10
    assert "double_or_fail" in "".join(caught.value.__cause__.__notes__)  # the worker's traceback


def test_an_error_that_cannot_be_copied_still_arrives():
    class OddError(Exception):
        def __init__(self, lock):
            super().__init__("odd one")
            self.lock = lock

    def task(number: int) -> int:
        raise OddError(threading.Lock())

    with pytest.raises(RuntimeError, match="OddError: odd one"):
        parallel_map(task, [1, 2], jobs=2)


def test_what_cannot_be_copied_is_an_input_error():
    lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied between processes"):
        parallel_map(lambda n: lock, [1, 2], jobs=2)
    with pytest.raises(InputError, match="cannot be copied between processes"):
        parallel_map(lambda n: threading.Lock(), [1, 2], jobs=2)


def test_leaving_the_loop_stops_the_workers(recwarn):
    begun = time.perf_counter()
    for index, _ in as_finished(time.sleep, [0.0, 60.0, 60.0], jobs=2):
        assert index == 0
        break
    assert time.perf_counter() - begun < 30
    assert not [w for w in recwarn if "cancelled" in str(w.message)]


def test_a_dead_worker_is_an_error():
    with pytest.raises(RankError, match="worker process died"):
        parallel_map(lambda n: os._exit(1), [1, 2], jobs=2)


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_jobs_must_be_a_positive_whole_number(jobs):
    with pytest.raises(InputError, match="jobs must be"):
        as_finished(double_or_fail, [1, 2], jobs=jobs)


def test_unknown_and_missing_backends():
    with pytest.raises(InputError, match="unknown backend 'rya'; did you mean 'ray'"):
        parallel_map(double_or_fail, [1], backend="rya")  # type: ignore[arg-type]
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(MissingExtraError, match=r"wideangle\[federated\]"):
            parallel_map(double_or_fail, [1], backend="ray")


@pytest.mark.slow
def test_ray_computes_the_same():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert parallel_map(lambda n: n * n, list(range(20)), backend="ray") == [n * n for n in range(20)]
        with pytest.raises(ZeroDivisionError) as caught:
            parallel_map(lambda n: 1 // n, [1, 0, 2], backend="ray")
        assert "in the task 0" in caught.value.__notes__
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_an_interrupt_stops_the_workers_and_keeps_what_was_finished(tmp_path):
    program = """
        import os, sys, time
        from wideangle.parallel import as_finished
        def task(n):
            with open(f"{sys.argv[1]}/pid{os.getpid()}", "w"):
                pass
            time.sleep(n)
            return n
        kept = []
        try:
            for index, value in as_finished(lambda n: task(n), [0.1, 0.1, 300, 300], jobs=2):
                kept.append(index)
                print("finished", flush=True)
        except KeyboardInterrupt:
            print("kept", sorted(kept), flush=True)
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program).replace("sys.argv[1]", repr(str(tmp_path)))],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    assert [run.stdout.readline() for _ in range(2)] == ["finished\n"] * 2
    time.sleep(1)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    rest, _ = run.communicate(timeout=60)
    assert rest.startswith("kept [0, 1]")
    workers = [int(path.name.removeprefix("pid")) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{pid}") for pid in workers):
            break
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
