"""Random: a given fraction of the blocks of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention
from longspan.sparsity.random_columns import mix

# Bounds the temporaries: rows x columns of the keys that exist at once.
_KEYS_AT_ONCE = 1 << 20
_HASH, _OTHER, _COLUMN = np.uint64(0xFFFFFFFF << 32), np.uint64(1 << 31), np.uint64((1 << 31) - 1)


@dataclass(frozen=True)
class RandomSparsityConfig(SparsityConfig):
    """Random blocks at a given density: the baseline for patterns with structure.

    The direction allows row ``r`` ``m`` columns: all ``nb``, or ``r + 1`` if unidirectional. The row keeps
    ``floor(density * m + 1/2)`` of them, at least one: its diagonal block, and others, of which every set is
    equally likely. The draw is a hash of seed, head, row and column: the same on every rank and after every
    restart. Random attention alone is an ablation of BigBird (Zaheer et al. 2020, arXiv:2007.14062).

    The layout's density is ``density`` (about half of it if unidirectional, since the blocks above the
    diagonal count there too): the cost is quadratic in the length, and so is the time to make the layout.

    Args:
        num_heads: number of attention heads.
        block: tokens per block.
        different_layout_per_head: whether heads draw different blocks.
        density: fraction of the allowed blocks that are kept, in ``(0, 1]``.
        attention: "bidirectional" or "unidirectional" (causal to the token).
        seed: seed of the draw, in ``[0, 2**64)``.

    Raises:
        ValueError: an argument is out of range.

    """

    density: float = 0.1
    attention: Attention = "bidirectional"
    seed: int = 0

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store("density", checks.share("density", self.density))
        self._store("seed", checks.integer("seed", self.seed, 0, 2**64 - 1))

    def head_variant(self, head: int) -> int:
        """Return ``head`` if heads draw different blocks, else 0."""
        return head if self.different_layout_per_head else 0

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the drawn columns, one per interval; rows that draw fewer also have empty intervals."""
        allowed = rows + 1 if self.attention == "unidirectional" else np.full_like(rows, num_blocks)
        counts = self._num_kept(allowed)
        most = int(self._num_kept(np.array([num_blocks]))[0])
        step = max(1, _KEYS_AT_ONCE // num_blocks)
        drawn = [
            self._smallest(rows[low : low + step], allowed[low : low + step], num_blocks, head, most)
            for low in range(0, rows.size, step)
        ]
        columns = np.concatenate(drawn)
        return columns, columns + (np.arange(most) < counts[:, None])

    def _num_kept(self, allowed: np.ndarray) -> np.ndarray:
        return np.maximum(1, np.floor(self.density * allowed + 0.5).astype(np.int64))

    def _smallest(
        self, rows: np.ndarray, allowed: np.ndarray, num_blocks: int, head: int, most: int
    ) -> np.ndarray:
        """Return the columns of the ``most`` smallest keys, the diagonal first: int64 ``[rows, most]``.

        A key holds the upper half of a hash, then one bit, then the index of the column. No two keys are
        equal, so the order is the same with every NumPy, and the column is the low part of the key. The bit
        is 1 for all columns but the diagonal, which has the smallest key.
        """
        columns = np.arange(num_blocks, dtype=np.uint64)
        state = mix(np.array([self.seed], dtype=np.uint64))
        state = mix(state ^ np.uint64(head))
        state = mix(state ^ rows.astype(np.uint64))[:, None]
        keys = mix(state ^ columns) & _HASH | _OTHER | columns
        keys[columns >= allowed[:, None].astype(np.uint64)] |= _HASH
        keys[np.arange(rows.size), rows] = rows.astype(np.uint64)
        if most < num_blocks:
            keys = np.partition(keys, most - 1, axis=1)[:, :most]
        keys.sort(axis=1)
        return (keys & _COLUMN).astype(np.int64)
