"""Ranges of global blocks, given as starts and ends: shared by Variable and BSLongformer."""

from __future__ import annotations

from typing import Any

import numpy as np

from longspan.sparsity import checks


def checked_ranges(starts: Any, ends: Any) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return ``global_block_indices`` and ``global_block_end_indices`` as tuples.

    Raises:
        ValueError: one is not a list of integers of at least 0, their lengths differ, or a start is not
            before its end.

    """
    starts = checks.integers("global_block_indices", starts, 0)
    if ends is None:
        return starts, None
    ends = checks.integers("global_block_end_indices", ends, 0)
    if len(starts) != len(ends):
        raise ValueError(
            f"global_block_end_indices must hold one end for each of the {len(starts)} global_block_indices "
            f"{list(starts)}, got {len(ends)}: {list(ends)}"
        )
    for start, end in zip(starts, ends, strict=True):
        if start >= end:
            raise ValueError(
                "each of global_block_end_indices must lie beyond its start in global_block_indices, got "
                f"start {start} and end {end}"
            )
    return starts, ends


def global_intervals(
    rows: np.ndarray,
    num_blocks: int,
    starts: tuple[int, ...],
    ends: tuple[int, ...] | None,
    *,
    whole_rows: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the intervals of the global columns and, with ``whole_rows``, of the global rows.

    Args:
        rows: int64 ``[rows]``.
        num_blocks: blocks in the sequence; ranges that start beyond the end are dropped.
        starts: first block of each range.
        ends: end of each range (past the last block); None for ranges of one block.
        whole_rows: whether the rows in the ranges keep every column.

    Returns:
        First and past-the-end columns, int64 ``[rows, ranges + whole_rows]``.

    """
    first = np.array(starts, dtype=np.int64)
    past = first + 1 if ends is None else np.array(ends, dtype=np.int64)
    inside = first < num_blocks
    first, past = first[inside], past[inside]
    shape = (rows.size, first.size)
    firsts, pasts = np.broadcast_to(first, shape), np.broadcast_to(past, shape)
    if whole_rows:
        is_global = ((rows[:, None] >= first) & (rows[:, None] < past)).any(axis=1, keepdims=True)
        firsts = np.concatenate([firsts, np.zeros_like(rows)[:, None]], axis=1)
        pasts = np.concatenate([pasts, np.where(is_global, num_blocks, 0)], axis=1)
    return firsts, pasts
