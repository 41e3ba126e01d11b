"""Training on a CUDA device: mixed precision with a fused optimizer and clipping, determinism, resumption."""

import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from longspan.training.callbacks.throughput import Throughput
from longspan.training.optim import AdamW
from longspan.training.performance.peak_rates import device_peak_rate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = {"accelerator": "cuda", "devices": 1}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_runs_are_equal_and_resume_exactly(tmp_path, make_run, same_end, precision):
    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    options = {**CUDA, "precision": precision}
    whole = make_run(tmp_path / "whole", **options).fit()
    same_end(whole, make_run(tmp_path / "again", **options).fit())
    killed = make_run(tmp_path / "killed", callbacks=[Kill()], **options)
    with pytest.raises(SystemExit):
        killed.fit()
    same_end(whole, make_run(tmp_path / "resumed", **options).fit(killed.last))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_clipping_bounds_the_update(tmp_path, make_run, precision):
    """A large eps makes the first step of AdamW lr * gradient / eps, so it shows the norm of the gradient."""
    run = make_run(tmp_path, max_steps=1, precision=precision, gradient_clip_val=1e-3, **CUDA)
    run.module.optimizer_factory = AdamW(lr=1e6, eps=1e6, weight_decay=0.0, fused=True)
    run.module.scheduler_factory = None
    before = run.weights
    run.fit()
    moved = [value.cpu() - before[name] for name, value in run.weights.items()]
    assert float(nn.utils.get_total_norm(moved)) == pytest.approx(1e-3, rel=1e-2)


def test_fused_and_memory(tmp_path, make_run):
    measure = Throughput(skip=1)
    run = make_run(tmp_path, callbacks=[measure], **CUDA).fit()
    assert all(group["fused"] for group in run.trainer.optimizers[0].param_groups)
    assert 0 < float(run.trainer.callback_metrics["train/peak_memory_bytes"]) < 2**28
    assert measure.tokens_per_second > 0
    # The device's own times, read of every step though none was waited for.
    assert len(measure._window) == 11
    assert all(part >= 0 for part in measure.split.values())
    assert 0 < sum(measure.split.values()) < 1.5 * measure.step_seconds
    peak = device_peak_rate(torch.device("cuda", 0), "32-true")
    assert (measure.mfu is None) == (peak is None)
    if peak is not None:
        # The tiny model leaves the device idle.
        assert 0 < measure.mfu == measure.dense_mfu < 0.01


def test_the_times_of_a_step_are_the_devices(tmp_path, make_run):
    """Work that the host does not wait for counts in the phase whose work it is."""

    class Work(pl.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            torch.cuda._sleep(20_000_000)  # clock cycles: 10 ms at 2 GHz

    measure = Throughput(skip=2)
    make_run(tmp_path, callbacks=[Work(), measure], **CUDA).fit()
    assert measure.split["forward"] > 5e-3 > measure.split["backward"]
    assert measure.step_seconds == pytest.approx(sum(measure.split.values()), rel=0.3)
