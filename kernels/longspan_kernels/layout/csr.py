"""Compressed sparse rows of blocks: the arrays of a layout, their checks, their identity (`BlockCSR`).

Several layouts share one pair of arrays; heads name their layout by its index.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

_INT32_MAX = 2**31 - 1


class LayoutHandle(NamedTuple):
    """A layout in numbers: its number, and the geometry that a call checks its tensors against.

    Attributes:
        number: 63 bits of the digest; equal layouts have equal numbers, in every process.
        heads: number of heads.
        block: tokens a block.
        q_blocks: number of query blocks.
        k_blocks: number of key blocks.
        query_offset: positions of the first row before the first query.
        causal: whether attention under the layout is causal to the token.

    """

    number: int
    heads: int
    block: int
    q_blocks: int
    k_blocks: int
    query_offset: int
    causal: bool

    @property
    def handle(self) -> LayoutHandle:
        """Itself, so that layouts and handles are asked for their numbers alike."""
        return self


class BlockCSR:
    """The arrays and the geometry of a block layout; immutable, compared and hashed by content.

    `longspan_kernels.layout.BlockLayout` derives from it and documents both. Functions that only read a
    layout (counts, pictures, backends) take this class.
    """

    __slots__ = (
        "__weakref__",
        "_columns",
        "_digest",
        "_head_layouts",
        "_row_offsets",
        "block",
        "causal",
        "handle",
        "k_blocks",
        "query_offset",
    )

    _row_offsets: Tensor
    _columns: Tensor
    _head_layouts: Tensor
    _digest: str
    block: int
    k_blocks: int
    causal: bool
    query_offset: int
    handle: LayoutHandle

    def _set_content(
        self,
        row_offsets: Tensor,
        columns: Tensor,
        head_layouts: Tensor,
        block: int,
        k_blocks: int,
        causal: bool,
        query_offset: int,
    ) -> None:
        """Check the arrays, merge equal layouts and set every attribute; for constructors of derived classes.

        Raises:
            ValueError: the arrays contradict one another, or an argument is out of range.

        """
        if block < 1:
            raise ValueError(f"block must be at least 1 token, got {block}")
        if not 0 <= query_offset < block:
            raise ValueError(f"lead must lie in [0, block), got {query_offset} with block {block}")
        if k_blocks < 0:
            raise ValueError(f"k_blocks must not be negative, got {k_blocks}")
        rows, columns, heads = merge_equal(*checked(row_offsets, columns, head_layouts, k_blocks))
        geometry = int(block), int(k_blocks), bool(causal), int(query_offset)
        sha = hashlib.sha256(repr((*geometry, tuple(rows.shape))).encode())
        for array in (rows, columns, heads):
            sha.update(array.numpy().tobytes())
        digest = sha.hexdigest()
        block, k_blocks, causal, query_offset = geometry
        handle = LayoutHandle(
            number_of(digest), heads.numel(), block, rows.shape[1] - 1, k_blocks, query_offset, causal
        )
        content = {
            "_row_offsets": rows, "_columns": columns, "_head_layouts": heads, "_digest": digest,
            "block": block, "k_blocks": k_blocks, "causal": causal, "query_offset": query_offset,
            "handle": handle,
        }  # fmt: skip
        for name, value in content.items():
            object.__setattr__(self, name, value)

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
    def lead(self) -> int:
        """Another name of ``query_offset``, from earlier versions."""
        return self.query_offset

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
        check_lengths(self.handle, q_len, k_len)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockCSR) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(heads={self.heads}, layouts={self.layouts}, q_blocks={self.q_blocks}, "
            f"k_blocks={self.k_blocks}, block={self.block}, causal={self.causal}, lead={self.query_offset}, "
            f"density={self.density:.4g})"
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable; {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable; {name!r} cannot be deleted")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


def number_of(digest: str) -> int:
    """Return the number of a layout: the first 63 bits of its digest, which fit an op's ``int``."""
    return int(digest[:16], 16) >> 1


