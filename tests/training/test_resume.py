from __future__ import annotations

import copy
import os
import signal
import threading

import pytest
import torch
from small_runs import is_same, make_data, make_net, make_plan
from torch import nn

from wideangle.errors import InputError, NumericsError
from wideangle.training import train


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "mass"])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, optimizer, batch_size):
    x, y = make_data()
    options = {"batch_size": batch_size, "optimizer": optimizer, "momentum": 0.9, "warmup_steps": 12}
    straight = make_net(dropout=0.3, norm=True)
    whole = train(straight, x, y, make_plan(0.05), **options)
    parts = make_net(dropout=0.3, norm=True)
    file = tmp_path / "run.pt"
    train(parts, x, y, make_plan(0.05, 9), checkpoint=file, **options)
    fresh = make_net(seed=9, dropout=0.3, norm=True)
    resumed = train(fresh, x, y, make_plan(0.05), checkpoint=file, resume=True, **options)
    assert is_same(straight, fresh)
    assert resumed.losses == whole.losses
    assert resumed.accuracies == whole.accuracies
    assert resumed.steps == 20
    assert not is_same(straight, parts)


def test_periodic_checkpoints_are_points_to_resume_from(tmp_path):
    x, y = make_data()
    file = tmp_path / "run.pt"
    calls = [0]

    class StopError(RuntimeError):
        pass

    class Failing(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.inner, self.last = make_net(), last

        def forward(self, rows):
            calls[0] += self.training
            if self.last is not None and calls[0] > self.last:
                raise StopError
            return self.inner(rows)

    with pytest.raises(StopError):
        train(Failing(9), x, y, make_plan(), checkpoint=file, checkpoint_every=4, batch_size=7)
    assert torch.load(file, weights_only=True)["step"] == 8
    again, straight = Failing(None), Failing(None)
    train(again, x, y, make_plan(), checkpoint=file, resume=True, batch_size=7)
    train(straight, x, y, make_plan(), batch_size=7)
    assert is_same(again, straight)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize("change", ["width", "step size", "inputs", "targets", "seed", "batch size", "loss"])
def test_resume_with_something_else_is_refused_and_says_what(tmp_path, change):
    x, y = make_data()
    file = tmp_path / "run.pt"
    train(make_net(), x, y, make_plan(steps=5), checkpoint=file)
    model, plan, options = make_net(), make_plan(), {}
    words = change
    if change == "width":
        model, words = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Dropout(0.0), nn.Linear(9, 3)), "(9, 5)"
    elif change == "step size":
        plan = make_plan(0.25)
    elif change == "inputs":
        x = x + 1e-3
    elif change == "targets":
        y = y.flip(0)
    elif change == "seed":
        options = {"seed": 3}
    elif change == "batch size":
        options = {"batch_size": 6}
    else:
        options = {"loss": "cross-entropy"}
    before = copy.deepcopy(model)
    with pytest.raises(InputError) as caught:
        train(model, x, y, plan, checkpoint=file, resume=True, **options)
    assert words in str(caught.value)
    assert is_same(model, before)


def test_checkpoint_files_that_cannot_be_used(tmp_path):
    x, y = make_data()
    with pytest.raises(InputError, match="no checkpoint at"):
        train(make_net(), x, y, make_plan(), checkpoint=tmp_path / "none.pt", resume=True)
    with pytest.raises(InputError, match="needs checkpoint"):
        train(make_net(), x, y, make_plan(), resume=True)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="no readable checkpoint"):
        train(make_net(), x, y, make_plan(), checkpoint=broken, resume=True)
    with pytest.raises(InputError, match="choose another file"):
        train(make_net(), x, y, make_plan(), checkpoint=broken)
    foreign = tmp_path / "foreign.pt"
    torch.save({"weights": torch.zeros(2)}, foreign)
    with pytest.raises(InputError, match="not a checkpoint written by"):
        train(make_net(), x, y, make_plan(), checkpoint=foreign, resume=True)
    evil = tmp_path / "evil.pt"
    torch.save({"model": os.system}, evil)
    with pytest.raises(InputError, match="no readable checkpoint"):
        train(make_net(), x, y, make_plan(), checkpoint=evil, resume=True)
    done = tmp_path / "done.pt"
    train(make_net(), x, y, make_plan(steps=3), checkpoint=done)
    assert train(make_net(), x, y, make_plan(steps=4), checkpoint=done).steps == 4


