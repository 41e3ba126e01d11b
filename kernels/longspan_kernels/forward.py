"""The forward kernel: a tile of queries, the keys its layout gathers, a running softmax; and what combines
segments.

The running softmax is that of Milakov and Gimelshein 2018 (arXiv:1805.02867),
in tiles as in FlashAttention (Dao et al.
2022, arXiv:2205.14135). Steps that need no mask come first and run in a loop without one. The number of the
next
step's sub-block is loaded one step ahead, so that the loads of keys and values do not wait for it.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.tiles import LN2, kept_by_keys_inside, load_rows, starts, strike, tokens


@triton.jit
def _walk(
    q,
    context,
    top,
    total,
    start,
    stop,
    columns,
    bits,
    k_base,
    k_stride,
    v_base,
    v_stride,
    k_desc,
    v_desc,
    b,
    h,
    kv_head,
    m,
    q_len,
    k_len,
    scale,
    left,
    right,
    key_mask,
    key_mask_strides,
    attn_mask,
    attn_mask_strides,
    bias,
    bias_strides,
    documents,
    documents_stride,
    seed,
    threshold,
    keep_scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SUB: tl.constexpr,
    CUT: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    KEY_MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr,
    BIAS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    DROPOUT: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend to the keys of the steps from start to stop."""
    slots: tl.constexpr = BN // SUB
    masked: tl.constexpr = CUT or KEY_MASK != 0 or ATTN_MASK != 0 or BIAS or DOCUMENTS
    own_sub = tl.arange(0, BM) // SUB
    slot = tl.arange(0, BN) // SUB
    at = starts(columns, start, BN, SUB, 1)
    for step in range(start, stop):
        at_next = starts(columns, step + 1, BN, SUB, 1)
        n = tokens(at, BN, SUB, 1)
        if TMA:
            k = tl.reshape(k_desc.load([b, kv_head, at, 0]), [BN, DP])
            v = tl.reshape(v_desc.load([b, kv_head, at, 0]), [BN, EP])
        else:
            k = load_rows(k_base, n, k_stride, k_len, D, DP, CUT)
            v = load_rows(v_base, n, v_stride, k_len, E, EP, CUT)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if masked:
            scores = strike(
                scores, m[:, None], n[None, :], own_sub[:, None], slot[None, :], tl.load(bits + step), b, h,
                q_len, k_len, left, right, key_mask, key_mask_strides, attn_mask, attn_mask_strides, bias,
                bias_strides, documents, documents_stride, slots, SUB >= BM and SUB >= BN, CUT, LEFT, RIGHT,
                KEY_MASK, ATTN_MASK, BIAS, DOCUMENTS,
            )  # fmt: skip
        top_next = tl.maximum(top, tl.max(scores, 1))
        # Where nothing is seen yet, any finite number serves.
        base = tl.where(top_next == float("-inf"), 0.0, top_next) if masked else top_next
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        context = context * shrink[:, None]
        if DROPOUT:
            fours = tokens(starts(columns, step, BN, SUB, 4), BN, SUB, 4)
            keep = kept_by_keys_inside(
                seed, threshold, b, h, (m + (k_len - q_len))[:, None], fours[None, :], BM, BN
            )
            p = tl.where(keep, p * keep_scale, 0.0)
        context = tl.dot(p.to(v.dtype), v, context, input_precision=PRECISION)
        top = top_next
        at = at_next
    return context, top, total


