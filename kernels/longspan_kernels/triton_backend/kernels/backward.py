"""Backward kernels of block-sparse attention: dq, dk with dv, and the gradient of a bias.

dq and the bias run over tiles of queries, dk and dv over tiles of keys. Weights are computed again from the
log-sum-exp of the forward (FlashAttention-2: Dao 2023, arXiv:2307.08691). One program writes each element of
a gradient, or the splits of one tile do and their partial sums are added in a fixed order: nothing is added
atomically, and gradients have the same bits in every run.

Letters of shapes:
    B   batch entries
    H   query heads
    D   dimension of q and k; DP padded to a power of two
    E   dimension of v; EP padded
    BM  queries of a tile (dq, bias) or of a step (dk and dv)
    BN  keys of a step (dq, bias) or of a tile (dk and dv)
    SUB tokens of a sub-block
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false
# Type checkers cannot follow constexpr parameters.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.triton_backend.kernels.structs import Extent, WorkList
from longspan_kernels.triton_backend.kernels.tiles import (
    FIRST_PARTIAL_COLUMN,
    FIRST_STEP_COLUMN,
    HEAD_COLUMN,
    LOG2E,
    NOT_SPECIALIZED,
    NUM_PARTIALS_COLUMN,
    NUM_STEPS_COLUMN,
    SPLIT_TILE_WIDTH,
    TILE_COLUMN,
    WORK_TILE_WIDTH,
    block_starts,
    distance_index,
    dropout_keep_kq,
    dropout_keep_qk,
    head_pointer,
    load_rows,
    load_scored_keys,
    load_seed,
    load_work_tile,
    mask_scores,
    positions_in_blocks,
    store_rows,
    tile_positions,
    tile_slice,
    weights_and_gradients,
    work_tile_of_program,
)


@triton.jit
def _dq_steps(
    q, grad, lse, delta, dq, row_sums, bucket_sums, start, stop, step_blocks, pair_bits, k, v, k_desc, v_desc,
    work, m, extent, scale, masks, dropout, shape, ROW_SUMS: tl.constexpr, BUCKET_SUMS: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    """Add to dq [BM, DP] what the keys of the steps from start to stop contribute.

    With ROW_SUMS gradients of the scores are added to row_sums [BM], with BUCKET_SUMS by bucket of distance
    to bucket_sums [PADDED].
    """
    starts = block_starts(step_blocks, start, shape.BN, shape.SUB, 1)
    for step in range(start, stop):
        next_starts = block_starts(step_blocks, step + 1, shape.BN, shape.SUB, 1)
        n, k_tile, v_tile, scores = load_scored_keys(
            q, starts, step, pair_bits, k, v, k_desc, v_desc, work, m, extent, scale, masks, shape, MASK
        )
        p, dp = weights_and_gradients(scores, lse, grad, v_tile, scale, masks, shape, False)
        if dropout is not None:
            keep = dropout_keep_qk(dropout, work.b, work.h, m, step_blocks, step, extent, shape)
            dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
        ds = p * (dp - delta[:, None])
        if ROW_SUMS:
            row_sums += tl.sum(ds, 1)
        if BUCKET_SUMS:
            index = distance_index(m[:, None], n[None, :], extent, masks.distances.span)
            pair_buckets = tl.load(masks.distances.buckets + index)
            buckets = tl.arange(0, masks.distances.PADDED)
            # Far from the diagonal all pairs of a tile are of one bucket.
            lowest = tl.min(tl.min(pair_buckets, 1), 0)
            highest = tl.max(tl.max(pair_buckets, 1), 0)
            for bucket in range(lowest, highest + 1):
                bucket_sum = tl.sum(tl.sum(tl.where(pair_buckets == bucket, ds, 0.0), 1), 0)
                bucket_sums += tl.where(buckets == bucket, bucket_sum, 0.0)
        dq = tl.dot(ds.to(k_tile.dtype), k_tile, dq, input_precision=shape.PRECISION)
        starts = next_starts
    return dq, row_sums, bucket_sums


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_bwd_dq_kernel(
    q, k, v, out, grad, lse_ptr, grad_lse_ptr, delta_ptr, lse_log2_ptr, dq, partial_ptr, row_sums_ptr,
    bucket_sums_ptr, k_desc, v_desc, step_blocks, pair_bits, tile_blocks, work_tiles, num_long, num_other,
    num_long_programs, num_partials, H, q_len, k_len, query_offset, scale, softmax_scale, left, right, masks,
    dropout, shape,
):  # fmt: skip
    """Dq of one work tile of one head and batch entry; a split writes float32 [B, H, num_partials, BM, D].

    Two float32 [B, H, q_len] are written for the other kernels: delta = out . grad - grad_lse, and the
    log-sum-exp in units of log2, +inf for a query without a key, which makes its weights 0. Splits of a tile
    all write the same.

    row_sums, None or float32 [B, H, q_len], takes the gradients of the scores summed over keys, for a bias of
    one number a query; no tile may be split then. bucket_sums, None or float32 [programs, PADDED], takes them
    summed by bucket of distance, for a table of biases.
    """
    work = load_work_tile(work_tiles, WorkList(num_long, num_other, num_long_programs), H, shape)
    extent = Extent(q_len, k_len, query_offset, left, right)
    if dropout is not None:
        dropout = load_seed(dropout)
    m = tile_positions(tile_blocks, work.tile, shape.BM, shape.SUB, 1) - query_offset
    valid = (m >= 0) & (m < q_len)
    q_tile = load_rows(head_pointer(q, work.b, work.h), m, q.strides[2], q_len, shape.D, shape.DP, True)
    out_tile = load_rows(head_pointer(out, work.b, work.h), m, out.strides[2], q_len, shape.E, shape.EP, True)
    grad_tile = load_rows(
        head_pointer(grad, work.b, work.h), m, grad.strides[2], q_len, shape.E, shape.EP, True
    )
    row = work.bh * q_len + m
    delta = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
    if grad_lse_ptr is not None:
        delta -= tl.load(grad_lse_ptr + row, mask=valid, other=0.0)
    lse = tl.load(lse_ptr + row, mask=valid, other=float("-inf"))
    lse_log2 = tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)
    tl.store(delta_ptr + row, delta, mask=valid)
    tl.store(lse_log2_ptr + row, lse_log2, mask=valid)

    with_row_sums: tl.constexpr = row_sums_ptr is not None
    dq_acc = tl.zeros([shape.BM, shape.DP], dtype=tl.float32)
    row_sums = tl.zeros([shape.BM], dtype=tl.float32)
    with_bucket_sums: tl.constexpr = bucket_sums_ptr is not None
    bucket_sums = tl.zeros([masks.distances.PADDED if with_bucket_sums else 1], dtype=tl.float32)
    # A loop is entered only where it has steps, as in the forward.
    for mask in tl.static_range(3):
        if shape.STEPS[mask] and work.step_ends[mask] < work.step_ends[mask + 1]:
            dq_acc, row_sums, bucket_sums = _dq_steps(
                q_tile, grad_tile, lse_log2, delta, dq_acc, row_sums, bucket_sums, work.step_ends[mask],
                work.step_ends[mask + 1], step_blocks, pair_bits, k, v, k_desc, v_desc, work, m, extent,
                scale, masks, dropout, shape, with_row_sums, with_bucket_sums, mask,
            )  # fmt: skip
    dq_acc *= softmax_scale
    if work.partial >= 0:
        width = tl.arange(0, shape.DP)
        partial_row = (work.bh * num_partials + work.partial) * shape.BM + tl.arange(0, shape.BM)
        pointers = partial_ptr + partial_row[:, None] * shape.D + width[None, :]
        tl.store(pointers, dq_acc, mask=(width < shape.D)[None, :])
    else:
        store_rows(dq, work.b, work.h, m, q_len, dq_acc, shape.D, shape.DP)
    if with_row_sums:
        tl.store(row_sums_ptr + row, row_sums, mask=valid)
    if with_bucket_sums:
        buckets = tl.arange(0, masks.distances.PADDED)
        outer = work.bh if shape.SHARED else work.b
        start = (outer * (num_long + num_other) + work.index) * masks.distances.PADDED
        tl.store(bucket_sums_ptr + start + buckets, bucket_sums)


@triton.jit
def _dkdv_steps(
    k, v, dk, dv, column_sums, start, stop, step_blocks, pair_bits, tile_blocks, q, grad, lse_log2_ptr,
    delta_ptr, q_desc, grad_desc, lse_log2_desc, delta_desc, work, n, extent, scale, masks, dropout, shape,
    COLUMN_SUMS: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Add to dk [BN, DP] and dv [BN, EP] what the queries of the steps from start to stop contribute.

    Scores lie keys by queries: no tile is transposed for a product. With COLUMN_SUMS gradients of the scores
    are added to column_sums [BN].
    """
    step_slots: tl.constexpr = shape.BM // shape.SUB
    one_pair: tl.constexpr = shape.SUB >= shape.BM and shape.SUB >= shape.BN
    masked: tl.constexpr = MASK or masks.ANY
    # Only where the last steps reach outside the queries do loads of queries need a check.
    checked: tl.constexpr = MASK == 2 and shape.RAGGED
    tile_slot = tl.arange(0, shape.BN) // shape.SUB
    step_slot = tl.arange(0, shape.BM) // shape.SUB
    q_base = head_pointer(q, work.b, work.h)
    grad_base = head_pointer(grad, work.b, work.h)
    lse_base = lse_log2_ptr + work.bh * extent.q_len
    delta_base = delta_ptr + work.bh * extent.q_len
    starts = block_starts(step_blocks, start, shape.BM, shape.SUB, 1)
    for step in range(start, stop):
        next_starts = block_starts(step_blocks, step + 1, shape.BM, shape.SUB, 1)
        m = positions_in_blocks(starts, shape.BM, shape.SUB, 1) - extent.query_offset
        if q_desc is not None:
            corner = [work.b.to(tl.int32), work.h, starts - extent.query_offset, 0]
            q_tile = tl.reshape(q_desc.load(corner), [shape.BM, shape.DP])
            grad_tile = tl.reshape(grad_desc.load(corner), [shape.BM, shape.EP])
        else:
            q_tile = load_rows(q_base, m, q.strides[2], extent.q_len, shape.D, shape.DP, checked)
            grad_tile = load_rows(grad_base, m, grad.strides[2], extent.q_len, shape.E, shape.EP, checked)
        if lse_log2_desc is not None:
            corner = [work.b.to(tl.int32), work.h, starts - extent.query_offset]
            lse = tl.reshape(lse_log2_desc.load(corner), [shape.BM])
            delta = tl.reshape(delta_desc.load(corner), [shape.BM])
            if checked:
                lse = tl.where(m < extent.q_len, lse, float("inf"))
        elif checked:
            valid = (m >= 0) & (m < extent.q_len)
            lse = tl.load(lse_base + m, mask=valid, other=float("inf"))
            delta = tl.load(delta_base + m, mask=valid, other=0.0)
        else:
            lse = tl.load(lse_base + m)
            delta = tl.load(delta_base + m)
        scores = tl.dot(k, tl.trans(q_tile), input_precision=shape.PRECISION)
        if not shape.SCALE_IN_EXP2:
            scores *= scale
        if masked:
            scores = mask_scores(
                scores, m[None, :], n[:, None], tile_slot[:, None], step_slot[None, :],
                tl.load(pair_bits + step), work.b, work.h, extent, masks, one_pair, step_slots, False, MASK,
            )  # fmt: skip
        p, dp = weights_and_gradients(scores, lse, v, grad_tile, scale, masks, shape, True)
        weights = p
        if dropout is not None:
            keep = dropout_keep_kq(dropout, work.b, work.h, m, tile_blocks, work.tile, extent, shape)
            dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
            weights = tl.where(keep, p * dropout.keep_scale, 0.0)
        dv = tl.dot(weights.to(grad_tile.dtype), grad_tile, dv, input_precision=shape.PRECISION)
        ds = p * (dp - delta[None, :])
        if COLUMN_SUMS:
            column_sums += tl.sum(ds, 1)
        dk = tl.dot(ds.to(q_tile.dtype), q_tile, dk, input_precision=shape.PRECISION)
        starts = next_starts
    return dk, dv, column_sums


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_bwd_dkdv_kernel(
    q, k, v, grad, lse_log2_ptr, delta_ptr, dk, dv, partial_dk_ptr, partial_dv_ptr, column_sums_ptr, q_desc,
    grad_desc, lse_log2_desc, delta_desc, step_blocks, pair_bits, tile_blocks, work_tiles, num_long,
    num_other, num_long_programs, num_partials, H, q_len, k_len, query_offset, scale, softmax_scale, left,
    right, masks, dropout, shape,
):  # fmt: skip
    """Dk and dv of one work tile of one query head and batch entry.

    A split writes float32 [B, H, num_partials, BN, D] and [B, H, num_partials, BN, E]. column_sums, None or
    float32 [B, H, k_len], takes the gradients of the scores summed over queries, for a bias of one number a
    key; no tile may be split then.
    """
    work = load_work_tile(work_tiles, WorkList(num_long, num_other, num_long_programs), H, shape)
    extent = Extent(q_len, k_len, query_offset, left, right)
    if dropout is not None:
        dropout = load_seed(dropout)
    n = tile_positions(tile_blocks, work.tile, shape.BN, shape.SUB, 1)
    k_tile = load_rows(head_pointer(k, work.b, work.kv_head), n, k.strides[2], k_len, shape.D, shape.DP, True)
    v_tile = load_rows(head_pointer(v, work.b, work.kv_head), n, v.strides[2], k_len, shape.E, shape.EP, True)

    with_column_sums: tl.constexpr = column_sums_ptr is not None
    dk_acc = tl.zeros([shape.BN, shape.DP], dtype=tl.float32)
    dv_acc = tl.zeros([shape.BN, shape.EP], dtype=tl.float32)
    column_sums = tl.zeros([shape.BN], dtype=tl.float32)
    # A loop is entered only where it has steps, as in the forward.
    for mask in tl.static_range(3):
        if shape.STEPS[mask] and work.step_ends[mask] < work.step_ends[mask + 1]:
            dk_acc, dv_acc, column_sums = _dkdv_steps(
                k_tile, v_tile, dk_acc, dv_acc, column_sums, work.step_ends[mask], work.step_ends[mask + 1],
                step_blocks, pair_bits, tile_blocks, q, grad, lse_log2_ptr, delta_ptr, q_desc, grad_desc,
                lse_log2_desc, delta_desc, work, n, extent, scale, masks, dropout, shape, with_column_sums,
                mask,
            )  # fmt: skip
    dk_acc *= softmax_scale
    d = tl.arange(0, shape.DP)
    e = tl.arange(0, shape.EP)
    if work.partial >= 0:
        row = (work.bh * num_partials + work.partial) * shape.BN + tl.arange(0, shape.BN)
        tl.store(partial_dk_ptr + row[:, None] * shape.D + d[None, :], dk_acc, mask=(d < shape.D)[None, :])
        tl.store(partial_dv_ptr + row[:, None] * shape.E + e[None, :], dv_acc, mask=(e < shape.E)[None, :])
    else:
        store_rows(dk, work.b, work.h, n, k_len, dk_acc, shape.D, shape.DP)
        store_rows(dv, work.b, work.h, n, k_len, dv_acc, shape.E, shape.EP)
    if with_column_sums:
        tl.store(column_sums_ptr + work.bh * k_len + n, column_sums, mask=n < k_len)


