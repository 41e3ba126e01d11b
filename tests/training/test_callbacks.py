import io
import itertools
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
from rich.console import Console

from longspan.console import format_duration
from longspan.training.callbacks import throughput
from longspan.training.callbacks.progress import TrainingProgress
from longspan.training.callbacks.throughput import Throughput
from longspan.training.fitting import fit
from longspan.training.resuming import Checkpoint
from longspan.training.trainer import make_trainer


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_clock(seconds, text):
    assert format_duration(seconds) == text


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, soft_wrap=not terminal)


def test_progress_in_a_log_file(tmp_path, make_run):
    output = console(terminal=False)
    bar = TrainingProgress(plain_seconds=3600, console=output)
    make_run(tmp_path, callbacks=[Throughput(skip=1), bar]).fit()
    lines = output.file.getvalue().splitlines()
    assert len(lines) == 1
    pattern = r"step 12/12  loss \d\.\d{4}  val loss \d\.\d{4}  [\d,]+ tokens/s  0:00 left"
    assert re.fullmatch(pattern, lines[0]), lines[0]


def test_progress_lines_by_time(tmp_path, make_run):
    output = console(terminal=False)
    make_run(tmp_path, callbacks=[TrainingProgress(plain_seconds=0, console=output)], max_steps=3).fit()
    steps = [line.split("  ")[0] for line in output.file.getvalue().splitlines()]
    assert steps == ["step 1/3", "step 2/3", "step 3/3", "step 3/3"]


def test_progress_in_a_terminal(tmp_path, make_run):
    output = console(terminal=True)
    make_run(tmp_path, callbacks=[TrainingProgress(console=output)]).fit()
    drawn = output.file.getvalue()
    assert "step 12/12" in drawn
    assert "\x1b" in drawn


def test_progress_is_closed_by_an_error(tmp_path, make_run):
    bar = TrainingProgress(console=console(terminal=True))
    run = make_run(tmp_path, callbacks=[bar])
    run.model.fail_at = 3
    with pytest.raises(RuntimeError, match="on purpose"):
        run.fit()
    assert bar._bar is None


def test_throughput_is_a_median_that_leaves_out_validation(tmp_path, make_run, monkeypatch):
    # A clock that the steps of a run turn: 2 s a step, a slow first one, an outlier, an hour of validation.
    durations = itertools.chain([50.0], itertools.repeat(2.0))
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])

    class Work(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            now[0] += 500.0 if trainer.global_step == 4 else next(durations)

        def on_validation_start(self, trainer, pl_module):
            now[0] += 3600.0

    measure = Throughput(skip=1)
    run = make_run(tmp_path, callbacks=[Work(), measure], val_check_interval=2, max_steps=8).fit()
    assert measure.step_seconds == 2.0
    assert measure.tokens_per_second == 16 / 2.0
    logged = run.trainer.callback_metrics
    assert float(logged["train/tokens_per_second"]) == 8.0
    assert float(logged["train/step_seconds"]) == 2.0
    assert float(logged["train/peak_memory_bytes"]) > 2**20


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(Throughput, {"skip": -1}), (Throughput, {"window": 0}), (TrainingProgress, {"plain_seconds": -1})],
)
def test_refuses(kind, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        kind(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_steps": 0},
        {"max_steps": -2},
        {"val_check_interval": 0},
        {"accumulate_grad_batches": 0},
        {"log_every_n_steps": 0},
    ],
)
def test_trainer_refuses(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make_trainer(str(tmp_path), **arguments)


def test_something_must_end_a_run(tmp_path):
    with pytest.raises(ValueError, match="nothing ends this run"):
        make_trainer(str(tmp_path), max_steps=-1)


def test_bounded_by_time(tmp_path, make_run):
    from longspan.training.module import LongspanModule
    from longspan.training.optim import AdamW, Constant

    run = make_run(tmp_path, max_steps=-1, max_time="00:00:00:01", val_check_interval=10**6)
    run.module = LongspanModule(run.model, run.module.objective, AdamW(), Constant())
    run.fit()
    assert run.trainer.global_step > 0
    assert run.val_loss > 0


def test_bounded_by_epochs(tmp_path, make_run):
    run = make_run(tmp_path, max_steps=-1, max_epochs=2, val_check_interval=10**6).fit()
    assert run.trainer.global_step == 20
    assert run.val_loss > 0


def test_a_finished_run_is_validated_again(tmp_path, make_run):
    first = make_run(tmp_path / "first").fit()
    last = Path(first.last)
    other = make_run(tmp_path / "other")
    assert fit(other, Checkpoint(last, 12)) is None
    assert "val/loss" not in other.trainer.callback_metrics
    again = make_run(tmp_path / "again")
    assert fit(again, Checkpoint(last, 12, of_this_run=True)) is None
    assert again.trainer.global_step == 12
    assert again.val_loss == first.val_loss