@triton.jit(do_not_specialize=["q_len", "k_len", "lead", "left", "right", "inner", "H"])
def attend(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    k_desc,
    v_desc,
    columns,
    bits,
    items,
    q_strides,
    k_strides,
    v_strides,
    H,
    inner,
    partials,
    group,
    q_len,
    k_len,
    lead,
    scale,
    left,
    right,
    key_mask,
    key_mask_strides,
    attn_mask,
    attn_mask_strides,
    bias,
    bias_strides,
    documents,
    documents_stride,
    seed_ptr,
    threshold,
    keep_scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SUB: tl.constexpr,
    SHARED: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    KEY_MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr,
    BIAS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    DROPOUT: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend for one item of the schedule, one head and one batch entry.

    out is contiguous [B, H, q_len, E], lse [B, H,
    q_len] float32; a segment writes float32 partial results instead.
    """
    program = tl.program_id(0)
    item = items + (program // inner) * 6
    within = program % inner
    if SHARED:
        b = within // H
        h = within % H
    else:
        b = within
        h = tl.load(item + 1)
    tile = tl.load(item)
    first = tl.load(item + 2)
    uncut = tl.load(item + 3)
    steps = tl.load(item + 4)
    partial = tl.load(item + 5)
    b = b.to(tl.int64)
    kv_head = h // group
    head = b * H + h

    m = tile * BM - lead + tl.arange(0, BM)
    valid = (m >= 0) & (m < q_len)
    q = load_rows(q_ptr + b * q_strides[0] + h * q_strides[1], m, q_strides[2], q_len, D, DP, True)
    k_base = k_ptr + b * k_strides[0] + kv_head * k_strides[1]
    v_base = v_ptr + b * v_strides[0] + kv_head * v_strides[1]
    seed = tl.load(seed_ptr) if DROPOUT else 0

    context = tl.zeros([BM, EP], dtype=tl.float32)
    top = tl.full([BM], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    for cut in tl.static_range(2):
        context, top, total = _walk(
            q, context, top, total, first + cut * uncut, first + uncut + cut * (steps - uncut), columns, bits,
            k_base, k_strides[2], v_base, v_strides[2], k_desc, v_desc, b.to(tl.int32), h, kv_head, m, q_len,
            k_len,
            scale, left, right, key_mask, key_mask_strides, attn_mask, attn_mask_strides, bias, bias_strides,
            documents, documents_stride, seed, threshold, keep_scale, D, DP, E, EP, BM, BN, SUB, cut == 1,
            LEFT,
            RIGHT, KEY_MASK, ATTN_MASK, BIAS, DOCUMENTS, DROPOUT, TMA, PRECISION,
        )  # fmt: skip

    empty = total == 0.0
    context = context / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, float("-inf"), (top + tl.log2(total)) * LN2)
    width = tl.arange(0, EP)
    if partial >= 0:
        row = (head * partials + partial) * BM + tl.arange(0, BM)
        tl.store(partial_out_ptr + row[:, None] * E + width[None, :], context, mask=(width < E)[None, :])
        tl.store(partial_lse_ptr + row, lse)
    else:
        row = head * q_len + m
        tl.store(
            out_ptr + row[:, None] * E + width[None, :],
            context.to(out_ptr.dtype.element_ty),
            mask=valid[:, None] & (width < E)[None, :],
        )
        tl.store(lse_ptr + row, lse, mask=valid)


@triton.jit(do_not_specialize=["q_len", "lead", "inner", "H"])
def combine(
    out_ptr,
    lse_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    splits,
    H,
    inner,
    partials,
    q_len,
    lead,
    E: tl.constexpr,
    EP: tl.constexpr,
    BM: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Combine the segments of a split tile, in their order."""
    program = tl.program_id(0)
    split = splits + (program // inner) * 4
    within = program % inner
    if SHARED:
        b = within // H
        h = within % H
    else:
        b = within
        h = tl.load(split + 1)
    tile = tl.load(split)
    first = tl.load(split + 2)
    number = tl.load(split + 3)
    head = b.to(tl.int64) * H + h
    rows = tl.arange(0, BM)
    width = tl.arange(0, EP)
    context = tl.zeros([BM, EP], dtype=tl.float32)
    top = tl.full([BM], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    for segment in range(number):
        row = (head * partials + first + segment) * BM + rows
        lse = tl.load(partial_lse_ptr + row)
        part = tl.load(
            partial_out_ptr + row[:, None] * E + width[None, :], mask=(width < E)[None, :], other=0.0
        )
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
    m = tile * BM - lead + rows
    valid = (m >= 0) & (m < q_len)
    row = head * q_len + m
    at = out_ptr + row[:, None] * E + width[None, :]
    tl.store(at, context.to(out_ptr.dtype.element_ty), mask=valid[:, None] & (width < E)[None, :])
    tl.store(lse_ptr + row, lse, mask=valid)
