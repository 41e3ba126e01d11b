"""BlockLayout: which key blocks each query block attends, in compressed sparse rows.

Time and memory of every function here are in proportion to the kept blocks: a pattern that keeps a constant
number of blocks a row costs megabytes at a million tokens. (``~`` alone is in proportion to the rectangle.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longspan_kernels.layout import csr, drawing, handles
from longspan_kernels.layout.pair_counts import kept_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class BlockLayout(csr.BlockCSR):
    """The kept blocks of an attention matrix, each distinct layout stored once however many heads share it.

    Geometry: of ``q_len`` queries and ``k_len`` keys the last query meets the last key, so query ``i`` stands
    at position ``i + k_len - q_len``. Query ``i`` lies in row ``(i + query_offset) // block`` and key ``j``
    in column ``j // block``. ``query_offset`` is the number of positions of the first row that lie before the
    first query; it is 0 unless the layout is the lower end of a longer one (``pattern.layout(seq_len,
    q_len)``), where the first query may stand inside a block.

    Instances are immutable (a tensor cannot be, so each access to one gives a copy: every user of a pattern
    shares its layout), compare and hash by content, and are made by `from_csr`, `from_dense`, set
    algebra (``|``, ``&``, ``-``, ``~``, ``shift``) and the patterns of ``longspan.sparsity``.

    Attributes:
        row_offsets: int32 ``[layouts, q_blocks + 1]``. Row ``r`` of layout ``u`` keeps the columns
            ``columns[row_offsets[u, r] : row_offsets[u, r + 1]]``.
        columns: int32 ``[kept blocks of all distinct layouts]``, ascending within each row.
        head_layouts: int32 ``[heads]``, the layout of each head.
        block: tokens a block, on either side.
        k_blocks: number of key blocks.
        causal: whether attention under this layout is causal to the token: key ``j`` is seen by query ``i``
            only if it stands at or before the query's position.
        query_offset: positions of the first row before the first query, ``0 <= query_offset < block``; the
            constructors take it as ``lead=``, and ``lead`` reads it too.
        handle: the layout in numbers, `longspan_kernels.layout.csr.LayoutHandle`.

    """

    # An equal layout that was made earlier, and is thereby alive as long as this one.
    __slots__ = ("_first_equal",)

    _first_equal: csr.BlockCSR | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            "BlockLayout is made by BlockLayout.from_csr, BlockLayout.from_dense or a pattern's layout()"
        )

    @classmethod
    def from_csr(
        cls,
        row_offsets: Tensor,
        columns: Tensor,
        head_layouts: Tensor,
        *,
        block: int,
        k_blocks: int,
        causal: bool = False,
        lead: int = 0,
    ) -> BlockLayout:
        """Make a layout from compressed sparse rows; equal layouts are merged.

        Args:
            row_offsets: integers ``[layouts, q_blocks + 1]``, absolute offsets into ``columns``, so that
                ``row_offsets[u + 1, 0] == row_offsets[u, -1]``.
            columns: integers ``[kept blocks]``, strictly ascending within each row.
            head_layouts: integers ``[heads]``, the layout of each head.
            block: tokens a block.
            k_blocks: number of key blocks.
            causal: causal to the token.
            lead: ``query_offset`` of the layout, the positions of the first row before the first query. The
                keyword is spelled ``lead`` here and in `from_dense`.

        Raises:
            ValueError: the arrays contradict one another, or an argument is out of range.
            RuntimeError: another layout with the same number is alive (`longspan_kernels.layout.handles`).

        """
        self = object.__new__(cls)
        self._set_content(row_offsets, columns, head_layouts, block, k_blocks, causal, lead)
        object.__setattr__(self, "_first_equal", handles.note(self))
        return self

    @classmethod
    def from_dense(cls, dense: Tensor, block: int, *, causal: bool = False, lead: int = 0) -> BlockLayout:
        """Make a layout from a tensor ``[heads, q_blocks, k_blocks]``, nonzero where a block is kept.

        Raises:
            ValueError: ``dense`` has another number of dimensions, or no head.

        """
        if dense.ndim != 3 or dense.shape[0] < 1:
            raise ValueError(f"dense must be [heads, q_blocks, k_blocks], got shape {tuple(dense.shape)}")
        kept = dense.to("cpu") != 0
        return cls.from_csr(
            csr.offsets_of(kept.sum(-1)),
            kept.nonzero()[:, 2],
            torch.arange(kept.shape[0]),
            block=block,
            k_blocks=kept.shape[2],
            causal=causal,
            lead=lead,
        )

    def to_dense(self) -> Tensor:
        """Return the layout as int64 ``[heads, q_blocks, k_blocks]``, 1 where a block is kept."""
        dense = torch.zeros(self.layouts * self.q_blocks, self.k_blocks, dtype=torch.int64)
        dense[self._rows(), self._columns.long()] = 1
        return dense.view(self.layouts, self.q_blocks, self.k_blocks)[self._head_layouts.long()]

    def flops(self, seq_len: int, head_dim: int, q_len: int | None = None) -> int:
        """Count the floating-point operations of one forward of one sequence through all heads.

        ``4 * head_dim`` for each pair of a query and a key that the layout keeps (scores and context, a
        multiply and an add each); under ``causal`` the pairs above the diagonal are not counted. Forward and
        backward together take 3.5 times as many (five matrix products more).

        Args:
            seq_len: number of keys.
            head_dim: dimension of a head.
            q_len: number of queries, ``seq_len`` if not given.

        Raises:
            ValueError: the lengths are not those of the layout.

        """
        q_len = seq_len if q_len is None else q_len
        self.check_lengths(q_len, seq_len)
        return 4 * head_dim * kept_pairs(self, q_len, seq_len)

    def transpose(self) -> BlockLayout:
        """Exchange queries and keys: row ``c`` keeps column ``r`` where this layout keeps ``[r, c]``.

        The result is not causal (no layout means "at or after the query"), so transposing twice gives back
        the blocks without ``causal``.

        Raises:
            ValueError: the layout has a ``query_offset``, for which columns have no counterpart.

        """
        if self.query_offset:
            raise ValueError(
                f"a layout with a lead ({self.query_offset}) has no transpose: its first query stands inside "
                "a block"
            )
        layout, row = self._rows() // max(1, self.q_blocks), self._rows() % max(1, self.q_blocks)
        keys = (layout * self.k_blocks + self._columns.long()) * self.q_blocks + row
        return self._from_keys(
            keys.sort().values, self.layouts, self._head_layouts, causal=False, transposed=True
        )

    def shift(self, rows: int = 0, columns: int = 0) -> BlockLayout:
        """Move the blocks down by ``rows`` and right by ``columns``; what leaves the rectangle is dropped."""
        layout, row = self._rows() // max(1, self.q_blocks), self._rows() % max(1, self.q_blocks) + rows
        column = self._columns.long() + columns
        inside = (row >= 0) & (row < self.q_blocks) & (column >= 0) & (column < self.k_blocks)
        keys = ((layout * self.q_blocks + row) * self.k_blocks + column)[inside]
        return self._from_keys(keys, self.layouts, self._head_layouts, causal=self.causal)

    def __or__(self, other: BlockLayout) -> BlockLayout:
        """Union of the blocks; both layouts must agree on ``causal``."""
        self._check_same_shape(other, "|")
        self._check_same_direction(other, "union")
        return self._combine(other, lambda a, b: torch.cat([a, b]).unique(), self.causal)

    def __and__(self, other: BlockLayout) -> BlockLayout:
        """Intersection of the blocks; causal if either is."""
        self._check_same_shape(other, "&")
        causal = self.causal or other.causal
        return self._combine(other, lambda a, b: a[torch.isin(a, b, assume_unique=True)], causal)

    def __sub__(self, other: BlockLayout) -> BlockLayout:
        """The blocks that the other layout does not keep; both must agree on ``causal``."""
        self._check_same_shape(other, "-")
        self._check_same_direction(other, "difference")
        return self._combine(other, lambda a, b: a[~torch.isin(a, b, assume_unique=True)], self.causal)

    def __invert__(self) -> BlockLayout:
        """Every block of the rectangle that is not kept; ``causal`` stays as it is."""
        missing = torch.ones(self.layouts * self.q_blocks * self.k_blocks, dtype=torch.bool)
        missing[self._keys()] = False
        keys = missing.nonzero()[:, 0]
        return self._from_keys(keys, self.layouts, self._head_layouts, causal=self.causal)

    def draw(self, head: int = 0, width: int = 64) -> str:
        """Draw one head for a terminal, two rows of cells a line, at most ``width`` characters wide."""
        return drawing.draw(self, head, width)

    def plot(self, ax: Axes | None = None, head: int = 0, **style: Any) -> Axes:
        """Draw one head with matplotlib and return the axes; see `longspan_kernels.layout.drawing.plot`."""
        return drawing.plot(self, ax, head, **style)

    def __reduce__(self) -> tuple[Any, ...]:
        geometry = {"block": self.block, "k_blocks": self.k_blocks, "causal": self.causal}
        make = partial(BlockLayout.from_csr, **geometry, lead=self.query_offset)
        return make, (self._row_offsets, self._columns, self._head_layouts)

    def _rows(self) -> Tensor:
        """Row of each kept block, counted through all layouts: int64 ``[kept]``."""
        return csr.rows_of(self._row_offsets)

    def _keys(self) -> Tensor:
        """Sorted block numbers through all layouts: ``(layout * q_blocks + row) * k_blocks + column``."""
        return self._rows() * self.k_blocks + self._columns.long()

    def _check_same_direction(self, other: BlockLayout, name: str) -> None:
        if self.causal != other.causal:
            raise ValueError(
                f"the {name} of a causal and a non-causal layout is no block layout: make both the same"
            )

    def _keys_of(self, layout: int) -> Tensor:
        start, stop = int(self._row_offsets[layout, 0]), int(self._row_offsets[layout, -1])
        rows = csr.rows_of(self._row_offsets[layout : layout + 1] - start)
        return rows * self.k_blocks + self._columns[start:stop].long()

    def _combine(
        self, other: BlockLayout, merge: Callable[[Tensor, Tensor], Tensor], causal: bool
    ) -> BlockLayout:
        pairs = list(zip(self._head_layouts.tolist(), other._head_layouts.tolist(), strict=True))
        distinct = list(dict.fromkeys(pairs))
        size = self.q_blocks * self.k_blocks
        merged = [merge(self._keys_of(a), other._keys_of(b)) + n * size for n, (a, b) in enumerate(distinct)]
        heads = torch.tensor([distinct.index(pair) for pair in pairs])
        return self._from_keys(torch.cat(merged), len(distinct), heads, causal=causal)

    def _from_keys(
        self, keys: Tensor, layouts: int, heads: Tensor, *, causal: bool, transposed: bool = False
    ) -> BlockLayout:
        q_blocks, k_blocks = self.q_blocks, self.k_blocks
        if transposed:
            q_blocks, k_blocks = k_blocks, q_blocks
        counts = torch.bincount(keys // max(1, k_blocks), minlength=layouts * q_blocks)
        offsets, columns = csr.offsets_of(counts.reshape(layouts, q_blocks)), keys % max(1, k_blocks)
        return BlockLayout.from_csr(
            offsets,
            columns,
            heads,
            block=self.block,
            k_blocks=k_blocks,
            causal=causal,
            lead=self.query_offset,
        )

    def _check_same_shape(self, other: BlockLayout, operator: str) -> None:
        if not isinstance(other, BlockLayout):
            raise TypeError(f"{operator} needs a BlockLayout on both sides, got {type(other).__name__}")
        for name in ("block", "heads", "q_blocks", "k_blocks", "lead"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"{operator} needs layouts of equal {name}, got {mine} and {theirs}")


def stack_heads(layouts: Sequence[BlockLayout]) -> BlockLayout:
    """Put the heads of several layouts of one geometry one after another into one layout.

    Raises:
        ValueError: no layout is given, or they differ in block, blocks, lead or causality.

    """
    if not layouts:
        raise ValueError("layouts must hold at least one BlockLayout")
    first = layouts[0]
    shape = ("block", "q_blocks", "k_blocks", "lead", "causal")
    for layout in layouts[1:]:
        for name in shape:
            if getattr(layout, name) != getattr(first, name):
                raise ValueError(
                    f"layouts must agree on {name}, got {getattr(first, name)} and {getattr(layout, name)}"
                )
    counts = torch.cat([(one.row_offsets[:, 1:] - one.row_offsets[:, :-1]).long() for one in layouts])
    before = [0]
    for one in layouts[:-1]:
        before.append(before[-1] + one.layouts)
    heads = torch.cat([one.head_layouts.long() + base for one, base in zip(layouts, before, strict=True)])
    columns = torch.cat([one.columns for one in layouts])
    return BlockLayout.from_csr(
        csr.offsets_of(counts),
        columns,
        heads,
        block=first.block,
        k_blocks=first.k_blocks,
        causal=first.causal,
        lead=first.query_offset,
    )
