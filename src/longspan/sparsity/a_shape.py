"""AShape: the first blocks and the nearest ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class AShapeSparsityConfig(SparsityConfig):
    """The A-shape of MInference (Jiang et al. 2024, arXiv:2407.02490), over blocks.

    Row ``r`` keeps the initial columns, ``c < num_initial_blocks``, and the local ones,
    ``|r - c| < num_local_blocks``; the lower triangle of that if unidirectional, which is MInference. It is
    the shape of `AttentionSinksSparsityConfig` in MInference's words: the local blocks are counted to one
    side, a row's own among them.

    Density about ``(num_initial_blocks + 2 num_local_blocks - 1) / nb`` of ``nb`` blocks (unidirectional:
    ``(num_initial_blocks + num_local_blocks) / nb``): linear in the length.

    Args:
        num_heads: number of attention heads, which all have the same layout.
        block: tokens a block.
        num_initial_blocks: blocks at the start that all see.
        num_local_blocks: nearest blocks to either side, the own one among them; 0 for none at all.
        attention: "bidirectional" or "unidirectional" (causal to the token).

    Raises:
        ValueError: an argument is out of its range.

    """

    different_layout_per_head: bool = field(default=False, init=False, repr=False)
    num_initial_blocks: int = 1
    num_local_blocks: int = 4
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "a_shape"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_initial_blocks", "num_local_blocks"):
            self._store(name, checks.integer(name, getattr(self, name), 0))

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """The initial columns and the local ones."""
        count, zero = self.num_local_blocks, np.zeros_like(rows)
        starts = np.stack([zero, rows - count + 1], axis=1)
        return starts, np.stack([zero + self.num_initial_blocks, rows + count], axis=1)
