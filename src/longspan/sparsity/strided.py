"""Strided: a window, and every l-th block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class StridedSparsityConfig(SparsityConfig):
    """The strided pattern of Sparse Transformers (Child et al. 2019, arXiv:1904.10509), over blocks.

    With the stride ``l`` row ``r`` keeps its window, ``|r - c| <= l``, and every ``l``-th column counted from
    the diagonal, ``(r - c) % l == 0``; if unidirectional only the lower triangle. Two layers reach every
    block that the direction allows. With ``different_layout_per_head`` even heads keep only the window and
    odd heads only the strided columns, as in the paper's factorised attention; otherwise each head has both.

    Density about ``1 / l`` (half of it if unidirectional): quadratic in the length with a smaller constant;
    a stride near the square root of the number of blocks gives the paper's cost.

    Args:
        num_heads: number of attention heads.
        block: tokens per block.
        different_layout_per_head: whether the window and the strided columns are on alternating heads.
        stride: distance of the columns, and reach of the window, in blocks; at least 1.
        attention: "bidirectional" or "unidirectional" (causal to the token).

    Raises:
        ValueError: an argument is out of range.

    """

    stride: int = 4
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "strided"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store("stride", checks.integer("stride", self.stride, 1))

    def head_variant(self, head: int) -> int:
        """Return ``head % 2`` if heads alternate, else 0."""
        return head % 2 if self.different_layout_per_head else 0

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the window, the strided columns, or both."""
        reach = self.stride
        window = (rows - reach)[:, None], (rows + reach + 1)[:, None]
        if self.different_layout_per_head and head % 2 == 0:
            return window
        columns = (rows % reach)[:, None] + np.arange(0, num_blocks, reach)
        if self.different_layout_per_head:
            return columns, columns + 1
        return np.concatenate([window[0], columns], axis=1), np.concatenate([window[1], columns + 1], axis=1)
