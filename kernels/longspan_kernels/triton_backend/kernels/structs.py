"""Struct arguments of the Triton kernels, as named tuples.

The compiler knows which members are None, and leaves out the code that would read them.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Operand(NamedTuple):
    """A tensor [B, heads, length, width], contiguous along its width.

    Attributes:
        pointer: its first element.
        strides: of batch entry, head and token, in elements.

    """

    pointer: Any
    strides: Any


class Strided(NamedTuple):
    """A mask or bias of any strides.

    Attributes:
        pointer: its first element.
        strides: of each dimension, in elements; 0 where it broadcasts.

    """

    pointer: Any
    strides: Any


class Distances(NamedTuple):
    """A bias by distance, key position minus query position, clamped to -span and span.

    Attributes:
        biases: pointer to float32 ``[H, 2 span + 1]``, in units of log2.
        buckets: pointer to int32 ``[2 span + 1]``: the row of the table that each bias comes from.
        span: largest distance that is told apart.
        PADDED: rows of the table, padded to a power of two; a `tl.constexpr`.

    """

    biases: Any
    buckets: Any
    span: Any
    PADDED: Any


class Masks(NamedTuple):
    """Masks and biases of the scores, each None if absent. A mask of uint8 is 1 where a key is seen.

    Attributes:
        keys: `Strided` ``[B, k_len]``, uint8 or added.
        pairs: `Strided` ``[B, H, q_len, k_len]``, uint8 or added.
        bias: `Strided` ``[B, H, q_len, k_len]``, added.
        documents: `Strided` integers ``[B, k_len]``.
        distances: `Distances`.
        slopes: pointer to float32 ``[H]``, in units of log2 a token; times the distance, subtracted.
        ANY: whether any of them is there; a `tl.constexpr`.

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
        seed: pointer to an int64; that number itself after `load_seed`.
        threshold: smallest random word of a weight that is kept.
        keep_scale: factor of the weights that are kept.

    """

    seed: Any
    threshold: Any
    keep_scale: Any


class Shape(NamedTuple):
    """Sizes that the compiler knows, each a `tl.constexpr`.

    Attributes:
        D: dimension of q and k.
        DP: D padded to a power of two, at least 16.
        E: dimension of v.
        EP: E padded likewise.
        BM: queries of a tile (of a step, for dk and dv).
        BN: keys of a step (of a tile, for dk and dv).
        SUB: tokens of the sub-blocks that a step gathers.
        GROUP: query heads that share a key head.
        SHARED: whether all heads run the same work tiles.
        RAGGED: whether a sub-block of a step reaches beyond the keys (queries, for dk and dv).
        STEPS: three flags: whether the schedule has full steps, partial steps, steps with a mask of tokens.
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
    """How a grid runs the rows of a table of work.

    Attributes:
        num_long: rows that run first, for all heads.
        num_other: the other rows.
        num_long_programs: programs that run the long rows.

    """

    num_long: Any
    num_other: Any
    num_long_programs: Any


class Extent(NamedTuple):
    """Lengths of a call and how far a query sees.

    Attributes:
        q_len: number of queries.
        k_len: number of keys.
        query_offset: tokens of the first row of blocks that lie before the first query.
        left: how many positions before its own a query sees, None without bound.
        right: how many positions after its own a query sees, None without bound.

    """

    q_len: Any
    k_len: Any
    query_offset: Any
    left: Any
    right: Any


class WorkTile(NamedTuple):
    """The work of a program: a tile, or a split of one.

    Attributes:
        b: batch entry, int64.
        h: query head.
        kv_head: its key head.
        bh: b * H + h, int64.
        tile: number of the tile.
        index: row of the work tile among those of its head, or of all heads where they share them.
        step_ends: four numbers between which lie the full steps (no mask), the partial steps (a mask of pairs
            of sub-blocks) and the steps with a mask of tokens.
        partial: number of its partial result, -1 for a whole tile.

    """

    b: Any
    h: Any
    kv_head: Any
    bh: Any
    tile: Any
    index: Any
    step_ends: Any
    partial: Any
