"""What belongs together on its way into the Triton kernels, as named tuples.

A member that is None is known to the compiler, which then leaves out what it would have served.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Operand(NamedTuple):
    """A tensor [B, heads, length, width] that lies contiguous along its width.

    Attributes:
        pointer: its first element.
        strides: of batch entry, head and token, in elements.

    """

    pointer: Any
    strides: Any


class Strided(NamedTuple):
    """A mask: its first element, and its strides in elements, 0 where it broadcasts."""

    pointer: Any
    strides: Any


class Distances(NamedTuple):
    """A bias by distance, key position minus query position; what is farther than span is as far as span.

    Attributes:
        biases: pointer to float32 ``[H, 2 span + 1]``, in units of log2.
        buckets: pointer to int32 ``[2 span + 1]``: which number of the table each bias is.
        span: the largest distance of its own.
        PADDED: numbers of the table, padded to a power of two; a `tl.constexpr`.

    """

    biases: Any
    buckets: Any
    span: Any
    PADDED: Any


class Masks(NamedTuple):
    """What strikes scores or is added to them, each None if absent. uint8 says 1 where a key is seen.

    Attributes:
        keys: `Strided` ``[B, k_len]``, uint8 or added.
        pairs: `Strided` ``[B, H, q_len, k_len]``, uint8 or added.
        bias: `Strided` ``[B, H, q_len, k_len]``, added.
        documents: `Strided` integers ``[B, k_len]``.
        distances: `Distances`.
        slopes: pointer to float32 ``[H]``, in units of log2 a token; times the distance, subtracted.
        ANY: whether there is any of them; a `tl.constexpr`.

    """

    keys: Any
    pairs: Any
    bias: Any
    documents: Any
    distances: Any
    slopes: Any
    ANY: Any


class Dropout(NamedTuple):
    """Dropout of weights.

    Attributes:
        seed: pointer to an int64; in the kernels, from `seeded` on, that number.
        threshold: smallest word of a weight that is kept.
        keep_scale: factor of the weights that are kept.

    """

    seed: Any
    threshold: Any
    keep_scale: Any


class Shape(NamedTuple):
    """Sizes that the compiler knows, each a `tl.constexpr`.

    Attributes:
        D: dimension of q and k; DP: that padded to a power of two, at least 16.
        E: dimension of v; EP: that padded.
        BM: queries a tile or step.
        BN: keys a step or tile.
        SUB: tokens of the sub-blocks that a step gathers.
        GROUP: query heads that share a key head.
        SHARED: whether all heads run the same items.
        RAGGED: whether a sub-block of a step reaches beyond the keys (queries, where steps are of those).
        STEPS: whether the schedule has any steps of each of the three kinds.
        SCALE_IN_EXP2: whether the scale is applied in the exponent, in one instruction with the subtraction
            there: it is positive, so that the largest product is the largest score, and nothing is added.
        PRECISION: how float32 products are computed.

    """

    D: Any
    DP: Any
    E: Any
    EP: Any
    BM: Any
    BN: Any
    SUB: Any
    GROUP: Any
    SHARED: Any
    RAGGED: Any
    STEPS: Any
    SCALE_IN_EXP2: Any
    PRECISION: Any


class WorkList(NamedTuple):
    """How a grid runs a work list.

    Attributes:
        num_long: rows that come first for all heads; num_other: the other rows.
        num_long_programs: programs that run the long ones.

    """

    num_long: Any
    num_other: Any
    num_long_programs: Any


class Extent(NamedTuple):
    """Lengths, the lead of the first block, and how far a query sees to either side (None: no bound)."""

    q_len: Any
    k_len: Any
    query_offset: Any
    left: Any
    right: Any


class WorkTile(NamedTuple):
    """A program's part of the schedule: whose tile, and the steps to walk.

    Attributes:
        b: batch entry, int64; h: query head; kv_head: its key head; bh: b * H + h, int64.
        tile: number of the tile; index: number of the item among those of its head, or of all heads.
        step_ends: where the steps of each kind begin and end, four numbers: steps that need no mask, those
            that need that of sub-blocks, and those that need one of tokens besides.
        partial: number of the partial result, -1 for a whole tile.

    """

    b: Any
    h: Any
    kv_head: Any
    bh: Any
    tile: Any
    index: Any
    step_ends: Any
    partial: Any
