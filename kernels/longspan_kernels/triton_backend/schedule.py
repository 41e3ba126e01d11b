"""Tile schedules: a layout and the lengths of a call as tables of tiles and steps for the Triton kernels.

A program takes a tile of tokens (queries in the forward and for dq, keys for dk and dv) and walks through
steps of tokens of the other side. Both are cut into sub-blocks of `sub` tokens, the layout's block or a
divisor of it. A step gathers as many sub-blocks as fit, from wherever they lie, that at least one sub-block
of the tile keeps. Three kinds of steps follow one another:

    full        every sub-block of the tile keeps every token of the step: no mask
    partial     some pairs of sub-blocks are kept whole, the others not: a mask of one bit a pair
    token mask  causality, a window or the end of a sequence cuts through a pair: tokens are compared

The sub-blocks of a tile are neighbours, but those that keep far more than others (global ones) share tiles
among themselves (`longspan_kernels.triton_backend.tiling`).

Long tiles are split, and their partial results are added up in a fixed order. A row of the table of work is a
whole tile or one split. The longest rows come first: none is left to run alone at the end. The others come
head by head, longest first: programs that run together read the keys of few heads, which stay in the cache.
Memory is in proportion to the kept blocks.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.layout.csr import BlockCSR, rows_of
from longspan_kernels.triton_backend.columns import EVERY_HEAD, WHOLE, SplitTileColumn, WorkTileColumn
from longspan_kernels.triton_backend.tiling import Tiling, make_tiling

# Splits have at least so many steps: partial results of shorter ones cost more than the balance gains.
_MIN_SPLIT_STEPS = 32
# No tile is split where none has more steps: adding splits up costs the host three more launches.
_MAX_WHOLE_STEPS = 128
# Work tiles of more than so many times the median number of steps begin before all others.
_LONG_FACTOR = 2
# Programs that keep a large GPU busy: a tile longer than its share of the work among so many is split.
_TARGET_PROGRAMS = 1056
# Schedules of recent calls that are kept; each is in proportion to the kept blocks.
_CACHE_SIZE = 128
# Kinds of steps, in the order in which a tile walks through them.
_FULL, _PARTIAL, _TOKEN_MASK = range(3)


@dataclass(frozen=True, eq=False)
class TileSchedule:
    """The work of one kernel, as index tensors on its device.

    Attributes:
        step_blocks: int32 ``[steps + 1, step slots]``, the sub-block that each slot of a step gathers; an
            empty slot repeats the first and has no bit. The row at the end lets a kernel read one step ahead.
        pair_bits: int32 ``[steps + 1]``: bit ``i * step slots + j`` says that sub-block ``i`` of the tile
            keeps slot ``j``.
        tile_blocks: int32 ``[tiles, tile slots]``, the sub-blocks of each tile; an empty slot holds the
            number of sub-blocks, one behind the last.
        work_tiles: int32 ``[work tiles, columns]``, whole tiles and splits, in the columns of
            `WorkTileColumn`.
        split_tiles: int32 ``[split tiles, columns]``, tiles that are split, in those of `SplitTileColumn`.
        num_long: number of work tiles at the beginning that run before all others, longest first and of any
            head; the others follow head by head, longest first.
        num_partials: number of partial results a head.
        occupancy: share of the pairs of sub-blocks in all steps that the layout keeps.
        shared: whether all heads run the same work tiles.
        has_partial_steps: whether there are steps with a mask of pairs of sub-blocks alone.
        has_token_mask_steps: whether there are steps with a mask of tokens.

    """

    step_blocks: Tensor
    pair_bits: Tensor
    tile_blocks: Tensor
    work_tiles: Tensor
    split_tiles: Tensor
    num_long: int
    num_partials: int
    occupancy: float
    shared: bool
    has_partial_steps: bool
    has_token_mask_steps: bool

    @property
    def nbytes(self) -> int:
        """Memory of the tables in bytes."""
        tables = (self.step_blocks, self.pair_bits, self.tile_blocks, self.work_tiles, self.split_tiles)
        return sum(x.numel() * x.element_size() for x in tables)


def make_schedule(
    layout: BlockCSR,
    q_len: int,
    k_len: int,
    left: int | None,
    right: int | None,
    *,
    q_tile: int,
    k_tile: int,
    by_keys: bool,
    max_split_steps: int | None = None,
) -> TileSchedule:
    """Make the schedule of a kernel on the CPU.

    Args:
        layout: the kept blocks.
        q_len: number of queries.
        k_len: number of keys.
        left: key ``j`` is seen from position ``i`` only if ``j >= i - left``; None for no bound.
        right: only if ``j <= i + right``; None for no bound.
        q_tile: queries a tile (a step, if ``by_keys``), a power of two.
        k_tile: keys a step (a tile, if ``by_keys``), a power of two.
        by_keys: whether tiles are of keys and steps of queries, as for dk and dv.
        max_split_steps: most steps of a work tile; chosen from the amount of work if not given.

    """
    sub, query_offset = min(layout.block, q_tile, k_tile), layout.query_offset
    q_blocks, k_blocks = -(-(query_offset + q_len) // sub), -(-k_len // sub)
    layout_of, row, column = _sub_blocks(layout, q_blocks, k_blocks, sub)
    is_seen, is_cut = _visibility(row, column, sub, query_offset, q_len, k_len, left, right)
    if by_keys:
        # Steps without a mask of tokens load queries without a check that they exist.
        is_cut = is_cut | (row * sub < query_offset) | ((row + 1) * sub - query_offset > q_len)
    layout_of, row, column, is_cut = layout_of[is_seen], row[is_seen], column[is_seen], is_cut[is_seen]
    if by_keys:
        tile_block, step_block, tile_count, step_count = column, row, k_blocks, q_blocks
        tile_slots, step_slots = k_tile // sub, q_tile // sub
    else:
        tile_block, step_block, tile_count, step_count = row, column, q_blocks, k_blocks
        tile_slots, step_slots = q_tile // sub, k_tile // sub
    block = layout_of * tile_count + tile_block
    tiling = make_tiling(block, layout.layouts, tile_count, tile_slots)
    tile, step_block, bits, kind = _merge_into_tiles(tiling, block, step_block, is_cut, step_count)
    step_blocks, pair_bits, first, ends = _pack_steps(tile, step_block, bits, kind, step_slots, tiling)
    if max_split_steps is None:
        steps = ends[_TOKEN_MASK]
        work = int(steps.view(layout.layouts, -1).sum(1)[layout.head_layouts.long()].sum())
        max_split_steps = max(_MIN_SPLIT_STEPS, -(-work // _TARGET_PROGRAMS))
        if steps.numel() and int(steps.max()) <= _MAX_WHOLE_STEPS:
            max_split_steps = max(max_split_steps, _MAX_WHOLE_STEPS)
    work_tiles, split_tiles, num_partials = _split(first, ends, layout, tiling, max_split_steps)
    work_tiles, num_long = _longest_first(work_tiles)
    num_full = work_tiles[:, WorkTileColumn.NUM_FULL]
    num_full_or_partial = work_tiles[:, WorkTileColumn.NUM_FULL_OR_PARTIAL]
    num_steps = work_tiles[:, WorkTileColumn.NUM_STEPS]
    # The number of a tile of one sub-block is that of the sub-block, in any layout; of others, their row.
    tile_blocks = tiling.tile_blocks if tile_slots > 1 else tiling.tile_blocks[: tiling.per_layout]
    return TileSchedule(
        step_blocks=step_blocks,
        pair_bits=pair_bits,
        tile_blocks=tile_blocks.to(torch.int32),
        work_tiles=work_tiles.to(torch.int32),
        split_tiles=split_tiles.to(torch.int32),
        num_long=num_long,
        num_partials=num_partials,
        occupancy=block.numel() / max(1, (step_blocks.shape[0] - 1) * tile_slots * step_slots),
        shared=layout.layouts == 1,
        has_partial_steps=bool((num_full_or_partial > num_full).any()),
        has_token_mask_steps=bool((num_steps > num_full_or_partial).any()),
    )


def _sub_blocks(layout: BlockCSR, q_blocks: int, k_blocks: int, sub: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kept sub-blocks that hold any token: layout, row and column of each."""
    row, column = rows_of(layout.row_offsets.long()), layout.columns.long()
    fold = layout.block // sub
    layout_of, row = row // max(1, layout.q_blocks), row % max(1, layout.q_blocks)
    if fold > 1:
        part = torch.arange(fold)
        row = (row[:, None, None] * fold + part[:, None]).expand(-1, fold, fold).reshape(-1)
        column = (column[:, None, None] * fold + part).expand(-1, fold, fold).reshape(-1)
        layout_of = layout_of[:, None].expand(-1, fold * fold).reshape(-1)
        inside = (row < q_blocks) & (column < k_blocks)
        layout_of, row, column = layout_of[inside], row[inside], column[inside]
    return layout_of, row, column