def check_lengths(handle: LayoutHandle, q_len: int, k_len: int) -> None:
    """Raise ValueError unless ``q_len`` queries and ``k_len`` keys are what a layout's blocks cover."""
    q_blocks, k_blocks = -(-(handle.query_offset + q_len) // handle.block), -(-k_len // handle.block)
    if (q_blocks, k_blocks) != (handle.q_blocks, handle.k_blocks):
        lead = f" with a lead of {handle.query_offset}" if handle.query_offset else ""
        raise ValueError(
            f"the layout has {handle.q_blocks} x {handle.k_blocks} blocks of {handle.block} tokens{lead}, "
            f"but {q_len} queries and {k_len} keys need {q_blocks} x {k_blocks}"
        )


def offsets_of(counts: Tensor) -> Tensor:
    """Turn numbers of kept blocks, ``[layouts, q_blocks]``, into offsets ``[layouts, q_blocks + 1]``.

    Offsets are absolute, int64: each layout begins where the one before it ends.
    """
    offsets = torch.zeros(counts.shape[0], counts.shape[1] + 1, dtype=torch.int64)
    offsets[:, 1:] = counts.reshape(-1).cumsum(0).reshape(counts.shape)
    if counts.shape[1]:
        offsets[1:, 0] = offsets[:-1, -1]
    return offsets


def rows_of(offsets: Tensor) -> Tensor:
    """Return the row of each kept block, counted through all layouts: int64 ``[kept blocks]``.

    Args:
        offsets: integers ``[layouts, q_blocks + 1]``, absolute and rising from 0.

    """
    kept = int(offsets[-1, -1])
    # A block's row is the number of rows that end at or before it. (repeat_interleave gives the same, but
    # starts threads for each call, which costs milliseconds on a busy machine.)
    return torch.bincount(offsets[:, 1:].reshape(-1), minlength=kept + 1)[:kept].cumsum(0)


def checked(
    row_offsets: Tensor, columns: Tensor, head_layouts: Tensor, k_blocks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arrays of a layout and return them on the CPU, the offsets and the heads as int64.

    Args:
        row_offsets: integers ``[layouts, q_blocks + 1]``, absolute offsets into ``columns``.
        columns: integers ``[kept blocks]``, strictly ascending within each row.
        head_layouts: integers ``[heads]``, the layout of each head.
        k_blocks: number of key blocks.

    Raises:
        ValueError: the arrays contradict one another or the number of key blocks, or are not of integers.

    """
    arrays = {"row_offsets": row_offsets, "columns": columns, "head_layouts": head_layouts}
    for name, array in arrays.items():
        if array.dtype.is_floating_point or array.dtype.is_complex or array.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {array.dtype}")
        if array.ndim != (2 if name == "row_offsets" else 1):
            form = {
                "row_offsets": "[layouts, q_blocks + 1]",
                "columns": "[kept blocks]",
                "head_layouts": "[heads]",
            }
            raise ValueError(f"{name} must be {form[name]}, got shape {tuple(array.shape)}")
    if row_offsets.shape[0] < 1 or row_offsets.shape[1] < 1:
        raise ValueError(
            f"row_offsets must hold at least one layout and one offset, got shape {tuple(row_offsets.shape)}"
        )
    if columns.numel() > _INT32_MAX:
        raise ValueError(
            f"the layout keeps {columns.numel():,} blocks; at most {_INT32_MAX:,} can be addressed: "
            "take a larger block or a sparser pattern"
        )
    offsets, heads = row_offsets.to("cpu", torch.int64), head_layouts.to("cpu", torch.int64)
    columns = columns.to("cpu")
    starts, ends = offsets[:, :-1].reshape(-1), offsets[:, 1:].reshape(-1)
    joined = bool((offsets[1:, 0] == offsets[:-1, -1]).all()) and int(offsets[0, 0]) == 0
    if not joined or int(offsets[-1, -1]) != columns.numel() or bool((ends < starts).any()):
        raise ValueError("row_offsets must rise from 0 to the number of columns, layout after layout")
    if columns.numel():
        if int(columns.min()) < 0 or int(columns.max()) >= k_blocks:
            raise ValueError(
                f"columns must lie in [0, {k_blocks}), got {int(columns.min())}..{int(columns.max())}"
            )
        row_start = torch.zeros(columns.numel() + 1, dtype=torch.bool)
        row_start[starts] = True
        if bool(((columns[1:] <= columns[:-1]) & ~row_start[1:-1]).any()):
            raise ValueError("columns must ascend strictly within each row")
    if heads.numel() < 1 or int(heads.min()) < 0 or int(heads.max()) >= offsets.shape[0]:
        raise ValueError(
            f"head_layouts must name one of {offsets.shape[0]} layouts for each head, got {heads.tolist()}"
        )
    return offsets, columns, heads


def merge_equal(offsets: Tensor, columns: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep each distinct layout once, in the order in which the heads first use it.

    Args:
        offsets: int64 ``[layouts, q_blocks + 1]``.
        columns: integers ``[kept blocks]``.
        heads: int64 ``[heads]``.

    Returns:
        The three arrays of the distinct layouts, int32, new ones.

    """
    # Counts, not offsets, name a layout wherever it lies in `columns`.
    contents: dict[bytes, int] = {}
    of_given: dict[int, int] = {}
    parts_counts: list[Tensor] = []
    parts_columns: list[Tensor] = []
    for given in heads.tolist():
        if given in of_given:
            continue
        counts = (offsets[given, 1:] - offsets[given, :-1]).to(torch.int32)
        cols = columns[int(offsets[given, 0]) : int(offsets[given, -1])].to(torch.int32)
        content = hashlib.sha256(counts.numpy().tobytes())
        content.update(cols.numpy().tobytes())
        of_given[given] = contents.setdefault(content.digest(), len(contents))
        if of_given[given] == len(parts_counts):
            parts_counts.append(counts)
            parts_columns.append(cols)
    rows = offsets_of(torch.stack(parts_counts)).to(torch.int32)
    merged_heads = torch.tensor([of_given[given] for given in heads.tolist()], dtype=torch.int32)
    return rows, torch.cat(parts_columns), merged_heads
