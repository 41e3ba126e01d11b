"""Stages of a schedule: a value for each stretch of optimizer steps."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Stage(NamedTuple):
    """A value and the first optimizer step at which it holds, counted from 0."""

    first_step: int
    value: int


def spread(values: Sequence[int], steps: int) -> tuple[Stage, ...]:
    """Spread values evenly over steps: the first from step 0 on, the last from step `steps` on.

    Equal neighbours become one stage. If there are more values than steps, several would begin at one step:
    the latest of them holds, except at step 0, which always has the first value.

    Args:
        values: at least one.
        steps: the optimizer step at which the last value begins.

    """
    gaps = max(1, len(values) - 1)
    begins = {number * steps // gaps: value for number, value in enumerate(values)}
    begins[0] = values[0]
    runs = itertools.groupby(begins.items(), key=lambda item: item[1])
    return tuple(Stage(*next(iter(run))) for _, run in runs)


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """Return the stage of an optimizer step."""
    return [stage for stage in stages if stage.first_step <= step][-1]


def in_words(stages: Sequence[Stage], describe: Callable[[Stage], str]) -> str:
    """Write stages as `3 from step 0, 9 from step 500`; `describe` writes the value of a stage."""
    return ", ".join(f"{describe(stage)} from step {stage.first_step:,}" for stage in stages)


def warn_of_unreached(stages: Sequence[Stage], steps: int) -> None:
    """Warn of stages that begin after the last of `steps` optimizer steps; -1: there is no last step."""
    late = [stage for stage in stages if 0 <= steps <= stage.first_step]
    if late:
        warnings.warn(
            f"schedule: the value {late[0].value:,} begins at step {late[0].first_step:,}, and the run ends "
            f"after {steps:,}: it is never trained with. Fewer schedule steps, or more of training, reach it",
            stacklevel=2,
        )


def whole_number(name: str, value: Any, least: int) -> int:
    """Return a whole number of at least `least`; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value
