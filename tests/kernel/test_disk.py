"""Kernels on disk: the numbers, going on after a kill, several processes, and what can go wrong."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from zoo import MODELS, fresh, normal

from wideangle.errors import InputError, NumericsError
from wideangle.kernel import factors, gram_to_disk, tangent_kernel

ROOT = Path(__file__).parents[2]


def net() -> tuple[nn.Module, torch.Tensor]:
    return fresh(nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))), normal(40, 4)


def limit_for(samples: int) -> int:
    """Bytes that hold two tiles' factors of so many samples, and not many more."""
    return samples * 2 * 8 * (4 + 3 * 12 + 12 + 9) + 3 * samples**2 * 8


@pytest.mark.parametrize("name", ["mlp", "conv strided", "called twice", "attention", "conv wide"])
@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_the_numbers_of_the_kernel_in_memory(name, outputs, tmp_path):
    build, data = MODELS[name]
    model, x = fresh(build()), data()
    expected = tangent_kernel(model, x, outputs=outputs)
    file = gram_to_disk(model, x, tmp_path / "k.npy", outputs=outputs, dtype=torch.float64)
    expected = expected.reshape(file.side, file.side).numpy()
    assert np.linalg.norm(file.open() - expected) <= 1e-10 * np.linalg.norm(expected)
    assert np.load(tmp_path / "k.npy").shape == expected.shape
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.npy", "k.npy.meta.json"]


@pytest.mark.parametrize("outputs", ["trace", "full", [1], "sum"])
def test_in_blocks_where_memory_is_short(outputs, tmp_path):
    model, x = net()
    file = gram_to_disk(
        model, x, tmp_path / "k.npy", outputs=outputs, dtype=torch.float64, max_memory=limit_for(12)
    )
    expected = tangent_kernel(model, x, outputs=outputs).reshape(file.side, file.side).numpy()
    assert np.linalg.norm(file.open() - expected) <= 1e-10 * np.linalg.norm(expected)
    assert file.computed > 3
    assert file.factor_bytes <= limit_for(12)


def test_a_finished_file_is_returned_and_another_models_refused(tmp_path):
    model, x = net()
    path = tmp_path / "k.npy"
    first = gram_to_disk(model, x, path)
    again = gram_to_disk(model, x, path)
    assert (again.computed, again.reused) == (0, first.computed)
    with pytest.raises(InputError, match=r"another model, data or choice \(parameter 0.weight: .*sha256"):
        gram_to_disk(fresh(model, seed=5), x, path)
    with pytest.raises(InputError, match=r"inputs 0 x"):
        gram_to_disk(net()[0], x + 1, path)
    with pytest.raises(InputError, match="another model, data or choice"):
        gram_to_disk(net()[0], x, path, outputs="full")
    (tmp_path / "other.npy").write_bytes(b"mine")
    with pytest.raises(InputError, match="was not written by gram_to_disk"):
        gram_to_disk(net()[0], x, tmp_path / "other.npy")


def test_interrupted_it_goes_on(tmp_path, monkeypatch):
    from wideangle.kernel import _disk

    model, x = net()
    whole = gram_to_disk(model, x, tmp_path / "whole.npy", max_memory=limit_for(6))
    write, count = _disk._Job._write, iter(range(1000))

    def stopping(self, *args):
        if next(count) == 5:
            raise KeyboardInterrupt
        write(self, *args)

    monkeypatch.setattr(_disk._Job, "_write", stopping)
    with pytest.raises(KeyboardInterrupt):
        gram_to_disk(model, x, tmp_path / "k.npy", max_memory=limit_for(6))
    monkeypatch.undo()
    assert not (tmp_path / "k.npy").exists()
    with pytest.raises(InputError, match=r"k\.npy\.part is the kernel of another model"):
        gram_to_disk(fresh(model, seed=9), x, tmp_path / "k.npy")
    model, x = net()
    rest = gram_to_disk(
        model, x, tmp_path / "k.npy"
    )  # with more memory: the tiles stay those that were begun
    assert (rest.reused, rest.computed) == (5, whole.computed - 5)
    assert rest.open() == pytest.approx(np.asarray(whole.open()), rel=1e-5, abs=1e-6)


def told(dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
    """The model and the data of the scripts below."""
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).to(dtype)
    for k, p in enumerate(model.parameters()):
        p.data.copy_(torch.sin(torch.arange(p.numel()) + k).reshape(p.shape))
    return model, torch.linspace(-1, 1, 400, dtype=dtype).reshape(100, 4)


