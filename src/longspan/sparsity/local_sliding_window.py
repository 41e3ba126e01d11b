"""LocalSlidingWindow: only a sliding window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class LocalSlidingWindowSparsityConfig(SparsityConfig):
    """DeepSpeed's local sliding window: only the window of Longformer (arXiv:2004.05150).

    With ``w = num_sliding_window_blocks // 2`` row ``r`` keeps ``r - w <= c <= r`` if unidirectional (the
    default here) and ``|r - c| <= w`` if bidirectional. Density about ``(w + 1) / nb`` and ``(2 w + 1) / nb``
    of ``nb`` blocks: linear in the length; a layer reaches ``w`` blocks further than the one below.

    Args:
        num_heads: number of attention heads, which all have the same layout.
        block: tokens per block.
        num_sliding_window_blocks: width of the two-sided window; its half, rounded down, lies on either side.
        attention: "unidirectional" (causal to the token) or "bidirectional".

    Raises:
        ValueError: an argument is out of range.

    """

    # Not an argument of this class in DeepSpeed.
    different_layout_per_head: bool = field(default=False, init=False, repr=False)
    num_sliding_window_blocks: int = 3
    attention: Attention = "unidirectional"

    name: ClassVar[str] = "local_sliding_window"

    def __post_init__(self) -> None:
        super().__post_init__()
        window = checks.integer("num_sliding_window_blocks", self.num_sliding_window_blocks, 0)
        self._store("num_sliding_window_blocks", window)

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the window."""
        half = self.num_sliding_window_blocks // 2
        return (rows - half)[:, None], (rows + half + 1)[:, None]
