"""Checkpoints: the best by validation loss, and the last, which a run that fails writes too."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn


class BestCheckpoint(ModelCheckpoint):
    """Keeps `<dirpath>/best.ckpt`, the state with the lowest `monitor` at a validation.

    A run that resumes from another directory starts with the best of that run: it writes `best.ckpt` only
    when it gets better. Until then the best is the other run's file, which is left as it is.

    Args:
        dirpath: where the file lies.
        monitor: the metric, lower is better.
        filename: its name without `.ckpt`.

    """

    def __init__(self, dirpath: str, monitor: str = "val/loss", filename: str = "best") -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode="min",
            save_top_k=1,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best so far, also from another directory, if the file still exists."""
        if os.path.isfile(state_dict["best_model_path"]):
            super().load_state_dict({**state_dict, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):
    """Keeps `<dirpath>/last.ckpt`: after every validation, at intervals, at the end, and when the run fails.

    An exception, SIGTERM or Ctrl-C leaves a last checkpoint of the last complete optimizer step (see
    `ExactResume`, which has to be among the callbacks). If the exception comes from the optimizer's step, the
    weights may be half updated; then the earlier file stays. With several processes an exception in one of
    them writes nothing, since it would wait for the others for ever; a signal does.

    Args:
        dirpath: where the file lies.
        filename: its name without `.ckpt`.
        every_n_train_steps: also after this many optimizer steps; 0 for never.
        every_n_minutes: also when the last one is this old; 0 for never.

    Raises:
        ValueError: on a negative interval.

    """

    def __init__(
        self,
        dirpath: str,
        filename: str = "last",
        every_n_train_steps: int = 0,
        every_n_minutes: float = 10.0,
    ) -> None:
        if every_n_train_steps < 0:
            raise ValueError(f"every_n_train_steps must not be negative, got {every_n_train_steps}")
        if every_n_minutes < 0:
            raise ValueError(f"every_n_minutes must not be negative, got {every_n_minutes}")
        super().__init__()
        self.path = str(Path(dirpath) / f"{filename}.ckpt")
        self.every_n_train_steps = every_n_train_steps
        self.every_n_minutes = every_n_minutes
        self._saved_step = 0
        self._saved_at = 0.0
        self._updating = False

    @property
    def written(self) -> bool:
        """Whether the file exists."""
        return os.path.isfile(self.path)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a state that was just loaded need not be written again."""
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Record that the weights are about to change."""
        self._updating = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the end of an interval."""
        self._updating = False
        loop = trainer.fit_loop
        if loop._should_accumulate():
            return
        if loop.epoch_loop._should_check_val_fx(loop._data_fetcher):  # type: ignore[arg-type]
            # A run that resumes from a checkpoint of this moment would skip the validation that follows.
            return
        due = self.every_n_train_steps and trainer.global_step % self.every_n_train_steps == 0
        if not due and self.every_n_minutes:
            due = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
            due = trainer.strategy.broadcast(due)
        if due:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after a validation of training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer, again=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of training, unless a validation has just done so."""
        self._save(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save the last complete step of a run that fails, and print how to resume."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        signalled = isinstance(exception, KeyboardInterrupt | SystemExit)
        if self._updating:
            rank_zero_warn("the run failed while the weights were being updated; they are not saved")
        elif trainer.world_size == 1 or signalled:
            self._save(trainer)
        if self.written:
            trainer.print(f"Resume with ckpt_path={self.path}")

    def _save(self, trainer: pl.Trainer, again: bool = False) -> None:
        """Write the file, unless nothing was trained since it was last written (`again`: even then)."""
        if trainer.global_step == 0:
            return
        if trainer.global_step == self._saved_step and not again:
            return
        # Lightning writes a temporary file and moves it, which copies if it is on another disk: a run killed
        # during the copy would have no checkpoint.
        unfinished = f"{self.path}.unfinished"
        trainer.save_checkpoint(unfinished, weights_only=False)
        if trainer.is_global_zero:
            os.replace(unfinished, self.path)
        trainer.strategy.barrier()
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
