"""Reach: which tokens have a path to which others after each layer, from block layouts alone.

A layer hands each token what the tokens that it attends hold, and its residual keeps what it held. So after
``n`` layers information of token ``j`` can be in token ``i`` if a path of at most ``n`` attended pairs
leads from ``i`` to ``j``, at most one of each layer, in their order. Heads of one layer count as one: the
output projection mixes them. Reach says what can be known, not what is learned.

The arithmetic is on blocks and exact to the token: a kept block off the diagonal joins all its pairs, one on
the diagonal only those that causality allows. Sets of blocks are bits packed into 64-bit words, so that a
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

# Sources up to which every block is one: 4,096 blocks take a second or two.
MAX_SOURCES = 4096
# Sources that are followed of more than that: shares are then known to a percent or two.
SAMPLE = 1024
# Words that a gathered part of the rows may take, 8 bytes each.
_PART = 1 << 22


@dataclass(frozen=True)
class Reach:
    """What reaches what after 0 … ``layers`` layers.

    Attributes:
        seq_len: tokens of the sequence.
        block: tokens a block: the largest into which the layouts' blocks can be cut.
        causal: whether every layer is causal; a token may then be reached by itself and earlier ones alone,
            else by all.
        sources: the blocks whose spreading was followed, int64 ascending: all of them, or a random sample.
        packed: for 0 … ``layers`` layers uint64 ``[blocks, words]``: bit ``s`` of row ``i`` is set where
            every token of source ``s`` reaches every token of block ``i``.
        diagonal: for 0 … ``layers`` layers int8 ``[blocks]``: which tokens of its own block reach a token
            (ITSELF, EARLIER, WHOLE), where its bit does not say that all do.
        goal: uint64 ``[blocks, words]``: the bits that can ever be set.

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
        """What was counted so far, by the identity of the state: layers that change nothing share one."""
        return {}

    def _count(self, layer: int) -> tuple[np.ndarray, PairCounts]:
        state = self.packed[layer], self.diagonal[layer]
        if id(state[0]) not in self._counted:
            self._counted[id(state[0])] = count_pairs(self.seq_len, self.block, self.sources, *state)
        return self._counted[id(state[0])]

    @cached_property
    def _possible(self) -> tuple[np.ndarray, PairCounts]:
        own = np.full(self.blocks, EARLIER if self.causal else WHOLE, dtype=np.int8)
        return count_pairs(self.seq_len, self.block, self.sources, self.goal, own)

    @property
    def reached_pairs(self) -> np.ndarray:
        """Pairs of a token of the block and one of a source that reaches it: int64 ``[layers + 1, blocks]``.

        A token reaches itself.
        """
        return np.stack([self._count(layer)[0] for layer in range(self.layers + 1)])

    @property
    def possible_pairs(self) -> np.ndarray:
        """The same of all pairs that causality allows: int64 ``[blocks]``."""
        return self._possible[0]

    def pairs_by_distance(self, layer: int = -1) -> np.ndarray:
        """Pairs of tokens reached after ``layer`` layers, at each distance in tokens: int64 ``[seq_len]``."""
        return self._count(layer)[1].by_distance()

    def possible_by_distance(self) -> np.ndarray:
        """The same of all pairs that causality allows: int64 ``[seq_len]``."""
        return self._possible[1].by_distance()

    @property
    def share(self) -> np.ndarray:
        """Share of the possible pairs of tokens that are reached: float64 ``[layers + 1]``."""
        return self.reached_pairs.sum(1) / self.possible_pairs.sum()

    @property
    def all_pairs(self) -> int:
        """Pairs of tokens that causality allows, each token with itself included."""
        return self.seq_len * (self.seq_len + 1) // 2 if self.causal else self.seq_len**2

    @property
    def unreachable_pairs(self) -> int:
        """Possible pairs of tokens without a path after the last layer; of a sample, the estimate."""
        missing = int(self.possible_pairs.sum() - self._count(-1)[0].sum())
        return round(self.all_pairs * missing / int(self.possible_pairs.sum())) if self.sampled else missing

    def by_position(self) -> np.ndarray:
        """Share of the possible sources that reach a token, by its block: float64 ``[layers + 1, blocks]``.

        The mean over the block's tokens, each weighed by how many sources it may have. NaN where the sample
        holds no possible source.
        """
        return _share(self.reached_pairs, self.possible_pairs)

    def by_distance(self, layer: int = -1) -> np.ndarray:
        """Share of the pairs at each distance that are reached after ``layer`` layers: float64 ``[seq_len]``.

        Distance is in tokens; without causality both directions count. NaN where the sample has no pair.
        """
        return _share(self.pairs_by_distance(layer), self.possible_by_distance())

    def by_distance_bins(self, edges: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Share of the pairs reached after each layer, in bins of distances.

        Args:
            edges: ascending distances in tokens, the first of each bin and, last, the first beyond; None: 0,
                1, 2, 4, … and the length.

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
        """Whether token ``source`` has a path to ``token`` after ``layer`` layers.

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
        """Share of the pairs of blocks with a path after ``layer`` layers, in cells of a picture.

        A row is a token's block, a column a source's. A pair of blocks counts where all its tokens are
        joined, a block with itself always.

        Args:
            layer: after how many layers.
            cells: cells a side at the most.

        Returns:
            float64 ``[side, side]``; NaN where a cell holds no source.

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
        """Pairs ``(source, token)`` of different blocks without a path, the last tokens first.

        Each is of another pair of blocks: from the source's the first token, from the other the last.
        """
        found: list[tuple[int, int]] = []
        for row in range(self.blocks - 1, -1, -1):
            joined = unpacked(self.packed[-1][row], self.sources.size)
            allowed = self.sources < row if self.causal else self.sources != row
            missing = self.sources[allowed & ~joined][: limit - len(found)]
            token = min((row + 1) * self.block, self.seq_len) - 1
            found += [(int(source) * self.block, token) for source in missing]
            if len(found) >= limit:
                break
        return found


def reach(
    layouts: Sequence[BlockLayout | None],
    seq_len: int,
    causal: bool | None = None,
    *,
    max_sources: int = MAX_SOURCES,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Reach:
    """Follow the paths of information through the layers of a model.

    Exact where the sequence has at most ``max_sources`` blocks. Beyond, the spreading of ``sample`` blocks
    drawn at random is followed, through all layers and to every token: shares are then unbiased estimates. A
    window of the model's own, beside the layouts (ModernBERT's local layers), is not known here, so that such
    a model reaches less.

    Args:
        layouts: one for each layer, the lowest first, of any block sizes; None: a dense layer.
        seq_len: tokens of the sequence; the last blocks may be short.
        causal: whether the layers are causal to the token, as those of a causal model are whatever their
            layouts say; None: each as its layout says.
        max_sources: blocks up to which all are followed.
        sample: how many are followed of more than that.
        seed: of the sample.

    Raises:
        ValueError: no layout, a layout of another length, a number under 1, or a dense layer where nothing
            says whether it is causal.

    """
    if not layouts:
        raise ValueError("layouts must hold one for each layer, got none")
    for name, value in (("seq_len", seq_len), ("max_sources", max_sources), ("sample", sample)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if causal is None and all(layout is None for layout in layouts):
        raise ValueError("causal must be True or False where every layer is dense, got None")
    block = common_block(layouts)
    said = [layout.causal for layout in layouts if layout is not None]
    distinct: dict[BlockLayout | None, Connections] = {}
    for layout in layouts:
        if layout not in distinct:
            # A dense layer beside others is causal if they are.
            own = causal if causal is not None else (layout.causal if layout is not None else all(said))
            distinct[layout] = connections(layout, seq_len, block, own)
    layers = [distinct[layout] for layout in layouts]
    every_causal = all(layer.causal for layer in layers)
    blocks = layers[0].blocks
    sources = np.arange(blocks)
    if blocks > max_sources:
        sources = np.sort(np.random.default_rng(seed).choice(blocks, min(sample, blocks), replace=False))
    own_bit = _one_bit(blocks, sources)
    # What a row can hold at the most: the sources before it, or all.
    most = np.searchsorted(sources, np.arange(blocks)) if every_causal else np.full(blocks, sources.size)
    goal = _low_bits(most, own_bit.shape[1])
    states = [(np.zeros_like(own_bit), np.full(blocks, ITSELF, dtype=np.int8))]
    for number, layer in enumerate(layers):
        if number > 1 and layer is layers[number - 1] and states[-1] is states[-2]:
            # The same layer changed nothing before.
            state = states[-1]
        else:
            state = _step(*states[-1], layer, own_bit, goal)
        if all(np.array_equal(now, before) for now, before in zip(state, states[-1], strict=True)):
            state = states[-1]
        states.append(state)
    return Reach(
        seq_len,
        block,
        every_causal,
        sources,
        tuple(bits for bits, _ in states),
        tuple(own for _, own in states),
        goal,
    )


def _step(
    packed: np.ndarray,
    diagonal: np.ndarray,
    layer: Connections,
    own_bit: np.ndarray,
    goal: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Let one layer read. The bit of a row's own block means that all its tokens reach one another."""
    packed = packed.copy()
    if layer.complete:
        if layer.causal:
            _read_all_earlier(packed, own_bit)
        else:
            packed[:] = goal
    else:
        _read_columns(packed, layer, own_bit, goal)
        whole = layer.diagonal == WHOLE
        packed[whole] |= own_bit[whole]
    return packed, np.maximum(diagonal, layer.diagonal)


def _read_all_earlier(packed: np.ndarray, own_bit: np.ndarray) -> None:
    """Each row takes over what every earlier row holds, and those rows themselves."""
    earlier = np.bitwise_or.accumulate(packed | own_bit, axis=0)
    packed[1:] |= earlier[:-1]


def _read_columns(packed: np.ndarray, layer: Connections, own_bit: np.ndarray, goal: np.ndarray) -> None:
    kept = np.diff(layer.offsets)
    # Rows that hold all they ever can need not be read again.
    rows = np.flatnonzero((kept > 0) & (packed != goal).any(1))
    held = packed | own_bit
    budget = max(1, _PART // packed.shape[1])
    parts = np.searchsorted(kept[rows].cumsum(), np.arange(budget, kept[rows].sum(), budget))
    for part in np.split(rows, np.unique(parts)):
        if not part.size:
            continue
        sizes = kept[part]
        starts = sizes.cumsum() - sizes
        places = np.repeat(layer.offsets[part] - starts, sizes) + np.arange(sizes.sum())
        packed[part] |= np.bitwise_or.reduceat(held[layer.columns[places]], starts, axis=0)


def _one_bit(blocks: int, sources: np.ndarray) -> np.ndarray:
    """A bit for each source, set in the source's own row alone: uint64 ``[blocks, words]``."""
    bits = np.zeros((blocks, -(-sources.size // 64)), dtype=np.uint64)
    number = np.arange(sources.size, dtype=np.uint64)
    bits[sources, number // 64] = np.uint64(1) << number % 64
    return bits


def _low_bits(counts: np.ndarray, words: int) -> np.ndarray:
    """Rows of bits of which the first ``counts[row]`` are set: uint64 ``[rows, words]``."""
    in_word = np.clip(counts[:, None] - 64 * np.arange(words), 0, 64).astype(np.uint64)
    # A shift by 64 is not defined.
    low = (np.uint64(1) << np.minimum(in_word, 63)) - np.uint64(1)
    return np.where(in_word == 64, np.iinfo(np.uint64).max, low)


def _share(reached: np.ndarray, possible: np.ndarray) -> np.ndarray:
    shape = np.broadcast_shapes(reached.shape, possible.shape)
    return np.divide(reached, possible, out=np.full(shape, np.nan), where=possible > 0)
