"""AttentionSinks: initial blocks and a sliding window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class AttentionSinksSparsityConfig(SparsityConfig):
    """Attention sinks with a window (StreamingLLM, Xiao et al. 2023, arXiv:2309.17453), over blocks.

    With ``w = num_sliding_window_blocks // 2`` row ``r`` keeps the sinks, ``c < num_sink_blocks``, and the
    window, ``|r - c| <= w``; if unidirectional only the lower triangle, as in StreamingLLM. Every row
    keeps the sinks; unlike BigBird's global blocks, the rows of the sinks keep no more than other rows.

    Density about ``(num_sink_blocks + 2 w + 1) / nb`` of ``nb`` blocks (unidirectional: ``(num_sink_blocks +
    w + 1) / nb``): linear in the length.

    Args:
        num_heads: number of attention heads, which all have the same layout.
        block: tokens per block.
        num_sink_blocks: blocks at the start that every row keeps.
        num_sliding_window_blocks: width of the two-sided window; its half, rounded down, lies on either side.
        attention: "bidirectional" or "unidirectional" (causal to the token).

    Raises:
        ValueError: an argument is out of range.

    """

    different_layout_per_head: bool = field(default=False, init=False, repr=False)
    num_sink_blocks: int = 1
    num_sliding_window_blocks: int = 3
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "attention_sinks"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_sink_blocks", "num_sliding_window_blocks"):
            self._store(name, checks.integer(name, getattr(self, name), 0))

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the sinks and the window."""
        half, zero = self.num_sliding_window_blocks // 2, np.zeros_like(rows)
        starts = np.stack([zero, rows - half], axis=1)
        return starts, np.stack([zero + self.num_sink_blocks, rows + half + 1], axis=1)
