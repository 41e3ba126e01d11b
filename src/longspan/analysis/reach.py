"""Reach: the pairs of tokens with a path between them after each layer, computed from block layouts.

A layer passes to each token the information of the tokens that it attends, and the residual connection keeps
what the token has. So after ``n`` layers token ``i`` can have information of token ``j`` if a path of at most
``n`` attended pairs leads from ``i`` to ``j``, at most one per layer, in the order of the layers. Heads of
one layer count together, since the output projection mixes them. Reach is an upper bound: what a model can
use, not what it learns.

The arithmetic works on blocks and is exact to the token: a kept block off the diagonal connects all its
pairs, one on the diagonal only those that causality allows. Sets of blocks are bits in 64-bit words, so a
layer costs ``kept blocks * blocks / 64`` operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from longspan.analysis.connections import (
    EARLIER,
    ITSELF,
    WHOLE,
    Connections,
    common_block,
    connections,
)
from longspan.analysis.pair_counts import PairCounts, count_pairs, unpacked
from longspan_kernels.layout import BlockLayout

# The most blocks for which all are sources: 4,096 blocks take one or two seconds.
MAX_SOURCES = 4096
# Size of the sample for more blocks: shares are then accurate to one or two percent.
SAMPLE = 1024
# The most words of 8 bytes that are gathered at once.
_MAX_GATHERED_WORDS = 1 << 22


@dataclass(frozen=True)
class Reach:
    """The pairs of blocks with a path after 0 … ``layers`` layers.

    Attributes:
        seq_len: tokens in the sequence.
        block: tokens per block: the largest common divisor of the blocks of the layouts.
        causal: whether every layer is causal; only the token itself and earlier ones can then reach it.
        sources: blocks whose information is followed, int64 ascending: all blocks, or a random sample.
        packed: for 0 … ``layers`` layers uint64 ``[blocks, words]``: bit ``s`` of row ``i`` is set if
            every token of source ``s`` reaches every token of block ``i``.
        diagonal: for 0 … ``layers`` layers int8 ``[blocks]``: the tokens of the same block that reach
            a token (ITSELF, EARLIER, WHOLE), if the bit is not set.
        goal: uint64 ``[blocks, words]``: the bits that causality allows.

    """

    seq_len: int
    block: int
    causal: bool
    sources: np.ndarray
    packed: tuple[np.ndarray, ...]
    diagonal: tuple[np.ndarray, ...]
    goal: np.ndarray

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.packed) - 1

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.goal.shape[0]

    @property
    def sampled(self) -> bool:
        """Whether the numbers are estimates from a sample of the sources."""
        return self.sources.size < self.blocks

    @cached_property
    def _counted(self) -> dict[int, tuple[np.ndarray, PairCounts]]:
        """Cached counts, by the identity of the state: layers that change nothing share a state."""
        return {}

    def _count(self, layer: int) -> tuple[np.ndarray, PairCounts]:
        state = self.packed[layer], self.diagonal[layer]
        if id(state[0]) not in self._counted:
            self._counted[id(state[0])] = count_pairs(self.seq_len, self.block, self.sources, *state)
        return self._counted[id(state[0])]

    @cached_property
    def _possible(self) -> tuple[np.ndarray, PairCounts]:
        diagonal = np.full(self.blocks, EARLIER if self.causal else WHOLE, dtype=np.int8)
        return count_pairs(self.seq_len, self.block, self.sources, self.goal, diagonal)

    @property
    def reached_pairs(self) -> np.ndarray:
        """Number of pairs of a token of a block and a token that reaches it: int64 ``[layers + 1, blocks]``.

        A token reaches itself.
        """
        return np.stack([self._count(layer)[0] for layer in range(self.layers + 1)])

    @property
    def possible_pairs(self) -> np.ndarray:
        """Number of pairs that causality allows: int64 ``[blocks]``."""
        return self._possible[0]

    def pairs_by_distance(self, layer: int = -1) -> np.ndarray:
        """Return the number of pairs reached after ``layer`` layers at each distance: int64 ``[seq_len]``."""
        return self._count(layer)[1].by_distance()

    def possible_by_distance(self) -> np.ndarray:
        """Return the number of pairs that causality allows at each distance: int64 ``[seq_len]``."""
        return self._possible[1].by_distance()

    @property
    def share(self) -> np.ndarray:
        """Share of the possible pairs of tokens that are reached: float64 ``[layers + 1]``."""
        return self.reached_pairs.sum(1) / self.possible_pairs.sum()

    @property
    def all_pairs(self) -> int:
        """Number of pairs that causality allows, including each token with itself."""
        return self.seq_len * (self.seq_len + 1) // 2 if self.causal else self.seq_len**2

    @property
    def unreachable_pairs(self) -> int:
        """Number of allowed pairs without a path after the last layer; an estimate if sampled."""
        missing = int(self.possible_pairs.sum() - self._count(-1)[0].sum())
        return round(self.all_pairs * missing / int(self.possible_pairs.sum())) if self.sampled else missing

    def by_position(self) -> np.ndarray:
        """Return the share of the allowed sources that reach each block: float64 ``[layers + 1, blocks]``.

        The mean over the tokens of the block, weighted by the number of allowed sources. NaN if the sample
        has no allowed source.
        """
        return _share(self.reached_pairs, self.possible_pairs)

    def by_distance(self, layer: int = -1) -> np.ndarray:
        """Return the share of pairs at each distance reached after ``layer`` layers: float64 ``[seq_len]``.

        Distance is in tokens; without causality both directions count. NaN where the sample has no pair.
        """
        return _share(self.pairs_by_distance(layer), self.possible_by_distance())

    def by_distance_bins(self, edges: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the share of pairs reached after each layer, in bins of distance.

        Args:
            edges: ascending distances in tokens: the start of each bin, and the end of the last one; None for
                0, 1, 2, 4, … and the length.

        Returns:
            The edges, int64 ``[bins + 1]``, and the shares, float64 ``[layers + 1, bins]``.

        Raises:
            ValueError: the edges do not ascend within ``[0, seq_len]``.

        """
        if edges is None:
            edges = [0, *(1 << power for power in range((self.seq_len - 1).bit_length())), self.seq_len]
        places = np.asarray(edges, dtype=np.int64)
        if places.size < 2 or (np.diff(places) <= 0).any() or places[0] < 0 or places[-1] > self.seq_len:
            raise ValueError(f"edges must ascend within [0, {self.seq_len}], got {list(edges)}")

        def binned(pairs: np.ndarray) -> np.ndarray:
            return np.diff(np.concatenate([[0], pairs.cumsum()])[places])

        possible = binned(self.possible_by_distance())
        reached = [binned(self.pairs_by_distance(layer)) for layer in range(self.layers + 1)]
        return places, _share(np.stack(reached), possible)

    def reaches(self, source: int, token: int, layer: int = -1) -> bool:
        """Return whether token ``source`` has a path to ``token`` after ``layer`` layers.

        Raises:
            ValueError: a position is out of range, or the source's block is not in the sample.

        """
        for name, value in (("source", source), ("token", token)):
            if not 0 <= value < self.seq_len:
                raise ValueError(f"{name} must lie in [0, {self.seq_len}), got {value}")
        from_block, to_block = source // self.block, token // self.block
        bit = int(np.searchsorted(self.sources, from_block))
        if bit == self.sources.size or self.sources[bit] != from_block:
            raise ValueError(f"source {source} lies in block {from_block}, which the sample does not hold")
        if int(self.packed[layer][to_block, bit // 64]) >> (bit % 64) & 1:
            return True
        if from_block != to_block:
            return False
        return source == token or (int(self.diagonal[layer][to_block]) >= EARLIER and source <= token)

    def raster(self, layer: int = -1, cells: int = 256) -> np.ndarray:
        """Return the share of block pairs with a path after ``layer`` layers, in the cells of a picture.

        Rows are blocks of tokens, columns blocks of sources. A pair of blocks counts if all its tokens are
        connected; a block and itself always count.

        Args:
            layer: number of layers.
            cells: largest number of cells per side.

        Returns:
            float64 ``[side, side]``; NaN where a cell has no source.

        """
        side = min(cells, self.blocks)
        row_cell, column_cell = (
            np.arange(self.blocks) * side // self.blocks,
            self.sources * side // self.blocks,
        )
        joined = np.zeros((side, side), dtype=np.int64)
        for row in range(self.blocks):
            bits = unpacked(self.packed[layer][row], self.sources.size) | (self.sources == row)
            joined[row_cell[row]] += np.bincount(column_cell, weights=bits, minlength=side).astype(np.int64)
        rows, columns = (np.bincount(of, minlength=side) for of in (row_cell, column_cell))
        return _share(joined, rows[:, None] * columns)

    def unreachable_examples(self, limit: int = 5) -> list[tuple[int, int]]:
        """Return pairs ``(source, token)`` of different blocks without a path, the last tokens first.

        Each is from another pair of blocks: the first token of the source block and the last of the other.
        """
        examples: list[tuple[int, int]] = []
        for row in range(self.blocks - 1, -1, -1):
            joined = unpacked(self.packed[-1][row], self.sources.size)
            allowed = self.sources < row if self.causal else self.sources != row
            missing = self.sources[allowed & ~joined][: limit - len(examples)]
            token = min((row + 1) * self.block, self.seq_len) - 1
            examples += [(int(source) * self.block, token) for source in missing]
            if len(examples) >= limit:
                break
        return examples


def reach(
    layouts: Sequence[BlockLayout | None],
    seq_len: int,
    causal: bool | None = None,
    *,
    max_sources: int = MAX_SOURCES,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Reach:
    """Compute the reach of the layers of a model.

    The result is exact if the sequence has at most ``max_sources`` blocks. For more blocks, the information
    of ``sample`` random blocks is followed through all layers to every token, and shares are unbiased
    estimates. Sliding windows of the architecture in addition to the layouts (the local layers of ModernBERT)
    are not counted, so such a model reaches less.

    Args:
        layouts: one per layer, the lowest first, of any block sizes; None for a dense layer.
        seq_len: tokens in the sequence; the last blocks may be short.
        causal: whether the layers are causal to the token, as in a causal model with any layouts; None if
            each layer follows its layout.
        max_sources: largest number of blocks that are all followed.
        sample: number of followed blocks otherwise.
        seed: seed of the sample.

    Raises:
        ValueError: there is no layout, a layout has another length, a number is below 1, or all layers are
            dense and ``causal`` is None.

    """
    if not layouts:
        raise ValueError("layouts must hold one for each layer, got none")
    for name, value in (("seq_len", seq_len), ("max_sources", max_sources), ("sample", sample)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if causal is None and all(layout is None for layout in layouts):
        raise ValueError("causal must be True or False where every layer is dense, got None")
    block = common_block(layouts)
    layouts_causal = [layout.causal for layout in layouts if layout is not None]
    distinct: dict[BlockLayout | None, Connections] = {}
    for layout in layouts:
        if layout not in distinct:
            # A dense layer among others is causal if they are.
            layer_causal = (
                causal
                if causal is not None
                else (layout.causal if layout is not None else all(layouts_causal))
            )
            distinct[layout] = connections(layout, seq_len, block, layer_causal)
    layers = [distinct[layout] for layout in layouts]
    every_causal = all(layer.causal for layer in layers)
    blocks = layers[0].blocks
    sources = np.arange(blocks)
    if blocks > max_sources:
        sources = np.sort(np.random.default_rng(seed).choice(blocks, min(sample, blocks), replace=False))
    diagonal_bit = _one_bit(blocks, sources)
    # The most sources that can reach a row: those before it, or all.
    most = np.searchsorted(sources, np.arange(blocks)) if every_causal else np.full(blocks, sources.size)
    goal = _low_bits(most, diagonal_bit.shape[1])
    states = [(np.zeros_like(diagonal_bit), np.full(blocks, ITSELF, dtype=np.int8))]
    for number, layer in enumerate(layers):
        if number > 1 and layer is layers[number - 1] and states[-1] is states[-2]:
            # The same layer changed nothing before, so it changes nothing now.
            state = states[-1]
        else:
            state = _step(*states[-1], layer, diagonal_bit, goal)
        if all(np.array_equal(now, before) for now, before in zip(state, states[-1], strict=True)):
            state = states[-1]
        states.append(state)
    return Reach(
        seq_len,
        block,
        every_causal,
        sources,
        tuple(bits for bits, _ in states),
        tuple(diagonal for _, diagonal in states),
        goal,
    )


def _step(
    packed: np.ndarray,
    diagonal: np.ndarray,
    layer: Connections,
    diagonal_bit: np.ndarray,
    goal: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply one layer. The bit of a row's diagonal block means that all its tokens reach each other."""
    packed = packed.copy()
    if layer.complete:
        if layer.causal:
            _read_all_earlier(packed, diagonal_bit)
        else:
            packed[:] = goal
    else:
        _read_columns(packed, layer, diagonal_bit, goal)
        whole = layer.diagonal == WHOLE
        packed[whole] |= diagonal_bit[whole]
    return packed, np.maximum(diagonal, layer.diagonal)


def _read_all_earlier(packed: np.ndarray, diagonal_bit: np.ndarray) -> None:
    """Add to each row every earlier row and the sources of these rows."""
    earlier = np.bitwise_or.accumulate(packed | diagonal_bit, axis=0)
    packed[1:] |= earlier[:-1]


def _read_columns(packed: np.ndarray, layer: Connections, diagonal_bit: np.ndarray, goal: np.ndarray) -> None:
    kept = np.diff(layer.offsets)
    # Rows that have reached their goal are skipped.
    rows = np.flatnonzero((kept > 0) & (packed != goal).any(1))
    readable = packed | diagonal_bit
    budget = max(1, _MAX_GATHERED_WORDS // packed.shape[1])
    parts = np.searchsorted(kept[rows].cumsum(), np.arange(budget, kept[rows].sum(), budget))
    for part in np.split(rows, np.unique(parts)):
        if not part.size:
            continue
        sizes = kept[part]
        starts = sizes.cumsum() - sizes
        places = np.repeat(layer.offsets[part] - starts, sizes) + np.arange(sizes.sum())
        packed[part] |= np.bitwise_or.reduceat(readable[layer.columns[places]], starts, axis=0)


def _one_bit(blocks: int, sources: np.ndarray) -> np.ndarray:
    """Return one bit per source, set only in the row of the source: uint64 ``[blocks, words]``."""
    bits = np.zeros((blocks, -(-sources.size // 64)), dtype=np.uint64)
    number = np.arange(sources.size, dtype=np.uint64)
    bits[sources, number // 64] = np.uint64(1) << number % 64
    return bits


def _low_bits(counts: np.ndarray, words: int) -> np.ndarray:
    """Return rows of bits with the first ``counts[row]`` set: uint64 ``[rows, words]``."""
    in_word = np.clip(counts[:, None] - 64 * np.arange(words), 0, 64).astype(np.uint64)
    # A shift by 64 is not defined.
    low = (np.uint64(1) << np.minimum(in_word, 63)) - np.uint64(1)
    return np.where(in_word == 64, np.iinfo(np.uint64).max, low)


def _share(reached: np.ndarray, possible: np.ndarray) -> np.ndarray:
    shape = np.broadcast_shapes(reached.shape, possible.shape)
    return np.divide(reached, possible, out=np.full(shape, np.nan), where=possible > 0)
