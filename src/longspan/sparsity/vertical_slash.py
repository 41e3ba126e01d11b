"""VerticalSlash: listed columns and listed diagonals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class VerticalSlashSparsityConfig(SparsityConfig):
    """The vertical-slash shape of MInference (Jiang et al. 2024, arXiv:2407.02490), over blocks.

    Row ``r`` keeps the vertical columns, ``c in vertical_blocks``, and the slashes, the diagonals with
    ``|r - c| in slash_offsets``; if unidirectional only the lower triangle, as in MInference. MInference
    estimates both lists for each head and input; here they are arguments, the same for all heads. Columns and
    diagonals beyond the sequence are dropped.

    With ``v`` columns and ``s`` diagonals a row keeps at most ``v + 2 s`` blocks (``v + s`` if
    unidirectional): density about that over ``nb``, linear in the length. Without the offset 0 a row may
    attend nothing.

    Args:
        num_heads: number of attention heads, which all have the same layout.
        block: tokens per block.
        vertical_blocks: columns that every row keeps, in blocks from the start.
        slash_offsets: distances of the diagonals from the main one, in blocks; 0 is the diagonal block.
        attention: "bidirectional" or "unidirectional" (causal to the token).

    Raises:
        ValueError: an argument is out of range.

    """

    different_layout_per_head: bool = field(default=False, init=False, repr=False)
    vertical_blocks: tuple[int, ...] = (0,)
    slash_offsets: tuple[int, ...] = (0, 1, 4)
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "vertical_slash"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vertical_blocks", "slash_offsets"):
            self._store(name, checks.integers(name, getattr(self, name), 0))
        if not self.vertical_blocks and not self.slash_offsets:
            raise ValueError("vertical_blocks and slash_offsets must not both be empty: no row would attend")

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns, and the diagonals on either side."""
        vertical = np.array(self.vertical_blocks, dtype=np.int64)
        offsets = np.array([n for n in self.slash_offsets if n < num_blocks], dtype=np.int64)
        columns = [np.broadcast_to(vertical, (rows.size, vertical.size)), rows[:, None] - offsets]
        if self.attention == "bidirectional":
            columns.append(rows[:, None] + offsets)
        starts = np.concatenate(columns, axis=1)
        return starts, starts + 1
