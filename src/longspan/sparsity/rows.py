"""Compressed rows from intervals of columns, in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from longspan.sparsity.random_columns import draw_ranks

# Bounds the temporaries: rows x intervals per chunk.
_CELLS_AT_ONCE = 1 << 20


def compressed_rows(
    intervals: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    first_row: int,
    num_blocks: int,
    *,
    causal: bool,
    random_blocks: tuple[int, int],
    head: int,
    max_kept: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Make the compressed rows ``[first_row, num_blocks)`` of one head.

    Args:
        intervals: int64 row numbers ``[rows]`` -> first and past-the-end columns ``[rows, intervals]``.
        first_row: the first row to make.
        num_blocks: number of rows and of columns of the whole layout.
        causal: keep the lower triangle only.
        random_blocks: number of additional random columns per row, and their seed.
        head: index of the head, for the random draw.
        max_kept: largest number of blocks that can be addressed.

    Returns:
        Number of kept blocks per row, int64 ``[rows]``, and their columns, ascending per row, int32
        ``[kept]``.

    Raises:
        ValueError: more than ``max_kept`` blocks are kept.

    """
    drawn, seed = random_blocks
    width = intervals(np.array([first_row]))[0].shape[1] + drawn
    step = max(1, _CELLS_AT_ONCE // max(1, width))
    counts, columns, kept = [], [], 0
    for low in range(first_row, num_blocks, step):
        rows = np.arange(low, min(low + step, num_blocks))
        limit = rows + 1 if causal else np.full_like(rows, num_blocks)
        starts, lengths = disjoint(*intervals(rows), limit)
        if drawn:
            free = limit - lengths.sum(axis=1)
            ranks = draw_ranks(free, drawn, seed, head, rows)
            starts, lengths = _with_ranks(starts, lengths, ranks)
        counts.append(lengths.sum(axis=1))
        kept += int(counts[-1].sum())
        if kept > max_kept:
            raise ValueError(
                f"on {num_blocks:,} blocks a side the pattern keeps more than the 2,147,483,647 blocks that "
                "can be addressed: take a larger block or a sparser pattern"
            )
        columns.append(_expand(starts.reshape(-1), lengths.reshape(-1)))
    return np.concatenate(counts), np.concatenate(columns)


def disjoint(starts: np.ndarray, stops: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trim the intervals of each row so that they ascend, do not overlap and lie in ``[0, limit)``.

    Args:
        starts: first columns, int64 ``[rows, intervals]``.
        stops: past-the-end columns, int64 ``[rows, intervals]``.
        limit: int64 ``[rows]``, under 2**31.

    Returns:
        Starts and lengths, int64 ``[rows, intervals]``; an interval inside another one has length 0.

    """
    limit = limit[:, None]
    # Both ends in one key: one plain sort is faster than an argsort and two gathers.
    keys = np.sort(np.clip(starts, 0, limit) << 32 | np.clip(stops, 0, limit), axis=1, kind="stable")
    starts, stops = keys >> 32, keys & 0xFFFFFFFF
    reach = np.maximum.accumulate(stops, axis=1)
    starts[:, 1:] = np.maximum(starts[:, 1:], reach[:, :-1])
    return starts, np.maximum(stops - starts, 0)


def _with_ranks(starts: np.ndarray, lengths: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add to each row the columns of the given ranks (-1 for none) among those outside its intervals."""
    num_rows, width = starts.shape
    kept_before = np.zeros((num_rows, width + 1), dtype=np.int64)
    np.cumsum(lengths, axis=1, out=kept_before[:, 1:])
    free_before = starts - kept_before[:, :-1]
    # The t-th free column lies behind every interval that has at most t free columns before it. `free_before`
    # ascends within a row; an offset per row makes all rows one ascending array, which is searched at once.
    row_base = np.arange(num_rows)[:, None] << 32
    passed = np.searchsorted((free_before + row_base).reshape(-1), ranks + row_base, side="right")
    passed -= np.arange(num_rows)[:, None] * width
    columns = ranks + np.take_along_axis(kept_before, passed, axis=1)
    starts = np.concatenate([starts, columns], axis=1)
    lengths = np.concatenate([lengths, (ranks >= 0).astype(np.int64)], axis=1)
    order = np.argsort(starts, axis=1, kind="stable")
    return np.take_along_axis(starts, order, axis=1), np.take_along_axis(lengths, order, axis=1)


def _expand(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the numbers in the intervals: int32 ``[sum of lengths]``."""
    before = np.cumsum(lengths) - lengths
    columns = np.repeat((starts - before).astype(np.int32), lengths)
    columns += np.arange(columns.size, dtype=np.int32)
    return columns
