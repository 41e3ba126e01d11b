"""The gradient of a bias that has queries and keys: kept tiles, computed again."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.triton_backend.kernels.structs import Extent
from longspan_kernels.triton_backend.kernels.tiles import (
    base_of,
    kept_by_keys_inside,
    load_rows,
    own_tokens,
    seeded,
    starts,
    strike,
    tokens,
)


@triton.jit(do_not_specialize=["H", "batches", "heads", "group", "q_len", "k_len", "lead", "left", "right"])
def differentiate_bias(
    q, k, v, grad, log2_ptr, delta_ptr, dbias, columns, bits, own, items, H, batches, heads, batch_step,
    head_step, group, q_len, k_len, lead, scale, left, right, masks, dropout, shape,
):  # fmt: skip
    """Gradient of a bias that has queries and keys: each kept tile is computed again, and summed over what
    broadcasts.

    The grid is items, batch entries of dbias, heads of dbias; each program adds up `batches` batch entries
    from program_id(1) on, and `heads` heads from program_id(2) * head_step on (the item's own where heads
    have layouts of their own).
    """
    slots: tl.constexpr = shape.BN // shape.SUB
    one_bit: tl.constexpr = shape.SUB >= shape.BM and shape.SUB >= shape.BN
    item = items + tl.program_id(0) * 7
    first = tl.load(item + 2)
    first_batch = tl.program_id(1) * batch_step
    first_head = tl.program_id(2) * head_step if shape.SHARED else tl.load(item + 1)
    extent = Extent(q_len, k_len, lead, left, right)
    if dropout is not None:
        dropout = seeded(dropout)
    m = own_tokens(own, tl.load(item), shape.BM, shape.SUB, 1) - lead
    valid = (m >= 0) & (m < q_len)
    own_sub = tl.arange(0, shape.BM) // shape.SUB
    slot = tl.arange(0, shape.BN) // shape.SUB
    for step in range(first, first + tl.load(item + 5)):
        n = tokens(starts(columns, step, shape.BN, shape.SUB, 1), shape.BN, shape.SUB, 1)
        bit = tl.load(bits + step)
        total = tl.zeros([shape.BM, shape.BN], dtype=tl.float32)
        for pair in range(batches * heads):
            b = (first_batch + pair // heads).to(tl.int64)
            h = first_head + pair % heads
            kv = h // group
            row = (b * H + h) * q_len + m
            q_tile = load_rows(base_of(q, b, h), m, q.strides[2], q_len, shape.D, shape.DP, True)
            grad_tile = load_rows(base_of(grad, b, h), m, grad.strides[2], q_len, shape.E, shape.EP, True)
            k_tile = load_rows(base_of(k, b, kv), n, k.strides[2], k_len, shape.D, shape.DP, True)
            v_tile = load_rows(base_of(v, b, kv), n, v.strides[2], k_len, shape.E, shape.EP, True)
            lse = tl.load(log2_ptr + row, mask=valid, other=float("inf"))
            delta = tl.load(delta_ptr + row, mask=valid, other=0.0)
            scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=shape.PRECISION) * scale
            scores = strike(
                scores, m[:, None], n[None, :], own_sub[:, None], slot[None, :], bit, b, h, extent, masks,
                one_bit, slots, shape.RAGGED, 2,
            )  # fmt: skip
            p = tl.exp2(tl.minimum(scores - lse[:, None], 0.0))
            dp = tl.dot(grad_tile, tl.trans(v_tile), input_precision=shape.PRECISION)
            if dropout is not None:
                fours = tokens(starts(columns, step, shape.BN, shape.SUB, 4), shape.BN, shape.SUB, 4)
                position = m + (k_len - q_len)
                keep = kept_by_keys_inside(
                    dropout, b, h, position[:, None], fours[None, :], shape.BM, shape.BN
                )
                dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
            total += p * (dp - delta[:, None])
        kept = ((bit >> (own_sub[:, None] * slots + slot[None, :])) & 1) != 0
        at = (
            dbias.pointer
            + tl.program_id(1).to(tl.int64) * dbias.strides[0]
            + (tl.program_id(2) if shape.SHARED else first_head).to(tl.int64) * dbias.strides[1]
            + m.to(tl.int64)[:, None] * dbias.strides[2]
            + n.to(tl.int64)[None, :] * dbias.strides[3]
        )
        tl.store(at, total, mask=kept & valid[:, None] & (n < k_len)[None, :])