class _PressesCtrlC(nn.Module):
    def __init__(self, at: int | None, times: int = 1):
        super().__init__()
        self.inner, self.at, self.times, self.calls = make_net(), at, times, 0

    def forward(self, rows):
        self.calls += self.training
        if self.training and self.calls == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return self.inner(rows)


def test_ctrl_c_leaves_a_checkpoint_an_incomplete_result_and_a_way_on(tmp_path):
    x, y = make_data()
    file = tmp_path / "run.pt"
    handler = signal.getsignal(signal.SIGINT)
    model = _PressesCtrlC(6)
    stopped = train(model, x, y, make_plan(), checkpoint=file, batch_size=7)
    assert not stopped.complete
    assert stopped.steps == 6
    assert stopped.sections[0].status == "interrupted"
    assert "--resume" in stopped.verdict[-1]
    assert str(file) in stopped.verdict[-1]
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(InputError, match="step 6 of 20; pass resume=True"):
        train(_PressesCtrlC(None), x, y, make_plan(), checkpoint=file, batch_size=7)
    resumed, straight = _PressesCtrlC(None), _PressesCtrlC(None)
    result = train(resumed, x, y, make_plan(), checkpoint=file, resume=True, batch_size=7)
    whole = train(straight, x, y, make_plan(), batch_size=7)
    assert is_same(resumed, straight)
    assert result.losses == whole.losses
    unkept = train(_PressesCtrlC(2), x, y, make_plan())
    assert "cannot be resumed" in unkept.verdict[-1]


def test_a_second_ctrl_c_stops_at_once():
    x, y = make_data()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(_PressesCtrlC(3, times=2), x, y, make_plan())
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_runs_in_a_thread():
    x, y = make_data()
    results = []
    worker = threading.Thread(target=lambda: results.append(train(make_net(), x, y, make_plan(steps=3))))
    worker.start()
    worker.join()
    assert results[0].steps == 3


def test_divergence_is_explained_and_leaves_the_last_good_state(tmp_path):
    x, y = make_data()
    model = nn.Linear(5, 3)
    start = copy.deepcopy(model)
    file = tmp_path / "run.pt"
    design = torch.cat([x, torch.ones(24, 1)], 1).double()
    top = float(torch.linalg.eigvalsh(design.T @ design * 2 / (24 * 3))[-1])
    with pytest.raises(NumericsError) as caught:
        train(model, x, y, make_plan(10 / top, 2000), checkpoint=file, checkpoint_every=10)
    text = str(caught.value)
    assert "5 times the critical one" in text
    assert f"step size of {1.8 / top:.4g}" in text
    assert "step 0" in text
    assert is_same(model, start)
    stored = torch.load(file, weights_only=True)
    assert stored["step"] % 10 == 0
    assert f"of step {stored['step']}" in text
    assert all(bool(torch.isfinite(value).all()) for value in stored["model"].values())
    with pytest.raises(NumericsError, match="times the critical one"):
        train(make_net(dropout=0.5, norm=True), x, y, make_plan(1e20))
    with pytest.raises(NumericsError, match="smaller step size, such as"):
        train(nn.Linear(5, 3).half(), x, y, make_plan(1e30), optimizer="adam")


def test_a_checkpoint_is_written_only_where_the_loss_is_finite(tmp_path):
    x, y = make_data()
    file = tmp_path / "run.pt"
    with pytest.raises(NumericsError) as caught:
        train(nn.Linear(5, 3), x, y, make_plan(1e30, 5), checkpoint=file, checkpoint_every=1)
    assert "step 1 of 5" in str(caught.value)
    assert "checkpoint" not in str(caught.value)
    assert not file.exists()


def test_a_model_that_is_infinite_only_after_the_last_step_is_caught():
    x, y = make_data()
    model = nn.Linear(5, 3)
    start = copy.deepcopy(model)
    with pytest.raises(NumericsError, match="step 1 of 1"):
        train(model, x, y, make_plan(1e38, 1))
    assert is_same(model, start)
