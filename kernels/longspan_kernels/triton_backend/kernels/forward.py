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

from longspan_kernels.triton_backend.kernels.structs import Extent, Work
from longspan_kernels.triton_backend.kernels.tiles import (
    LN2,
    base_of,
    item_of,
    kept_by_keys_inside,
    load_rows,
    own_slice,
    own_tokens,
    scored_keys,
    seeded,
    starts,
    store_rows,
    tokens,
    turn_of,
)


@triton.jit
def _walk(
    q, context, top, total, start, stop, columns, bits, k, v, k_desc, v_desc, item, m, extent, scale, masks,
    dropout, shape, MASK: tl.constexpr,
):  # fmt: skip
    """Attend to the keys of the steps from start to stop."""
    masked: tl.constexpr = MASK or masks.ANY
    at = starts(columns, start, shape.BN, shape.SUB, 1)
    for step in range(start, stop):
        at_next = starts(columns, step + 1, shape.BN, shape.SUB, 1)
        _, _, v_tile, scores = scored_keys(
            q, at, step, bits, k, v, k_desc, v_desc, item, m, extent, scale, masks, shape, MASK
        )
        if shape.BARE:
            top_next = tl.maximum(top, tl.max(scores, 1) * scale)
        else:
            top_next = tl.maximum(top, tl.max(scores, 1))
        # Where nothing is seen yet, any finite number serves.
        base = tl.where(top_next == float("-inf"), 0.0, top_next) if masked else top_next
        p = tl.exp2(scores * scale - base[:, None] if shape.BARE else scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        context = context * shrink[:, None]
        if dropout is not None:
            fours = tokens(starts(columns, step, shape.BN, shape.SUB, 4), shape.BN, shape.SUB, 4)
            position = m + (extent.k_len - extent.q_len)
            keep = kept_by_keys_inside(
                dropout, item.b, item.h, position[:, None], fours[None, :], shape.BM, shape.BN
            )
            p = tl.where(keep, p * dropout.keep_scale, 0.0)
        context = tl.dot(p.to(v_tile.dtype), v_tile, context, input_precision=shape.PRECISION)
        top = top_next
        at = at_next
    return context, top, total


@triton.jit(
    do_not_specialize=["longs", "rest", "first", "partials", "H", "q_len", "k_len", "lead", "left", "right"]
)
def attend(
    q, k, v, out, lse_ptr, partial_out_ptr, partial_lse_ptr, k_desc, v_desc, columns, bits, own, items,
    longs, rest, first, partials, H, q_len, k_len, lead, scale, left, right, masks, dropout, shape,
):  # fmt: skip
    """Attend for one item of the schedule, one head and one batch entry.

    lse is contiguous [B, H, q_len] float32; a segment writes float32 partial results instead,
    [B, H, partials, BM, E] and [B, H, partials, BM].
    """
    item = item_of(items, Work(longs, rest, first), H, shape)
    extent = Extent(q_len, k_len, lead, left, right)
    if dropout is not None:
        dropout = seeded(dropout)
    m = own_tokens(own, item.tile, shape.BM, shape.SUB, 1) - lead
    valid = (m >= 0) & (m < q_len)
    q_tile = load_rows(base_of(q, item.b, item.h), m, q.strides[2], q_len, shape.D, shape.DP, True)

    context = tl.zeros([shape.BM, shape.EP], dtype=tl.float32)
    top = tl.full([shape.BM], float("-inf"), dtype=tl.float32)
    total = tl.zeros([shape.BM], dtype=tl.float32)
    # Only where there are steps: if the way past a loop met the way out of it, the loop's products would be
    # waited for one by one (ptxas C7515).
    for mask in tl.static_range(3):
        if shape.STEPS[mask] and item.ends[mask] < item.ends[mask + 1]:
            context, top, total = _walk(
                q_tile, context, top, total, item.ends[mask], item.ends[mask + 1], columns, bits, k, v,
                k_desc, v_desc, item, m, extent, scale, masks, dropout, shape, mask,
            )  # fmt: skip

    empty = total == 0.0
    context = context * (1.0 / tl.where(empty, 1.0, total))[:, None]
    lse = tl.where(empty, float("-inf"), (top + tl.log2(total)) * LN2)
    if item.partial >= 0:
        width = tl.arange(0, shape.EP)
        row = (item.head * partials + item.partial) * shape.BM + tl.arange(0, shape.BM)
        partial_at = partial_out_ptr + row[:, None] * shape.E + width[None, :]
        tl.store(partial_at, context, mask=(width < shape.E)[None, :])
        tl.store(partial_lse_ptr + row, lse)
    else:
        store_rows(out, item.b, item.h, m, q_len, context, shape.E, shape.EP)
        tl.store(lse_ptr + item.head * q_len + m, lse, mask=valid)


@triton.jit(do_not_specialize=["longs", "rest", "first", "partials", "H", "q_len", "lead"])
def combine(
    out, lse_ptr, partial_out_ptr, partial_lse_ptr, own, splits, longs, rest, first, partials, H, q_len,
    lead, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, SUB: tl.constexpr, SLICE: tl.constexpr,
    SHARED: tl.constexpr,
):  # fmt: skip
    """Combine the segments of SLICE rows of a split tile, in their order."""
    b, h, _, split = turn_of(splits, Work(longs, rest, first), H, 4, SHARED)
    first = tl.load(split + 2)
    head = b * H + h
    rows, position = own_slice(own, tl.load(split), SLICE, BM, SUB)
    width = tl.arange(0, EP)
    context = tl.zeros([SLICE, EP], dtype=tl.float32)
    top = tl.full([SLICE], float("-inf"), dtype=tl.float32)
    total = tl.zeros([SLICE], dtype=tl.float32)
    for segment in range(first, first + tl.load(split + 3)):
        row = (head * partials + segment) * BM + rows
        lse = tl.load(partial_lse_ptr + row)
        at = partial_out_ptr + row[:, None] * E + width[None, :]
        part = tl.load(at, mask=(width < E)[None, :], other=0.0)
        top_next = tl.maximum(top, lse)
        base = tl.where(top_next == float("-inf"), 0.0, top_next)
        shrink = tl.exp(top - base)
        weight = tl.exp(lse - base)
        context = context * shrink[:, None] + part * weight[:, None]
        total = total * shrink + weight
        top = top_next
    empty = total == 0.0
    context = context / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, float("-inf"), top + tl.log(total))
    m = position - lead
    store_rows(out, b, h, m, q_len, context, E, EP)
    tl.store(lse_ptr + head * q_len + m, lse, mask=(m >= 0) & (m < q_len))
