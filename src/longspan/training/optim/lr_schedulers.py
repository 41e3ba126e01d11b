"""Learning-rate schedules in optimizer steps: a linear warm-up, then a cosine, a line or a constant."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def _check_warmup(warmup_steps: int | None, warmup_fraction: float) -> None:
    if warmup_steps is not None and warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
    if not 0 <= warmup_fraction <= 1:
        raise ValueError(f"warmup_fraction must lie in [0, 1], got {warmup_fraction}")


def _warmup(warmup_steps: int | None, warmup_fraction: float, total_steps: int | None, name: str) -> int:
    """Return the length of the warm-up in steps."""
    if warmup_steps is not None:
        return warmup_steps
    if warmup_fraction == 0:
        return 0
    if total_steps is None:
        raise ValueError(
            f"scheduler {name}: warmup_fraction={warmup_fraction} is a share of a number of steps that is "
            "not known; set trainer.max_steps, or warmup_steps"
        )
    return round(warmup_fraction * total_steps)


def _known(total_steps: int | None, name: str) -> int:
    if total_steps is None:
        raise ValueError(
            f"scheduler {name} needs to know how many steps there are; set trainer.max_steps, or use "
            "scheduler=constant"
        )
    return total_steps


def _lambda(optimizer: Optimizer, warmup: int, after: Callable[[int], float]) -> LambdaLR:
    # A plain function: LambdaLR writes no state of it into a checkpoint, so the resumed run follows its own
    # configuration, not that of the interrupted run.
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return after(step)

    return LambdaLR(optimizer, factor)


def _progress(step: int, warmup: int, total: int) -> float:
    """Return the progress after the warm-up, in [0, 1]: 0 at the end of the warm-up, 1 at step `total`."""
    return min(1.0, (step - warmup) / max(1, total - warmup))


@dataclass(frozen=True)
class _Decay(ABC):
    """Linear warm-up, then a decay to `min_ratio` of the peak, which the subclass defines."""

    warmup_steps: int | None = None
    warmup_fraction: float = 0.05
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps, self.warmup_fraction)
        _check_ratio(self.min_ratio)

    @abstractmethod
    def _remaining(self, progress: float) -> float:
        """Return the remaining share of the way down to `min_ratio`: 1 at progress 0, 0 at progress 1."""

    def __call__(self, optimizer: Optimizer, total_steps: int | None) -> LambdaLR:
        """Return the schedule over `total_steps` optimizer steps; ValueError when the number is not known."""
        name = type(self).__name__.lower()
        total = _known(total_steps, name)
        warmup = _warmup(self.warmup_steps, self.warmup_fraction, total, name)

        def after(step: int) -> float:
            return self.min_ratio + (1 - self.min_ratio) * self._remaining(_progress(step, warmup, total))

        return _lambda(optimizer, warmup, after)


@dataclass(frozen=True)
class Cosine(_Decay):
    """Linear warm-up, then half a cosine to `min_ratio` of the peak (arXiv:1608.03983, no restarts).

    Args:
        warmup_steps: length of the warm-up in optimizer steps; when given, it counts, not the fraction.
        warmup_fraction: length of the warm-up as a share of all steps.
        min_ratio: the learning rate at the end, as a share of the peak.

    """

    min_ratio: float = 0.1

    def _remaining(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear(_Decay):
    """Linear warm-up, then a straight line down to `min_ratio` of the peak.

    Args:
        warmup_steps: length of the warm-up in optimizer steps; when given, it counts, not the fraction.
        warmup_fraction: length of the warm-up as a share of all steps.
        min_ratio: the learning rate at the end, as a share of the peak.

    """

    def _remaining(self, progress: float) -> float:
        return 1 - progress


@dataclass(frozen=True)
class Constant:
    """Linear warm-up, then the peak to the end.

    Args:
        warmup_steps: length of the warm-up in optimizer steps; when given, it counts, not the fraction.
        warmup_fraction: length of the warm-up as a share of all steps; needs a known number of steps.

    """

    warmup_steps: int | None = None
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps, self.warmup_fraction)

    def __call__(self, optimizer: Optimizer, total_steps: int | None) -> LambdaLR:
        """Return the schedule; `total_steps` matters to `warmup_fraction` alone."""
        warmup = _warmup(self.warmup_steps, self.warmup_fraction, total_steps, "constant")
        return _lambda(optimizer, warmup, lambda step: 1.0)


def _check_ratio(min_ratio: float) -> None:
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio must lie in [0, 1], got {min_ratio}")
