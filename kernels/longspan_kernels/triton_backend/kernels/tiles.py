"""Device functions that the kernels share: work tiles, loads and stores, masks, dropout, score gradients.

Letters of shapes:
    B   batch entries
    H   query heads
    D   dimension of q and k; DP padded to a power of two
    E   dimension of v; EP padded
    BM  queries of a tile or a step
    BN  keys of a step or a tile
    SUB tokens of a sub-block

A tile belongs to one program: BM queries (forward, dq, dbias) or BN keys (dk and dv). The program walks
through steps, each of BN keys or BM queries, gathered in sub-blocks that may lie anywhere. m and n are the
numbers of a tile's queries and keys. They come in any shape that broadcasts to the scores, so that these may
lie queries by keys or keys by queries. Scores are in units of log2: exponentials are powers of two.

Struct arguments are those of `structs.py`.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Type checkers cannot follow constexpr parameters.
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.triton_backend.columns import SplitTileColumn, WorkTileColumn
from longspan_kernels.triton_backend.kernels.structs import Dropout, WorkTile

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Columns of the tables. A kernel may read global names only where they are constexpr.
TILE_COLUMN = tl.constexpr(int(WorkTileColumn.TILE))
HEAD_COLUMN = tl.constexpr(int(WorkTileColumn.HEAD))
FIRST_STEP_COLUMN = tl.constexpr(int(WorkTileColumn.FIRST_STEP))
NUM_FULL_COLUMN = tl.constexpr(int(WorkTileColumn.NUM_FULL))
NUM_FULL_OR_PARTIAL_COLUMN = tl.constexpr(int(WorkTileColumn.NUM_FULL_OR_PARTIAL))
NUM_STEPS_COLUMN = tl.constexpr(int(WorkTileColumn.NUM_STEPS))
PARTIAL_COLUMN = tl.constexpr(int(WorkTileColumn.PARTIAL))
WORK_TILE_WIDTH = tl.constexpr(len(WorkTileColumn))
FIRST_PARTIAL_COLUMN = tl.constexpr(int(SplitTileColumn.FIRST_PARTIAL))
NUM_PARTIALS_COLUMN = tl.constexpr(int(SplitTileColumn.NUM_PARTIALS))
SPLIT_TILE_WIDTH = tl.constexpr(len(SplitTileColumn))
# Numbers that differ between calls: a kernel is compiled once for all their values.
NOT_SPECIALIZED = [
    "num_long", "num_other", "num_long_programs", "num_partials", "H", "batches", "heads", "group", "q_len",
    "k_len", "length", "query_offset", "left", "right",
]  # fmt: skip


@triton.jit
def work_tile_of_program(table, work_list, H, WIDTH: tl.constexpr, SHARED: tl.constexpr):
    """Batch entry (int64), head, row number and row of a table [num_long + num_other, WIDTH] for a program.

    Long rows come first, for all heads: one that began last would run on alone. The other rows run head by
    head (batch entry by batch entry where each head has its own rows), so that programs that run together
    read the keys of few heads, which stay in the cache.
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
        return outer.to(tl.int64), tl.load(row + HEAD_COLUMN), index, row


@triton.jit
def load_work_tile(work_tiles, work_list, H, shape):
    """Work tile of this program."""
    b, h, index, row = work_tile_of_program(work_tiles, work_list, H, WORK_TILE_WIDTH, shape.SHARED)
    start = tl.load(row + FIRST_STEP_COLUMN)
    step_ends = (
        start,
        start + tl.load(row + NUM_FULL_COLUMN),
        start + tl.load(row + NUM_FULL_OR_PARTIAL_COLUMN),
        start + tl.load(row + NUM_STEPS_COLUMN),
    )
    return WorkTile(
        b, h, h // shape.GROUP, b * H + h, tl.load(row + TILE_COLUMN), index, step_ends,
        tl.load(row + PARTIAL_COLUMN),
    )  # fmt: skip


