"""A budget: how much a run may use, in tokens, in floating-point operations or in seconds.

Runs that are compared have the same one. Tokens and operations are turned into optimizer steps before
training starts, so that such a run is, to the bit, one of so many `trainer.max_steps`, and the learning-rate
schedule runs over them. Seconds cannot be: there the schedule follows the share of the time that is used up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from longspan.analysis.flops import layouts_of, training_flops
from longspan.training.callbacks.throughput import Throughput

# The steps of a schedule that follows time: so many parts the time is divided into.
TICKS = 10**6


class Budget(pl.Callback, ABC):
    """What a run may use; it ends the training there, or earlier, where something else does."""

    # The name of what is counted, as a budget's file and argument are called.
    unit: ClassVar[str]

    def __init__(self, limit: float) -> None:
        if not 0 < limit < float("inf"):
            raise ValueError(f"{self.unit} must be positive and finite, got {limit}")
        self.limit = limit

    @abstractmethod
    def plan(self, trainer: pl.Trainer, pl_module: Any, seq_len: int, batch_size: int) -> None:
        """Bound the trainer; call it once, before training, with the length and size of a batch.

        Raises:
            ValueError: the budget is not enough for a step, or does not go together with the run.

        """

    @abstractmethod
    def used(self, trainer: pl.Trainer, pl_module: Any) -> float | None:
        """Return how much the run has used since its first start; None where it is not known."""

    @abstractmethod
    def is_spent(self, step: int, seconds: float, max_steps: int) -> bool:
        """Say whether a run that resumes has nothing left of this budget.

        Args:
            step: the optimizer steps that it has behind it.
            seconds: of training that it has behind it.
            max_steps: the steps at which the trainer ends, once `plan` has bounded it; -1: no limit.

        """

    def to_dict(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        """Return `unit`, `limit` and `used`, as result.json has them."""
        return {"unit": self.unit, "limit": self.limit, "used": self.used(trainer, pl_module)}

    def __str__(self) -> str:
        return f"{self.limit:,.6g} {self.unit}" if self.limit >= 1e15 else f"{self.limit:,.10g} {self.unit}"


class _StepBudget(Budget):
    """A budget of something of which every step takes the same."""

    def plan(self, trainer: pl.Trainer, pl_module: Any, seq_len: int, batch_size: int) -> None:
        per_step = trainer.accumulate_grad_batches * trainer.world_size
        per_step *= self._of_batch(pl_module, seq_len, batch_size)
        steps = int(self.limit // per_step)
        if steps < 1:
            raise ValueError(
                f"{self.unit}={self.limit:.10g} is less than the {per_step:,} that an optimizer step takes"
            )
        self.per_step = per_step
        if trainer.max_steps != -1:
            steps = min(steps, trainer.max_steps)
        trainer.fit_loop.epoch_loop.max_steps = steps

    @abstractmethod
    def _of_batch(self, pl_module: Any, seq_len: int, batch_size: int) -> int:
        """What a batch of one process takes."""

    def is_spent(self, step: int, seconds: float, max_steps: int) -> bool:
        """Say whether the steps are over that the budget was turned into."""
        return step >= max_steps


class TokenBudget(_StepBudget):
    """Ends a run after as many whole optimizer steps as so many input tokens are enough for.

    Args:
        tokens: of all processes, validation not among them; at least those of a step.

    Raises:
        ValueError: not positive and finite.

    """

    unit = "tokens"

    def __init__(self, tokens: float) -> None:
        super().__init__(tokens)

    def _of_batch(self, pl_module: Any, seq_len: int, batch_size: int) -> int:
        return seq_len * batch_size

    def used(self, trainer: pl.Trainer, pl_module: Any) -> float | None:
        """Return the input tokens of all steps."""
        return pl_module.tokens_seen


class FlopBudget(_StepBudget):
    """Ends a run after as many whole optimizer steps as so many floating-point operations are enough for.

    Operations are model FLOPs of forward and backward (`longspan.analysis.flops`), of all processes,
    attention counted over the pairs that the patterns keep: a sparser pattern gets more steps for the same
    budget. What a step takes is counted once, before training, under the patterns that the layers have then;
    where the run's own count (`cost/flops`) comes to something else, since patterns change while it trains, a
    warning at the end says so. Under a masked objective with `loss_chunk`, whose head runs on the chosen
    positions alone, a step counts as if as many were chosen as are on average.

    Args:
        flops: floating-point operations; at least those of a step.

    Raises:
        ValueError: not positive and finite.

    """

    unit = "flops"
    # By how much the run's own count may differ before it is worth a word: chosen positions are drawn.
    _tolerance = 0.01

    def __init__(self, flops: float) -> None:
        super().__init__(flops)

    def _of_batch(self, pl_module: Any, seq_len: int, batch_size: int) -> int:
        chunked = pl_module.loss_chunk is not None
        scored = pl_module.objective.scored_share if chunked else 1.0
        model = pl_module.model
        return training_flops(model, layouts_of(model, seq_len), seq_len, batch_size, scored).total

    def used(self, trainer: pl.Trainer, pl_module: Any) -> float | None:
        """Return the operations that were counted while training; None without `Throughput`."""
        throughput = find_throughput(trainer)
        return None if throughput is None else throughput.costs()["flops"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold what was planned against what was counted."""
        used, planned = self.used(trainer, pl_module), self.per_step * trainer.global_step
        if used is not None and abs(used - planned) > self._tolerance * planned:
            rank_zero_warn(
                f"the budget took a step for {self.per_step:,} floating-point operations, those of its first "
                f"patterns, and {trainer.global_step:,} steps for {planned:,}; counted were {used:,}"
            )


