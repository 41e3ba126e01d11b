"""Counting the pairs of a query and a key that a layout keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longspan_kernels import csr

if TYPE_CHECKING:
    from longspan_kernels.layout import BlockLayout


def kept_pairs(layout: BlockLayout, q_len: int, k_len: int) -> int:
    """Count the pairs of one sequence through all heads; those above the diagonal only if not ``causal``."""
    layout_row = csr.rows_of(layout.row_offsets)
    row = layout_row % max(1, layout.q_blocks)
    first_key = layout.columns.long() * layout.block
    keys = (k_len - first_key).clamp(max=layout.block)
    start = (row * layout.block - layout.lead).clamp(min=0)
    stop = ((row + 1) * layout.block - layout.lead).clamp(max=q_len)
    if layout.causal:
        # Query i sees clamp(i + 1 + offset, 0, keys) keys of the block; the sum over i in closed form.
        offset = k_len - q_len - first_key

        def seen(last: Tensor) -> Tensor:  # sum of clamp(t, 0, keys) over t <= last
            inside = last.clamp(min=0).minimum(keys)
            return inside * (inside + 1) // 2 + (last - keys).clamp(min=0) * keys

        pairs = seen(stop + offset) - seen(start + offset)
    else:
        pairs = (stop - start) * keys
    per_layout = torch.zeros(layout.layouts, dtype=torch.int64)
    per_layout.index_add_(0, layout_row // max(1, layout.q_blocks), pairs)
    return int(per_layout[layout.head_layouts.long()].sum())
