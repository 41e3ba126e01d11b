"""What a run costs: its seconds, their split, its FLOPs, and all of that through a resumption."""

import csv
import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from longspan.training.callbacks import throughput
from longspan.training.callbacks.throughput import Throughput, forget_peak_memory, peak_memory
from longspan.training.loggers import CsvLogger
from longspan.training.performance.step_clock import StepClock

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")

# Of the tiny model: two layers of 8 x 8 and 8 x 11, forward and backward, for each of 16 tokens.
BATCH_FLOPS = 6 * (8 * 8 + 8 * 11) * 16


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder, column):
    return [float(row[column]) for row in rows(folder) if row[column]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_costs_are_logged_at_each_row_and_validation(tmp_path, make_run, accumulate):
    measure = Throughput(skip=1)
    make_run(
        tmp_path, callbacks=[measure], loggers=[CsvLogger(str(tmp_path))], accumulate_grad_batches=accumulate
    ).fit()
    logged = rows(tmp_path)
    assert all(row["cost/seconds"] and row["cost/flops"] and row["cost/dense_flops"] for row in logged)
    training = [row for row in logged if row["train/loss"]]
    # 16 tokens a batch: the counters of tokens and of FLOPs go together.
    assert [float(row["cost/flops"]) for row in training] == [
        float(row["train/tokens"]) / 16 * BATCH_FLOPS for row in training
    ]
    assert [row for row in logged if row["val/loss"]][-1]["cost/flops"] == str(
        12.0 * accumulate * BATCH_FLOPS
    )
    seconds = numbers(tmp_path, "cost/seconds")
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    costs = measure.costs()
    assert costs["flops"] == costs["dense_flops"] == 12 * accumulate * BATCH_FLOPS
    assert costs["flops_per_step"] == costs["dense_flops_per_step"] == accumulate * BATCH_FLOPS
    # What a CPU could do at most is not known.
    assert costs["mfu"] is costs["dense_mfu"] is None
    assert "train/mfu" not in logged[0]
    assert seconds[-1] <= costs["seconds"] + 1e-6
    assert list(costs["split"]) == ["data", "forward", "backward", "optimizer"]
    assert all(part > 0 for part in costs["split"].values())
    assert numbers(tmp_path, "train/backward_seconds")[-1] > 0


class Phases(pl.Callback):
    """Turns a clock by known times in each phase of a step; validation takes an hour."""

    def __init__(self, now):
        self.now = now

    def _pass(self, seconds):
        self.now[0] += seconds

    def on_train_batch_start(self, *_):
        self._pass(1.0)

    def on_before_zero_grad(self, *_):
        self._pass(2.0)

    def on_before_backward(self, *_):
        self._pass(2.0)

    def on_after_backward(self, *_):
        self._pass(8.0)

    def on_train_batch_end(self, *_):
        self._pass(16.0)

    def on_validation_epoch_start(self, *_):
        self._pass(3600.0)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_where_the_time_of_a_step_goes(tmp_path, make_run, monkeypatch, accumulate):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(throughput, "device_peak_rate", lambda device, precision: 1e3)
    measure = Throughput(skip=0)
    options = {"accumulate_grad_batches": accumulate, "max_steps": 3, "val_check_interval": 2}
    run = make_run(tmp_path, callbacks=[Phases(now), measure], **options).fit()
    # Gradients are set to zero once a step, between the first forward and its backward.
    split = {"data": 1.0, "forward": 2.0, "backward": 8.0, "optimizer": 16.0}
    seconds = accumulate * 27 + 2
    assert measure.split == {
        phase: accumulate * part + 2 * (phase == "forward") for phase, part in split.items()
    }
    assert measure.step_seconds == seconds
    assert measure.tokens_per_second == accumulate * 16 / seconds
    assert measure.seconds == 3 * seconds
    assert measure.mfu == measure.dense_mfu == pytest.approx(accumulate * BATCH_FLOPS / seconds / 1e3)
    assert float(run.trainer.callback_metrics["train/mfu"]) == pytest.approx(measure.mfu)


def test_a_resumed_run_goes_on_counting(tmp_path, make_run):
    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    first = Throughput()
    killed = make_run(tmp_path / "killed", callbacks=[Kill(), first])
    with pytest.raises(SystemExit):
        killed.fit()
    saved = torch.load(killed.last, weights_only=False)["callbacks"]["Throughput"]
    assert saved["flops"] == saved["dense_flops"] == 7 * BATCH_FLOPS
    assert 0 < saved["seconds"] <= first.seconds
    second = Throughput()
    log = CsvLogger(str(tmp_path / "resumed"))
    make_run(tmp_path / "resumed", callbacks=[second], loggers=[log]).fit(killed.last)
    assert second.costs()["flops"] == 12 * BATCH_FLOPS
    assert numbers(tmp_path / "resumed", "cost/flops")[0] == 8 * BATCH_FLOPS
    assert numbers(tmp_path / "resumed", "cost/seconds")[0] > saved["seconds"]


def test_a_step_that_broke_is_not_counted(tmp_path, make_run):
    run = make_run(tmp_path, callbacks=[Throughput()], accumulate_grad_batches=2)
    run.model.fail_at = 6
    with pytest.raises(RuntimeError, match="on purpose"):
        run.fit()
    saved = torch.load(run.last, weights_only=False)["callbacks"]["Throughput"]
    assert saved["flops"] == 2 * 2 * BATCH_FLOPS


def test_a_checkpoint_without_costs(tmp_path, make_run):
    first = make_run(tmp_path / "first", max_steps=5).fit()
    measure = Throughput()
    with pytest.warns(UserWarning, match="counted from here on"):
        make_run(tmp_path / "second", callbacks=[measure]).fit(first.last)
    assert measure.costs()["flops"] == 7 * BATCH_FLOPS


def test_a_model_that_cannot_be_counted(tmp_path, make_run, monkeypatch):
    run = make_run(tmp_path, callbacks=[Throughput()], loggers=[CsvLogger(str(tmp_path))], max_steps=2)
    forward = run.model.forward
    run.model.forward = lambda input_ids: forward(input_ids + int(input_ids.sum()) * 0)
    measure = run.trainer.callbacks[3]
    with pytest.warns(UserWarning, match="are not counted: .*TinyModel cannot be counted without data"):
        run.fit()
    assert isinstance(measure, Throughput)
    assert measure.costs()["flops"] is measure.costs()["flops_per_step"] is None
    assert numbers(tmp_path, "cost/seconds")
    assert "cost/flops" not in rows(tmp_path)[0]


class Event:
    """An event of a made-up stream, whose work takes one second an event and is waited for by nobody."""

    recorded: list = []
    done = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = len(Event.recorded)
        Event.recorded.append(self)

    def query(self):
        return self.time < Event.done

    def elapsed_time(self, end):
        assert end.query()
        return 1e3 * (end.time - self.time)


def test_the_clock_of_a_device_is_read_when_it_has_passed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    Event.recorded, Event.done = [], 0
    clock = StepClock(torch.device("cuda"))
    clock.lap("data")  # nothing has begun
    clock.start()
    for _ in range(3):
        for phase in ("data", "forward", "backward", "optimizer", "optimizer"):
            clock.lap(phase)
        clock.finish()
    assert clock.steps() == []
    # The last event of the second step is the eleventh.
    Event.done = 10
    step = {"data": 1.0, "forward": 1.0, "backward": 1.0, "optimizer": 2.0}
    assert clock.steps() == [step]
    Event.done = 16
    assert clock.steps() == [step, step]
    assert clock.steps() == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not forget a peak")
def test_the_peak_of_what_came_before_is_forgotten():
    cpu = torch.device("cpu")
    size = 64 * 2**20
    bytearray(b"1") * size
    before = peak_memory(cpu)
    forget_peak_memory(cpu)
    after = peak_memory(cpu)
    if after == before:
        pytest.skip("the system does not let this process forget its peak")
    assert after < before - size / 2
    held = bytearray(b"1") * size
    assert peak_memory(cpu) > after + size / 2
    assert len(held) == size
