"""The backward kernels: dq over tiles of queries, dk and dv over tiles of keys.

Probabilities are computed again from the log-sum-exp of the forward (FlashAttention-2: Dao 2023,
arXiv:2307.08691). Every element of a gradient is written by one program, or by the segments of one tile and
then added up in their order, so gradients are the same bits in every run; nothing is added atomically.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false
# Constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.triton_backend.kernels.structs import Extent, Work
from longspan_kernels.triton_backend.kernels.tiles import (
    LOG2E,
    base_of,
    item_of,
    kept_by_keys_inside,
    kept_by_keys_outside,
    load_rows,
    own_slice,
    own_tokens,
    place_of,
    scored_keys,
    seeded,
    starts,
    store_rows,
    strike,
    tokens,
    turn_of,
)


@triton.jit
def _walk_queries(
    q, grad, lse, delta, dq, sums, of_buckets, start, stop, columns, bits, k, v, k_desc, v_desc, item, m,
    extent, scale, masks, dropout, shape, ROW_SUMS: tl.constexpr, BUCKETS: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Add to dq what the keys of the steps give.

    With ROW_SUMS the scores' gradients are added to sums [BM], with BUCKETS to those of their buckets.
    """
    at = starts(columns, start, shape.BN, shape.SUB, 1)
    for step in range(start, stop):
        at_next = starts(columns, step + 1, shape.BN, shape.SUB, 1)
        n, k_tile, v_tile, scores = scored_keys(
            q, at, step, bits, k, v, k_desc, v_desc, item, m, extent, scale, masks, shape, MASK
        )
        scores = scores * scale - lse[:, None] if shape.BARE else scores - lse[:, None]
        if masks.ANY:
            # Added masks may be so large that one rounding of the log-sum-exp is many units.
            scores = tl.minimum(scores, 0.0)
        p = tl.exp2(scores)
        dp = tl.dot(grad, tl.trans(v_tile), input_precision=shape.PRECISION)
        if dropout is not None:
            fours = tokens(starts(columns, step, shape.BN, shape.SUB, 4), shape.BN, shape.SUB, 4)
            position = m + (extent.k_len - extent.q_len)
            keep = kept_by_keys_inside(
                dropout, item.b, item.h, position[:, None], fours[None, :], shape.BM, shape.BN
            )
            dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
        ds = p * (dp - delta[:, None])
        if ROW_SUMS:
            sums += tl.sum(ds, 1)
        if BUCKETS:
            place = place_of(m[:, None], n[None, :], extent, masks.distances.span)
            its_bucket = tl.load(masks.distances.buckets + place)
            numbers = tl.arange(0, masks.distances.PADDED)
            # Far from the diagonal a tile is of one bucket.
            lowest = tl.min(tl.min(its_bucket, 1), 0)
            highest = tl.max(tl.max(its_bucket, 1), 0)
            for bucket in range(lowest, highest + 1):
                share = tl.sum(tl.sum(tl.where(its_bucket == bucket, ds, 0.0), 1), 0)
                of_buckets += tl.where(numbers == bucket, share, 0.0)
        dq = tl.dot(ds.to(k_tile.dtype), k_tile, dq, input_precision=shape.PRECISION)
        at = at_next
    return dq, sums, of_buckets