@triton.jit
def _sum_splits(
    out, partial_ptr, b, h, H, split, rows, positions, num_partials, length, WIDTH: tl.constexpr,
    PADDED: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Store the sum of the partial results [B, H, num_partials, TILE, WIDTH] of a split tile's rows."""
    first_partial = tl.load(split + FIRST_PARTIAL_COLUMN)
    width = tl.arange(0, PADDED)
    acc = tl.zeros([SLICE, PADDED], dtype=tl.float32)
    for partial in range(first_partial, first_partial + tl.load(split + NUM_PARTIALS_COLUMN)):
        row = ((b * H + h) * num_partials + partial) * TILE + rows
        pointers = partial_ptr + row[:, None] * WIDTH + width[None, :]
        acc += tl.load(pointers, mask=(width < WIDTH)[None, :], other=0.0)
    store_rows(out, b, h, positions, length, acc, WIDTH, PADDED)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def sum_splits_kernel(
    out, partial_ptr, second, second_partial_ptr, tile_blocks, split_tiles, num_long, num_other,
    num_long_programs, num_partials, H, length, query_offset, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, TILE: tl.constexpr, SUB: tl.constexpr, SLICE: tl.constexpr,
    SHARED: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """Gradient of SLICE rows of a split tile: its partial sums, added in their order.

    It is stored into out [B, H, length, D], with BOTH a second one into second [B, H, length, E].
    """
    work_list = WorkList(num_long, num_other, num_long_programs)
    b, h, _, split = work_tile_of_program(split_tiles, work_list, H, SPLIT_TILE_WIDTH, SHARED)
    rows, positions = tile_slice(tile_blocks, tl.load(split + TILE_COLUMN), SLICE, TILE, SUB)
    positions -= query_offset
    _sum_splits(out, partial_ptr, b, h, H, split, rows, positions, num_partials, length, D, DP, TILE, SLICE)
    if BOTH:
        _sum_splits(
            second, second_partial_ptr, b, h, H, split, rows, positions, num_partials, length, E, EP, TILE,
            SLICE,
        )  # fmt: skip


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_bwd_dbias_kernel(
    q, k, v, grad, lse_log2_ptr, delta_ptr, dbias, step_blocks, pair_bits, tile_blocks, work_tiles, H,
    batches, heads, batch_step, head_step, group, q_len, k_len, query_offset, scale, left, right, masks,
    dropout, shape,
):  # fmt: skip
    """Gradient of a bias [B or 1, H or 1, q_len, k_len]: gradients of the scores, summed where it broadcasts.

    The grid is work tiles, batch entries of dbias, heads of dbias. A program adds up `batches` batch entries
    from program_id(1) * batch_step on, and `heads` heads from program_id(2) * head_step on (from the work
    tile's own head on where each head has its layout).
    """
    step_slots: tl.constexpr = shape.BN // shape.SUB
    one_pair: tl.constexpr = shape.SUB >= shape.BM and shape.SUB >= shape.BN
    work_tile = work_tiles + tl.program_id(0) * WORK_TILE_WIDTH
    first_step = tl.load(work_tile + FIRST_STEP_COLUMN)
    first_batch = tl.program_id(1) * batch_step
    first_head = tl.program_id(2) * head_step if shape.SHARED else tl.load(work_tile + HEAD_COLUMN)
    extent = Extent(q_len, k_len, query_offset, left, right)
    if dropout is not None:
        dropout = load_seed(dropout)
    m = tile_positions(tile_blocks, tl.load(work_tile + TILE_COLUMN), shape.BM, shape.SUB, 1) - query_offset
    valid = (m >= 0) & (m < q_len)
    tile_slot = tl.arange(0, shape.BM) // shape.SUB
    step_slot = tl.arange(0, shape.BN) // shape.SUB
    for step in range(first_step, first_step + tl.load(work_tile + NUM_STEPS_COLUMN)):
        n = positions_in_blocks(
            block_starts(step_blocks, step, shape.BN, shape.SUB, 1), shape.BN, shape.SUB, 1
        )
        bits = tl.load(pair_bits + step)
        acc = tl.zeros([shape.BM, shape.BN], dtype=tl.float32)
        for number in range(batches * heads):
            b = (first_batch + number // heads).to(tl.int64)
            h = first_head + number % heads
            kv_head = h // group
            row = (b * H + h) * q_len + m
            q_tile = load_rows(head_pointer(q, b, h), m, q.strides[2], q_len, shape.D, shape.DP, True)
            grad_tile = load_rows(
                head_pointer(grad, b, h), m, grad.strides[2], q_len, shape.E, shape.EP, True
            )
            k_tile = load_rows(head_pointer(k, b, kv_head), n, k.strides[2], k_len, shape.D, shape.DP, True)
            v_tile = load_rows(head_pointer(v, b, kv_head), n, v.strides[2], k_len, shape.E, shape.EP, True)
            lse = tl.load(lse_log2_ptr + row, mask=valid, other=float("inf"))
            delta = tl.load(delta_ptr + row, mask=valid, other=0.0)
            scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=shape.PRECISION) * scale
            scores = mask_scores(
                scores, m[:, None], n[None, :], tile_slot[:, None], step_slot[None, :], bits, b, h, extent,
                masks, one_pair, step_slots, shape.RAGGED, 2,
            )  # fmt: skip
            p, dp = weights_and_gradients(scores, lse, grad_tile, v_tile, scale, masks, shape, False)
            if dropout is not None:
                keep = dropout_keep_qk(dropout, b, h, m, step_blocks, step, extent, shape)
                dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
            acc += p * (dp - delta[:, None])
        kept = ((bits >> (tile_slot[:, None] * step_slots + step_slot[None, :])) & 1) != 0
        pointers = (
            dbias.pointer
            + tl.program_id(1).to(tl.int64) * dbias.strides[0]
            + (tl.program_id(2) if shape.SHARED else first_head).to(tl.int64) * dbias.strides[1]
            + m.to(tl.int64)[:, None] * dbias.strides[2]
            + n.to(tl.int64)[None, :] * dbias.strides[3]
        )
        tl.store(pointers, acc, mask=kept & valid[:, None] & (n < k_len)[None, :])
