"""The progress of a run: a bar in a terminal, a line at intervals in a log file."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, Timer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from longspan.console import format_duration
from longspan.training.callbacks.budget import SecondsBudget
from longspan.training.callbacks.throughput import Throughput
from longspan.training.horizon import total_steps


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


class TrainingProgress(ProgressBar):
    """Shows steps, loss, tokens a second and the time left.

    In a terminal it is one bar over the whole run, redrawn twice a second. Elsewhere it is a plain line every
    `plain_seconds` and one at the end, so that a log file stays readable.

    Args:
        plain_seconds: the least time between two lines if there is no terminal.
        console: where to draw; standard output by default.

    Raises:
        ValueError: on a negative time.

    """

    def __init__(self, plain_seconds: float = 15.0, console: Console | None = None) -> None:
        if plain_seconds < 0:
            raise ValueError(f"plain_seconds must not be negative, got {plain_seconds}")
        super().__init__()
        self.plain_seconds = plain_seconds
        self._console = console or Console(soft_wrap=True)
        self._enabled = True
        self._bar: Progress | None = None
        self._started = self._shown = 0.0
        self._first_step = 0
        self._total: int | None = None

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing: Lightning calls this in every process but the first."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line without disturbing the bar."""
        self._console.print(*args, markup=False, highlight=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self._started = self._shown = time.monotonic()
        self._first_step = trainer.global_step
        self._total = total_steps(trainer)
        if self._enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                refresh_per_second=2,
                expand=True,
            )
            self._bar.start()
            self._bar.add_task("training", total=self._total, completed=self._first_step, figures="")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show that the run is validating."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show that the run is training."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="training")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the state at intervals: reading the loss waits for the device."""
        every = 0.5 if self._bar is not None else self.plain_seconds
        if self._enabled and time.monotonic() - self._shown >= every:
            self._show(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last state and close the bar."""
        if self._enabled:
            self._show(trainer)
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the error is printed below it."""
        self._close()

    def figures(self, trainer: pl.Trainer) -> str:
        """Return step, losses, tokens a second and time left as a line of text."""
        step = trainer.global_step
        parts = [f"step {step:,}" if self._total is None else f"step {step:,}/{self._total:,}"]
        metrics = trainer.progress_bar_metrics
        for key, name in (("train/loss", "loss"), ("val/loss", "val loss")):
            if key in metrics:
                parts.append(f"{name} {metrics[key]:.4f}")
        speed = next((c.tokens_per_second for c in _callbacks(trainer) if isinstance(c, Throughput)), None)
        if speed is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        left = self.seconds_left(trainer)
        if left is not None:
            parts.append(f"{format_duration(left)} left")
        return "  ".join(parts)

    def seconds_left(self, trainer: pl.Trainer) -> float | None:
        """Return the time left by the speed of the steps so far, or by the time limit if that is less."""
        limits = []
        done = trainer.global_step - self._first_step
        if self._total is not None and done > 0:
            per_step = (time.monotonic() - self._started) / done
            limits.append(max(0, self._total - trainer.global_step) * per_step)
        timers = [
            callback.time_remaining()
            for callback in _callbacks(trainer)
            if isinstance(callback, Timer | SecondsBudget)
        ]
        limits += [max(0.0, remaining) for remaining in timers if remaining is not None]
        return min(limits, default=None)

    def _show(self, trainer: pl.Trainer) -> None:
        self._shown = time.monotonic()
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=trainer.global_step, figures=self.figures(trainer)
            )
        else:
            self.print(self.figures(trainer))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
