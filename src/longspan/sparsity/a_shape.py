"""AShape: initial blocks and local blocks."""

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
    ``|r - c| < num_local_blocks``; if unidirectional only the lower triangle, as in MInference. It is
    the shape of `AttentionSinksSparsityConfig` with MInference's arguments: local blocks are counted to one
    side, the diagonal block included.

    Density about ``(num_initial_blocks + 2 num_local_blocks - 1) / nb`` of ``nb`` blocks (unidirectional:
    ``(num_initial_blocks + num_local_blocks) / nb``): linear in the length.

    Args:
        num_heads: number of attention heads, which all have the same layout.
        block: tokens per block.
        num_initial_blocks: blocks at the start that every row keeps.
        num_local_blocks: nearest blocks to either side, the diagonal block included; 0 for none.
        attention: "bidirectional" or "unidirectional" (causal to the token).

    Raises:
        ValueError: an argument is out of range.

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
        """Return the initial columns and the local columns."""
        count, zero = self.num_local_blocks, np.zeros_like(rows)
        starts = np.stack([zero, rows - count + 1], axis=1)
        return starts, np.stack([zero + self.num_initial_blocks, rows + count], axis=1)
