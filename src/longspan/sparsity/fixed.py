"""Fixed: windows that do not overlap, and the last blocks of every window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class FixedSparsityConfig(SparsityConfig):
    """The fixed pattern of Sparse Transformers (Child et al. 2019, arXiv:1904.10509), generalised.

    With ``l = num_local_blocks``, ``g = num_global_blocks`` and ``P = num_different_global_patterns``, row
    ``r`` keeps its window, ``c // l == r // l``, and of every window the ``g`` blocks that start at
    ``f = l - (1 + head % P) * g``. In a short last window they start at ``min(f, its length - g)``,
    counted from its first block.

    The density tends to ``g / l`` (half of it if unidirectional): quadratic in the length with a smaller
    constant, not linear.

    Args:
        num_heads: number of attention heads.
        block: tokens per block.
        different_layout_per_head: whether heads may differ, as ``num_different_global_patterns`` above 1
            needs.
        num_local_blocks: blocks in a window, at least 1.
        num_global_blocks: global blocks of each window, a divisor of ``num_local_blocks``, or 0 for none.
        attention: "bidirectional" or "unidirectional" (causal to the token).
        horizontal_global_attention: whether the rows of global blocks keep every column; bidirectional only.
        num_different_global_patterns: number of choices of the global blocks within a window; head ``h`` has
            choice ``h % P``. At most ``num_local_blocks // num_global_blocks``.

    Raises:
        ValueError: an argument is out of range, or two arguments contradict each other.

    """

    num_local_blocks: int = 4
    num_global_blocks: int = 1
    attention: Attention = "bidirectional"
    horizontal_global_attention: bool = False
    num_different_global_patterns: int = 1

    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        window = checks.integer("num_local_blocks", self.num_local_blocks, 1)
        chosen = checks.integer("num_global_blocks", self.num_global_blocks, 0)
        patterns = checks.integer("num_different_global_patterns", self.num_different_global_patterns, 1)
        self._store("num_local_blocks", window)
        self._store("num_global_blocks", chosen)
        self._store("num_different_global_patterns", patterns)
        checks.boolean("horizontal_global_attention", self.horizontal_global_attention)
        checks.bidirectional_if_horizontal(self.attention, self.horizontal_global_attention)
        if chosen and window % chosen:
            raise ValueError(
                f"num_global_blocks must be 0 or divide num_local_blocks, which is {window}, got {chosen}"
            )
        if patterns > 1 and not self.different_layout_per_head:
            raise ValueError(
                "num_different_global_patterns must be 1 unless different_layout_per_head is True, "
                f"got {patterns}"
            )
        choices = window // chosen if chosen else 1
        if patterns > choices:
            raise ValueError(
                f"num_different_global_patterns must be at most {choices}, the choices that num_local_blocks "
                f"{window} and num_global_blocks {chosen} leave, got {patterns}"
            )

    def head_variant(self, head: int) -> int:
        """Return the first head with the same choice of global blocks."""
        return head % self.num_different_global_patterns

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the window, the global blocks of every window, and all columns for global rows."""
        size, chosen = self.num_local_blocks, self.num_global_blocks
        offset = size - (1 + head % self.num_different_global_patterns) * chosen
        short = num_blocks % size
        first = np.arange(offset, num_blocks - short, size)
        past = first + chosen
        if short:
            start = min(num_blocks - short + offset, num_blocks - chosen)
            stop = start + chosen
            if start < 0:  # fewer blocks than num_global_blocks: DeepSpeed's slice counts from the end
                start, stop = max(0, start + num_blocks), num_blocks
            first, past = np.append(first, start), np.append(past, stop)
        window = rows[:, None] // size * size
        shape = (rows.size, first.size)
        starts = [window, np.broadcast_to(first, shape)]
        stops = [window + size, np.broadcast_to(past, shape)]
        if self.horizontal_global_attention:
            is_global = ((rows[:, None] >= first) & (rows[:, None] < past)).any(axis=1, keepdims=True)
            starts.append(np.zeros_like(window))
            stops.append(np.where(is_global, num_blocks, 0))
        return np.concatenate(starts, axis=1), np.concatenate(stops, axis=1)
