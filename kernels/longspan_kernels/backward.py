"""The backward kernels: dq over tiles of queries, dk and dv over tiles of keys, the bias over tiles of
queries.

Probabilities are computed again from the log-sum-exp of the forward (FlashAttention-2: Dao 2023,
arXiv:2307.08691). Every
output element is written by one program, or by the segments of one tile and then added up in their order,
so gradients are
the same bits in every run; nothing is added atomically.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.tiles import (
    LOG2E,
    kept_by_keys_inside,
    kept_by_keys_outside,
    load_rows,
    starts,
    strike,
    tokens,
)


@triton.jit
def differences(
    out_ptr, grad_ptr, lse_ptr, grad_lse_ptr, delta_ptr, log2_ptr, out_strides, grad_strides, H, q_len,
    E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """delta[b, h, m] = out . grad_out - grad_lse, and the log-sum-exp in log2 units, both float32 [B, H,
    q_len].

    A query without a key gets +inf there, which makes every probability 0.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1).to(tl.int64)
    b = head // H
    h = head % H
    out = load_rows(out_ptr + b * out_strides[0] + h * out_strides[1], m, out_strides[2], q_len, E, EP, True)
    grad = load_rows(
        grad_ptr + b * grad_strides[0] + h * grad_strides[1], m, grad_strides[2], q_len, E, EP, True
    )
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    if GRAD_LSE:
        delta -= tl.load(grad_lse_ptr + head * q_len + m, mask=m < q_len, other=0.0)
    tl.store(delta_ptr + head * q_len + m, delta, mask=m < q_len)
    lse = tl.load(lse_ptr + head * q_len + m, mask=m < q_len, other=0.0)
    log2 = tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)
    tl.store(log2_ptr + head * q_len + m, log2, mask=m < q_len)


