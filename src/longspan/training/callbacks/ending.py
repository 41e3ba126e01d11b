"""The end of a run: a final validation, and no lost step when the user interrupts it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl


class FinalValidation(pl.Callback):
    """Validates after the last step, whatever the interval, so that every run ends with a figure."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the trainer at the last step: it validates before it stops."""
        last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        last_epoch = (
            trainer.is_last_batch
            and trainer.max_epochs not in (None, -1)
            and trainer.current_epoch + 1 >= trainer.max_epochs  # type: ignore[operator]
        )
        if last_step or last_epoch:
            trainer.should_stop = True


class GracefulInterrupt(pl.Callback):
    """Ends training between two steps on Ctrl-C, so that the last checkpoint is a complete step.

    The second Ctrl-C interrupts at once, as usual.
    """

    def __init__(self) -> None:
        self._interrupted = False
        self._previous: Any = None
        self._trainer: pl.Trainer | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle SIGINT; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            self._interrupted = False
            self._trainer = trainer
            self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Interrupt here, before the step begins."""
        if self._interrupted:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the handler of SIGINT."""
        self._restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the handler of SIGINT."""
        self._restore()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        assert self._trainer is not None
        self._trainer.print("\nStopping after this step and saving it; press Ctrl-C again to stop at once.")

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = self._trainer = None
