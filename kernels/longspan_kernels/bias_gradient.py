"""The gradient of a bias that has queries and keys: kept tiles, computed again."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.tiles import kept_by_keys_inside, load_rows, starts, strike, tokens


@triton.jit(do_not_specialize=["q_len", "k_len", "lead", "left", "right", "H"])
def differentiate_bias(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dbias_ptr, columns, bits, items, q_strides, k_strides,
    v_strides,
    grad_strides, dbias_strides, H, batches, heads, batch_step, head_step, group, q_len, k_len, lead, scale,
    left,
    right, key_mask, key_mask_strides, attn_mask, attn_mask_strides, bias, bias_strides, documents,
    documents_stride,
    seed_ptr, threshold, keep_scale,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SUB: tl.constexpr, SHARED: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEY_MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr, DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a bias that has queries and keys: each kept tile is computed again, and summed over what
    broadcasts.

    The grid is items, batch entries of dbias,
    heads of dbias; each program adds up `batches` batch entries from
    program_id(1) on,
    and `heads` heads from program_id(2) * head_step on (the item's own where heads have layouts of
    their own).
    """
    slots: tl.constexpr = BN // SUB
    item = items + tl.program_id(0) * 6
    tile = tl.load(item)
    first = tl.load(item + 2)
    steps = tl.load(item + 4)
    first_batch = tl.program_id(1) * batch_step
    first_head = tl.program_id(2) * head_step if SHARED else tl.load(item + 1)
    m = tile * BM - lead + tl.arange(0, BM)
    valid = (m >= 0) & (m < q_len)
    own_sub = tl.arange(0, BM) // SUB
    slot = tl.arange(0, BN) // SUB
    seed = tl.load(seed_ptr) if DROPOUT else 0
    for step in range(first, first + steps):
        n = tokens(starts(columns, step, BN, SUB, 1), BN, SUB, 1)
        total = tl.zeros([BM, BN], dtype=tl.float32)
        for pair in range(batches * heads):
            b = (first_batch + pair // heads).to(tl.int64)
            h = first_head + pair % heads
            head = b * H + h
            q = load_rows(q_ptr + b * q_strides[0] + h * q_strides[1], m, q_strides[2], q_len, D, DP, True)
            grad = load_rows(
                grad_ptr + b * grad_strides[0] + h * grad_strides[1], m, grad_strides[2], q_len, E, EP, True
            )
            kv = h // group
            k = load_rows(k_ptr + b * k_strides[0] + kv * k_strides[1], n, k_strides[2], k_len, D, DP, True)
            v = load_rows(v_ptr + b * v_strides[0] + kv * v_strides[1], n, v_strides[2], k_len, E, EP, True)
            lse = tl.load(lse_ptr + head * q_len + m, mask=valid, other=float("inf"))
            delta = tl.load(delta_ptr + head * q_len + m, mask=valid, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            scores = strike(
                scores, m[:, None], n[None, :], own_sub[:, None], slot[None, :], tl.load(bits + step), b, h,
                q_len, k_len, left, right, key_mask, key_mask_strides, attn_mask, attn_mask_strides, bias,
                bias_strides, documents, documents_stride, slots, SUB >= BM and SUB >= BN, True, LEFT, RIGHT,
                KEY_MASK, ATTN_MASK, True, DOCUMENTS,
            )  # fmt: skip
            p = tl.exp2(tl.minimum(scores - lse[:, None], 0.0))
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            if DROPOUT:
                fours = tokens(starts(columns, step, BN, SUB, 4), BN, SUB, 4)
                keep = kept_by_keys_inside(
                    seed, threshold, b.to(tl.int32), h, (m + (k_len - q_len))[:, None], fours[None, :], BM, BN
                )
                dp = tl.where(keep, dp * keep_scale, 0.0)
            total += p * (dp - delta[:, None])
        bit = tl.load(bits + step)
        kept = ((bit >> (own_sub[:, None] * slots + slot[None, :])) & 1) != 0
        at = (
            dbias_ptr
            + tl.program_id(1).to(tl.int64) * dbias_strides[0]
            + (tl.program_id(2) if SHARED else first_head).to(tl.int64) * dbias_strides[1]
            + m.to(tl.int64)[:, None] * dbias_strides[2]
            + n.to(tl.int64)[None, :] * dbias_strides[3]
        )
        tl.store(at, total, mask=kept & valid[:, None] & (n < k_len)[None, :])
