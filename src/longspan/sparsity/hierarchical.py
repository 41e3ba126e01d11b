"""Hierarchical: a window, and one block at every distance that is a power of two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class HierarchicalSparsityConfig(SparsityConfig):
    """Distances in powers of two: LogSparse (Li et al. 2019, arXiv:1907.00235), over blocks.

    With ``w = num_sliding_window_blocks // 2`` row ``r`` keeps the window, ``|r - c| <= w`` (the paper's
    local attention), and of each level ``k = 0, 1, 2, …`` the blocks at the distance ``|r - c| == 2**k``; if
    unidirectional only the lower triangle, as in the paper. As every distance is a sum of powers of two,
    ``log2(nb)`` layers, rounded up, reach every block that the direction allows.

    A row keeps about ``w + log2(nb)`` blocks to a side: the cost grows as ``n log n`` in the length.

    Args:
        num_heads: number of attention heads, which all have the same layout.
        block: tokens per block.
        num_sliding_window_blocks: width of the two-sided window; its half, rounded down, lies on either side.
        attention: "bidirectional" or "unidirectional" (causal to the token).

    Raises:
        ValueError: an argument is out of range.

    """

    different_layout_per_head: bool = field(default=False, init=False, repr=False)
    num_sliding_window_blocks: int = 3
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "hierarchical"

    def __post_init__(self) -> None:
        super().__post_init__()
        window = checks.integer("num_sliding_window_blocks", self.num_sliding_window_blocks, 0)
        self._store("num_sliding_window_blocks", window)

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the window, and a block of each level on either side."""
        half, diagonal = self.num_sliding_window_blocks // 2, rows[:, None]
        distances = 1 << np.arange((num_blocks - 1).bit_length(), dtype=np.int64)
        levels = [diagonal - distances]
        if self.attention == "bidirectional":
            levels.append(diagonal + distances)
        columns = np.concatenate(levels, axis=1)
        return np.concatenate([diagonal - half, columns], axis=1), np.concatenate(
            [diagonal + half + 1, columns + 1], axis=1
        )