SLOW = """
import sys, time, torch
from torch import nn
from wideangle.kernel import _disk, gram_to_disk
write = _disk._Job._write
def slow(self, *args):
    write(self, *args)
    print("tile", flush=True)
    time.sleep(0.05)
_disk._Job._write = slow
model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
for k, p in enumerate(model.parameters()):
    p.data.copy_(torch.sin(torch.arange(p.numel()) + k).reshape(p.shape))
x = torch.linspace(-1, 1, 400).reshape(100, 4)
print(gram_to_disk(model, x, sys.argv[1], max_memory=15_000).reused, flush=True)
"""


def test_killed_it_goes_on(tmp_path):
    path = tmp_path / "k.npy"
    command = [sys.executable, "-c", SLOW, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for _ in range(4):
            assert run.stdout.readline() == "tile\n"
        run.send_signal(signal.SIGKILL)
    assert not path.exists()
    rest = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(rest[-1]) >= 4
    model, x = told(torch.float32)
    expected = tangent_kernel(model, x, outputs="trace").numpy()
    assert np.load(path) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_too_little_memory_says_how_much_is_needed(tmp_path):
    model, x = net()
    with pytest.raises(InputError, match=r"max_memory"):
        gram_to_disk(model, x, tmp_path / "k.npy", max_memory=500)
    gram_to_disk(model, x, tmp_path / "whole.npy")
    from wideangle.kernel import _disk

    def stop(self, *args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_disk._Job, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            gram_to_disk(model, x, tmp_path / "k.npy")
    with pytest.raises(InputError, match=r"a tile of 40 samples need .* give at least (\d|,)+ bytes"):
        gram_to_disk(model, x, tmp_path / "k.npy", max_memory=limit_for(4))


def test_a_disk_without_room(tmp_path, monkeypatch):
    model, x = net()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(InputError, match=r"needs 0 MiB on disk, and .* has 0 MiB free"):
        gram_to_disk(model, x, tmp_path / "k.npy")
    monkeypatch.undo()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="the disk filled while"):
        gram_to_disk(model, x, tmp_path / "k.npy")
    assert list(tmp_path.iterdir()) == []


def test_other_bad_input(tmp_path):
    model, x = net()
    with pytest.raises(InputError, match=r"choose torch.float32 or torch.float64"):
        gram_to_disk(model, x, tmp_path / "k.npy", dtype=torch.float16)
    big = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        big[0].weight.fill_(1.0)
    with pytest.raises(NumericsError, match="not finite"):
        gram_to_disk(big, x.float() * 1e30, tmp_path / "k.npy")


def torchrun(*words: object, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    command += ["--master-port", str(29500 + os.getpid() % 2000), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)


def test_two_processes_share_factors_and_work_and_give_the_same_numbers(tmp_path):
    run = torchrun(
        "examples/distributed_kernel.py", "--samples", 200, "--outputs", "full", "--out", tmp_path / "k.npy"
    )
    assert run.returncode == 0, run.stderr
    shares = [float(share) for share in re.findall(r"([\d.]+)%", run.stdout)]
    assert len(shares) == 4
    assert max(shares) <= 60
    apart = [float(number) for number in re.findall(r"one process: (\S+) relative", run.stdout)]
    assert len(apart) == 2
    assert max(apart) < 1e-10


def test_what_is_sent_is_no_larger_than_it_must_be():
    model, x = net()
    row = factors(model, x).rows(10, 15)
    (chunk,) = row._chunks
    held = [
        tensor.untyped_storage().nbytes()
        for structure in chunk.own().structures.values()
        if structure is not None
        for tensor in structure._tensors().values()
    ]
    assert sum(held) == row.nbytes


class Two(nn.Module):
    """Two outputs and an activation of choice; the weights say neither."""

    def __init__(self, act):
        super().__init__()
        self.one, self.two, self.act = nn.Linear(4, 12), nn.Linear(12, 3), act

    def forward(self, x):
        h = self.two(self.act(self.one(x)))
        return h, torch.tanh(h)


def test_models_with_the_same_weights_are_told_apart(tmp_path):
    model, x = fresh(Two(torch.relu)), normal(20, 4)
    gram_to_disk(model, x, tmp_path / "k.npy", output=0)
    with pytest.raises(InputError, match="first logits"):
        gram_to_disk(model, x, tmp_path / "k.npy", output=1)
    model.act = torch.tanh
    with pytest.raises(InputError, match="first logits"):
        gram_to_disk(model, x, tmp_path / "k.npy", output=0)


def test_a_finished_file_does_not_depend_on_memory(tmp_path):
    model, x = net()
    first = gram_to_disk(model, x, tmp_path / "k.npy", max_memory=limit_for(6))
    again = gram_to_disk(model, x, tmp_path / "k.npy")
    assert (again.computed, again.reused) == (0, first.computed)
    assert gram_to_disk(model, x, tmp_path / "k.npy", max_memory=limit_for(3)).computed == 0


def test_stopped_between_the_last_two_renames(tmp_path):
    model, x = net()
    first = gram_to_disk(model, x, tmp_path / "k.npy")
    kept = np.array(first.open())
    (tmp_path / "k.npy").rename(tmp_path / "k.npy.part")
    again = gram_to_disk(model, x, tmp_path / "k.npy")
    assert (again.computed, again.reused) == (0, first.computed)
    assert np.array_equal(again.open(), kept)


def test_one_run_at_a_time(tmp_path):
    from wideangle.kernel._tile_file import TileFile

    model, x = net()
    other = TileFile(tmp_path / "k.npy", {}, 40, 40, np.dtype("float32"))
    with other.held(), pytest.raises(InputError, match="another run is writing"):
        gram_to_disk(model, x, tmp_path / "k.npy")
    assert gram_to_disk(model, x, tmp_path / "k.npy").computed == 1


@pytest.mark.parametrize("path", ["", ".", "/", None, 3, "/proc/nope/k.npy", "x" * 300])
def test_paths_that_name_no_file(path):
    model, x = net()
    with pytest.raises(InputError, match=r"path is|cannot be written"):
        gram_to_disk(model, x, path)


@pytest.mark.parametrize("name", ["k.npy.part", "k.npy.part.done", "k.npy.part.json"])
def test_files_cut_short(name, tmp_path, monkeypatch):
    from wideangle.kernel import _disk

    def stop(self, *args):
        raise KeyboardInterrupt

    model, x = net()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_disk._Job, "_write", stop)
        with pytest.raises(KeyboardInterrupt) as caught:
            gram_to_disk(model, x, tmp_path / "k.npy")
    assert "call gram_to_disk again to go on" in caught.value.__notes__[0]
    (tmp_path / name).write_bytes(b"[[")
    with pytest.raises(InputError, match=r"cut short|cannot be read"):
        gram_to_disk(model, x, tmp_path / "k.npy")


DYING = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from wideangle.errors import InputError, RankError
from wideangle.kernel import _disk, gram_to_disk
dist.init_process_group("gloo")
model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).double()
for k, p in enumerate(model.parameters()):
    p.data.copy_(torch.sin(torch.arange(p.numel()) + k).reshape(p.shape))
