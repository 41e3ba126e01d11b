"""Columns of a schedule's tables, the same for the host that writes and the kernels that read them."""

from __future__ import annotations

from enum import IntEnum


class WorkTileColumn(IntEnum):
    """Columns of ``TileSchedule.work_tiles``."""

    TILE = 0
    """Number of the tile."""
    HEAD = 1
    """Query head, `EVERY_HEAD` where all heads share the row."""
    FIRST_STEP = 2
    """First of its steps."""
    NUM_FULL = 3
    """Number of steps that need no mask; they come first."""
    NUM_FULL_OR_PARTIAL = 4
    """Number of steps that need no mask of tokens: full ones, then those that need the pair bits alone."""
    NUM_STEPS = 5
    """Number of steps."""
    PARTIAL = 6
    """Number of its partial result, `WHOLE` where the tile is not split."""


class SplitTileColumn(IntEnum):
    """Columns of ``TileSchedule.split_tiles``; the first two are those of `WorkTileColumn`."""

    TILE = 0
    HEAD = 1
    FIRST_PARTIAL = 2
    """First of its partial results."""
    NUM_PARTIALS = 3
    """Number of its partial results."""


EVERY_HEAD = -1
WHOLE = -1
