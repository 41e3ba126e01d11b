"""Checkpoints: the best by validation loss and the last, which a run that dies leaves behind as well."""

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

    A run that resumes another one in a directory of its own goes on from that run's best: it writes
    `best.ckpt` only when it gets better; until then the best is the other run's file, which is left alone.

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
        """Take up the best so far, also when it lies in another directory, where the file is still there."""
        if os.path.isfile(state_dict["best_model_path"]):
            super().load_state_dict({**state_dict, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):
    """Keeps `<dirpath>/last.ckpt`: after every validation, every so often, at the end, and when the run dies.

    An exception, SIGTERM or Ctrl-C leaves a last checkpoint behind, of the last complete optimizer step (see
    `ExactResume`, which has to be among the callbacks). When the exception comes out of the optimizer's step
    itself, the weights may be half updated; then the file written before stays. With several processes an
    exception in one of them writes nothing, since it would wait for the others for ever; a signal does.

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
        """Whether the file is there."""
        return os.path.isfile(self.path)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a state that was just read need not be written again."""
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Note that the weights are about to change."""
        self._updating = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when an interval is over."""
        self._updating = False
        loop = trainer.fit_loop
        if loop._should_accumulate():
            return
        if loop.epoch_loop._should_check_val_fx(loop._data_fetcher):  # type: ignore[arg-type]
            # A state of now would be resumed behind the validation, and lose it if the run died in it.
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
        """Save the end of training, where no validation has just done so."""
        self._save(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save the last complete step of a run that dies, and say how to go on."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        signalled = isinstance(exception, KeyboardInterrupt | SystemExit)
        if self._updating:
            rank_zero_warn("the run died while the weights were being updated; they are not saved")
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
        # Lightning writes elsewhere and moves, which is a copy where that is another disk: a run killed
        # during one would be left without any.
        unfinished = f"{self.path}.unfinished"
        trainer.save_checkpoint(unfinished, weights_only=False)
        if trainer.is_global_zero:
            os.replace(unfinished, self.path)
        trainer.strategy.barrier()
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
