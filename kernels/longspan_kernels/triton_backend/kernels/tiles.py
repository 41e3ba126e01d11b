"""What the Triton kernels share: whose turn a program is, gathering tiles, striking scores, drawing dropout.

Letters of the kernels: B batch entry, H query head, M query, N key, D dimension of q and k, E dimension of v.
Numbers of queries and keys come in whatever shape broadcasts to the tile, so that a tile may lie queries by
keys or keys by queries. Scores are in units of log2, so that exponentials are powers of two.

What belongs together travels as the named tuples of `bundles.py`.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.triton_backend.kernels.structs import Dropout, WorkTile

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Numbers that differ between calls: a kernel is compiled once for all their values.
NOT_SPECIALIZED = [
    "num_long", "num_other", "num_long_programs", "num_partials", "H", "batches", "heads", "group", "q_len",
    "k_len", "length", "query_offset", "left", "right",
]  # fmt: skip


@triton.jit
def work_tile_of_program(table, work_list, H, WIDTH: tl.constexpr, SHARED: tl.constexpr):
    """Batch entry (int64), head, number and row of a work list [longs + rest, WIDTH] for a program.

    The first rows of the list, the long ones, come first for all heads: one that began last would run on
    alone. Of the others heads, or batch entries where heads have items of their own, come one after another,
    so that the programs that run together read the keys of few heads: those stay in the cache.
    """
    program = tl.program_id(0)
    if program < work_list.num_long_programs:
        outer = program // work_list.num_long
        index = program - outer * work_list.num_long
    else:
        program -= work_list.num_long_programs
        outer = program // work_list.num_other
        index = program - outer * work_list.num_other + work_list.num_long
    row = table + index * WIDTH
    if SHARED:
        b = outer // H
        return b.to(tl.int64), outer - b * H, index, row
    else:
        return outer.to(tl.int64), tl.load(row + 1), index, row


@triton.jit
def load_work_tile(work_tiles, work_list, H, shape):
    """Read this program's item."""
    b, h, index, row = work_tile_of_program(work_tiles, work_list, H, 7, shape.SHARED)
    start = tl.load(row + 2)
    step_ends = start, start + tl.load(row + 3), start + tl.load(row + 4), start + tl.load(row + 5)
    return WorkTile(b, h, h // shape.GROUP, b * H + h, tl.load(row), index, step_ends, tl.load(row + 6))


@triton.jit
def tile_positions(tile_blocks, tile, TILE: tl.constexpr, SUB: tl.constexpr, STRIDE: tl.constexpr):
    """Positions of every STRIDE-th token of a tile, int32 [TILE // STRIDE]."""
    if TILE // SUB == 1:
        return tile * TILE + tl.arange(0, TILE // STRIDE) * STRIDE
    else:
        return positions_in_blocks(block_starts(tile_blocks, tile, TILE, SUB, STRIDE), TILE, SUB, STRIDE)


@triton.jit
def tile_slice(tile_blocks, tile, SLICE: tl.constexpr, TILE: tl.constexpr, SUB: tl.constexpr):
    """Rows of a tile that the second grid dimension gives, and their positions, both int32 [SLICE]."""
    first_row = tl.program_id(1) * SLICE
    start = tile * TILE + first_row
    if TILE // SUB > 1:
        start = tl.load(tile_blocks + tile * (TILE // SUB) + first_row // SUB) * SUB + first_row % SUB
    return first_row + tl.arange(0, SLICE), start + tl.arange(0, SLICE)


@triton.jit
def block_starts(step_blocks, step, TILE: tl.constexpr, SUB: tl.constexpr, STRIDE: tl.constexpr):
    """First token of the sub-block of every STRIDE-th token of a step: a number, or [TILE // STRIDE]."""
    step_slots: tl.constexpr = TILE // SUB
    if step_slots == 1:
        return tl.load(step_blocks + step) * SUB
    else:
        offsets = tl.arange(0, TILE // STRIDE) * STRIDE
        return tl.load(step_blocks + step * step_slots + offsets // SUB) * SUB


@triton.jit
def positions_in_blocks(starts, TILE: tl.constexpr, SUB: tl.constexpr, STRIDE: tl.constexpr):
    """Positions of every STRIDE-th token of a step, int32 [TILE // STRIDE], from what `starts` gave."""
    return starts + (tl.arange(0, TILE // STRIDE) * STRIDE) % SUB


@triton.jit
def head_pointer(operand, b, h):
    """First element of a batch entry's head."""
    # Strides fit 32 bits, their multiples need not.
    return operand.pointer + b * operand.strides[0] + h.to(tl.int64) * operand.strides[1]


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
def store_rows(operand, b, h, rows, length, tile, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write a tile [rows, PADDED] to its rows of a batch entry's head, as far as there are any."""
    width = tl.arange(0, PADDED)
    inside = ((rows >= 0) & (rows < length))[:, None] & (width < WIDTH)[None, :]
    pointers = head_pointer(operand, b, h) + rows.to(tl.int64)[:, None] * operand.strides[2] + width[None, :]
    tl.store(pointers, tile.to(operand.pointer.dtype.element_ty), mask=inside)


@triton.jit
def load_keys_values(starts, k, v, k_desc, v_desc, work, extent, shape, MASK: tl.constexpr):
    """Gather a step's keys: their positions [BN], k [BN, DP] and v [BN, EP]."""
    n = positions_in_blocks(starts, shape.BN, shape.SUB, 1)
    if k_desc is not None:
        b = work.b.to(tl.int32)
        k_tile = tl.reshape(k_desc.load([b, work.kv_head, starts, 0]), [shape.BN, shape.DP])
        v_tile = tl.reshape(v_desc.load([b, work.kv_head, starts, 0]), [shape.BN, shape.EP])
    else:
        k_base = head_pointer(k, work.b, work.kv_head)
        v_base = head_pointer(v, work.b, work.kv_head)
        k_tile = load_rows(
            k_base, n, k.strides[2], extent.k_len, shape.D, shape.DP, MASK == 2 and shape.RAGGED
        )
        v_tile = load_rows(
            v_base, n, v.strides[2], extent.k_len, shape.E, shape.EP, MASK == 2 and shape.RAGGED
        )
    return n, k_tile, v_tile


@triton.jit
def load_scored_keys(
    q, starts, step, pair_bits, k, v, k_desc, v_desc, work, m, extent, scale, masks, shape, MASK: tl.constexpr
):  # fmt: skip
    """Gather a step's keys and score them: their positions [BN], k, v, and what `strike` leaves [BM, BN].

    With BARE scores are products of queries and keys that are not scaled yet.
    """
    step_slots: tl.constexpr = shape.BN // shape.SUB
    one_bit: tl.constexpr = shape.SUB >= shape.BM and shape.SUB >= shape.BN
    n, k_tile, v_tile = load_keys_values(starts, k, v, k_desc, v_desc, work, extent, shape, MASK)
    scores = tl.dot(q, tl.trans(k_tile), input_precision=shape.PRECISION)
    if not shape.SCALE_IN_EXP2:
        scores *= scale
    if MASK or masks.ANY:
        tile_slot = tl.arange(0, shape.BM) // shape.SUB
        step_slot = tl.arange(0, shape.BN) // shape.SUB
        scores = mask_scores(
            scores, m[:, None], n[None, :], tile_slot[:, None], step_slot[None, :], tl.load(pair_bits + step),
            work.b, work.h, extent, masks, one_bit, step_slots, shape.RAGGED, MASK,
        )  # fmt: skip
    return n, k_tile, v_tile, scores


@triton.jit
def mask_scores(
    scores, m, n, tile_slot, step_slot, bits, b, h, extent, masks, ONE_BIT: tl.constexpr, SLOTS: tl.constexpr,
    RAGGED: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Add what is added to the scores and put -inf where a key is not seen.

    m and n number the queries and keys of the tile. Bit tile_slot * SLOTS + step_slot of the step's bits says
    whether a pair of sub-blocks is kept; with ONE_BIT the step is one pair, which is. MASK is 0 where neither
    bits nor bounds nor lengths strike anything, 1 where bits alone do, else 2.
    """
    inside = (m >= 0) & (m < extent.q_len) & (n < extent.k_len)
    if MASK == 1:
        scores = tl.where(_kept_block_pairs(bits, tile_slot, step_slot, SLOTS), scores, float("-inf"))
    if MASK == 2:
        position = m + (extent.k_len - extent.q_len)
        keep = (n < extent.k_len) | (not RAGGED)
        if extent.right is not None:
            keep = keep & (n <= position + extent.right)
        if extent.left is not None:
            keep = keep & (n >= position - extent.left)
        if not ONE_BIT:
            keep = keep & _kept_block_pairs(bits, tile_slot, step_slot, SLOTS)
        scores = tl.where(keep, scores, float("-inf"))
    wide_m = m.to(tl.int64)
    wide_n = n.to(tl.int64)
    if masks.keys is not None:
        pointers = masks.keys.pointer + b * masks.keys.strides[0] + wide_n * masks.keys.strides[1]
        scores = _apply_mask(scores, pointers, n < extent.k_len)
    if masks.pairs is not None:
        scores = _apply_mask(scores, _pair_pointers(masks.pairs, b, h, wide_m, wide_n), inside)
    if masks.bias is not None:
        scores = _apply_mask(scores, _pair_pointers(masks.bias, b, h, wide_m, wide_n), inside)
    if masks.distances is not None:
        span = masks.distances.span
        scores += tl.load(masks.distances.biases + h * (2 * span + 1) + distance_index(m, n, extent, span))
    if masks.slopes is not None:
        distance = n - m - (extent.k_len - extent.q_len)
        scores -= tl.load(masks.slopes + h) * tl.abs(distance).to(tl.float32)
    if masks.documents is not None:
        row = masks.documents.pointer + b * masks.documents.strides[0]
        key_document = tl.load(row + wide_n * masks.documents.strides[1], mask=n < extent.k_len, other=0)
        query = (wide_m + (extent.k_len - extent.q_len)) * masks.documents.strides[1]
        query_document = tl.load(row + query, mask=(m >= 0) & (m < extent.q_len), other=0)
        scores = tl.where(key_document == query_document, scores, float("-inf"))
    return scores


@triton.jit
def _kept_block_pairs(bits, tile_slot, step_slot, SLOTS: tl.constexpr):
    return ((bits >> (tile_slot * SLOTS)) & (1 << step_slot)) != 0


@triton.jit
def distance_index(m, n, extent, span):
    """Place of the distance of each pair among those from -span to span."""
    return tl.minimum(tl.maximum(n - m - (extent.k_len - extent.q_len), -span), span) + span


@triton.jit
def _pair_pointers(mask, b, h, m, n):
    row = mask.pointer + b * mask.strides[0] + h.to(tl.int64) * mask.strides[1]
    return row + m * mask.strides[2] + n * mask.strides[3]


@triton.jit
def _apply_mask(scores, pointers, inside):
    """Strike by a mask of uint8, or add one of numbers."""
    if pointers.dtype.element_ty == tl.uint8:
        return tl.where(tl.load(pointers, mask=inside, other=0) != 0, scores, float("-inf"))
    else:
        return scores + to_log2(tl.load(pointers, mask=inside, other=0.0))


@triton.jit
def to_log2(added):
    """Bring an added mask to units of log2: finite numbers stay finite, -inf stays -inf."""
    added = added.to(tl.float32)
    finite = tl.minimum(tl.maximum(added, -2.0e38), 2.0e38) * LOG2E
    return tl.where(added == float("-inf"), float("-inf"), finite)


@triton.jit
def load_seed(dropout):
    """Read the seed, once for all draws of a program."""
    return Dropout(tl.load(dropout.seed), dropout.threshold, dropout.keep_scale)


@triton.jit
def dropout_keep_qk(dropout, b, h, position, key_quads, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Draw dropout for a tile of queries [ROWS, 1] by keys, whose every fourth is [1, COLUMNS // 4]."""
    zero = tl.zeros([ROWS, COLUMNS // 4], dtype=tl.int32)
    word = key_quads // 4 + zero
    w0, w1, w2, w3 = tl.philox(dropout.seed, word, position + zero, h + zero, b.to(tl.int32) + zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(words, [ROWS, COLUMNS]).to(tl.uint32, bitcast=True) >= dropout.threshold


@triton.jit
def dropout_keep_kq(dropout, b, h, position, key_quads, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Draw dropout for a tile of keys by queries [1, COLUMNS]; every fourth key is [ROWS // 4, 1]."""
    zero = tl.zeros([ROWS // 4, COLUMNS], dtype=tl.int32)
    word = key_quads // 4 + zero
    w0, w1, w2, w3 = tl.philox(dropout.seed, word, position + zero, h + zero, b.to(tl.int32) + zero)
    words = tl.permute(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [0, 2, 3, 1])
    return tl.reshape(words, [ROWS, COLUMNS]).to(tl.uint32, bitcast=True) >= dropout.threshold
