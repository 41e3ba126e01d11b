"""The gradient of a bias that has queries and keys: kept tiles, computed again."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.triton_backend.kernels.structs import Extent
from longspan_kernels.triton_backend.kernels.tiles import (
    NOT_SPECIALIZED,
    block_starts,
    dropout_keep_qk,
    head_pointer,
    load_rows,
    load_seed,
    mask_scores,
    positions_in_blocks,
    tile_positions,
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_bwd_dbias_kernel(
    q, k, v, grad, lse_log2_ptr, delta_ptr, dbias, step_blocks, pair_bits, tile_blocks, work_tiles, H,
    batches, heads, batch_step, head_step, group, q_len, k_len, query_offset, scale, left, right, masks,
    dropout, shape,
):  # fmt: skip
    """Gradient of a bias that has queries and keys: each kept tile is computed again, and summed over what
    broadcasts.

    The grid is items, batch entries of dbias, heads of dbias; each program adds up `batches` batch entries
    from program_id(1) on, and `heads` heads from program_id(2) * head_step on (the item's own where heads
    have layouts of their own).
    """
    step_slots: tl.constexpr = shape.BN // shape.SUB
    one_bit: tl.constexpr = shape.SUB >= shape.BM and shape.SUB >= shape.BN
    work_tile = work_tiles + tl.program_id(0) * 7
    first_step = tl.load(work_tile + 2)
    first_batch = tl.program_id(1) * batch_step
    first_head = tl.program_id(2) * head_step if shape.SHARED else tl.load(work_tile + 1)
    extent = Extent(q_len, k_len, query_offset, left, right)
    if dropout is not None:
        dropout = load_seed(dropout)
    m = tile_positions(tile_blocks, tl.load(work_tile), shape.BM, shape.SUB, 1) - query_offset
    valid = (m >= 0) & (m < q_len)
    tile_slot = tl.arange(0, shape.BM) // shape.SUB
    step_slot = tl.arange(0, shape.BN) // shape.SUB
    for step in range(first_step, first_step + tl.load(work_tile + 5)):
        n = positions_in_blocks(
            block_starts(step_blocks, step, shape.BN, shape.SUB, 1), shape.BN, shape.SUB, 1
        )
        bits = tl.load(pair_bits + step)
        ds_sum = tl.zeros([shape.BM, shape.BN], dtype=tl.float32)
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
                masks, one_bit, step_slots, shape.RAGGED, 2,
            )  # fmt: skip
            p = tl.exp2(tl.minimum(scores - lse[:, None], 0.0))
            dp = tl.dot(grad_tile, tl.trans(v_tile), input_precision=shape.PRECISION)
            if dropout is not None:
                key_quads = positions_in_blocks(
                    block_starts(step_blocks, step, shape.BN, shape.SUB, 4), shape.BN, shape.SUB, 4
                )
                position = m + (k_len - q_len)
                keep = dropout_keep_qk(
                    dropout, b, h, position[:, None], key_quads[None, :], shape.BM, shape.BN
                )
                dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
            ds_sum += p * (dp - delta[:, None])
        kept = ((bits >> (tile_slot[:, None] * step_slots + step_slot[None, :])) & 1) != 0
        pointers = (
            dbias.pointer
            + tl.program_id(1).to(tl.int64) * dbias.strides[0]
            + (tl.program_id(2) if shape.SHARED else first_head).to(tl.int64) * dbias.strides[1]
            + m.to(tl.int64)[:, None] * dbias.strides[2]
            + n.to(tl.int64)[None, :] * dbias.strides[3]
        )
        tl.store(pointers, ds_sum, mask=kept & valid[:, None] & (n < k_len)[None, :])
