"""Means over seeds and paired differences, with the intervals of Student's t distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and how far it may be off.

    Attributes:
        mean: of the values.
        half: half the width of the confidence interval; None of a single value, which has none.
        n: number of values.

    """

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half is None else self.mean + self.half

    @property
    def varies(self) -> bool:
        """Whether there is an interval and it has a width; equal values leave a deviation of rounding."""
        return self.half is not None and self.half > 1e-9 * abs(self.mean)

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it; of values that do not vary there is none."""
        return self.varies and abs(self.mean) > (self.half or 0.0)


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate | None:
    """Mean and t interval of values taken to be independent and normal; None without any value.

    Raises:
        ValueError: the level is not in (0, 1).

    """
    from scipy import stats

    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return None
    if x.size == 1:
        return Estimate(float(x[0]), None, 1)
    half = stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)
    return Estimate(float(x.mean()), float(half), int(x.size))


def paired(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> Estimate | None:
    """Mean of `first - second` over the seeds that both have, with the interval of the paired t test.

    Two runs of one seed share the order of the data and, as far as their models have the same parameters, the
    initial weights; what those do to both is no part of the difference. None without a shared seed.
    """
    shared = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in shared], level)
