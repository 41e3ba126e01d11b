"""Compressed sparse rows of several block layouts in one pair of arrays: checks, merging of equal ones."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_INT32_MAX = 2**31 - 1


def offsets_of(counts: Tensor) -> Tensor:
    """Turn numbers of kept blocks, ``[layouts, q_blocks]``, into offsets ``[layouts, q_blocks + 1]``.

    Offsets are absolute, int64: each layout begins where the one before it ends.
    """
    offsets = torch.zeros(counts.shape[0], counts.shape[1] + 1, dtype=torch.int64)
    offsets[:, 1:] = counts.reshape(-1).cumsum(0).reshape(counts.shape)
    if counts.shape[1]:
        offsets[1:, 0] = offsets[:-1, -1]
    return offsets


def rows_of(offsets: Tensor) -> Tensor:
    """Return the row of each kept block, counted through all layouts: int64 ``[kept blocks]``.

    Args:
        offsets: integers ``[layouts, q_blocks + 1]``, absolute and rising from 0.

    """
    kept = int(offsets[-1, -1])
    # A block's row is the number of rows that end at or before it. (repeat_interleave says the same, but
    # starts threads for each call, which costs milliseconds on a busy machine.)
    return torch.bincount(offsets[:, 1:].reshape(-1), minlength=kept + 1)[:kept].cumsum(0)


def checked(
    row_offsets: Tensor, columns: Tensor, head_layouts: Tensor, k_blocks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arrays on the CPU, the offsets and the heads as int64, if they are a layout.

    Args:
        row_offsets: integers ``[layouts, q_blocks + 1]``, absolute offsets into ``columns``.
        columns: integers ``[kept blocks]``, strictly ascending within each row.
        head_layouts: integers ``[heads]``, the layout of each head.
        k_blocks: number of key blocks.

    Raises:
        ValueError: the arrays contradict one another or the number of key blocks, or are not of integers.

    """
    arrays = {"row_offsets": row_offsets, "columns": columns, "head_layouts": head_layouts}
    for name, array in arrays.items():
        if array.dtype.is_floating_point or array.dtype.is_complex or array.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {array.dtype}")
        if array.ndim != (2 if name == "row_offsets" else 1):
            form = {
                "row_offsets": "[layouts, q_blocks + 1]",
                "columns": "[kept blocks]",
                "head_layouts": "[heads]",
            }
            raise ValueError(f"{name} must be {form[name]}, got shape {tuple(array.shape)}")
    if row_offsets.shape[0] < 1 or row_offsets.shape[1] < 1:
        raise ValueError(
            f"row_offsets must hold at least one layout and one offset, got shape {tuple(row_offsets.shape)}"
        )
    if columns.numel() > _INT32_MAX:
        raise ValueError(
            f"the layout keeps {columns.numel():,} blocks; at most {_INT32_MAX:,} can be addressed: "
            "take a larger block or a sparser pattern"
        )
    offsets, heads = row_offsets.to("cpu", torch.int64), head_layouts.to("cpu", torch.int64)
    columns = columns.to("cpu")
    starts, ends = offsets[:, :-1].reshape(-1), offsets[:, 1:].reshape(-1)
    joined = bool((offsets[1:, 0] == offsets[:-1, -1]).all()) and int(offsets[0, 0]) == 0
    if not joined or int(offsets[-1, -1]) != columns.numel() or bool((ends < starts).any()):
        raise ValueError("row_offsets must rise from 0 to the number of columns, layout after layout")
    if columns.numel():
        if int(columns.min()) < 0 or int(columns.max()) >= k_blocks:
            raise ValueError(
                f"columns must lie in [0, {k_blocks}), got {int(columns.min())}..{int(columns.max())}"
            )
        row_start = torch.zeros(columns.numel() + 1, dtype=torch.bool)
        row_start[starts] = True
        if bool(((columns[1:] <= columns[:-1]) & ~row_start[1:-1]).any()):
            raise ValueError("columns must ascend strictly within each row")
    if heads.numel() < 1 or int(heads.min()) < 0 or int(heads.max()) >= offsets.shape[0]:
        raise ValueError(
            f"head_layouts must name one of {offsets.shape[0]} layouts for each head, got {heads.tolist()}"
        )
    return offsets, columns, heads


def merge_equal(offsets: Tensor, columns: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep each distinct layout once, in the order in which the heads first use it.

    Args:
        offsets: int64 ``[layouts, q_blocks + 1]``.
        columns: integers ``[kept blocks]``.
        heads: int64 ``[heads]``.

    Returns:
        The three arrays of the distinct layouts, int32, in memory of their own.

    """
    # Counts, not offsets, name a layout wherever it lies in `columns`.
    contents: dict[bytes, int] = {}
    of_given: dict[int, int] = {}
    parts_counts: list[Tensor] = []
    parts_columns: list[Tensor] = []
    for given in heads.tolist():
        if given in of_given:
            continue
        counts = (offsets[given, 1:] - offsets[given, :-1]).to(torch.int32)
        cols = columns[int(offsets[given, 0]) : int(offsets[given, -1])].to(torch.int32)
        content = hashlib.sha256(counts.numpy().tobytes())
        content.update(cols.numpy().tobytes())
        of_given[given] = contents.setdefault(content.digest(), len(contents))
        if of_given[given] == len(parts_counts):
            parts_counts.append(counts)
            parts_columns.append(cols)
    rows = offsets_of(torch.stack(parts_counts)).to(torch.int32)
    merged_heads = torch.tensor([of_given[given] for given in heads.tolist()], dtype=torch.int32)
    return rows, torch.cat(parts_columns), merged_heads