@triton.jit(
    do_not_specialize=["longs", "rest", "first", "partials", "H", "q_len", "k_len", "lead", "left", "right"]
)
def differentiate_queries(
    q, k, v, out, grad, lse_ptr, grad_lse_ptr, delta_ptr, log2_ptr, dq, partial_ptr, row_sums_ptr,
    bucket_sums_ptr, k_desc, v_desc, columns, bits, own, items, longs, rest, first, partials, H, q_len,
    k_len, lead, scale, softmax_scale, left, right, masks, dropout, shape,
):  # fmt: skip
    """Compute dq of one item, head and batch entry; segments write partial sums.

    Also writes, both float32 [B, H, q_len], what the other kernels need of each query:
    delta = out . grad - grad_lse, and the log-sum-exp in units of log2, +inf for a query without a key, which
    makes its probabilities 0. Segments of a tile all write the same.

    With row_sums the scores' gradients are summed over the keys into float32 [B, H, q_len] (no tile may be
    split then), for a bias that is one number a query. With bucket_sums each program sums them by the
    bucket of their distance into float32 [programs, PADDED], for a table of biases.
    """
    item = item_of(items, Work(longs, rest, first), H, shape)
    extent = Extent(q_len, k_len, lead, left, right)
    if dropout is not None:
        dropout = seeded(dropout)
    m = own_tokens(own, item.tile, shape.BM, shape.SUB, 1) - lead
    valid = (m >= 0) & (m < q_len)
    q_tile = load_rows(base_of(q, item.b, item.h), m, q.strides[2], q_len, shape.D, shape.DP, True)
    out_tile = load_rows(base_of(out, item.b, item.h), m, out.strides[2], q_len, shape.E, shape.EP, True)
    grad_tile = load_rows(base_of(grad, item.b, item.h), m, grad.strides[2], q_len, shape.E, shape.EP, True)
    row = item.head * q_len + m
    delta = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
    if grad_lse_ptr is not None:
        delta -= tl.load(grad_lse_ptr + row, mask=valid, other=0.0)
    lse = tl.load(lse_ptr + row, mask=valid, other=float("-inf"))
    log2 = tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)
    tl.store(delta_ptr + row, delta, mask=valid)
    tl.store(log2_ptr + row, log2, mask=valid)

    row_sums: tl.constexpr = row_sums_ptr is not None
    gradient = tl.zeros([shape.BM, shape.DP], dtype=tl.float32)
    sums = tl.zeros([shape.BM], dtype=tl.float32)
    buckets: tl.constexpr = bucket_sums_ptr is not None
    of_buckets = tl.zeros([masks.distances.PADDED if buckets else 1], dtype=tl.float32)
    # Only where there are steps, as in the forward.
    for mask in tl.static_range(3):
        if shape.STEPS[mask] and item.ends[mask] < item.ends[mask + 1]:
            gradient, sums, of_buckets = _walk_queries(
                q_tile, grad_tile, log2, delta, gradient, sums, of_buckets, item.ends[mask],
                item.ends[mask + 1], columns, bits, k, v, k_desc, v_desc, item, m, extent, scale, masks,
                dropout, shape, row_sums, buckets, mask,
            )  # fmt: skip
    gradient *= softmax_scale
    if item.partial >= 0:
        width = tl.arange(0, shape.DP)
        place = (item.head * partials + item.partial) * shape.BM + tl.arange(0, shape.BM)
        partial_at = partial_ptr + place[:, None] * shape.D + width[None, :]
        tl.store(partial_at, gradient, mask=(width < shape.D)[None, :])
    else:
        store_rows(dq, item.b, item.h, m, q_len, gradient, shape.D, shape.DP)
    if row_sums:
        tl.store(row_sums_ptr + row, sums, mask=valid)
    if buckets:
        numbers = tl.arange(0, masks.distances.PADDED)
        outer = item.head if shape.SHARED else item.b
        first = (outer * (longs + rest) + item.turn) * masks.distances.PADDED
        tl.store(bucket_sums_ptr + first + numbers, of_buckets)


