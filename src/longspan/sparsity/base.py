"""SparsityConfig, the base class of the patterns: a frozen configuration that makes block layouts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
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

# What `|`, `&` and `-` of two patterns make. The classes derive from SparsityConfig, so
# `longspan.sparsity.combined` enters them here instead of being imported.
OPERATORS: dict[str, Callable[[SparsityConfig, SparsityConfig], SparsityConfig]] = {}


@dataclass(frozen=True)
class SparsityConfig(ABC):
    """A block-sparse attention pattern: the rule that selects the key blocks of each query block.

    A pattern is a value: immutable, hashable, equal to another one of the same class and arguments. It gives
    the same layout in every process. List arguments are stored as tuples. A new pattern is a frozen dataclass
    that derives from this class, has a ``name`` and an ``attention``, and returns from `intervals` the
    columns that a row keeps. Its arguments are plain JSON types, with lists as tuples, or patterns: compiled
    graphs are guarded by their values. ``a | b``, ``a & b`` and ``a - b`` are patterns too.

    Args:
        num_heads: number of attention heads, at least 1.
        block: tokens per block, of queries and of keys, at least 1.
        different_layout_per_head: whether heads may have different layouts; otherwise all have that of head
            0.

    Raises:
        ValueError: an argument is out of range; the message names it, its value and the allowed values.

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
        """Return the columns that each row keeps, as intervals, before direction and random columns apply.

        Intervals may overlap, be empty and reach beyond the matrix. The number of intervals per row must be
        the same for all rows of all calls with the same ``num_blocks``.

        Args:
            rows: indices of query blocks, int64 ``[rows]``.
            num_blocks: blocks in the sequence.
            head: index of the head.

        Returns:
            First and past-the-end columns, int64, both ``[rows, intervals]``.

        """

    @property
    def random_blocks(self) -> tuple[int, int]:
        """The number of additional random columns of each row, and the seed of the draw."""
        return 0, 0

    def check_num_blocks(self, num_blocks: int) -> None:
        """Raise ValueError if the pattern is not defined for a sequence of ``num_blocks`` blocks."""
        return

    def defined_for(self, seq_len: int) -> bool:
        """Return whether a sequence of ``seq_len`` tokens has enough blocks for the pattern."""
        try:
            self.check_num_blocks(-(-seq_len // self.block))
        except ValueError:
            return False
        return True

    def head_variant(self, head: int) -> int:
        """Return the head with which ``head`` shares its layout; each distinct layout is built once."""
        return head if self.different_layout_per_head else 0

    def __post_init__(self) -> None:
        self._store("num_heads", checks.integer("num_heads", self.num_heads, 1))
        self._store("block", checks.integer("block", self.block, 1))
        checks.boolean("different_layout_per_head", self.different_layout_per_head)
        checks.direction(self.attention)
        # Configuration files and `from_dict` give lists, which have no hash.
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):
                self._store(field.name, _as_tuple(value))

    def _store(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def layout(self, seq_len: int, q_len: int | None = None) -> BlockLayout:
        """Return the layout of a sequence, cached; no object of size blocks x blocks is made.

        Args:
            seq_len: tokens in the sequence; the last block may be short.
            q_len: number of queries, the last ones of the sequence; None for all. The result holds the last
                rows of the whole layout; the first query is token ``lead`` of the first row.

        Raises:
            ValueError: a length is not an integer, ``seq_len`` is below 1, ``q_len`` is outside ``[1,
                seq_len]``, the pattern is not defined for that many blocks, or it keeps more blocks than can
                be addressed.

        """
        seq_len = checks.integer("seq_len", seq_len, 1)
        q_len = seq_len if q_len is None else checks.integer("q_len", q_len, 1, seq_len)
        return _CACHE.get((self, seq_len, q_len), lambda: self._build(seq_len, q_len))

    def make_layout(self, seq_len: int) -> Tensor:
        """Return the layout as dense int64 ``[num_heads, blocks, blocks]``, 1 where a block is kept.

        Raises:
            ValueError: as `layout`.

        """
        return self.layout(seq_len).to_dense()

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"name": ..., argument: value, ...}`` in plain JSON types; `from_dict` is the inverse."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.init}
        return {"name": self.name, **values}

    def __or__(self, other: SparsityConfig) -> SparsityConfig:
        """Return the union: the blocks in either pattern; heads, block and direction must agree."""
        return OPERATORS["|"](self, other) if isinstance(other, SparsityConfig) else NotImplemented

    def __and__(self, other: SparsityConfig) -> SparsityConfig:
        """Return the intersection: the blocks in both patterns; heads, block and direction must agree."""
        return OPERATORS["&"](self, other) if isinstance(other, SparsityConfig) else NotImplemented

    def __sub__(self, other: SparsityConfig) -> SparsityConfig:
        """Return the difference: the blocks of this pattern only; heads, block and direction must agree."""
        return OPERATORS["-"](self, other) if isinstance(other, SparsityConfig) else NotImplemented

    def _build(self, seq_len: int, q_len: int) -> BlockLayout:
        num_blocks = -(-seq_len // self.block)
        self.check_num_blocks(num_blocks)
        causal = self.attention == "unidirectional"
        first_row, lead = divmod(seq_len - q_len, self.block)
        heads = range(self.num_heads if self.different_layout_per_head else 1)
        variants = list(dict.fromkeys(self.head_variant(head) for head in heads))
        counts, columns, kept = [], [], 0
        for head in variants:
            head_counts, head_columns = compressed_rows(
                lambda rows, head=head: self.intervals(rows, num_blocks, head),
                first_row,
                num_blocks,
                causal=causal,
                random_blocks=self.random_blocks,
                head=head,
                max_kept=_INT32_MAX - kept,
            )
            kept += head_columns.size
            counts.append(head_counts)
            columns.append(head_columns)
        offsets = np.zeros((len(variants), num_blocks - first_row + 1), dtype=np.int64)
        offsets[:, 1:] = np.cumsum(np.concatenate(counts)).reshape(len(variants), -1)
        offsets[1:, 0] = offsets[:-1, -1]
        head_layouts = [variants.index(self.head_variant(head)) for head in heads]
        if not self.different_layout_per_head:
            head_layouts *= self.num_heads
        return BlockLayout.from_csr(
            torch.from_numpy(offsets),
            torch.from_numpy(np.concatenate(columns)),
            torch.tensor(head_layouts),
            block=self.block,
            k_blocks=num_blocks,
            causal=causal,
            lead=lead,
        )


def _plain(value: Any) -> Any:
    """Return an argument in JSON types, with a pattern as its dictionary."""
    if isinstance(value, SparsityConfig):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
