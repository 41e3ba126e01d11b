"""The forward kernel: a tile of queries, the keys its layout gathers, a running softmax; and what combines
segments.

The running softmax is that of Milakov and Gimelshein 2018 (arXiv:1805.02867), in tiles as in FlashAttention
(Dao et al. 2022, arXiv:2205.14135). Steps that need no mask come first and run in a loop without one. The
number of the next step's sub-block is loaded one step ahead, so that the loads of keys and values do not wait
for it.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false
# Constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.triton_backend.kernels.structs import Extent, WorkList
from longspan_kernels.triton_backend.kernels.tiles import (
    LN2,
    NOT_SPECIALIZED,
    block_starts,
    dropout_keep_qk,
    head_pointer,
    load_rows,
    load_scored_keys,
    load_seed,
    load_work_tile,
    positions_in_blocks,
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
    """Attend to the keys of the steps from start to stop."""
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
        # Where nothing is seen yet, any finite number serves.
        row_max_finite = (
            tl.where(row_max_next == float("-inf"), 0.0, row_max_next) if masked else row_max_next
        )
        p = tl.exp2(
            scores * scale - row_max_finite[:, None]
            if shape.SCALE_IN_EXP2
            else scores - row_max_finite[:, None]
        )
        rescale = tl.exp2(row_max - row_max_finite)
        row_sum = row_sum * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None]
        if dropout is not None:
            key_quads = positions_in_blocks(
                block_starts(step_blocks, step, shape.BN, shape.SUB, 4), shape.BN, shape.SUB, 4
            )
            position = m + (extent.k_len - extent.q_len)
            keep = dropout_keep_qk(
                dropout, work.b, work.h, position[:, None], key_quads[None, :], shape.BM, shape.BN
            )
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
    """Attend for one item of the schedule, one head and one batch entry.

    lse is contiguous [B, H, q_len] float32; a segment writes float32 partial results instead,
    [B, H, partials, BM, E] and [B, H, partials, BM].
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
    # Only where there are steps: if the way past a loop met the way out of it, the loop's products would be
    # waited for one by one (ptxas C7515).
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
    """Combine the segments of SLICE rows of a split tile, in their order."""
    b, h, _, split = work_tile_of_program(
        split_tiles, WorkList(num_long, num_other, num_long_programs), H, 4, SHARED
    )
    first_partial = tl.load(split + 2)
    bh = b * H + h
    rows, position = tile_slice(tile_blocks, tl.load(split), SLICE, BM, SUB)
    width = tl.arange(0, EP)
    acc = tl.zeros([SLICE, EP], dtype=tl.float32)
    row_max = tl.full([SLICE], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([SLICE], dtype=tl.float32)
    for partial in range(first_partial, first_partial + tl.load(split + 3)):
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
