"""Means over seeds and paired differences, with the intervals of Student's t distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Attributes:
        mean: mean of the values.
        half: half the width of the confidence interval; None for a single value, which has no interval.
        n: number of values.

    """

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval; None without one."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper end of the interval; None without one."""
        return None if self.half is None else self.mean + self.half

    @property
    def varies(self) -> bool:
        """Whether there is an interval wider than the rounding error of equal values."""
        return self.half is not None and self.half > 1e-9 * abs(self.mean)

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; False without one, and for values that do not vary."""
        return self.varies and abs(self.mean) > (self.half or 0.0)


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate | None:
    """Return the mean and the t interval of values, assumed independent and normal; None without values.

    Args:
        values: one per seed.
        level: confidence level.

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
    """Return the mean of `first - second` over the shared seeds, with the interval of the paired t test.

    Two runs with the same seed share the order of the data and the initial weights of the parameters that
    both models have. Effects of these that are equal in both runs cancel in the difference.

    Args:
        first: values by seed.
        second: values by seed, subtracted.
        level: confidence level.

    Returns:
        The estimate; None without a shared seed.

    """
    shared = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in shared], level)
