"""Groups of block rows that keep equally many blocks, made from the compressed layout.

Rows that gather equally many key blocks run as one batched matrix product. Rows are therefore sorted by their
number of blocks and grouped; a shorter row is padded with slots that no query sees. Long rows are first cut
into segments, which bounds the memory of a global row and leaves fewer lengths. Blocks wholly outside the
window (or above the diagonal) are left out. Blocks that the window, the diagonal or the end of the keys
crosses come last in their row, before the padding, so that only the last slots of a group need a mask.

Shapes in this file: S kept blocks that are seen, G segments, N slots a segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.layout.csr import BlockCSR

# A segment holds at most about this many keys.
_SEGMENT_KEYS = 4096
# A group may be padded by slots of up to so many scores: they cost less than one more launch.
_WASTE = 16384


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Segments of rows of one layout, equally many slots each, no row twice.

    Attributes:
        layout: number of the distinct layout.
        merge: whether results are merged into those that earlier groups left for the same rows.
        rows: int64 ``[segments]``, block rows.
        columns: int64 ``[segments, slots]``, key blocks; padding slots name block 0.
        masked: the number of last slots that need the mask of positions.
        key_starts: int64 ``[segments, masked]``, first key position of those slots, past the end for padding.

    """

    layout: int
    merge: bool
    rows: Tensor
    columns: Tensor
    masked: int
    key_starts: Tensor

    @property
    def slots(self) -> int:
        """Number of key blocks that each segment gathers."""
        return self.columns.shape[1]


def row_groups(
    layout: BlockCSR, q_len: int, k_len: int, left: int | None, right: int | None, device: torch.device
) -> list[RowGroup]:
    """Group the rows of a layout; time and memory in proportion to the kept blocks of its distinct layouts.

    Args:
        layout: the kept blocks.
        q_len: number of queries.
        k_len: number of keys.
        left: keys at ``j < i - left`` are hidden from a query at position ``i``; None for no bound.
        right: keys at ``j > i + right`` are hidden likewise; None for no bound.
        device: device of the index tensors.

    """
    if not layout.columns.numel():
        return []
    row_of, column, crossed = _visible(layout, q_len, k_len, left, right)
    if not column.numel():
        return []
    # Blocks without a mask come first in each row. Both sorts are stable: blocks otherwise stay in ascending
    # order.
    order = (row_of * 2 + crossed).argsort(stable=True)
    row_of, column, crossed = row_of[order], column[order], crossed[order]

    length = max(1, _SEGMENT_KEYS // layout.block)
    _, in_row = row_of.unique_consecutive(return_counts=True)
    place = torch.arange(row_of.numel()) - (in_row.cumsum(0) - in_row).repeat_interleave(in_row)
    pieces = int(place.max()) // length + 1
    segment_key, slots = (row_of * pieces + place // length).unique_consecutive(return_counts=True)
    starts = slots.cumsum(0) - slots
    unmasked = torch.zeros_like(slots).index_add_(
        0, torch.arange(slots.numel()).repeat_interleave(slots), (~crossed).long()
    )
    segment_row, piece = segment_key // pieces, segment_key % pieces
    piece_layout = piece * layout.layouts + segment_row // layout.q_blocks  # sorts by piece, then by layout

    groups = []
    for members, width in _group_segments(piece_layout, slots, unmasked, layout.block):
        valid = torch.arange(width) < slots[members, None]
        entry = (starts[members, None] + torch.arange(width)).clamp(max=column.numel() - 1)
        columns = column[entry].masked_fill(~valid, 0)
        masked = width - int(unmasked[members].min())
        key_starts = (columns * layout.block).masked_fill(~valid, layout.k_blocks * layout.block)
        groups.append(
            RowGroup(
                layout=int(piece_layout[members[0]]) % layout.layouts,
                merge=int(piece[members[0]]) > 0,
                rows=(segment_row[members] % layout.q_blocks).to(device),
                columns=columns.to(device),
                masked=masked,
                key_starts=key_starts[:, width - masked :].contiguous().to(device),
            )
        )
    return groups


def _visible(
    layout: BlockCSR, q_len: int, k_len: int, left: int | None, right: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Row (through all layouts), column and whether it needs a mask, ``[S]`` each, of the blocks seen."""
    block, blocks = layout.block, layout.q_blocks
    counts = (layout.row_offsets[:, 1:] - layout.row_offsets[:, :-1]).reshape(-1).long()
    row_of = torch.arange(counts.numel()).repeat_interleave(counts)
    column = layout.columns.long()
    row = row_of % blocks
    first_query = (row * block - layout.query_offset).clamp(min=0) + k_len - q_len
    last_query = ((row + 1) * block - layout.query_offset).clamp(max=q_len) - 1 + k_len - q_len
    first_key = column * block
    last_key = first_key + block - 1
    seen = first_key < k_len
    crossed = last_key >= k_len
    if right is not None:
        seen = seen & (first_key <= last_query + right)
        crossed = crossed | (last_key > first_query + right)
    if left is not None:
        seen = seen & (last_key.clamp(max=k_len - 1) >= first_query - left)
        crossed = crossed | (first_key < last_query - left)
    return row_of[seen], column[seen], crossed[seen]


def _group_segments(
    piece_layout: Tensor, slots: Tensor, unmasked: Tensor, block: int
) -> list[tuple[Tensor, int]]:
    """Partition segments into groups of one piece and layout with nearly equal numbers of slots.

    Args:
        piece_layout: int64 ``[G]``, ``piece * layouts + layout``; a row is cut into pieces 0, 1, ...
        slots: int64 ``[G]``, number of blocks.
        unmasked: int64 ``[G]``, number of those that need no mask.
        block: tokens a block.

    Returns:
        For each group the numbers of its segments, int64, and the largest number of slots among them.

    """
    width = int(slots.max()) + 1
    kind = (piece_layout * width + (width - 1 - slots)) * width + (width - 1 - unmasked)
    order = kind.argsort(stable=True)
    kinds, numbers = kind[order].unique_consecutive(return_counts=True)
    groups: list[tuple[Tensor, int]] = []
    begin = end = 0
    current, widest, wasted = -1, 0, 0
    for value, number in zip(kinds.tolist(), numbers.tolist(), strict=True):
        value_piece_layout, value_slots = value // (width * width), width - 1 - value // width % width
        padding = (widest - value_slots) * number
        near = widest - value_slots <= widest // 8 or (wasted + padding) * block * block <= _WASTE
        if value_piece_layout != current or not near:
            if end > begin:
                groups.append((order[begin:end], widest))
            begin, current, widest, wasted, padding = end, value_piece_layout, value_slots, 0, 0
        wasted += padding
        end += number
    groups.append((order[begin:end], widest))
    return groups
