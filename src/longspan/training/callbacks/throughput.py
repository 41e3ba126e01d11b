"""Speed, memory and cost of a run."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from longspan.analysis.flops import Flops
from longspan.training.performance.peak_rates import device_peak_rate
from longspan.training.performance.step_clock import PHASES, Step, StepClock
from longspan.training.performance.step_flops import StepFlops


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: allocated on a CUDA device, or else resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory` to the present use, where the system can; elsewhere nothing happens."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        # See proc(5): 5 resets the peak of the resident memory to its present size.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


class Throughput(pl.Callback):
    """Logs the speed of a run and its cost so far.

    At each row of the log `train/tokens_per_second`, `train/step_seconds`, `train/peak_memory_bytes`, and of
    that time `train/data_seconds`, `train/forward_seconds`, `train/backward_seconds` and
    `train/optimizer_seconds`. The time of an optimizer step is from the end of one to the end of the next, so
    waiting for data counts and validation does not; on a CUDA device it is the device's time, read without
    waiting for it. The figures are medians over the last `window` steps, of all processes' tokens; the first
    `skip` steps of a process (allocation, compilation) do not count. What a callback does between two steps,
    such as writing a checkpoint, counts as waiting for data.

    At each row and at each validation `cost/tokens`, `cost/seconds`, `cost/flops` and `cost/dense_flops`:
    what the run has taken since it first started, a resumed one before it was interrupted too. Seconds are
    those of training without validation. Floating-point operations are model FLOPs of all processes
    (`longspan.analysis.flops`): of the matrix products of forward and backward, attention counted over the
    pairs that the layers' patterns keep, whatever they are at that step; the head over all positions, or with
    `loss_chunk` over the scored ones. `dense_flops` are the same had every block been kept. Lightning logs
    numbers as float32, to seven digits; `costs` has whole numbers.

    `train/mfu` is the utilisation of model FLOPs (Chowdhery et al. 2022, "PaLM", appendix B): FLOPs a second
    over the dense peak of the devices (`performance/peak_rates.py`), and `train/dense_mfu` the same with
    `dense_flops`: what a dense model as fast as this one would have. Neither is logged on a device whose peak
    is not known. Where a model cannot be counted, the run warns and no FLOPs are logged.

    Args:
        skip: optimizer steps left out at the start.
        window: optimizer steps the logged medians are taken over.

    Raises:
        ValueError: on a negative skip or an empty window.

    """

    def __init__(self, skip: int = 3, window: int = 100) -> None:
        if skip < 0:
            raise ValueError(f"skip must not be negative, got {skip}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.skip = skip
        self._window: deque[_Measured] = deque(maxlen=window)
        # Steps without known times yet, since the device is behind the host.
        self._waiting: deque[tuple[int, Flops | None]] = deque()
        self._clock = StepClock(torch.device("cpu"))
        self._seen = 0
        # Peak rate of all devices together; None if unknown.
        self._peak: float | None = None
        self._counter: StepFlops | None = None
        self._batch: dict[str, Any] = {}
        # Tokens of the current step; FLOPs of the current step, of the last complete step, and of all steps.
        self._tokens = 0
        self._of_step = Flops(0, 0)
        self._last: Flops | None = None
        self._total: Flops | None = Flops(0, 0)
        # Seconds of training until `_running_since`, a time of the host; None while the clock is stopped.
        self._seconds = 0.0
        self._running_since: float | None = None
        self._restored = False

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the window; None before the first counted step."""
        return _median([step.tokens / step.seconds for step in self._window])

    @property
    def step_seconds(self) -> float | None:
        """Seconds of an optimizer step, the median over the window; None before the first counted one."""
        return _median([step.seconds for step in self._window])

    @property
    def split(self) -> dict[str, float | None]:
        """Seconds of each phase of an optimizer step, each the median over the window."""
        return {phase: _median([step.phases[phase] for step in self._window]) for phase in PHASES}

    @property
    def mfu(self) -> float | None:
        """Utilisation of model FLOPs, the median over the window; None on an unknown device."""
        return self._utilisation("total")

    @property
    def dense_mfu(self) -> float | None:
        """Utilisation if every block were kept in the same time, the median over the window."""
        return self._utilisation("dense")

    def costs(self) -> dict[str, Any]:
        """Return the cost of the run in the form of result.json: see `longspan.training.reports.figures`."""
        total, last = self._total, self._last
        return {
            "flops": None if total is None else total.total,
            "dense_flops": None if total is None else total.dense,
            "flops_per_step": None if last is None else last.total,
            "dense_flops_per_step": None if last is None else last.dense,
            "mfu": self.mfu,
            "dense_mfu": self.dense_mfu,
            "seconds": self.seconds,
            "split": self.split,
        }

    @property
    def seconds(self) -> float:
        """Wall time of training since the first start of the run, without validation."""
        running = 0.0 if self._running_since is None else time.perf_counter() - self._running_since
        return self._seconds + running

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock and reset the peak of memory."""
        device = pl_module.device
        forget_peak_memory(device)
        if trainer.global_step and not self._restored:
            rank_zero_warn(
                "the checkpoint does not say what its run has cost: seconds and floating-point operations "
                "are counted from here on"
            )
        peak = device_peak_rate(device, str(trainer.precision))
        self._peak = None if peak is None else peak * trainer.world_size
        self._count_with(pl_module.model)
        self._clock = StepClock(device)
        self._waiting.clear()
        self._resume()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock: validation is no part of a step."""
        if self._running_since is not None:
            self._pause(pl_module.device)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the costs with the figures of the validation."""
        if not trainer.sanity_checking:
            self._log_costs(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._resume()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End the phase of waiting for data."""
        self._clock.lap("data")
        self._batch = batch

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor
    ) -> None:
        """End the phase of the forward."""
        self._clock.lap("forward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the phase of the backward, and count the operations of the batch."""
        self._clock.lap("backward")
        batch_size, seq_len = self._batch["input_ids"].shape
        self._tokens += batch_size * seq_len * trainer.world_size
        if self._counter is not None:
            try:
                flops = self._counter(batch_size, seq_len, getattr(pl_module, "scored_positions", None))
                self._of_step = _add(self._of_step, flops, trainer.world_size)
            except ValueError as error:
                self._cannot_count(error)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Add the step to the costs, at the moment at which the module counts its tokens."""
        if self._total is not None:
            self._total, self._last = _add(self._total, self._of_step), self._of_step
        self._waiting.append((self._tokens, self._last))
        self._of_step, self._tokens = Flops(0, 0), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step if the batch ended it, and log."""
        self._clock.lap("optimizer")
        if not trainer.fit_loop._should_accumulate():
            self._clock.finish()
        self._measure()
        # The median of the window is needed only where it is written.
        if trainer._logger_connector.should_update_logs:
            self._log_costs(trainer, pl_module)
            self._log_speed(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the device, and read the times of the last steps."""
        if self._running_since is not None:
            self._pause(pl_module.device)
        self._measure()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop the clock."""
        self._seconds, self._running_since = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        """Return the cost of the run for a checkpoint; an incomplete step counts only in the seconds."""
        total = self._total
        return {
            "seconds": self.seconds,
            "flops": None if total is None else total.total,
            "dense_flops": None if total is None else total.dense,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts of a checkpoint."""
        self._restored = True
        self._seconds = state_dict["seconds"]
        counted = state_dict["flops"] is not None
        self._total = Flops(state_dict["flops"], state_dict["dense_flops"]) if counted else None

    def _count_with(self, model: Any) -> None:
        self._of_step, self._tokens, self._last = Flops(0, 0), 0, None
        self._counter = None
        if self._total is not None:
            try:
                self._counter = StepFlops(model)
            except ValueError as error:
                self._cannot_count(error)

    def _cannot_count(self, error: ValueError) -> None:
        rank_zero_warn(f"the floating-point operations of this run are not counted: {error}")
        self._counter = self._total = self._last = None

    def _resume(self) -> None:
        self._clock.start()
        self._running_since = time.perf_counter()

    def _pause(self, device: torch.device) -> None:
        if device.type == "cuda":
            # The device's remaining work of training must not count as validation.
            torch.cuda.synchronize(device)
        self._seconds, self._running_since = self.seconds, None

    def _measure(self) -> None:
        for phases in self._clock.steps():
            tokens, flops = self._waiting.popleft()
            self._seen += 1
            if self._seen > self.skip:
                self._window.append(_Measured(tokens, sum(phases.values()), phases, flops))

    def _log_costs(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        tokens = getattr(pl_module, "tokens_seen", None)
        figures = {
            "seconds": self.seconds,
            "tokens": None if tokens is None else float(tokens + self._tokens),
        }
        if self._total is not None:
            so_far = _add(self._total, self._of_step)
            figures |= {"flops": float(so_far.total), "dense_flops": float(so_far.dense)}
        # Of this process, as in the rows of training: no mean over processes, and no warning of Lightning's.
        several = not trainer.training and trainer.world_size > 1
        _log(pl_module, "cost", figures, sync_dist=several, rank_zero_only=several)

    def _log_speed(self, pl_module: pl.LightningModule) -> None:
        if not self._window:
            return
        figures: dict[str, float | None] = {
            "tokens_per_second": self.tokens_per_second,
            "step_seconds": self.step_seconds,
            "peak_memory_bytes": float(peak_memory(pl_module.device)),
            **{f"{phase}_seconds": seconds for phase, seconds in self.split.items()},
            "mfu": self.mfu,
            "dense_mfu": self.dense_mfu,
        }
        _log(pl_module, "train", figures)

    def _utilisation(self, kind: str) -> float | None:
        if self._peak is None:
            return None
        counted = [(step.flops, step.seconds) for step in self._window if step.flops is not None]
        return _median([getattr(flops, kind) / seconds / self._peak for flops, seconds in counted])


@dataclass(frozen=True)
class _Measured:
    """An optimizer step: tokens of all processes, seconds, those of each phase, FLOPs if counted."""

    tokens: int
    seconds: float
    phases: Step
    flops: Flops | None


def _add(left: Flops, right: Flops, times: int = 1) -> Flops:
    return Flops(left.total + times * right.total, left.dense + times * right.dense)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _log(
    pl_module: pl.LightningModule, group: str, figures: Mapping[str, float | None], **options: Any
) -> None:
    """Log the figures that are not None."""
    for name, value in figures.items():
        if value is not None:
            pl_module.log(f"{group}/{name}", value, batch_size=1, **options)
