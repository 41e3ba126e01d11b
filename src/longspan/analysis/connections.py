"""The connections of one layer: the blocks that each block of tokens reads, in any head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from longspan_kernels.layout import BlockLayout

# The tokens that a token reads within its block: only itself (the residual), earlier ones too, or all of
# them.
ITSELF, EARLIER, WHOLE = 0, 1, 2


@dataclass(frozen=True)
class Connections:
    """The blocks that each block reads in one layer, over all heads.

    A kept block off the diagonal connects all its pairs of tokens. A block on the diagonal connects all of
    them or, under causal attention, each token with itself and earlier ones.

    Attributes:
        offsets: int64 ``[blocks + 1]``. Row ``r`` reads ``columns[offsets[r] : offsets[r + 1]]``.
        columns: int64 ``[kept blocks off the diagonal]``, ascending within each row.
        diagonal: int8 ``[blocks]``: ITSELF, EARLIER or WHOLE.
        causal: whether no token reads a later one.
        complete: whether every token reads all tokens that causality allows; ``columns`` is then empty.

    """

    offsets: np.ndarray
    columns: np.ndarray
    diagonal: np.ndarray
    causal: bool
    complete: bool = False

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.diagonal.size


def common_block(layouts: Sequence[BlockLayout | None], default: int = 64) -> int:
    """Return the largest block size that divides the blocks of all layouts; `default` without layouts."""
    return gcd(*(layout.block for layout in layouts if layout is not None)) or default


def check_square(layout: BlockLayout, seq_len: int) -> None:
    """Raise ValueError unless the layout has all queries and all keys of ``seq_len`` tokens."""
    blocks = -(-seq_len // layout.block)
    if layout.query_offset or (layout.q_blocks, layout.k_blocks) != (blocks, blocks):
        raise ValueError(
            f"the layout of a sequence of seq_len={seq_len} tokens in blocks of {layout.block} is {blocks} x "
            f"{blocks} blocks without a lead, got {layout.q_blocks} x {layout.k_blocks}, lead "
            f"{layout.query_offset}"
        )


def connections(layout: BlockLayout | None, seq_len: int, block: int, causal: bool) -> Connections:
    """Return the connections of a layer with this layout, in blocks of ``block`` tokens.

    Args:
        layout: layout of all queries and keys of the sequence; None for dense attention.
        seq_len: tokens in the sequence; the last block may be short.
        block: tokens per block of the result, a divisor of the block of the layout.
        causal: whether the layer is causal to the token; blocks above the diagonal are then dropped.

    Raises:
        ValueError: the layout has another length, or ``block`` does not divide its block.

    """
    blocks = -(-seq_len // block)
    if layout is None:
        return _complete(blocks, causal)
    check_square(layout, seq_len)
    if layout.block % block:
        raise ValueError(f"block must divide the layout's {layout.block} tokens, got {block}")
    keys = []
    for number in range(layout.layouts):
        offsets, columns = rows_of_layout(layout, number)
        if _keeps_all(offsets, columns, causal):
            return _complete(blocks, causal)
        keys.append(_keys(offsets, columns, layout.block // block, blocks, causal))
    merged = np.unique(np.concatenate(keys)) if len(keys) > 1 else np.sort(keys[0])
    rows, columns = np.divmod(merged, blocks)
    diagonal = np.zeros(blocks, dtype=np.int8)
    on = rows == columns
    diagonal[rows[on]] = EARLIER if causal else WHOLE
    offsets = np.zeros(blocks + 1, dtype=np.int64)
    offsets[1:] = np.bincount(rows[~on], minlength=blocks).cumsum()
    return Connections(offsets, columns[~on], diagonal, causal)


def rows_of_layout(layout: BlockLayout, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row offsets and columns of one distinct layout: int64 ``[blocks + 1]`` and ``[kept]``."""
    offsets = layout.row_offsets[number].long()
    start, stop = int(offsets[0]), int(offsets[-1])
    return (offsets - start).numpy(), layout.columns[start:stop].long().numpy()


def _complete(blocks: int, causal: bool) -> Connections:
    diagonal = np.full(blocks, EARLIER if causal else WHOLE, dtype=np.int8)
    empty = np.zeros(0, dtype=np.int64)
    return Connections(np.zeros(blocks + 1, dtype=np.int64), empty, diagonal, causal, complete=True)


def _keeps_all(offsets: np.ndarray, columns: np.ndarray, causal: bool) -> bool:
    """Return whether all allowed blocks are kept: columns ascend, so r + 1 of them up to r are 0 … r."""
    counts = np.diff(offsets)
    rows = np.arange(counts.size)
    whole = counts == counts.size
    if causal and counts.all():
        whole |= (counts == rows + 1) & (columns[offsets[1:] - 1] == rows)
    return bool(whole.all())


def _keys(offsets: np.ndarray, columns: np.ndarray, pieces: int, blocks: int, causal: bool) -> np.ndarray:
    """Return kept blocks as ``row * blocks + column``, each divided into ``pieces`` x ``pieces``."""
    rows = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    if pieces > 1:
        parts = np.arange(pieces)
        rows, columns = (
            (rows[:, None, None] * pieces + parts[:, None] + 0 * parts).reshape(-1),
            (columns[:, None, None] * pieces + 0 * parts[:, None] + parts).reshape(-1),
        )
    # Some pieces of a short last block do not exist.
    kept = (rows < blocks) & (columns < blocks)
    if causal:
        kept &= columns <= rows
    return rows[kept] * blocks + columns[kept]
