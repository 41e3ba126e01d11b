import os

import lightning.pytorch as pl
import pytest
import torch

from longspan.training.callbacks.checkpoint import LastCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


def test_best_and_last(tmp_path, make_run):
    losses = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            losses.append((float(trainer.callback_metrics["val/loss"]), trainer.global_step))

    run = make_run(tmp_path, callbacks=[Watch()], max_steps=12, val_check_interval=3).fit()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["best.ckpt", "last.ckpt"]
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    last = torch.load(run.last, weights_only=True)
    assert [step for _, step in losses] == [3, 6, 9, 12]
    assert best["global_step"] == min(losses)[1]
    assert last["global_step"] == 12
    assert last["tokens_seen"] == 12 * 16
    assert run.trainer.checkpoint_callback.best_model_score == pytest.approx(min(losses)[0])


def test_the_last_step_is_validated_whatever_the_interval(tmp_path, make_run):
    run = make_run(tmp_path, max_steps=4, val_check_interval=1000).fit()
    assert run.val_loss > 0
    assert os.path.exists(run.last)


def test_by_steps(tmp_path, make_run):
    written = []

    class Watch(LastCheckpoint):
        def _save(self, trainer, again=False):
            super()._save(trainer, again)
            written.append(torch.load(self.path, weights_only=True)["global_step"])

    callback = Watch(str(tmp_path), every_n_train_steps=2)
    make_run(tmp_path, callbacks=[callback], checkpoints=False, max_steps=6, limit_val_batches=0).fit()
    assert written == [2, 4, 6, 6]


def test_a_step_that_is_validated_is_saved_behind_its_validation(tmp_path, make_run):
    """A run that is killed while it validates goes on in front of the validation, which it makes again."""
    steps = []

    class Watch(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            file = tmp_path / "last.ckpt"
            steps.append(torch.load(file, weights_only=True)["global_step"] if file.exists() else 0)

    last = LastCheckpoint(str(tmp_path), every_n_train_steps=1)
    make_run(tmp_path, callbacks=[last, Watch()], checkpoints=False, max_steps=5, val_check_interval=2).fit()
    assert steps == [1, 3, 4]


def test_a_checkpoint_stays_until_the_next_one_is_whole(tmp_path, make_run, monkeypatch):
    run = make_run(tmp_path, max_steps=3, val_check_interval=2)
    save = pl.Trainer.save_checkpoint

    def save_half(trainer, path, *arguments, **named):
        if trainer.global_step == 3:
            with open(path, "wb") as file:
                file.write(b"half of it")
            raise OSError("the disk is full")
        save(trainer, path, *arguments, **named)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save_half)
    with pytest.raises(OSError, match="the disk is full"):
        run.fit()
    assert torch.load(run.last, weights_only=True)["global_step"] == 2


def test_a_run_without_validation_leaves_its_end(tmp_path, make_run):
    run = make_run(tmp_path, max_steps=3, limit_val_batches=0)
    run.fit()
    assert torch.load(run.last, weights_only=True)["global_step"] == 3


def test_nothing_trained_writes_nothing(tmp_path, make_run):
    run = make_run(tmp_path)
    run.model.fail_at = 1
    with pytest.raises(RuntimeError, match="on purpose"):
        run.fit()
    assert not os.path.exists(run.last)


def test_a_torn_update_is_not_saved(tmp_path, make_run):
    run = make_run(tmp_path, val_check_interval=3)
    step = torch.optim.AdamW.step

    def break_in_step(self, closure=None):
        result = step(self, closure)
        if run.trainer.global_step == 4:
            raise RuntimeError("broken in the update")
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", break_in_step)
        with (
            pytest.warns(UserWarning, match="weights were being updated"),
            pytest.raises(RuntimeError, match="broken in the update"),
        ):
            run.fit()
    assert torch.load(run.last, weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("argument", ["every_n_train_steps", "every_n_minutes"])
def test_refuses(argument):
    with pytest.raises(ValueError, match=argument):
        LastCheckpoint("somewhere", **{argument: -1})
