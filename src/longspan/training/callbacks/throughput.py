"""How fast a run trains and how much memory it takes."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import deque
from typing import Any

import lightning.pytorch as pl
import torch


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: allocated on a CUDA device, or else resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return peak if sys.platform == "darwin" else peak * 1024


class Throughput(pl.Callback):
    """Logs `train/tokens_per_second`, `train/step_seconds` and `train/peak_memory_bytes`.

    The time of a step is from the end of one batch to the end of the next, so waiting for data counts and
    validation does not. The figures are medians over the last `window` steps, of all processes' tokens; the
    first `skip` steps of a process (allocation, compilation) do not count.

    Args:
        skip: steps left out at the start.
        window: steps the logged medians are taken over.

    Raises:
        ValueError: on a negative skip or an empty window.

    """

    def __init__(self, skip: int = 3, window: int = 100) -> None:
        if skip < 0:
            raise ValueError(f"skip must not be negative, got {skip}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.skip = skip
        self._seconds: deque[float] = deque(maxlen=window)
        self._rates: deque[float] = deque(maxlen=window)
        self._seen = 0
        self._mark: float | None = None
        self._tokens = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the window; None before the first counted step."""
        return statistics.median(self._rates) if self._rates else None

    @property
    def step_seconds(self) -> float | None:
        """Median over the window; None before the first counted step."""
        return statistics.median(self._seconds) if self._seconds else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock and forget the peak of what came before."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._mark = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again: validation is no part of a step."""
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time of a step, and log."""
        now = time.perf_counter()
        self._seen += 1
        if self._mark is not None and self._seen > self.skip:
            seconds = now - self._mark
            tokens = batch["input_ids"].numel() * trainer.world_size
            self._seconds.append(seconds)
            self._rates.append(tokens / seconds)
        self._mark = now
        # The median of a window need not be taken more often than it is written.
        if self._rates and trainer._logger_connector.should_update_logs:
            assert self.tokens_per_second is not None
            assert self.step_seconds is not None
            pl_module.log("train/tokens_per_second", self.tokens_per_second, batch_size=1)
            pl_module.log("train/step_seconds", self.step_seconds, batch_size=1)
            pl_module.log("train/peak_memory_bytes", float(peak_memory(pl_module.device)), batch_size=1)