def _visibility(
    row: Tensor,
    column: Tensor,
    sub: int,
    query_offset: int,
    q_len: int,
    k_len: int,
    left: int | None,
    right: int | None,
) -> tuple[Tensor, Tensor]:
    """Whether any pair of tokens of each pair of sub-blocks is seen, and whether any is not."""
    first_query = (row * sub - query_offset).clamp(min=0) + k_len - q_len
    last_query = ((row + 1) * sub - query_offset).clamp(max=q_len) - 1 + k_len - q_len
    first_key, last_key = column * sub, (column + 1) * sub - 1
    is_seen = torch.ones_like(row, dtype=torch.bool)
    is_cut = last_key >= k_len
    last_key = last_key.clamp(max=k_len - 1)
    if right is not None:
        is_seen = is_seen & (first_key <= last_query + right)
        is_cut = is_cut | (last_key > first_query + right)
    if left is not None:
        is_seen = is_seen & (last_key >= first_query - left)
        is_cut = is_cut | (first_key < last_query - left)
    return is_seen, is_cut


def _merge_into_tiles(
    tiling: Tiling, block: Tensor, step_block: Tensor, is_cut: Tensor, step_count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sub-blocks that each tile meets: tile, sub-block, a bit for each slot of the tile, kind of step."""
    key, index = (tiling.tile[block] * max(1, step_count) + step_block).unique(return_inverse=True)
    bits = torch.zeros_like(key).index_add_(0, index, 1 << tiling.slot[block])
    pairs, cuts = torch.zeros(2, key.numel(), dtype=torch.int64).index_add_(
        1, index, torch.stack([torch.ones_like(is_cut), is_cut]).long()
    )
    tile, step_block = key // max(1, step_count), key % max(1, step_count)
    # Empty slots of a tile do not count: they hold nothing that a mask could protect.
    uncut = torch.where(pairs < tiling.counts[tile], _PARTIAL, _FULL)
    return tile, step_block, bits, torch.where(cuts > 0, _TOKEN_MASK, uncut)


def _pack_steps(
    tile: Tensor, step_block: Tensor, bits: Tensor, kind: Tensor, step_slots: int, tiling: Tiling
) -> tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]:
    """Pack the sub-blocks that each tile meets into steps, by kind.

    Returns ``step_blocks``, ``pair_bits``, each tile's first step, and how many of its steps are full, full
    or partial, and of any kind.
    """
    tiles, tile_slots = tiling.tile_blocks.shape
    # Sub-blocks that do not fill a step go to the next kind: full ones always, since full steps have no empty
    # slots; partial ones where that saves a step.
    count = torch.bincount(tile * 3 + kind, minlength=tiles * 3).view(tiles, 3)
    _move_excess(tile, kind, _FULL, count[:, _FULL] // step_slots * step_slots)
    partial = count[:, _PARTIAL] + count[:, _FULL] % step_slots
    rest, masked = partial % step_slots, count[:, _TOKEN_MASK]
    saves = -(-(rest + masked) // step_slots) < -(-rest // step_slots) + -(-masked // step_slots)
    _move_excess(tile, kind, _PARTIAL, torch.where(saves, partial // step_slots * step_slots, partial))
    count = torch.bincount(tile * 3 + kind, minlength=tiles * 3).view(tiles, 3)
    ends = (-(-count // step_slots)).cumsum(1).unbind(1)
    first = ends[_TOKEN_MASK].cumsum(0) - ends[_TOKEN_MASK]
    total = int(ends[_TOKEN_MASK].sum())
    step_blocks = torch.full(((total + 1) * step_slots,), -1, dtype=torch.int32)
    pair_bits = torch.zeros(total + 1, dtype=torch.int64)
    for one, start in enumerate((torch.zeros_like(first), *ends[:2])):
        of_kind = kind == one
        its_tile = tile[of_kind]
        place = (first + start)[its_tile] * step_slots + _rank_in_group(its_tile, tiles)
        step_blocks[place] = step_block[of_kind].to(torch.int32)
        step, step_slot = place // step_slots, place % step_slots
        for tile_slot in range(tile_slots):
            bit = (bits[of_kind] >> tile_slot) & 1
            pair_bits.index_add_(0, step, bit << (tile_slot * step_slots + step_slot))
    step_blocks = step_blocks.view(total + 1, step_slots)
    # An empty slot repeats the first, which exists and can be loaded.
    step_blocks = torch.where(step_blocks < 0, step_blocks[:, :1].clamp(min=0), step_blocks)
    return step_blocks, _as_int32(pair_bits), first, ends


def _move_excess(tile: Tensor, kind: Tensor, one: int, kept: Tensor) -> None:
    """Keep ``kept`` sub-blocks of a kind in each tile, and move the others to the next kind, in place."""
    of_kind = (kind == one).nonzero()[:, 0]
    kind[of_kind[_rank_in_group(tile[of_kind], kept.numel()) >= kept[tile[of_kind]]]] = one + 1


def _rank_in_group(group: Tensor, groups: int) -> Tensor:
    """Rank of each element among those of its group; ``group`` ascends."""
    counts = torch.bincount(group, minlength=groups)
    return torch.arange(group.numel()) - (counts.cumsum(0) - counts)[group]


def _as_int32(bits: Tensor) -> Tensor:
    """Numbers below 2^32 as int32 of the same bits."""
    return torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)


def _split(
    first: Tensor, ends: Sequence[Tensor], layout: BlockCSR, tiling: Tiling, max_split_steps: int
) -> tuple[Tensor, Tensor, int]:
    """Split long tiles: tables of work tiles and of split tiles, int64, and the number of partial results."""
    num_steps = ends[_TOKEN_MASK]
    tiles, tile_slots = tiling.tile_blocks.shape
    name = torch.arange(tiles) if tile_slots > 1 else tiling.tile_blocks[:, 0]
    # A tile that meets nothing is work too, it has zeros to write; one without sub-blocks is not.
    splits = (-(-num_steps // max_split_steps)).clamp(min=1) * (tiling.counts > 0)
    tile = torch.arange(tiles).repeat_interleave(splits)
    number = torch.arange(tile.numel()) - (splits.cumsum(0) - splits)[tile]
    # Splits of a tile have nearly equally many steps.
    start = num_steps[tile] * number // splits[tile]
    stop = num_steps[tile] * (number + 1) // splits[tile]
    is_split = splits[tile] > 1
    num_full, num_full_or_partial = (
        (end[tile] - start).clamp(min=0).minimum(stop - start) for end in ends[:_TOKEN_MASK]
    )
    work_columns = {
        WorkTileColumn.TILE: name[tile],
        WorkTileColumn.HEAD: torch.full_like(tile, EVERY_HEAD),
        WorkTileColumn.FIRST_STEP: first[tile] + start,
        WorkTileColumn.NUM_FULL: num_full,
        WorkTileColumn.NUM_FULL_OR_PARTIAL: num_full_or_partial,
        WorkTileColumn.NUM_STEPS: stop - start,
        WorkTileColumn.PARTIAL: torch.where(is_split, is_split.cumsum(0) - 1, WHOLE),
    }
    split_tile = (splits > 1).nonzero()[:, 0]
    partials = splits[split_tile]
    split_columns = {
        SplitTileColumn.TILE: name[split_tile],
        SplitTileColumn.HEAD: torch.full_like(split_tile, EVERY_HEAD),
        SplitTileColumn.FIRST_PARTIAL: partials.cumsum(0) - partials,
        SplitTileColumn.NUM_PARTIALS: partials,
    }
    work_tiles = torch.stack([work_columns[column] for column in WorkTileColumn], 1)
    split_tiles = torch.stack([split_columns[column] for column in SplitTileColumn], 1)
    if layout.layouts > 1:
        per_layout = max(1, tiling.per_layout)
        work_tiles = _per_head(work_tiles, tile // per_layout, layout)
        split_tiles = _per_head(split_tiles, split_tile // per_layout, layout)
    return work_tiles, split_tiles, int(is_split.sum())


def _longest_first(work_tiles: Tensor) -> tuple[Tensor, int]:
    """Work tiles with the longest first and the others head by head; also the number of long ones."""
    if not work_tiles.numel():
        return work_tiles, 0
    work_tiles = work_tiles[(-work_tiles[:, WorkTileColumn.NUM_STEPS]).argsort(stable=True)]
    num_steps = work_tiles[:, WorkTileColumn.NUM_STEPS]
    is_long = num_steps > _LONG_FACTOR * num_steps.median()
    others = work_tiles[~is_long]
    others = others[others[:, WorkTileColumn.HEAD].argsort(stable=True)]
    return torch.cat([work_tiles[is_long], others]), int(is_long.sum())


def _per_head(table: Tensor, layout_of: Tensor, layout: BlockCSR) -> Tensor:
    """Rows of each layout, repeated for each head that has it, with the head's number."""
    parts = []
    for head, its_layout in enumerate(layout.head_layouts.tolist()):
        rows = table[layout_of == its_layout].clone()
        rows[:, WorkTileColumn.HEAD] = head
        parts.append(rows)
    return torch.cat(parts)


_lock = threading.Lock()  # autograd runs backwards in threads of its own
_schedules: OrderedDict[tuple[object, ...], TileSchedule] = OrderedDict()


def schedule_for(
    layout: BlockCSR,
    q_len: int,
    k_len: int,
    left: int | None,
    right: int | None,
    device: torch.device,
    *,
    q_tile: int,
    k_tile: int,
    by_keys: bool,
    split: bool = True,
) -> TileSchedule:
    """Schedule on a device, made at the first call and kept for the next.

    Arguments as `make_schedule`; without ``split`` every tile is one work tile, however long.
    """
    key = (layout.digest, q_len, k_len, left, right, device, q_tile, k_tile, by_keys, split)
    with _lock:
        cached = _schedules.get(key)
        if cached is not None:
            _schedules.move_to_end(key)
            return cached
        made = make_schedule(
            layout, q_len, k_len, left, right, q_tile=q_tile, k_tile=k_tile, by_keys=by_keys,
            max_split_steps=None if split else 2**31 - 1,
        )  # fmt: skip
        tables = ("step_blocks", "pair_bits", "tile_blocks", "work_tiles", "split_tiles")
        made = dataclasses.replace(made, **{name: getattr(made, name).to(device) for name in tables})
        _schedules[key] = made
        while len(_schedules) > _CACHE_SIZE:
            _schedules.popitem(last=False)
        return made
