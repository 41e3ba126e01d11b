"""BigBird: a sliding window, global blocks at the start and random blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class BigBirdSparsityConfig(SparsityConfig):
    """BigBird (Zaheer et al. 2020, arXiv:2007.14062): a sliding window, global blocks and random blocks.

    Row ``r`` keeps ``|r - c| <= n // 2`` (``n = num_sliding_window_blocks``), ``c < G`` and, if ``r < G``,
    every column (``G = num_global_blocks``), and ``R = num_random_blocks`` random columns, drawn from the
    columns that are not kept yet; a row with fewer free columns draws all of them. If unidirectional, only
    the lower triangle.

    Density about ``(2 (n // 2) + 1 + 2 G + R) / nb`` of ``nb`` blocks (unidirectional: without the global
    rows and half the window): linear in the length.

    Args:
        num_heads: number of attention heads.
        block: tokens per block.
        different_layout_per_head: whether heads draw different random blocks.
        num_random_blocks: random columns per row.
        num_sliding_window_blocks: width of the window; its half, rounded down, lies on either side.
        num_global_blocks: blocks at the start that attend, and are attended by, every block.
        attention: "bidirectional" or "unidirectional" (causal to the token).
        seed: seed of the random blocks, in ``[0, 2**64)``.

    Raises:
        ValueError: an argument is out of range; in ``layout``, also if the sequence has fewer blocks
            than one of the three numbers.

    """

    num_random_blocks: int = 1
    num_sliding_window_blocks: int = 3
    num_global_blocks: int = 1
    attention: Attention = "bidirectional"
    seed: int = 0

    name: ClassVar[str] = "bigbird"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("num_random_blocks", "num_sliding_window_blocks", "num_global_blocks"):
            self._store(field, checks.integer(field, getattr(self, field), 0))
        self._store("seed", checks.integer("seed", self.seed, 0, 2**64 - 1))

    @property
    def random_blocks(self) -> tuple[int, int]:
        """The number of random columns per row, and the seed of the draw."""
        return self.num_random_blocks, self.seed

    def check_num_blocks(self, num_blocks: int) -> None:
        """Raise ValueError if one of the three numbers exceeds the number of blocks."""
        for field in ("num_random_blocks", "num_sliding_window_blocks", "num_global_blocks"):
            value = getattr(self, field)
            if value > num_blocks:
                raise ValueError(
                    f"{field} must be at most the number of blocks, {num_blocks} here, got {value}"
                )

    def head_variant(self, head: int) -> int:
        """Return ``head`` if heads draw different random blocks, else 0."""
        return head if self.different_layout_per_head and self.num_random_blocks else 0

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the window, the global columns, and all columns for global rows."""
        half, zero = self.num_sliding_window_blocks // 2, np.zeros_like(rows)
        starts = np.stack([rows - half, zero, zero], axis=1)
        whole = np.where(rows < self.num_global_blocks, num_blocks, 0)
        return starts, np.stack([rows + half + 1, zero + self.num_global_blocks, whole], axis=1)
