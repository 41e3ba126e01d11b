"""What forward and backward kernels share: loading a gathered tile, striking scores, drawing dropout.

Names in the kernels: B batch entry, H query head, M query, N key, D dimension of q and k,
E dimension of v. Tensors of
query and key numbers come in whatever shape broadcasts to the tile,
so that a tile may lie queries by keys or keys
by queries. Scores are in units of log2, so that exponentials are powers of two.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def starts(columns, step, TILE: tl.constexpr, SUB: tl.constexpr, STRIDE: tl.constexpr):
    """First token of the sub-block of every STRIDE-th token of a step: a number, or int32 [TILE //
    STRIDE].
    """
    slots: tl.constexpr = TILE // SUB
    if slots == 1:
        return tl.load(columns + step) * SUB
    else:
        offsets = tl.arange(0, TILE // STRIDE) * STRIDE
        return tl.load(columns + step * slots + offsets // SUB) * SUB


@triton.jit
def tokens(start, TILE: tl.constexpr, SUB: tl.constexpr, STRIDE: tl.constexpr):
    """Positions of every STRIDE-th token of a step, int32 [TILE // STRIDE], from what `starts` gave."""
    return start + (tl.arange(0, TILE // STRIDE) * STRIDE) % SUB


@triton.jit
def load_rows(base, rows, stride, length, WIDTH: tl.constexpr, PADDED: tl.constexpr, CHECKED: tl.constexpr):
    """Rows of a [length, WIDTH] matrix, [rows, PADDED]; what lies outside is 0 where CHECKED."""
    width = tl.arange(0, PADDED)
    pointers = base + rows.to(tl.int64)[:, None] * stride + width[None, :]
    if CHECKED:
        inside = ((rows >= 0) & (rows < length))[:, None] & (width < WIDTH)[None, :]
        return tl.load(pointers, mask=inside, other=0.0)
    if PADDED != WIDTH:
        return tl.load(pointers, mask=(width < WIDTH)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def strike(
    scores,
    m,
    n,
    own_sub,
    other_slot,
    bits,
    b,
    h,
    q_len,
    k_len,
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
    SLOTS: tl.constexpr,
    ONE_BIT: tl.constexpr,
    CUT: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    KEY_MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr,
    BIAS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """Add what is added to the scores and put -inf where a key is not seen.

    KEY_MASK and ATTN_MASK: 0 none, 1 bool (True: seen), 2 added.
    """
    inside = (m >= 0) & (m < q_len) & (n < k_len)
    if CUT:
        keep = n < k_len
        position = m + (k_len - q_len)
        if RIGHT:
            keep = keep & (n <= position + right)
        if LEFT:
            keep = keep & (n >= position - left)
        if not ONE_BIT:
            keep = keep & (((bits >> (own_sub * SLOTS + other_slot)) & 1) != 0)
        scores = tl.where(keep, scores, float("-inf"))
    wide_m = m.to(tl.int64)
    wide_n = n.to(tl.int64)
    if KEY_MASK != 0:
        at = key_mask + b * key_mask_strides[0] + wide_n * key_mask_strides[1]
        if KEY_MASK == 1:
            seen = tl.load(at, mask=n < k_len, other=0)
            scores = tl.where(seen != 0, scores, float("-inf"))
        else:
            scores += in_log2(tl.load(at, mask=n < k_len, other=0.0))
    if ATTN_MASK != 0:
        at = (
            attn_mask
            + b * attn_mask_strides[0]
            + h * attn_mask_strides[1]
            + wide_m * attn_mask_strides[2]
            + wide_n * attn_mask_strides[3]
        )
        if ATTN_MASK == 1:
            seen = tl.load(at, mask=inside, other=0)
            scores = tl.where(seen != 0, scores, float("-inf"))
        else:
            scores += in_log2(tl.load(at, mask=inside, other=0.0))
    if BIAS:
        at = (
            bias
            + b * bias_strides[0]
            + h * bias_strides[1]
            + wide_m * bias_strides[2]
            + wide_n * bias_strides[3]
        )
        scores += in_log2(tl.load(at, mask=inside, other=0.0))
    if DOCUMENTS:
        row = documents + b * documents_stride
        its_document = tl.load(row + wide_n, mask=n < k_len, other=0)
        document = tl.load(row + wide_m + (k_len - q_len), mask=(m >= 0) & (m < q_len), other=0)
        scores = tl.where(its_document == document, scores, float("-inf"))
    return scores


@triton.jit
def in_log2(added):
    """Bring an added mask to units of log2: finite numbers stay finite, -inf stays -inf."""
    added = added.to(tl.float32)
    finite = tl.minimum(tl.maximum(added, -2.0e38), 2.0e38) * LOG2E
    return tl.where(added == float("-inf"), float("-inf"), finite)


@triton.jit
def kept_by_keys_inside(seed, threshold, b, h, position, fours, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Draw dropout for a tile of queries [ROWS, 1] by keys, whose every fourth is [1, COLUMNS // 4]."""
    zero = tl.zeros([ROWS, COLUMNS // 4], dtype=tl.int32)
    w0, w1, w2, w3 = tl.philox(seed, fours // 4 + zero, position + zero, h + zero, b + zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(words, [ROWS, COLUMNS]).to(tl.uint32, bitcast=True) >= threshold


@triton.jit
def kept_by_keys_outside(seed, threshold, b, h, position, fours, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Draw dropout for a tile of keys by queries [1, COLUMNS]; every fourth key is [ROWS // 4, 1]."""
    zero = tl.zeros([ROWS // 4, COLUMNS], dtype=tl.int32)
    w0, w1, w2, w3 = tl.philox(seed, fours // 4 + zero, position + zero, h + zero, b + zero)
    words = tl.permute(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [0, 2, 3, 1])
    return tl.reshape(words, [ROWS, COLUMNS]).to(tl.uint32, bitcast=True) >= threshold
