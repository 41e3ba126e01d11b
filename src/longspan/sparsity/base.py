"""SparsityConfig: what every pattern is, a frozen configuration that makes block layouts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from longspan.sparsity import checks
from longspan.sparsity.cache import LayoutCache
from longspan.sparsity.rows import compressed_rows
from longspan_kernels.layout import BlockLayout

_INT32_MAX = 2**31 - 1
_CACHE = LayoutCache(max_layouts=512, max_bytes=1 << 30)


@dataclass(frozen=True)
class SparsityConfig(ABC):
    """A block-sparse attention pattern: the rule by which each block of queries chooses its blocks of keys.

    A pattern is a value: immutable, hashable, equal to another of the same class and arguments, and it gives
    the same layout in every process. List arguments are stored as tuples. A new pattern is a frozen dataclass
    that derives from this class, has a ``name`` and an ``attention``, and says in `intervals` which columns a
    row keeps. Its arguments are of JSON's plain types, lists as tuples, or patterns: a compiled graph is
    guarded by their values. ``a | b``, ``a & b`` and ``a - b`` are patterns too.

    Args:
        num_heads: number of attention heads, at least 1.
        block: tokens a block on either side, at least 1.
        different_layout_per_head: whether each head has a layout of its own; else head 0's serves all.

    Raises:
        ValueError: an argument is out of its range; the message names it, its value and what is allowed.

    """

    num_heads: int
    block: int = 16
    different_layout_per_head: bool = False

    name: ClassVar[str]
    # Keys of a configuration that are for the run and no arguments: which layers have the pattern.
    read_by_run: ClassVar[dict[str, Any]] = {"layers": str | None}

    @property
    @abstractmethod
    def attention(self) -> checks.Attention:
        """Direction of the pattern: "bidirectional", or "unidirectional" for the causal one.

        A unidirectional layout keeps no block above the diagonal and is causal to the token.
        """

    @abstractmethod
    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Say which columns the rows keep, random ones and the direction aside, as a union of intervals.

        Intervals may overlap, be empty and reach beyond the matrix; the number of intervals a row must be the
        same for all rows of all calls with the same ``num_blocks``.

        Args:
            rows: row blocks, int64 ``[rows]``.
            num_blocks: blocks in the sequence.
            head: the head.

        Returns:
            First and past-the-end columns, int64, both ``[rows, intervals]``.

        """

    @property
    def random_blocks(self) -> tuple[int, int]:
        """Number of random columns each row keeps besides, and the seed of their draw."""
        return 0, 0

    def check_num_blocks(self, num_blocks: int) -> None:
        """Raise ValueError if the pattern is not defined for a sequence of ``num_blocks`` blocks."""
        return

    def defined_for(self, seq_len: int) -> bool:
        """Say whether the pattern is defined for a sequence of ``seq_len`` tokens, or has too few blocks."""
        try:
            self.check_num_blocks(-(-seq_len // self.block))
        except ValueError:
            return False
        return True

    def head_variant(self, head: int) -> int:
        """Return a head whose layout ``head`` shares: heads of equal variant are built once."""
        return head if self.different_layout_per_head else 0

    def __post_init__(self) -> None:
        self._store("num_heads", checks.integer("num_heads", self.num_heads, 1))
        self._store("block", checks.integer("block", self.block, 1))
        checks.boolean("different_layout_per_head", self.different_layout_per_head)
        checks.direction(self.attention)
        # A configuration file and `from_dict` give lists: equal patterns must be equal, and have a hash.
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):
                self._store(field.name, _as_tuple(value))

    def _store(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def layout(self, seq_len: int, q_len: int | None = None) -> BlockLayout:
        """Make the layout of a sequence, without any object of the size of blocks x blocks; cached.

        Args:
            seq_len: tokens in the sequence; the last block may be short.
            q_len: number of queries, the last ones of the sequence; all if not given. The result then holds
                the last rows of the whole layout, the first of them entered ``lead`` positions from its
                start.

        Raises:
            ValueError: a length is no integer, ``seq_len`` is under 1, ``q_len`` is outside ``[1, seq_len]``,
                the pattern is not defined for that many blocks, or keeps more blocks than can be addressed.

        """
        seq_len = checks.integer("seq_len", seq_len, 1)
        q_len = seq_len if q_len is None else checks.integer("q_len", q_len, 1, seq_len)
        return _CACHE.get((self, seq_len, q_len), lambda: self._build(seq_len, q_len))

    def make_layout(self, seq_len: int) -> Tensor:
        """Return the whole layout as int64 ``[num_heads, blocks, blocks]``, 1 where a block is kept.

        Raises:
            ValueError: as `layout`.

        """
        return self.layout(seq_len).to_dense()

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"name": ..., argument: value, ...}``, of plain JSON types; `from_dict` is its inverse."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.init}
        return {"name": self.name, **values}

    def __or__(self, other: SparsityConfig) -> SparsityConfig:
        """Union: the blocks that either keeps; heads, block and direction are the same in both."""
        return self._combined("UnionSparsityConfig", other, patterns=(self, other))

    def __and__(self, other: SparsityConfig) -> SparsityConfig:
        """Intersection: the blocks that both keep; heads, block and direction are the same in both."""
        return self._combined("IntersectionSparsityConfig", other, patterns=(self, other))

    def __sub__(self, other: SparsityConfig) -> SparsityConfig:
        """Difference: the blocks that the other does not keep; heads, block and direction are the same."""
        return self._combined("DifferenceSparsityConfig", other, pattern=self, without=other)

    def _combined(self, cls: str, other: SparsityConfig, **parts: Any) -> Any:
        if not isinstance(other, SparsityConfig):
            return NotImplemented
        from longspan.sparsity import combined  # it derives from this class

        return getattr(combined, cls)(self.num_heads, self.block, attention=self.attention, **parts)

    def _build(self, seq_len: int, q_len: int) -> BlockLayout:
        num_blocks = -(-seq_len // self.block)
        self.check_num_blocks(num_blocks)
        causal = self.attention == "unidirectional"
        first_row, lead = divmod(seq_len - q_len, self.block)
        heads = range(self.num_heads if self.different_layout_per_head else 1)
        variants = list(dict.fromkeys(self.head_variant(head) for head in heads))
        counts, columns, kept = [], [], 0
        for head in variants:
            of_rows, of_columns = compressed_rows(
                lambda rows, head=head: self.intervals(rows, num_blocks, head),
                first_row,
                num_blocks,
                causal=causal,
                random_blocks=self.random_blocks,
                head=head,
                max_kept=_INT32_MAX - kept,
            )
            kept += of_columns.size
            counts.append(of_rows)
            columns.append(of_columns)
        offsets = np.zeros((len(variants), num_blocks - first_row + 1), dtype=np.int64)
        offsets[:, 1:] = np.cumsum(np.concatenate(counts)).reshape(len(variants), -1)
        offsets[1:, 0] = offsets[:-1, -1]
        of_heads = [variants.index(self.head_variant(head)) for head in heads]
        if not self.different_layout_per_head:
            of_heads *= self.num_heads
        return BlockLayout.from_csr(
            torch.from_numpy(offsets),
            torch.from_numpy(np.concatenate(columns)),
            torch.tensor(of_heads),
            block=self.block,
            k_blocks=num_blocks,
            causal=causal,
            lead=lead,
        )


def _plain(value: Any) -> Any:
    """Write an argument in types that JSON has, a pattern as its dictionary."""
    if isinstance(value, SparsityConfig):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