x = torch.linspace(-1, 1, 400, dtype=torch.float64).reshape(100, 4)[: int(sys.argv[2])]
write = _disk._Job._write
def dying(self, *args):
    write(self, *args)
    if "die" in sys.argv and dist.get_rank() == 1 and self.computed == 2:
        os._exit(1)
_disk._Job._write = dying
try:
    file = gram_to_disk(model, x, sys.argv[1], dtype=torch.float64, group=dist.group.WORLD)
    print(f"rank {dist.get_rank()} reused {file.reused}", flush=True)
    dist.destroy_process_group()
except (InputError, RankError) as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(3)
"""


def test_a_process_that_dies_stops_the_run_and_its_tiles_are_kept(tmp_path):
    script, path = tmp_path / "run.py", tmp_path / "k.npy"
    script.write_text(DYING)
    run = torchrun("--monitor-interval", 5, script, path, 100, "die")
    assert run.returncode != 0
    assert "RankError: rank 0 of 2 got no answer from another rank" in run.stdout, run.stdout + run.stderr
    time.sleep(0.1)
    rest = torchrun(script, path, 100)
    assert rest.returncode == 0, rest.stderr
    assert int(re.findall(r"reused (\d+)", rest.stdout)[0]) >= 2
    model, x = told(torch.float64)
    assert np.load(path) == pytest.approx(tangent_kernel(model, x, outputs="trace").numpy(), rel=1e-10)
    alone = torchrun(script, tmp_path / "few.npy", 1)
    assert "cannot be shared by 2 processes: rank 1 would have no samples" in alone.stdout
