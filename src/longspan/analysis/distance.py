"""How far a model attends: the mean distance of the pairs of tokens that its layers keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longspan_kernels import BlockLayout
from longspan_kernels.layout import csr


def attention_distance(layouts: Sequence[BlockLayout | None], seq_len: int, causal: bool = False) -> float:
    """Return the mean distance in tokens between query and key, over all kept pairs of all layers and heads.

    A sliding window of the model's own, beside the pattern, is not known here.

    Args:
        layouts: what each layer keeps of the sequence; None for every block.
        seq_len: tokens of the sequence.
        causal: whether the layers are causal to the token, whatever their layouts say.

    Returns:
        The mean of ``|i - j|``, 0 for a token and itself; 0.0 where no pair is kept.

    Raises:
        ValueError: a layout is of another length.

    """
    distance = pairs = 0
    counted: dict[tuple[BlockLayout | None, bool], tuple[int, int]] = {}
    heads = next((layout.heads for layout in layouts if layout is not None), 1)
    for layout in layouts:
        of_layer = causal or (layout is not None and layout.causal)
        if (layout, of_layer) not in counted:
            whole = BlockLayout.from_dense(torch.ones(heads, 1, 1), seq_len)
            counted[layout, of_layer] = _sums(whole if layout is None else layout, seq_len, of_layer)
        more_distance, more_pairs = counted[layout, of_layer]
        distance, pairs = distance + more_distance, pairs + more_pairs
    return distance / pairs if pairs else 0.0


def _sums(layout: BlockLayout, seq_len: int, causal: bool) -> tuple[int, int]:
    """Return the sum of the distances of the kept pairs of all heads, and their number."""
    layout.check_lengths(seq_len, seq_len)
    of_row = csr.rows_of(layout.row_offsets)
    row, column = of_row % layout.q_blocks, layout.columns.long()
    first, other = row * layout.block, column * layout.block
    queries, keys = ((seq_len - start).clamp(max=layout.block) for start in (first, other))
    # Off the diagonal all queries of a block stand on one side of all its keys.
    middle_distance = (2 * first + queries - (2 * other + keys)).abs()  # twice that of the blocks' middles
    distance, pairs = queries * keys * middle_distance // 2, queries * keys
    # On it n tokens meet themselves: n - d pairs at each distance d, on either side.
    sides = 1 if causal else 2
    distance = torch.where(row == column, sides * queries * (queries**2 - 1) // 6, distance)
    pairs = torch.where(row == column, queries * (sides * (queries - 1) + 2) // 2, pairs)
    if causal:
        distance, pairs = (torch.where(column > row, 0, sums) for sums in (distance, pairs))
    of_layouts = torch.zeros(2, layout.layouts, dtype=torch.int64)
    of_layouts.index_add_(1, of_row // layout.q_blocks, torch.stack([distance, pairs]))
    total = of_layouts[:, layout.head_layouts.long()].sum(1)
    return int(total[0]), int(total[1])
