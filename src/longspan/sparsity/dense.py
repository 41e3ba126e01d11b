"""Dense: every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class DenseSparsityConfig(SparsityConfig):
    """Full attention: row ``r`` keeps every column, or every ``c <= r`` if unidirectional.

    Density 1 (unidirectional: ``(nb + 1) / (2 nb)`` of ``nb`` blocks): the cost is quadratic in the length.
    Vaswani et al. 2017, arXiv:1706.03762.

    Args:
        num_heads: number of attention heads.
        block: tokens per block.
        different_layout_per_head: accepted for symmetry with the other patterns; all heads have one layout.
        attention: "bidirectional" or "unidirectional" (causal to the token).

    Raises:
        ValueError: an argument is out of range.

    """

    attention: Attention = "bidirectional"

    name: ClassVar[str] = "dense"

    def head_variant(self, head: int) -> int:
        """Return 0: all heads have one layout."""
        return 0

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return all columns."""
        starts = np.zeros((rows.size, 1), dtype=np.int64)
        return starts, starts + num_blocks