@triton.jit
def tile_positions(tile_blocks, tile, TILE: tl.constexpr, SUB: tl.constexpr, STRIDE: tl.constexpr):
    """Positions of every STRIDE-th token of a tile, int32 [TILE // STRIDE]."""
    if TILE // SUB == 1:
        return tile * TILE + tl.arange(0, TILE // STRIDE) * STRIDE
    else:
        return positions_in_blocks(block_starts(tile_blocks, tile, TILE, SUB, STRIDE), TILE, SUB, STRIDE)


@triton.jit
def tile_slice(tile_blocks, tile, SLICE: tl.constexpr, TILE: tl.constexpr, SUB: tl.constexpr):
    """Rows of a tile that the second grid dimension selects, and their positions, both int32 [SLICE]."""
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
    """Positions of every STRIDE-th token of a step, int32 [TILE // STRIDE], from its `block_starts`."""
    return starts + (tl.arange(0, TILE // STRIDE) * STRIDE) % SUB


@triton.jit
def head_pointer(operand, b, h):
    """Pointer to the first element of a batch entry's head."""
    # Strides fit 32 bits, their multiples need not.
    return operand.pointer + b * operand.strides[0] + h.to(tl.int64) * operand.strides[1]


@triton.jit
def load_rows(base, rows, stride, length, WIDTH: tl.constexpr, PADDED: tl.constexpr, CHECKED: tl.constexpr):
    """Rows of a matrix [length, WIDTH], as [rows, PADDED]; with CHECKED, rows outside it are 0."""
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
    """Store a tile [rows, PADDED] into the rows of a batch entry's head; rows outside it are left out."""
    width = tl.arange(0, PADDED)
    inside = ((rows >= 0) & (rows < length))[:, None] & (width < WIDTH)[None, :]
    pointers = head_pointer(operand, b, h) + rows.to(tl.int64)[:, None] * operand.strides[2] + width[None, :]
    tl.store(pointers, tile.to(operand.pointer.dtype.element_ty), mask=inside)


@triton.jit
def load_keys_values(starts, k, v, k_desc, v_desc, work, extent, shape, MASK: tl.constexpr):
    """Keys of a step: their numbers [BN], k [BN, DP] and v [BN, EP]."""
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
):
    """Keys of a step and their masked scores: numbers [BN], k [BN, DP], v [BN, EP], scores [BM, BN].

    With SCALE_IN_EXP2 scores are products of queries and keys, not scaled yet.
    """
    step_slots: tl.constexpr = shape.BN // shape.SUB
    one_pair: tl.constexpr = shape.SUB >= shape.BM and shape.SUB >= shape.BN
    n, k_tile, v_tile = load_keys_values(starts, k, v, k_desc, v_desc, work, extent, shape, MASK)
    scores = tl.dot(q, tl.trans(k_tile), input_precision=shape.PRECISION)
    if not shape.SCALE_IN_EXP2:
        scores *= scale
    if MASK or masks.ANY:
        tile_slot = tl.arange(0, shape.BM) // shape.SUB
        step_slot = tl.arange(0, shape.BN) // shape.SUB
        scores = mask_scores(
            scores, m[:, None], n[None, :], tile_slot[:, None], step_slot[None, :], tl.load(pair_bits + step),
            work.b, work.h, extent, masks, one_pair, step_slots, shape.RAGGED, MASK,
        )  # fmt: skip
    return n, k_tile, v_tile, scores


@triton.jit
def mask_scores(
    scores, m, n, tile_slot, step_slot, bits, b, h, extent, masks, ONE_PAIR: tl.constexpr,
    STEP_SLOTS: tl.constexpr, RAGGED: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Scores with biases and added masks, -inf where a query does not see a key.

    tile_slot and step_slot are the slots of the sub-blocks of m and n. Bit tile_slot * STEP_SLOTS + step_slot
    says whether the layout keeps their pair; with ONE_PAIR the step is one pair, which it keeps. MASK is 0
    where the layout, the bounds and the lengths let everything through (full steps), 1 where the bits alone
    do not (partial steps), 2 where tokens have to be looked at.
    """
    inside = (m >= 0) & (m < extent.q_len) & (n < extent.k_len)
    if MASK == 1:
        scores = tl.where(_is_kept_pair(bits, tile_slot, step_slot, STEP_SLOTS), scores, float("-inf"))
    if MASK == 2:
        position = m + (extent.k_len - extent.q_len)
        keep = (n < extent.k_len) | (not RAGGED)
        if extent.right is not None:
            keep = keep & (n <= position + extent.right)
        if extent.left is not None:
            keep = keep & (n >= position - extent.left)
        if not ONE_PAIR:
            keep = keep & _is_kept_pair(bits, tile_slot, step_slot, STEP_SLOTS)
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
        k_document = tl.load(row + wide_n * masks.documents.strides[1], mask=n < extent.k_len, other=0)
        q_offset = (wide_m + (extent.k_len - extent.q_len)) * masks.documents.strides[1]
        q_document = tl.load(row + q_offset, mask=(m >= 0) & (m < extent.q_len), other=0)
        scores = tl.where(k_document == q_document, scores, float("-inf"))
    return scores


@triton.jit
def _is_kept_pair(bits, tile_slot, step_slot, STEP_SLOTS: tl.constexpr):
    """Whether the layout keeps the pair of sub-blocks in two slots."""
    return ((bits >> (tile_slot * STEP_SLOTS)) & (1 << step_slot)) != 0


@triton.jit
def distance_index(m, n, extent, span):
    """Index of each pair's distance, key position minus query position, among those from -span to span."""
    return tl.minimum(tl.maximum(n - m - (extent.k_len - extent.q_len), -span), span) + span


@triton.jit
def _pair_pointers(mask, b, h, m, n):
    """Pointers into a mask [B, H, q_len, k_len]."""
    row = mask.pointer + b * mask.strides[0] + h.to(tl.int64) * mask.strides[1]
    return row + m * mask.strides[2] + n * mask.strides[3]


@triton.jit
def _apply_mask(scores, pointers, inside):
    """Scores under a mask: one of uint8 puts -inf where it is 0, one of floating point is added."""
    if pointers.dtype.element_ty == tl.uint8:
        return tl.where(tl.load(pointers, mask=inside, other=0) != 0, scores, float("-inf"))
    else:
        return scores + to_log2(tl.load(pointers, mask=inside, other=0.0))


@triton.jit
def to_log2(added):
    """An added mask in units of log2: finite numbers stay finite, -inf stays -inf."""
    added = added.to(tl.float32)
    finite = tl.minimum(tl.maximum(added, -2.0e38), 2.0e38) * LOG2E
    return tl.where(added == float("-inf"), float("-inf"), finite)


@triton.jit
def weights_and_gradients(scores, lse, a, b, scale, masks, shape, BY_KEYS: tl.constexpr):
    """Weights p = exp2(scores - lse) of a step and their gradients dp, before dropout.

    Scores lie queries by keys, or with BY_KEYS keys by queries; lse [BM] is in units of log2. dp is the
    product of the rows of a and b: the output's gradient and v, or with BY_KEYS v and the output's gradient.
    Gradients of the scores are then ds = p (dp - delta).
    """
    if shape.SCALE_IN_EXP2:
        scores = scores * scale
    scores -= lse[None, :] if BY_KEYS else lse[:, None]
    if masks.ANY:
        # Added masks may be so large that one rounding of the log-sum-exp is many units.
        scores = tl.minimum(scores, 0.0)
    p = tl.exp2(scores)
    dp = tl.dot(a, tl.trans(b), input_precision=shape.PRECISION)
    return p, dp


@triton.jit
def load_seed(dropout):
    """Dropout with its seed loaded, once for all draws of a program."""
    return Dropout(tl.load(dropout.seed), dropout.threshold, dropout.keep_scale)


@triton.jit
def dropout_keep_qk(dropout, b, h, m, step_blocks, step, extent, shape):
    """Weights of a step that dropout keeps, bool [BM, BN]; each draw of four words serves four keys."""
    starts = block_starts(step_blocks, step, shape.BN, shape.SUB, 4)
    every_fourth_key = positions_in_blocks(starts, shape.BN, shape.SUB, 4)
    position = (m + (extent.k_len - extent.q_len))[:, None]
    draw = every_fourth_key[None, :]
    zero = tl.zeros([shape.BM, shape.BN // 4], dtype=tl.int32)
    draw = draw // 4 + zero
    w0, w1, w2, w3 = tl.philox(dropout.seed, draw, position + zero, h + zero, b.to(tl.int32) + zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(words, [shape.BM, shape.BN]).to(tl.uint32, bitcast=True) >= dropout.threshold


@triton.jit
def dropout_keep_kq(dropout, b, h, m, tile_blocks, tile, extent, shape):
    """Weights of a step that dropout keeps, bool [BN, BM], where scores lie keys by queries."""
    every_fourth_key = tile_positions(tile_blocks, tile, shape.BN, shape.SUB, 4)
    position = (m + (extent.k_len - extent.q_len))[None, :]
    draw = every_fourth_key[:, None]
    zero = tl.zeros([shape.BN // 4, shape.BM], dtype=tl.int32)
    draw = draw // 4 + zero
    w0, w1, w2, w3 = tl.philox(dropout.seed, draw, position + zero, h + zero, b.to(tl.int32) + zero)
    words = tl.permute(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [0, 2, 3, 1])
    return tl.reshape(words, [shape.BN, shape.BM]).to(tl.uint32, bitcast=True) >= dropout.threshold
