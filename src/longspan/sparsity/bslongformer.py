"""BSLongformer: a sliding window and listed global blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention
from longspan.sparsity.ranges import checked_ranges, global_intervals


@dataclass(frozen=True)
class BSLongformerSparsityConfig(SparsityConfig):
    """Block-sparse Longformer (Beltagy et al. 2020, arXiv:2004.05150): a sliding window and global blocks.

    Row ``r`` keeps ``|r - c| <= n // 2`` (``n = num_sliding_window_blocks``) and the columns of every global
    range; the rows of a global range keep every column. If unidirectional, only the lower triangle.

    Density about ``(2 (n // 2) + 1 + 2 G) / nb`` with ``G`` global blocks of ``nb`` blocks: linear in the
    length.

    Args:
        num_heads: number of attention heads.
        block: tokens per block.
        different_layout_per_head: accepted for symmetry with the other patterns; all heads have one layout.
        num_sliding_window_blocks: width of the window; its half, rounded down, lies on either side.
        global_block_indices: first block of each global range; ranges beyond the sequence are dropped.
        global_block_end_indices: end of each range (past the last block); each is one block if None.
        attention: "bidirectional" or "unidirectional" (causal to the token).

    Raises:
        ValueError: an argument is out of range, or the ranges contradict each other.

    """

    num_sliding_window_blocks: int = 3
    global_block_indices: tuple[int, ...] = (0,)
    global_block_end_indices: tuple[int, ...] | None = None
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "bslongformer"

    def __post_init__(self) -> None:
        super().__post_init__()
        window = checks.integer("num_sliding_window_blocks", self.num_sliding_window_blocks, 0)
        self._store("num_sliding_window_blocks", window)
        starts, ends = checked_ranges(self.global_block_indices, self.global_block_end_indices)
        self._store("global_block_indices", starts)
        self._store("global_block_end_indices", ends)

    def head_variant(self, head: int) -> int:
        """Return 0: all heads have one layout."""
        return 0

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the window, the global columns, and all columns for global rows."""
        half = self.num_sliding_window_blocks // 2
        firsts, pasts = global_intervals(
            rows, num_blocks, self.global_block_indices, self.global_block_end_indices, whole_rows=True
        )
        starts = np.concatenate([rows[:, None] - half, firsts], axis=1)
        return starts, np.concatenate([rows[:, None] + half + 1, pasts], axis=1)
