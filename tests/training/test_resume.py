"""An interrupted and resumed run is the uninterrupted one, to the bit."""

import os
import signal

import lightning.pytorch as pl
import pytest
import torch

from longspan.training.checkpoints import resolve_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


class At(pl.Callback):
    """Calls `action` after `step` optimizer steps."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            self.step = -1
            self.action(trainer)


def stop_by(signum):
    return lambda trainer: os.kill(os.getpid(), signum)


@pytest.mark.parametrize("stream", [False, True], ids=["epochs", "stream"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("call", [2, 6, 11])
def test_exception_inside_a_step(tmp_path, make_run, make_data, same_end, stream, accumulate, call):
    # Call 6 follows a validation, call 11 the end of an epoch.
    options = {"accumulate_grad_batches": accumulate, "max_steps": 16 // accumulate}
    whole = make_run(tmp_path / "whole", make_data(stream), **options).fit()
    broken = make_run(tmp_path / "broken", make_data(stream), **options)
    broken.model.fail_at = call
    with pytest.raises(RuntimeError, match="broken on purpose"):
        broken.fit()
    complete = (call - 1) // accumulate
    if complete == 0:
        assert not os.path.exists(broken.last)
        return
    resumed = make_run(tmp_path / "resumed", make_data(stream), **options).fit(broken.last)
    assert len(broken.model.seen) + len(resumed.model.seen) == 16 + (call - 1) % accumulate
    same_end(whole, resumed)


@pytest.mark.parametrize("stream", [False, True], ids=["epochs", "stream"])
@pytest.mark.parametrize("step", [1, 5, 9, 10])
def test_sigterm(tmp_path, make_run, make_data, same_end, stream, step):
    whole = make_run(tmp_path / "whole", make_data(stream)).fit()
    killed = make_run(tmp_path / "killed", make_data(stream), [At(step, stop_by(signal.SIGTERM))])
    with pytest.raises(SystemExit):
        killed.fit()
    assert killed.trainer.global_step == step
    resumed = make_run(tmp_path / "resumed", make_data(stream)).fit(killed.last)
    same_end(whole, resumed)


def test_sigterm_inside_an_accumulation(tmp_path, make_run, same_end):
    class AtBatch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    options = {"accumulate_grad_batches": 4, "max_steps": 4}
    whole = make_run(tmp_path / "whole", **options).fit()
    killed = make_run(tmp_path / "killed", callbacks=[AtBatch()], **options)
    with pytest.raises(SystemExit):
        killed.fit()
    same_end(whole, make_run(tmp_path / "resumed", **options).fit(killed.last))


@pytest.mark.parametrize("step", [3, 5])
def test_ctrl_c_ends_after_the_step(tmp_path, make_run, same_end, step):
    before = signal.getsignal(signal.SIGINT)
    whole = make_run(tmp_path / "whole").fit()
    stopped = make_run(tmp_path / "stopped", callbacks=[At(step, stop_by(signal.SIGINT))])
    try:
        with pytest.raises(SystemExit):
            stopped.fit()
    finally:
        # Lightning ignores SIGINT from then on.
        signal.signal(signal.SIGINT, before)
    assert stopped.trainer.global_step == step
    same_end(whole, make_run(tmp_path / "resumed").fit(stopped.last))


def test_with_workers(tmp_path, make_run, make_data, same_end):
    whole = make_run(tmp_path / "whole", make_data(workers=1)).fit()
    killed = make_run(tmp_path / "killed", make_data(workers=1), [At(7, stop_by(signal.SIGTERM))])
    with pytest.raises(SystemExit):
        killed.fit()
    same_end(whole, make_run(tmp_path / "resumed", make_data(workers=1)).fit(killed.last))


@pytest.mark.parametrize("stream", [False, True], ids=["epochs", "stream"])
def test_a_finished_run_goes_on(tmp_path, make_run, make_data, stream):
    from longspan.training.module import LongspanModule
    from longspan.training.optim import AdamW, Constant

    def constant(run):
        run.module = LongspanModule(run.model, run.module.objective, AdamW(lr=1e-2), Constant())
        return run

    short = constant(make_run(tmp_path / "short", make_data(stream), max_steps=8)).fit()
    longer = constant(make_run(tmp_path / "longer", make_data(stream), max_steps=14)).fit(short.last)
    whole = constant(make_run(tmp_path / "whole", make_data(stream), max_steps=14)).fit()
    assert longer.trainer.global_step == 14
    for name, value in whole.weights.items():
        assert torch.equal(value, longer.weights[name]), name
    assert whole.val_loss == longer.val_loss
    assert longer.module.tokens_seen == whole.module.tokens_seen


def test_a_stream_that_ends(tmp_path, make_run, make_data, same_end):
    def data():
        return make_data(stream=True, stream_end=10)

    whole = make_run(tmp_path / "whole", data()).fit()
    killed = make_run(tmp_path / "killed", data(), [At(7, stop_by(signal.SIGTERM))])
    with pytest.raises(SystemExit):
        killed.fit()
    same_end(whole, make_run(tmp_path / "resumed", data()).fit(killed.last))


def test_best_is_kept_over_a_resumption(tmp_path, make_run, make_data):
    killed = make_run(tmp_path / "killed", callbacks=[At(6, stop_by(signal.SIGTERM))])
    with pytest.raises(SystemExit):
        killed.fit()
    state = torch.load(killed.last, weights_only=True)
    key = next(key for key in state["callbacks"] if key.startswith("BestCheckpoint"))
    # As if the best had been out of reach.
    state["callbacks"][key]["best_k_models"] = {
        str(killed.directory / "checkpoints" / "best.ckpt"): torch.tensor(0.0)
    }
    state["callbacks"][key]["best_model_score"] = torch.tensor(0.0)
    torch.save(state, killed.last)
    resumed = make_run(tmp_path / "resumed").fit(killed.last)
    assert resumed.trainer.checkpoint_callback.best_model_path == str(
        tmp_path / "killed/checkpoints/best.ckpt"
    )
    assert os.path.exists(tmp_path / "killed/checkpoints/best.ckpt")
    assert not os.path.exists(tmp_path / "resumed/checkpoints/best.ckpt")


def test_validation_does_not_change_training(tmp_path, make_run):
    often = make_run(tmp_path / "often", val_check_interval=2).fit()
    seldom = make_run(tmp_path / "seldom", val_check_interval=100).fit()
    for name, value in often.weights.items():
        assert torch.equal(value, seldom.weights[name]), name


def test_resolve_checkpoint(tmp_path):
    root = tmp_path / "runs"
    with pytest.raises(FileNotFoundError, match=r"ckpt_path=last.*train first"):
        resolve_checkpoint("last", root / "new", root)
    for number, name in enumerate(["old", "newer"]):
        path = root / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, (number, number))
    assert resolve_checkpoint(None, root / "new", root) is None
    assert resolve_checkpoint("last", root / "new", root) == root / "newer/checkpoints/last.ckpt"
    assert resolve_checkpoint("last", root / "old", root) == root / "old/checkpoints/last.ckpt"
    assert resolve_checkpoint(str(root / "old"), root / "new", root) == root / "old/checkpoints/last.ckpt"
    # A folder of runs is no place to search all the folders below.
    with pytest.raises(FileNotFoundError, match=r"ckpt_path=last.*train first"):
        resolve_checkpoint("last", tmp_path / "new", tmp_path)
    with pytest.raises(FileNotFoundError, match="ckpt_path=best"):
        resolve_checkpoint("best", root / "new", root)
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.ckpt"):
        resolve_checkpoint("nowhere.ckpt", root / "new", root)
