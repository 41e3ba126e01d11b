"""Counts of token pairs by distance, computed from blocks: exact, without a matrix of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longspan.analysis.connections import EARLIER, WHOLE, check_square, rows_of_layout
from longspan_kernels.layout import BlockLayout


@dataclass(frozen=True)
class PairCounts:
    """Counts of connected pairs of blocks, grouped so that the pairs of tokens follow from them.

    The last block may be short, so its row and its column are counted separately.

    Attributes:
        seq_len: tokens in the sequence.
        block: tokens per block.
        between: int64 ``[2 * blocks - 1]``: pairs of different blocks ``(i, j)``, neither the last, at index
            ``i - j + blocks - 1``.
        last_row: int64 ``[blocks]``: pairs of the last block with block ``j``.
        last_column: int64 ``[blocks]``: pairs of block ``i`` with the last block.
        within: int64 ``[3]``: blocks before the last one whose diagonal is ITSELF, EARLIER, WHOLE.
        within_last: int64 ``[3]``: the same for the last block.

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
        """Return the number of token pairs at each distance, in both directions: int64 ``[seq_len]``."""
        length, block, blocks = self.seq_len, self.block, self.blocks
        last = length - (blocks - 1) * block
        # Two blocks of B tokens, b blocks apart, have B - |k| pairs at distance b B + k.
        after = np.arange(block)
        padded = np.concatenate([[0], self.between, [0]])
        signed = (padded[:-1, None] * (block - after) + padded[1:, None] * after).reshape(-1)
        origin = blocks * block
        counts = np.zeros(max(length, origin + block), dtype=np.int64)
        counts[: signed.size - origin] = signed[origin:]
        backward = signed[: origin + 1][::-1]
        counts[1 : backward.size] += backward[1:]
        apart = np.arange(blocks - 1, -1, -1) * block
        # The column of the last block is as far above the diagonal as its row is below it.
        _add(counts, self.last_row, apart, _profile(last, block))
        _add(counts, self.last_column, -apart, _profile(block, last))
        for states, size in ((self.within, block), (self.within_last, last)):
            counts[0] += states.sum() * size
            counts[1:size] += (states[EARLIER] + 2 * states[WHOLE]) * np.arange(size - 1, 0, -1)
        return counts[:length]


def kept_by_distance(layout: BlockLayout, seq_len: int, causal: bool | None = None) -> np.ndarray:
    """Return the number of kept query-key pairs at each distance, over all heads: int64 ``[seq_len]``.

    Args:
        layout: layout of all queries and keys.
        seq_len: tokens in the sequence.
        causal: whether attention is causal to the token; None for that of the layout.

    Raises:
        ValueError: the layout has another length.

    """
    check_square(layout, seq_len)
    causal = layout.causal if causal is None else causal
    heads = np.bincount(layout.head_layouts.numpy(), minlength=layout.layouts)
    total = np.zeros(seq_len, dtype=np.int64)
    for number in range(layout.layouts):
        total += heads[number] * _layout_pairs(layout, number, seq_len, causal).by_distance()
    return total


def _layout_pairs(layout: BlockLayout, number: int, seq_len: int, causal: bool) -> PairCounts:
    offsets, columns = rows_of_layout(layout, number)
    blocks = offsets.size - 1
    rows = np.repeat(np.arange(blocks), np.diff(offsets))
    if causal:
        rows, columns = rows[columns <= rows], columns[columns <= rows]
    within, within_last = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    on_diagonal = rows[rows == columns]
    state = EARLIER if causal else WHOLE
    within[state] = (on_diagonal < blocks - 1).sum()
    within_last[state] = (on_diagonal == blocks - 1).sum()
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
        seq_len: tokens in the sequence.
        block: tokens per block.
        sources: indices of blocks, int64 ascending, one per bit.
        packed: uint64 ``[blocks, words]``: the sources that are connected with each block.
        diagonal: int8 ``[blocks]``: the connection of a token within its block, if the bit is not set.

    Returns:
        Number of pairs of the tokens of each block, int64 ``[blocks]``, and the counts by distance.

    """
    blocks = diagonal.size
    last = blocks - 1
    sizes = np.full(blocks, block)
    sizes[-1] = seq_len - last * block
    # The last block, if it is a source, is the last source.
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
    """Return the first bits of a row, from the lowest bit of the first word: bool ``[bits]``."""
    octets = words.astype("<u8").view(np.uint8)
    return np.unpackbits(octets, count=bits, bitorder="little").astype(bool)


def _profile(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the differences ``u - v`` of ``u < rows`` and ``v < columns``, and the count of each."""
    difference = np.arange(1 - columns, rows)
    first, past = np.maximum(difference, 0), np.minimum(rows, columns + difference)
    return difference, past - first


def _add(
    counts: np.ndarray, pairs: np.ndarray, apart: np.ndarray, profile: tuple[np.ndarray, np.ndarray]
) -> None:
    """Add the token pairs of ``pairs[j]`` block pairs whose starts are ``apart[j]`` tokens apart."""
    some = np.flatnonzero(pairs)
    difference, times = profile
    # Slices bound the memory.
    for start in range(0, some.size, 4096):
        part = some[start : start + 4096]
        where = np.abs(apart[part][:, None] + difference)
        np.add.at(counts, where, pairs[part][:, None] * times)
