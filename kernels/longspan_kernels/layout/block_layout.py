"""BlockLayout: which key blocks each query block attends, in compressed sparse rows.

Nothing larger than the kept blocks is ever made for a layout: a pattern that keeps a constant number of
blocks a row costs megabytes at a million tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longspan_kernels.layout import csr, drawing
from longspan_kernels.layout import handles as registry
from longspan_kernels.layout.pair_counts import kept_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class BlockLayout:
    """The kept blocks of an attention matrix, each distinct layout stored once however many heads share it.

    Geometry: of ``q_len`` queries and ``k_len`` keys the last query meets the last key, so query ``i`` stands
    at position ``i + k_len - q_len``. Query ``i`` lies in row ``(i + lead) // block`` and key ``j`` in column
    ``j // block``. ``lead`` is the number of positions of the first row that lie before the first query; it
    is 0 unless the layout is the lower end of a longer one (``pattern.layout(seq_len, q_len)``), whose first
    row may be entered in its middle.

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
        lead: positions of the first row before the first query, ``0 <= lead < block``.

    """

    __slots__ = (
        "__weakref__",
        "_columns",
        "_digest",
        "_handle",
        "_head_layouts",
        "_row_offsets",
        "block",
        "causal",
        "k_blocks",
        "lead",
    )

    _row_offsets: Tensor
    _columns: Tensor
    _head_layouts: Tensor
    block: int
    k_blocks: int
    causal: bool
    lead: int
    _digest: str
    _handle: registry.LayoutHandle | None  # of this process, noted by the registry

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
            lead: positions of the first row before the first query.

        Raises:
            ValueError: the arrays contradict one another, or an argument is out of range.

        """
        if block < 1:
            raise ValueError(f"block must be at least 1 token, got {block}")
        if not 0 <= lead < block:
            raise ValueError(f"lead must lie in [0, block), got {lead} with block {block}")
        if k_blocks < 0:
            raise ValueError(f"k_blocks must not be negative, got {k_blocks}")
        rows, columns, heads = csr.merge_equal(*csr.checked(row_offsets, columns, head_layouts, k_blocks))
        self = object.__new__(cls)
        shape = {"block": int(block), "k_blocks": int(k_blocks), "causal": bool(causal), "lead": int(lead)}
        arrays = {"_row_offsets": rows, "_columns": columns, "_head_layouts": heads}
        digest = hashlib.sha256(repr((*shape.values(), tuple(rows.shape))).encode())
        for array in arrays.values():
            digest.update(array.numpy().tobytes())
        for name, value in {**shape, **arrays, "_digest": digest.hexdigest(), "_handle": None}.items():
            object.__setattr__(self, name, value)
        registry.enter(self)
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

    @property
    def row_offsets(self) -> Tensor:
        """Offsets into ``columns``, int32 ``[layouts, q_blocks + 1]``; a copy."""
        return self._row_offsets.clone()

    @property
    def columns(self) -> Tensor:
        """Key blocks of the kept blocks, int32 ``[kept blocks of all distinct layouts]``; a copy."""
        return self._columns.clone()

    @property
    def head_layouts(self) -> Tensor:
        """Layout of each head, int32 ``[heads]``; a copy."""
        return self._head_layouts.clone()

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return self._row_offsets.nbytes + self._columns.nbytes + self._head_layouts.nbytes

    @property
    def q_blocks(self) -> int:
        """Number of query blocks."""
        return self._row_offsets.shape[1] - 1

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self._head_layouts.numel()

    @property
    def layouts(self) -> int:
        """Number of distinct layouts."""
        return self._row_offsets.shape[0]

    @property
    def nnz(self) -> int:
        """Number of kept blocks, summed over the heads."""
        kept = self._row_offsets[:, -1] - self._row_offsets[:, 0]
        return int(kept[self._head_layouts.long()].sum(dtype=torch.int64))

    @property
    def density(self) -> float:
        """Kept blocks over all ``heads * q_blocks * k_blocks``, those above the diagonal counted too."""
        return self.nnz / max(1, self.heads * self.q_blocks * self.k_blocks)

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of the content: the same in every process and on every machine."""
        return self._digest

    def check_lengths(self, q_len: int, k_len: int) -> None:
        """Raise ValueError unless ``q_len`` queries and ``k_len`` keys are what the blocks cover."""
        q_blocks, k_blocks = -(-(self.lead + q_len) // self.block), -(-k_len // self.block)
        if (q_blocks, k_blocks) != (self.q_blocks, self.k_blocks):
            lead = f" with a lead of {self.lead}" if self.lead else ""
            raise ValueError(
                f"the layout has {self.q_blocks} x {self.k_blocks} blocks of {self.block} tokens{lead}, but "
                f"{q_len} queries and {k_len} keys need {q_blocks} x {k_blocks}"
            )

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

        The result is not causal (the transpose of "not after" is "not before", which no layout means), so
        that transposing twice gives back the blocks alone.

        Raises:
            ValueError: the layout has a lead, for which columns have no counterpart.

        """
        if self.lead:
            raise ValueError(
                f"a layout with a lead ({self.lead}) has no transpose: its first row is entered midway"
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockLayout) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return (
            f"BlockLayout(heads={self.heads}, layouts={self.layouts}, q_blocks={self.q_blocks}, "
            f"k_blocks={self.k_blocks}, block={self.block}, causal={self.causal}, lead={self.lead}, "
            f"density={self.density:.4g})"
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"BlockLayout is immutable; {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"BlockLayout is immutable; {name!r} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        shape = {"block": self.block, "k_blocks": self.k_blocks, "causal": self.causal, "lead": self.lead}
        return partial(BlockLayout.from_csr, **shape), (self._row_offsets, self._columns, self._head_layouts)

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockLayout:
        return self

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
            offsets, columns, heads, block=self.block, k_blocks=k_blocks, causal=causal, lead=self.lead
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
        lead=first.lead,
    )
