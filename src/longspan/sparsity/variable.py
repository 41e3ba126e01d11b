"""Variable: windows of listed sizes, listed global blocks and random blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention
from longspan.sparsity.ranges import checked_ranges, global_intervals


@dataclass(frozen=True)
class VariableSparsityConfig(SparsityConfig):
    """DeepSpeed's variable pattern: windows of listed sizes, listed global blocks and random blocks.

    Row ``r`` keeps its window (consecutive windows of the listed sizes, the last size repeated to the end),
    the columns of every global range, and ``num_random_blocks`` random columns, drawn from the columns that
    are not kept yet. It generalises Sparse Transformers, arXiv:1904.10509.

    A row keeps at most ``last window + global columns + num_random_blocks`` blocks far from the start:
    density about that over ``nb``, linear in the length, except for the few full rows of
    ``horizontal_global_attention``.

    Args:
        num_heads: number of attention heads.
        block: tokens per block.
        different_layout_per_head: whether heads draw different random blocks.
        num_random_blocks: random columns per row, at most the number of blocks; a row with fewer free columns
            draws all of them.
        local_window_blocks: sizes of the windows in blocks, at least one size, each at least 1.
        global_block_indices: first block of each global range; ranges beyond the sequence are dropped.
        global_block_end_indices: end of each range (past the last block); each is one block if None.
        attention: "bidirectional" or "unidirectional" (causal to the token).
        horizontal_global_attention: whether the rows of global blocks keep every column; bidirectional only.
        seed: seed of the random blocks, in ``[0, 2**64)``.

    Raises:
        ValueError: an argument is out of range, or two arguments contradict each other.

    """

    num_random_blocks: int = 0
    local_window_blocks: tuple[int, ...] = (4,)
    global_block_indices: tuple[int, ...] = (0,)
    global_block_end_indices: tuple[int, ...] | None = None
    attention: Attention = "bidirectional"
    horizontal_global_attention: bool = False
    seed: int = 0

    name: ClassVar[str] = "variable"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store("num_random_blocks", checks.integer("num_random_blocks", self.num_random_blocks, 0))
        windows = checks.integers("local_window_blocks", self.local_window_blocks, 1)
        if not windows:
            raise ValueError("local_window_blocks must hold at least one window size, got []")
        self._store("local_window_blocks", windows)
        starts, ends = checked_ranges(self.global_block_indices, self.global_block_end_indices)
        self._store("global_block_indices", starts)
        self._store("global_block_end_indices", ends)
        checks.boolean("horizontal_global_attention", self.horizontal_global_attention)
        checks.bidirectional_if_horizontal(self.attention, self.horizontal_global_attention)
        self._store("seed", checks.integer("seed", self.seed, 0, 2**64 - 1))

    @property
    def random_blocks(self) -> tuple[int, int]:
        """The number of random columns per row, and the seed of the draw."""
        return self.num_random_blocks, self.seed

    def check_num_blocks(self, num_blocks: int) -> None:
        """Raise ValueError if there are more random blocks than blocks."""
        if self.num_random_blocks > num_blocks:
            raise ValueError(
                f"num_random_blocks must be at most the number of blocks, {num_blocks} here, got "
                f"{self.num_random_blocks}"
            )

    def head_variant(self, head: int) -> int:
        """Return ``head`` if heads draw different random blocks, else 0."""
        return head if self.different_layout_per_head and self.num_random_blocks else 0

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the window and the global ranges."""
        edges = np.cumsum((0, *self.local_window_blocks))
        last = self.local_window_blocks[-1]
        listed = np.searchsorted(edges, rows, side="right") - 1
        past_list = np.maximum(rows - edges[-1], 0) // last * last + edges[-1]
        beyond = rows >= edges[-1]
        starts = np.where(beyond, past_list, edges[listed])[:, None]
        stops = np.where(beyond, past_list + last, edges[np.minimum(listed + 1, edges.size - 1)])[:, None]
        firsts, pasts = global_intervals(
            rows,
            num_blocks,
            self.global_block_indices,
            self.global_block_end_indices,
            whole_rows=self.horizontal_global_attention,
        )
        return np.concatenate([starts, firsts], axis=1), np.concatenate([stops, pasts], axis=1)
