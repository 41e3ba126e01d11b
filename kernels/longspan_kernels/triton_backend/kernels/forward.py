"""Forward kernel of block-sparse attention, and the kernel that combines the splits of long tiles.

A program owns a tile of queries, gathers the keys that its layout keeps, and keeps a running softmax
(Milakov and Gimelshein 2018, arXiv:1805.02867), in tiles as in FlashAttention (Dao et al. 2022,
arXiv:2205.14135). Steps that need no mask come first and run in a loop without one. The number of the next
step's sub-block is loaded one step ahead: loads of keys and values do not wait for it.

Letters of shapes:
    B   batch entries
    H   query heads
    D   dimension of q and k; DP padded to a power of two
    E   dimension of v; EP padded
    BM  queries of a tile
    BN  keys of a step
    SUB tokens of a sub-block
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false
# Type checkers cannot follow constexpr parameters.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.triton_backend.kernels.structs import Extent, WorkList
from longspan_kernels.triton_backend.kernels.tiles import (
    FIRST_PARTIAL_COLUMN,
    LN2,
    NOT_SPECIALIZED,
    NUM_PARTIALS_COLUMN,
    SPLIT_TILE_WIDTH,
    TILE_COLUMN,
    block_starts,
    dropout_keep_qk,
    head_pointer,
    load_rows,
    load_scored_keys,
    load_seed,
    load_work_tile,
    store_rows,
    tile_positions,
    tile_slice,
    work_tile_of_program,
)


@triton.jit
def _fwd_steps(
    q, acc, row_max, row_sum, start, stop, step_blocks, pair_bits, k, v, k_desc, v_desc, work, m, extent,
    scale, masks, dropout, shape, MASK: tl.constexpr,
):  # fmt: skip
    """Running softmax over the keys of the steps from start to stop: acc [BM, EP], row_max, row_sum [BM]."""
    masked: tl.constexpr = MASK or masks.ANY
    starts = block_starts(step_blocks, start, shape.BN, shape.SUB, 1)
    for step in range(start, stop):
        next_starts = block_starts(step_blocks, step + 1, shape.BN, shape.SUB, 1)
        _, _, v_tile, scores = load_scored_keys(
            q, starts, step, pair_bits, k, v, k_desc, v_desc, work, m, extent, scale, masks, shape, MASK
        )
        if shape.SCALE_IN_EXP2:
            row_max_next = tl.maximum(row_max, tl.max(scores, 1) * scale)
        else:
            row_max_next = tl.maximum(row_max, tl.max(scores, 1))
        # A row that sees no key yet may subtract any finite number.
        row_max_finite = (
            tl.where(row_max_next == float("-inf"), 0.0, row_max_next) if masked else row_max_next
        )
        shifted = (scores * scale if shape.SCALE_IN_EXP2 else scores) - row_max_finite[:, None]
        p = tl.exp2(shifted)
        rescale = tl.exp2(row_max - row_max_finite)
        row_sum = row_sum * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None]
        if dropout is not None:
            keep = dropout_keep_qk(dropout, work.b, work.h, m, step_blocks, step, extent, shape)
            p = tl.where(keep, p * dropout.keep_scale, 0.0)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc, input_precision=shape.PRECISION)
        row_max = row_max_next
        starts = next_starts
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_fwd_kernel(
    q, k, v, out, lse_ptr, partial_out_ptr, partial_lse_ptr, k_desc, v_desc, step_blocks, pair_bits,
    tile_blocks, work_tiles, num_long, num_other, num_long_programs, num_partials, H, q_len, k_len,
    query_offset, scale, left, right, masks, dropout, shape,
):  # fmt: skip
    """Output and log-sum-exp of one work tile of one head and batch entry.

    lse is contiguous float32 [B, H, q_len]. A split of a tile writes float32 partial results instead:
    [B, H, num_partials, BM, E] and [B, H, num_partials, BM].
    """
    work = load_work_tile(work_tiles, WorkList(num_long, num_other, num_long_programs), H, shape)
    extent = Extent(q_len, k_len, query_offset, left, right)
    if dropout is not None:
        dropout = load_seed(dropout)
    m = tile_positions(tile_blocks, work.tile, shape.BM, shape.SUB, 1) - query_offset
    valid = (m >= 0) & (m < q_len)
    q_tile = load_rows(head_pointer(q, work.b, work.h), m, q.strides[2], q_len, shape.D, shape.DP, True)

    acc = tl.zeros([shape.BM, shape.EP], dtype=tl.float32)
    row_max = tl.full([shape.BM], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([shape.BM], dtype=tl.float32)
    # A loop is entered only where it has steps. If the path past it met the path out of it, ptxas would wait
    # for the loop's products one by one (C7515).
    for mask in tl.static_range(3):
        if shape.STEPS[mask] and work.step_ends[mask] < work.step_ends[mask + 1]:
            acc, row_max, row_sum = _fwd_steps(
                q_tile, acc, row_max, row_sum, work.step_ends[mask], work.step_ends[mask + 1], step_blocks,
                pair_bits, k, v, k_desc, v_desc, work, m, extent, scale, masks, dropout, shape, mask,
            )  # fmt: skip

    no_keys = row_sum == 0.0
    acc = acc * (1.0 / tl.where(no_keys, 1.0, row_sum))[:, None]
    lse = tl.where(no_keys, float("-inf"), (row_max + tl.log2(row_sum)) * LN2)
    if work.partial >= 0:
        width = tl.arange(0, shape.EP)
        row = (work.bh * num_partials + work.partial) * shape.BM + tl.arange(0, shape.BM)
        pointers = partial_out_ptr + row[:, None] * shape.E + width[None, :]
        tl.store(pointers, acc, mask=(width < shape.E)[None, :])
        tl.store(partial_lse_ptr + row, lse)
    else:
        store_rows(out, work.b, work.h, m, q_len, acc, shape.E, shape.EP)
        tl.store(lse_ptr + work.bh * q_len + m, lse, mask=valid)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def combine_splits_kernel(
    out, lse_ptr, partial_out_ptr, partial_lse_ptr, tile_blocks, split_tiles, num_long, num_other,
    num_long_programs, num_partials, H, q_len, query_offset, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, SUB: tl.constexpr, SLICE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of SLICE rows of a split tile, from its partial results in their order."""
    work_list = WorkList(num_long, num_other, num_long_programs)
    b, h, _, split = work_tile_of_program(split_tiles, work_list, H, SPLIT_TILE_WIDTH, SHARED)
    first_partial = tl.load(split + FIRST_PARTIAL_COLUMN)
    bh = b * H + h
    rows, position = tile_slice(tile_blocks, tl.load(split + TILE_COLUMN), SLICE, BM, SUB)
    width = tl.arange(0, EP)
    acc = tl.zeros([SLICE, EP], dtype=tl.float32)
    row_max = tl.full([SLICE], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([SLICE], dtype=tl.float32)
    for partial in range(first_partial, first_partial + tl.load(split + NUM_PARTIALS_COLUMN)):
        row = (bh * num_partials + partial) * BM + rows
        lse = tl.load(partial_lse_ptr + row)
        pointers = partial_out_ptr + row[:, None] * E + width[None, :]
        partial_out = tl.load(pointers, mask=(width < E)[None, :], other=0.0)
        row_max_next = tl.maximum(row_max, lse)
        row_max_finite = tl.where(row_max_next == float("-inf"), 0.0, row_max_next)
        rescale = tl.exp(row_max - row_max_finite)
        weight = tl.exp(lse - row_max_finite)
        acc = acc * rescale[:, None] + partial_out * weight[:, None]
        row_sum = row_sum * rescale + weight
        row_max = row_max_next
    no_keys = row_sum == 0.0
    acc = acc / tl.where(no_keys, 1.0, row_sum)[:, None]
    lse = tl.where(no_keys, float("-inf"), row_max + tl.log(row_sum))
    m = position - query_offset
    store_rows(out, b, h, m, q_len, acc, E, EP)
    tl.store(lse_ptr + bh * q_len + m, lse, mask=(m >= 0) & (m < q_len))