@triton.jit
def _walk_keys(
    k, v, dk, dv, sums, start, stop, columns, bits, own, q, grad, log2_ptr, delta_ptr, q_desc, grad_desc,
    log2_desc, delta_desc, item, n, extent, scale, masks, dropout, shape, COLUMN_SUMS: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    """Add to dk and dv what the queries of the steps give.

    Tiles lie keys by queries, so that none is transposed. With COLUMN_SUMS the scores' gradients are added
    to sums [BN].
    """
    slots: tl.constexpr = shape.BM // shape.SUB
    one_bit: tl.constexpr = shape.SUB >= shape.BM and shape.SUB >= shape.BN
    masked: tl.constexpr = MASK or masks.ANY
    own_sub = tl.arange(0, shape.BN) // shape.SUB
    slot = tl.arange(0, shape.BM) // shape.SUB
    q_base = base_of(q, item.b, item.h)
    grad_base = base_of(grad, item.b, item.h)
    log2_base = log2_ptr + item.head * extent.q_len
    delta_base = delta_ptr + item.head * extent.q_len
    at = starts(columns, start, shape.BM, shape.SUB, 1)
    for step in range(start, stop):
        at_next = starts(columns, step + 1, shape.BM, shape.SUB, 1)
        m = tokens(at, shape.BM, shape.SUB, 1) - extent.lead
        if q_desc is not None:
            first = [item.b.to(tl.int32), item.h, at - extent.lead, 0]
            q_tile = tl.reshape(q_desc.load(first), [shape.BM, shape.DP])
            grad_tile = tl.reshape(grad_desc.load(first), [shape.BM, shape.EP])
        else:
            q_tile = load_rows(
                q_base, m, q.strides[2], extent.q_len, shape.D, shape.DP, MASK == 2 and shape.RAGGED
            )
            grad_tile = load_rows(
                grad_base, m, grad.strides[2], extent.q_len, shape.E, shape.EP, MASK == 2 and shape.RAGGED
            )
        if log2_desc is not None:
            first = [item.b.to(tl.int32), item.h, at - extent.lead]
            lse = tl.reshape(log2_desc.load(first), [shape.BM])
            delta = tl.reshape(delta_desc.load(first), [shape.BM])
            if MASK == 2 and shape.RAGGED:
                lse = tl.where(m < extent.q_len, lse, float("inf"))
        elif MASK == 2 and shape.RAGGED:
            valid = (m >= 0) & (m < extent.q_len)
            lse = tl.load(log2_base + m, mask=valid, other=float("inf"))
            delta = tl.load(delta_base + m, mask=valid, other=0.0)
        else:
            lse = tl.load(log2_base + m)
            delta = tl.load(delta_base + m)
        scores = tl.dot(k, tl.trans(q_tile), input_precision=shape.PRECISION)
        if not shape.BARE:
            scores *= scale
        if masked:
            scores = strike(
                scores, m[None, :], n[:, None], own_sub[:, None], slot[None, :], tl.load(bits + step), item.b,
                item.h, extent, masks, one_bit, slots, False, MASK,
            )  # fmt: skip
        scores = scores * scale - lse[None, :] if shape.BARE else scores - lse[None, :]
        if masks.ANY:
            scores = tl.minimum(scores, 0.0)
        p = tl.exp2(scores)
        dp = tl.dot(v, tl.trans(grad_tile), input_precision=shape.PRECISION)
        if dropout is not None:
            fours = own_tokens(own, item.tile, shape.BN, shape.SUB, 4)
            position = m + (extent.k_len - extent.q_len)
            keep = kept_by_keys_outside(
                dropout, item.b, item.h, position[None, :], fours[:, None], shape.BN, shape.BM
            )
            dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
            dropped = tl.where(keep, p * dropout.keep_scale, 0.0)
        else:
            dropped = p
        dv = tl.dot(dropped.to(grad_tile.dtype), grad_tile, dv, input_precision=shape.PRECISION)
        ds = p * (dp - delta[None, :])
        if COLUMN_SUMS:
            sums += tl.sum(ds, 1)
        dk = tl.dot(ds.to(q_tile.dtype), q_tile, dk, input_precision=shape.PRECISION)
        at = at_next
    return dk, dv, sums


@triton.jit(
    do_not_specialize=["longs", "rest", "first", "partials", "H", "q_len", "k_len", "lead", "left", "right"]
)
def differentiate_keys(
    q, k, v, grad, log2_ptr, delta_ptr, dk, dv, partial_dk_ptr, partial_dv_ptr, column_sums_ptr,
    q_desc, grad_desc, log2_desc, delta_desc, columns, bits, own, items, longs, rest, first, partials, H,
    q_len, k_len, lead, scale, softmax_scale, left, right, masks, dropout, shape,
):  # fmt: skip
    """Compute dk and dv of one item, query head and batch entry; segments write partial sums.

    With column_sums the scores' gradients are summed over the queries into float32 [B, H, k_len] (no tile may
    be split then), for a bias that is one number a key.
    """
    item = item_of(items, Work(longs, rest, first), H, shape)
    extent = Extent(q_len, k_len, lead, left, right)
    if dropout is not None:
        dropout = seeded(dropout)
    n = own_tokens(own, item.tile, shape.BN, shape.SUB, 1)
    k_tile = load_rows(base_of(k, item.b, item.kv_head), n, k.strides[2], k_len, shape.D, shape.DP, True)
    v_tile = load_rows(base_of(v, item.b, item.kv_head), n, v.strides[2], k_len, shape.E, shape.EP, True)

    column_sums: tl.constexpr = column_sums_ptr is not None
    of_k = tl.zeros([shape.BN, shape.DP], dtype=tl.float32)
    of_v = tl.zeros([shape.BN, shape.EP], dtype=tl.float32)
    sums = tl.zeros([shape.BN], dtype=tl.float32)
    # Only where there are steps, as in the forward.
    for mask in tl.static_range(3):
        if shape.STEPS[mask] and item.ends[mask] < item.ends[mask + 1]:
            of_k, of_v, sums = _walk_keys(
                k_tile, v_tile, of_k, of_v, sums, item.ends[mask], item.ends[mask + 1], columns, bits, own, q,
                grad, log2_ptr, delta_ptr, q_desc, grad_desc, log2_desc, delta_desc, item, n, extent, scale,
                masks, dropout, shape, column_sums, mask,
            )  # fmt: skip
    of_k *= softmax_scale
    d = tl.arange(0, shape.DP)
    e = tl.arange(0, shape.EP)
    if item.partial >= 0:
        row = (item.head * partials + item.partial) * shape.BN + tl.arange(0, shape.BN)
        tl.store(partial_dk_ptr + row[:, None] * shape.D + d[None, :], of_k, mask=(d < shape.D)[None, :])
        tl.store(partial_dv_ptr + row[:, None] * shape.E + e[None, :], of_v, mask=(e < shape.E)[None, :])
    else:
        store_rows(dk, item.b, item.h, n, k_len, of_k, shape.D, shape.DP)
        store_rows(dv, item.b, item.h, n, k_len, of_v, shape.E, shape.EP)
    if column_sums:
        tl.store(column_sums_ptr + item.head * k_len + n, sums, mask=n < k_len)


@triton.jit
def _add(
    out, partial_ptr, b, h, H, split, rows, place, partials, length, WIDTH: tl.constexpr,
    PADDED: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    first = tl.load(split + 2)
    width = tl.arange(0, PADDED)
    total = tl.zeros([SLICE, PADDED], dtype=tl.float32)
    for segment in range(first, first + tl.load(split + 3)):
        row = ((b * H + h) * partials + segment) * TILE + rows
        at = partial_ptr + row[:, None] * WIDTH + width[None, :]
        total += tl.load(at, mask=(width < WIDTH)[None, :], other=0.0)
    store_rows(out, b, h, place, length, total, WIDTH, PADDED)


@triton.jit(do_not_specialize=["longs", "rest", "first", "partials", "H", "length", "lead"])
def add_segments(
    out, partial_ptr, second, second_partial_ptr, own, splits, longs, rest, first, partials, H, length, lead,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, TILE: tl.constexpr,
    SUB: tl.constexpr, SLICE: tl.constexpr, SHARED: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of SLICE rows of a split tile, in their order, into out [B, H, length, D].

    With BOTH also those of second [B, H, length, E].
    """
    b, h, _, split = turn_of(splits, Work(longs, rest, first), H, 4, SHARED)
    rows, place = own_slice(own, tl.load(split), SLICE, TILE, SUB)
    place -= lead
    _add(out, partial_ptr, b, h, H, split, rows, place, partials, length, D, DP, TILE, SLICE)
    if BOTH:
        _add(second, second_partial_ptr, b, h, H, split, rows, place, partials, length, E, EP, TILE, SLICE)