@triton.jit
def _walk_queries(
    q, grad, lse, delta, dq, dbias, start, stop, columns, bits, k_base, k_stride, v_base, v_stride, k_desc,
    v_desc, b, h, kv_head, m, q_len, k_len, scale, left, right, key_mask, key_mask_strides, attn_mask,
    attn_mask_strides, bias, bias_strides, documents, documents_stride, seed, threshold, keep_scale,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SUB: tl.constexpr, CUT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEY_MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr, BIAS: tl.constexpr, DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr,
    ROW_SUMS: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to dq what the keys of the steps give; with ROW_SUMS also sum the scores' gradients to dbias
    [BM].
    """
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
        scores -= lse[:, None]
        if masked:
            # Added masks may be so large that one rounding of the log-sum-exp is many units.
            scores = tl.minimum(scores, 0.0)
        p = tl.exp2(scores)
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            fours = tokens(starts(columns, step, BN, SUB, 4), BN, SUB, 4)
            keep = kept_by_keys_inside(
                seed, threshold, b, h, (m + (k_len - q_len))[:, None], fours[None, :], BM, BN
            )
            dp = tl.where(keep, dp * keep_scale, 0.0)
        ds = p * (dp - delta[:, None])
        if ROW_SUMS:
            dbias += tl.sum(ds, 1)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        at = at_next
    return dq, dbias


@triton.jit(do_not_specialize=["q_len", "k_len", "lead", "left", "right", "inner", "H"])
def differentiate_queries(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, partial_ptr, row_sums_ptr, k_desc, v_desc,
    columns, bits,
    items, q_strides, k_strides, v_strides, grad_strides, H, inner, partials, group, q_len, k_len, lead,
    scale,
    softmax_scale, left, right, key_mask, key_mask_strides, attn_mask, attn_mask_strides, bias, bias_strides,
    documents, documents_stride, seed_ptr, threshold, keep_scale,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SUB: tl.constexpr, SHARED: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEY_MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr, BIAS: tl.constexpr, DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr,
    ROW_SUMS: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dq of one item, head and batch entry: contiguous [B, H, q_len, D].

    Segments write float32 partial sums.

    With ROW_SUMS the scores' gradients are summed over the keys into row_sums, float32 [B, H,
    q_len] (no segment may
    be split then), for a bias that is one number a query.
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
    grad = load_rows(
        grad_ptr + b * grad_strides[0] + h * grad_strides[1], m, grad_strides[2], q_len, E, EP, True
    )
    lse = tl.load(lse_ptr + head * q_len + m, mask=valid, other=float("inf"))
    delta = tl.load(delta_ptr + head * q_len + m, mask=valid, other=0.0)
    k_base = k_ptr + b * k_strides[0] + kv_head * k_strides[1]
    v_base = v_ptr + b * v_strides[0] + kv_head * v_strides[1]
    seed = tl.load(seed_ptr) if DROPOUT else 0

    dq = tl.zeros([BM, DP], dtype=tl.float32)
    sums = tl.zeros([BM], dtype=tl.float32)
    for cut in tl.static_range(2):
        dq, sums = _walk_queries(
            q, grad, lse, delta, dq, sums, first + cut * uncut, first + uncut + cut * (steps - uncut),
            columns, bits,
            k_base, k_strides[2], v_base, v_strides[2], k_desc, v_desc, b.to(tl.int32), h, kv_head, m, q_len,
            k_len,
            scale, left, right, key_mask, key_mask_strides, attn_mask, attn_mask_strides, bias, bias_strides,
            documents, documents_stride, seed, threshold, keep_scale, D, DP, E, EP, BM, BN, SUB, cut == 1,
            LEFT,
            RIGHT, KEY_MASK, ATTN_MASK, BIAS, DOCUMENTS, DROPOUT, ROW_SUMS, TMA, PRECISION,
        )  # fmt: skip
    dq = dq * softmax_scale
    width = tl.arange(0, DP)
    if partial >= 0:
        row = (head * partials + partial) * BM + tl.arange(0, BM)
        tl.store(partial_ptr + row[:, None] * D + width[None, :], dq, mask=(width < D)[None, :])
    else:
        at = dq_ptr + (head * q_len + m)[:, None] * D + width[None, :]
        tl.store(at, dq.to(dq_ptr.dtype.element_ty), mask=valid[:, None] & (width < D)[None, :])
    if ROW_SUMS:
        tl.store(row_sums_ptr + head * q_len + m, sums, mask=valid)


@triton.jit
def _walk_keys(
    k, v, dk, dv, dbias, start, stop, columns, bits, q_base, q_stride, grad_base, grad_stride, lse_base,
    delta_base,
    q_desc, grad_desc, b, h, n, first_key, q_len, k_len, lead, scale, left, right, key_mask,
    key_mask_strides, attn_mask,
    attn_mask_strides, bias, bias_strides, documents, documents_stride, seed, threshold, keep_scale,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SUB: tl.constexpr, CUT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEY_MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr, BIAS: tl.constexpr, DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr,
    COLUMN_SUMS: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to dk and dv what the queries of the steps give. Tiles lie keys by queries, so that none is
    transposed.
    """
    slots: tl.constexpr = BM // SUB
    masked: tl.constexpr = CUT or KEY_MASK != 0 or ATTN_MASK != 0 or BIAS or DOCUMENTS
    own_sub = tl.arange(0, BN) // SUB
    slot = tl.arange(0, BM) // SUB
    at = starts(columns, start, BM, SUB, 1)
    for step in range(start, stop):
        at_next = starts(columns, step + 1, BM, SUB, 1)
        m = tokens(at, BM, SUB, 1) - lead
        if TMA:
            q = tl.reshape(q_desc.load([b, h, at - lead, 0]), [BM, DP])
            grad = tl.reshape(grad_desc.load([b, h, at - lead, 0]), [BM, EP])
        else:
            q = load_rows(q_base, m, q_stride, q_len, D, DP, CUT)
            grad = load_rows(grad_base, m, grad_stride, q_len, E, EP, CUT)
        if CUT:
            valid = (m >= 0) & (m < q_len)
            lse = tl.load(lse_base + m, mask=valid, other=float("inf"))
            delta = tl.load(delta_base + m, mask=valid, other=0.0)
        else:
            lse = tl.load(lse_base + m)
            delta = tl.load(delta_base + m)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        if masked:
            scores = strike(
                scores, m[None, :], n[:, None], own_sub[:, None], slot[None, :], tl.load(bits + step), b, h,
                q_len, k_len, left, right, key_mask, key_mask_strides, attn_mask, attn_mask_strides, bias,
                bias_strides, documents, documents_stride, slots, SUB >= BM and SUB >= BN, CUT, LEFT, RIGHT,
                KEY_MASK, ATTN_MASK, BIAS, DOCUMENTS,
            )  # fmt: skip
        scores -= lse[None, :]
        if masked:
            scores = tl.minimum(scores, 0.0)
        p = tl.exp2(scores)
        dp = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        if DROPOUT:
            fours = first_key + tl.arange(0, BN // 4) * 4
            keep = kept_by_keys_outside(
                seed, threshold, b, h, (m + (k_len - q_len))[None, :], fours[:, None], BN, BM
            )
            dp = tl.where(keep, dp * keep_scale, 0.0)
            dropped = tl.where(keep, p * keep_scale, 0.0)
        else:
            dropped = p
        dv = tl.dot(dropped.to(grad.dtype), grad, dv, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        if COLUMN_SUMS:
            dbias += tl.sum(ds, 1)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        at = at_next
    return dk, dv, dbias


@triton.jit(do_not_specialize=["q_len", "k_len", "lead", "left", "right", "inner", "H"])
def differentiate_keys(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, partial_dk_ptr, partial_dv_ptr,
    column_sums_ptr,
    q_desc, grad_desc, columns, bits, items, q_strides, k_strides, v_strides, grad_strides, H, inner,
    partials, group,
    q_len, k_len, lead, scale, softmax_scale, left, right, key_mask, key_mask_strides, attn_mask,
    attn_mask_strides,
    bias, bias_strides, documents, documents_stride, seed_ptr, threshold, keep_scale,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SUB: tl.constexpr, SHARED: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEY_MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr, BIAS: tl.constexpr, DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr,
    COLUMN_SUMS: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of one item, query head and batch entry: contiguous [B, H, k_len, D] and E.

    With COLUMN_SUMS the scores' gradients are summed over the queries into column_sums, float32 [B, H,
    k_len] (no
    segment may be split then), for a bias that is one number a key.
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

    n = tile * BN + tl.arange(0, BN)
    k = load_rows(k_ptr + b * k_strides[0] + kv_head * k_strides[1], n, k_strides[2], k_len, D, DP, True)
    v = load_rows(v_ptr + b * v_strides[0] + kv_head * v_strides[1], n, v_strides[2], k_len, E, EP, True)
    q_base = q_ptr + b * q_strides[0] + h * q_strides[1]
    grad_base = grad_ptr + b * grad_strides[0] + h * grad_strides[1]
    seed = tl.load(seed_ptr) if DROPOUT else 0

    dk = tl.zeros([BN, DP], dtype=tl.float32)
    dv = tl.zeros([BN, EP], dtype=tl.float32)
    sums = tl.zeros([BN], dtype=tl.float32)
    for cut in tl.static_range(2):
        dk, dv, sums = _walk_keys(
            k, v, dk, dv, sums, first + cut * uncut, first + uncut + cut * (steps - uncut), columns, bits,
            q_base,
            q_strides[2], grad_base, grad_strides[2], lse_ptr + head * q_len, delta_ptr + head * q_len,
            q_desc,
            grad_desc, b.to(tl.int32), h, n, tile * BN, q_len, k_len, lead, scale, left, right, key_mask,
            key_mask_strides,
            attn_mask, attn_mask_strides, bias, bias_strides, documents, documents_stride, seed, threshold,
            keep_scale,
            D, DP, E, EP, BM, BN, SUB, cut == 1, LEFT, RIGHT, KEY_MASK, ATTN_MASK, BIAS, DOCUMENTS, DROPOUT,
            COLUMN_SUMS, TMA, PRECISION,
        )  # fmt: skip
    dk = dk * softmax_scale
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    if partial >= 0:
        row = (head * partials + partial) * BN + tl.arange(0, BN)
        tl.store(partial_dk_ptr + row[:, None] * D + d[None, :], dk, mask=(d < D)[None, :])
        tl.store(partial_dv_ptr + row[:, None] * E + e[None, :], dv, mask=(e < E)[None, :])
    else:
        inside = (n < k_len)[:, None]
        row = head * k_len + n
        tl.store(
            dk_ptr + row[:, None] * D + d[None, :],
            dk.to(dk_ptr.dtype.element_ty),
            mask=inside & (d < D)[None, :],
        )
        tl.store(
            dv_ptr + row[:, None] * E + e[None, :],
            dv.to(dv_ptr.dtype.element_ty),
            mask=inside & (e < E)[None, :],
        )
    if COLUMN_SUMS:
        tl.store(column_sums_ptr + head * k_len + n, sums, mask=n < k_len)


@triton.jit(do_not_specialize=["length", "lead", "inner", "H"])
def add_segments(
    out_ptr, partial_ptr, splits, H, inner, partials, length, lead,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of a split tile, in their order, into its rows of out [B, H, length, WIDTH]."""
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
    rows = tl.arange(0, TILE)
    width = tl.arange(0, PADDED)
    total = tl.zeros([TILE, PADDED], dtype=tl.float32)
    for segment in range(number):
        row = (head * partials + first + segment) * TILE + rows
        total += tl.load(
            partial_ptr + row[:, None] * WIDTH + width[None, :], mask=(width < WIDTH)[None, :], other=0.0
        )
    place = tile * TILE - lead + rows
    inside = ((place >= 0) & (place < length))[:, None] & (width < WIDTH)[None, :]
    at = out_ptr + (head * length + place)[:, None] * WIDTH + width[None, :]
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=inside)
