"""Counting the pairs of a query and a key that a layout keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.layout.csr import BlockCSR, rows_of


def kept_pairs(
    layout: BlockCSR, q_len: int, k_len: int, left: int | None = None, right: int | None = None
) -> int:
    """Count the pairs of one sequence, summed over heads; a causal layout has none above the diagonal.

    Args:
        layout: the kept blocks, covering ``q_len`` and ``k_len``.
        q_len: number of queries.
        k_len: number of keys.
        left: count only keys at most this many tokens before the query's position; None for no bound.
        right: count only keys at most this many tokens after it; None for no bound.

    """
    if layout.causal:
        right = 0 if right is None else min(right, 0)
    layout_row = rows_of(layout.row_offsets)
    row = layout_row % max(1, layout.q_blocks)
    first_key = layout.columns.long() * layout.block
    keys = (k_len - first_key).clamp(max=layout.block)
    start = (row * layout.block - layout.query_offset).clamp(min=0)
    stop = ((row + 1) * layout.block - layout.query_offset).clamp(max=q_len)
    # Query i stands i + offset tokens after the first key of the block.
    offset = k_len - q_len - first_key

    def from_distance(distance: int) -> Tensor:
        """Pairs whose key stands at least ``distance`` tokens before the query's position.

        Query i has clamp(i + 1 + offset - distance, 0, keys) of them; the sum over i in closed form.
        """

        def seen(last: Tensor) -> Tensor:  # sum of clamp(t, 0, keys) over t <= last
            inside = last.clamp(min=0).minimum(keys)
            return inside * (inside + 1) // 2 + (last - keys).clamp(min=0) * keys

        return seen(stop + offset - distance) - seen(start + offset - distance)

    pairs = (stop - start) * keys if right is None else from_distance(-right)
    if left is not None:
        pairs = pairs - from_distance(left + 1)
    per_layout = torch.zeros(layout.layouts, dtype=torch.int64)
    per_layout.index_add_(0, layout_row // max(1, layout.q_blocks), pairs)
    return int(per_layout[layout.head_layouts.long()].sum())