class SecondsBudget(Budget):
    """Ends a run with the first optimizer step that ends after so many seconds of training.

    The seconds are those of `cost/seconds` (`Throughput`, which has to be among the callbacks): wall time of
    training since the run's first start, validation not counted, compilation and waiting for data counted. A
    checkpoint holds them, and a resumed run goes on from there. Two such runs are not equal to the bit.

    The learning-rate schedule follows the share of the time that was used when a step began to change the
    weights, or the share of `trainer.max_steps` where one is set and further on; its warm-up is a share too.

    Args:
        seconds: of training.

    Raises:
        ValueError: not positive and finite.

    """

    unit = "seconds"

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._throughput: Throughput | None = None
        self._elapsed = 0.0

    def plan(self, trainer: pl.Trainer, pl_module: Any, seq_len: int, batch_size: int) -> None:
        """Find the clock; the trainer is left without a number of steps, or with its own."""
        self._throughput = find_throughput(trainer)
        if self._throughput is None:
            raise ValueError("seconds are counted by callbacks.throughput, which this run has not got")
        factory = pl_module.scheduler_factory
        if getattr(factory, "warmup_steps", None) is not None:
            raise ValueError(
                f"scheduler.warmup_steps={factory.warmup_steps} are steps, and a schedule that follows "
                "seconds has none; set scheduler.warmup_fraction"
            )

    def used(self, trainer: pl.Trainer, pl_module: Any) -> float | None:
        """Return the seconds of training."""
        return None if self._throughput is None else self._throughput.seconds

    def is_spent(self, step: int, seconds: float, max_steps: int) -> bool:
        """Say whether the seconds are over, or the steps, where the trainer has a limit of them too."""
        return seconds >= self.limit or (max_steps != -1 and step >= max_steps)

    def time_remaining(self) -> float:
        """Return the seconds that are left."""
        return self.limit - self._elapsed

    def schedule(
        self,
        factory: Callable[[Optimizer, int | None], LambdaLR],
        optimizer: Optimizer,
        total_steps: int | None,
    ) -> LambdaLR:
        """Make a learning-rate schedule over the share of the budget that is used up.

        Args:
            factory: as `longspan.training.optim` has them.
            optimizer: whose rate it sets.
            total_steps: where the trainer ends, should that come first; None for nowhere.

        """
        schedule = factory(optimizer, TICKS)

        def follow(of_tick: Callable[[int], float]) -> Callable[[int], float]:
            def of_step(step: int) -> float:
                share = self._elapsed / self.limit
                if total_steps is not None:
                    share = max(share, step / total_steps)
                return of_tick(round(TICKS * min(1.0, share)))

            return of_step

        schedule.lr_lambdas = [follow(of_tick) for of_tick in schedule.lr_lambdas]
        return schedule

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up what a resumed run had used; one that has nothing left trains no step."""
        self._measure(trainer)
        if self._elapsed >= self.limit:
            trainer.should_stop = True

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Read the clock for the schedule, which is stepped before the batch ends."""
        self._measure(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the training, where the batch ended an optimizer step and the time is over."""
        if not trainer.fit_loop._should_accumulate():
            self._measure(trainer)
            if self._elapsed >= self.limit:
                trainer.should_stop = True

    def _measure(self, trainer: pl.Trainer) -> None:
        assert self._throughput is not None, "plan was not called"
        # The first process's clock for all, so that they have the same rate and end at the same step.
        self._elapsed = trainer.strategy.broadcast(self._throughput.seconds)


def find_throughput(trainer: pl.Trainer) -> Throughput | None:
    """Return the trainer's `Throughput`; None where it has none."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, Throughput)), None)


def find_budget(trainer: pl.Trainer) -> Budget | None:
    """Return the trainer's budget; None where it has none."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, Budget)), None)
