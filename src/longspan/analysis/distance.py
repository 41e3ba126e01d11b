"""The mean attention distance: between query and key, over the pairs that the layers keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longspan_kernels import BlockLayout
from longspan_kernels.layout import csr


def attention_distance(layouts: Sequence[BlockLayout | None], seq_len: int, causal: bool = False) -> float:
    """Return the mean distance in tokens between query and key, over all kept pairs of all layers and heads.

    Sliding windows of the architecture, in addition to the pattern, are not counted.

    Args:
        layouts: layout of each layer; None for a dense layer.
        seq_len: tokens in the sequence.
        causal: whether the layers are causal to the token, whatever their layouts say.

    Returns:
        The mean of ``|i - j|`` in tokens; 0.0 if no pair is kept.

    Raises:
        ValueError: a layout has another length.

    """
    distance = pairs = 0
    counted: dict[tuple[BlockLayout | None, bool], tuple[int, int]] = {}
    heads = next((layout.heads for layout in layouts if layout is not None), 1)
    for layout in layouts:
        layer_causal = causal or (layout is not None and layout.causal)
        if (layout, layer_causal) not in counted:
            whole = BlockLayout.from_dense(torch.ones(heads, 1, 1), seq_len)
            counted[layout, layer_causal] = _sums(whole if layout is None else layout, seq_len, layer_causal)
        more_distance, more_pairs = counted[layout, layer_causal]
        distance, pairs = distance + more_distance, pairs + more_pairs
    return distance / pairs if pairs else 0.0


def _sums(layout: BlockLayout, seq_len: int, causal: bool) -> tuple[int, int]:
    """Return the sum of the distances of the kept pairs of all heads, and their number."""
    layout.check_lengths(seq_len, seq_len)
    flat_rows = csr.rows_of(layout.row_offsets)
    row, column = flat_rows % layout.q_blocks, layout.columns.long()
    first, other = row * layout.block, column * layout.block
    queries, keys = ((seq_len - start).clamp(max=layout.block) for start in (first, other))
    # Off the diagonal all queries of a block are on one side of all its keys.
    middle_distance = (2 * first + queries - (2 * other + keys)).abs()  # twice the distance of the middles
    distance, pairs = queries * keys * middle_distance // 2, queries * keys
    # A block of n tokens on the diagonal has n - d pairs at each distance d, on either side.
    sides = 1 if causal else 2
    distance = torch.where(row == column, sides * queries * (queries**2 - 1) // 6, distance)
    pairs = torch.where(row == column, queries * (sides * (queries - 1) + 2) // 2, pairs)
    if causal:
        distance, pairs = (torch.where(column > row, 0, sums) for sums in (distance, pairs))
    layout_sums = torch.zeros(2, layout.layouts, dtype=torch.int64)
    layout_sums.index_add_(1, flat_rows // layout.q_blocks, torch.stack([distance, pairs]))
    total = layout_sums[:, layout.head_layouts.long()].sum(1)
    return int(total[0]), int(total[1])
