"""Pairs of tokens by distance, counted from blocks: exact to the token, without a matrix of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longspan.analysis.connections import EARLIER, WHOLE, check_square, rows_of_layout
from longspan_kernels.layout import BlockLayout


@dataclass(frozen=True)
class PairCounts:
    """Numbers of joined pairs of blocks, sorted by what their pairs of tokens depend on.

    The last block may be short, so its row and its column are counted apart.

    Attributes:
        seq_len: tokens of the sequence.
        block: tokens a block.
        between: int64 ``[2 * blocks - 1]``: pairs of different blocks ``(i, j)``, neither the last, at place
            ``i - j + blocks - 1``.
        last_row: int64 ``[blocks]``: pairs of the last block with block ``j``.
        last_column: int64 ``[blocks]``: pairs of block ``i`` with the last block.
        within: int64 ``[3]``: blocks before the last whose tokens are joined to ITSELF, EARLIER, WHOLE.
        within_last: int64 ``[3]``: the same of the last block.

    """

    seq_len: int
    block: int
    between: np.ndarray
    last_row: np.ndarray
    last_column: np.ndarray
    within: np.ndarray
    within_last: np.ndarray

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.last_row.size

    def by_distance(self) -> np.ndarray:
        """Pairs of tokens at each distance, both directions together: int64 ``[seq_len]``."""
        length, block, blocks = self.seq_len, self.block, self.blocks
        last = length - (blocks - 1) * block
        # Two blocks of B tokens, b blocks apart, hold B - |k| pairs at distance b B + k.
        after = np.arange(block)
        padded = np.concatenate([[0], self.between, [0]])
        signed = (padded[:-1, None] * (block - after) + padded[1:, None] * after).reshape(-1)
        origin = blocks * block
        counts = np.zeros(max(length, origin + block), dtype=np.int64)
        counts[: signed.size - origin] = signed[origin:]
        backward = signed[: origin + 1][::-1]
        counts[1 : backward.size] += backward[1:]
        apart = np.arange(blocks - 1, -1, -1) * block
        # The column of the last block lies as far above the diagonal as its row lies below it.
        _add(counts, self.last_row, apart, _profile(last, block))
        _add(counts, self.last_column, -apart, _profile(block, last))
        for states, size in ((self.within, block), (self.within_last, last)):
            counts[0] += states.sum() * size
            counts[1:size] += (states[EARLIER] + 2 * states[WHOLE]) * np.arange(size - 1, 0, -1)
        return counts[:length]


def kept_by_distance(layout: BlockLayout, seq_len: int, causal: bool | None = None) -> np.ndarray:
    """Pairs of a query and a key that a layout keeps at each distance, all heads: int64 ``[seq_len]``.

    Args:
        layout: of all queries and keys.
        seq_len: tokens of the sequence.
        causal: whether attention is causal to the token; None: as the layout says.

    Raises:
        ValueError: the layout is of another length.

    """
    check_square(layout, seq_len)
    causal = layout.causal if causal is None else causal
    heads = np.bincount(layout.head_layouts.numpy(), minlength=layout.layouts)
    total = np.zeros(seq_len, dtype=np.int64)
    for number in range(layout.layouts):
        total += heads[number] * _of_layout(layout, number, seq_len, causal).by_distance()
    return total


def _of_layout(layout: BlockLayout, number: int, seq_len: int, causal: bool) -> PairCounts:
    offsets, columns = rows_of_layout(layout, number)
    blocks = offsets.size - 1
    rows = np.repeat(np.arange(blocks), np.diff(offsets))
    if causal:
        rows, columns = rows[columns <= rows], columns[columns <= rows]
    within, within_last = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    own = rows[rows == columns]
    state = EARLIER if causal else WHOLE
    within[state] = (own < blocks - 1).sum()
    within_last[state] = (own == blocks - 1).sum()
    last = blocks - 1
    inner = (rows != columns) & (rows != last) & (columns != last)
    return PairCounts(
        seq_len,
        layout.block,
        np.bincount(rows[inner] - columns[inner] + last, minlength=2 * blocks - 1),
        np.bincount(columns[(rows == last) & (columns != last)], minlength=blocks),
        np.bincount(rows[(columns == last) & (rows != last)], minlength=blocks),
        within,
        within_last,
    )


def count_pairs(
    seq_len: int, block: int, sources: np.ndarray, packed: np.ndarray, diagonal: np.ndarray
) -> tuple[np.ndarray, PairCounts]:
    """Count the pairs of tokens of a state of `longspan.analysis.reach`.

    Args:
        seq_len: tokens of the sequence.
        block: tokens a block.
        sources: blocks, int64 ascending, one a bit.
        packed: uint64 ``[blocks, words]``: which of the sources are joined with a block.
        diagonal: int8 ``[blocks]``: what of its own block a token is joined with, where the bit does not say
            all.

    Returns:
        Pairs of the tokens of each block, int64 ``[blocks]``, and what their distances depend on.

    """
    blocks = diagonal.size
    last = blocks - 1
    sizes = np.full(blocks, block)
    sizes[-1] = seq_len - last * block
    # The last block, where it is among the sources, is the last of them.
    has_last = int(sources[-1] == last)
    inner = sources[: sources.size - has_last]
    bit_of = np.full(blocks, -1)
    bit_of[sources] = np.arange(sources.size)
    between = np.zeros(2 * blocks - 1, dtype=np.int64)
    last_row, last_column = np.zeros(blocks, dtype=np.int64), np.zeros(blocks, dtype=np.int64)
    within = np.zeros((2, 3), dtype=np.int64)
    pairs = np.zeros(blocks, dtype=np.int64)
    for row in range(blocks):
        joined = unpacked(packed[row], sources.size)
        size, bit = int(sizes[row]), bit_of[row]
        if bit >= 0:
            state = WHOLE if joined[bit] else int(diagonal[row])
            joined[bit] = False
            pairs[row] = (size, size * (size + 1) // 2, size * size)[state]
            within[int(row == last), state] += 1
        last_column[row] = joined[inner.size :].sum()
        pairs[row] += size * (
            int(np.count_nonzero(joined[: inner.size])) * block + last_column[row] * sizes[-1]
        )
        if row == last:
            last_row[inner] = joined[: inner.size]
        else:
            between[row - inner + last] += joined[: inner.size]
    return pairs, PairCounts(seq_len, block, between, last_row, last_column, within[0], within[1])


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """The first bits of a row, the lowest of the first word first: bool ``[bits]``."""
    octets = words.astype("<u8").view(np.uint8)
    return np.unpackbits(octets, count=bits, bitorder="little").astype(bool)


def _profile(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences ``u - v`` of ``u < rows`` and ``v < columns``, and how often each occurs."""
    difference = np.arange(1 - columns, rows)
    first, past = np.maximum(difference, 0), np.minimum(rows, columns + difference)
    return difference, past - first


def _add(
    counts: np.ndarray, pairs: np.ndarray, apart: np.ndarray, profile: tuple[np.ndarray, np.ndarray]
) -> None:
    """Add the pairs of tokens of ``pairs[j]`` pairs of blocks whose starts lie ``apart[j]`` tokens apart."""
    some = np.flatnonzero(pairs)
    difference, times = profile
    # A slice at a time keeps this below the size of a few blocks of rows.
    for start in range(0, some.size, 4096):
        part = some[start : start + 4096]
        where = np.abs(apart[part][:, None] + difference)
        np.add.at(counts, where, pairs[part][:, None] * times)
