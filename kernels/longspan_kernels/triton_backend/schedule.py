"""What the Triton kernels run: a layout and the lengths of a call, turned into lists of tiles and steps.

A program owns a tile of tokens (queries in the forward and for dq, keys for dk and dv) and walks through
steps of others. Both are cut into sub-blocks of `sub` tokens, the layout's block or a divisor of it, so a
step gathers as many sub-blocks as it has room for, from wherever they lie, that at least one sub-block of the
tile keeps. Sub-blocks that every sub-block of the tile keeps whole come first: those steps need no mask. Then
come steps with a bit for each pair of sub-blocks, and last those in which causality, a window or the end of
the sequence cuts through a pair, so that tokens have to be looked at. A tile owns neighbouring sub-blocks,
but those that keep far more than the others (global ones) share tiles among themselves
(`longspan_kernels.triton_backend.tiling`).

Long tiles are split into segments, combined afterwards in a fixed order. The longest items come first, so
that none is left to run alone at the end; the rest goes head by head, longest first: programs that run
together then read the keys of few heads, which stay in the cache. Nothing larger than the kept blocks is ever
built.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.layout import BlockLayout
from longspan_kernels.layout.csr import rows_of
from longspan_kernels.triton_backend.tiling import Tiling, make_tiling

# A segment is not shorter than this many steps: shorter ones cost more in partial results than they balance.
_MIN_SPLIT_STEPS = 32
# Where no tile has more steps, none is split: adding the segments up would cost the host three more launches.
_MAX_WHOLE_STEPS = 128
# Items of so many times the steps of the median one begin before all others.
_LONG_FACTOR = 2
# Programs that keep a large GPU busy: a tile longer than its share of the work among so many is split.
_TARGET_PROGRAMS = 1056
# Schedules of recent calls; index tensors in proportion to the kept blocks.
_CACHE_SIZE = 128


@dataclass(frozen=True, eq=False)
class TileSchedule:
    """The work of one kernel, as index tensors on its device.

    Attributes:
        step_blocks: int32 ``[steps + 1, slots]``, the sub-block that each slot of a step gathers; unused
            slots repeat the first and have no bit. The row at the end lets a kernel read one step ahead.
        pair_bits: int32 ``[steps + 1]``: bit ``i * slots + j`` says that sub-block ``i`` of the tile keeps
            slot ``j``.
        tile_blocks: int32 ``[tiles, rows]``, the sub-blocks of each tile; places left over name one behind
            the end.
        work_tiles: int32 ``[work tiles, 7]``, longest first, from ``num_long`` on head by head: tile, head
            (-1: every head), first step, steps that need no mask, steps that need no mask of tokens, steps,
            and the number of its partial result (-1: it is a whole tile).
        num_long: number of work tiles that begin before all others, of whichever head.
        split_tiles: int32 ``[split tiles, 4]``: tile, head (-1: every head), first partial result, number of
            them.
        num_partials: number of partial results a head.
        occupancy: share of the pairs of sub-blocks in all steps that the layout keeps.
        shared: whether all heads run the same items.
        has_partial_steps: whether any step needs the mask of sub-blocks alone.
        has_token_mask_steps: whether any step needs a mask of tokens.

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
        """Memory of the tables."""
        tables = (self.step_blocks, self.pair_bits, self.tile_blocks, self.work_tiles, self.split_tiles)
        return sum(x.numel() * x.element_size() for x in tables)


def make_schedule(
    layout: BlockLayout,
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
        max_split_steps: longest segment of a tile; chosen from the amount of work if not given.

    """
    sub = min(layout.block, q_tile, k_tile)
    row, column = _sub_blocks(layout, q_len, k_len, sub)
    q_subs = -(-(layout.lead + q_len) // sub)
    k_subs = -(-k_len // sub)
    layout_of, row = row // q_subs, row % q_subs
    seen, cut = _visibility(row, column, sub, layout.lead, q_len, k_len, left, right)
    if by_keys:
        # Steps without a mask load their queries without asking whether they exist.
        cut = cut | (row * sub < layout.lead) | ((row + 1) * sub - layout.lead > q_len)
    layout_of, row, column, cut = layout_of[seen], row[seen], column[seen], cut[seen]
    if by_keys:
        own, other, own_count, other_count = column, row, k_subs, q_subs
        rows, slots = k_tile // sub, q_tile // sub
    else:
        own, other, own_count, other_count = row, column, q_subs, k_subs
        rows, slots = q_tile // sub, k_tile // sub
    owner = layout_of * own_count + own
    tiling = make_tiling(owner, layout.layouts, own_count, rows)
    tile, columns, bits, mask = _unite(tiling, owner, other, cut, other_count)
    columns, bits, first, ends = _steps(tile, columns, bits, mask, slots, tiling)
    if max_split_steps is None:
        steps = ends[2]
        work = int(steps.view(layout.layouts, -1).sum(1)[layout.head_layouts.long()].sum())
        max_split_steps = max(_MIN_SPLIT_STEPS, -(-work // _TARGET_PROGRAMS))
        if steps.numel() and int(steps.max()) <= _MAX_WHOLE_STEPS:
            max_split_steps = max(max_split_steps, _MAX_WHOLE_STEPS)
    occupancy = owner.numel() / max(1, (columns.shape[0] - 1) * rows * slots)
    return _items(columns, bits, first, ends, layout, tiling, max_split_steps, occupancy)


def _sub_blocks(layout: BlockLayout, q_len: int, k_len: int, sub: int) -> tuple[Tensor, Tensor]:
    """Rows (through all layouts) and columns of the kept sub-blocks that hold any token."""
    row, column = rows_of(layout.row_offsets.long()), layout.columns.long()
    fold = layout.block // sub
    q_subs, k_subs = -(-(layout.lead + q_len) // sub), -(-k_len // sub)
    layout_of, row = row // max(1, layout.q_blocks), row % max(1, layout.q_blocks)
    if fold > 1:
        part = torch.arange(fold)
        row = (row[:, None, None] * fold + part[:, None]).expand(-1, fold, fold).reshape(-1)
        column = (column[:, None, None] * fold + part).expand(-1, fold, fold).reshape(-1)
        layout_of = layout_of[:, None].expand(-1, fold * fold).reshape(-1)
        inside = (row < q_subs) & (column < k_subs)
        layout_of, row, column = layout_of[inside], row[inside], column[inside]
    return layout_of * q_subs + row, column


def _visibility(
    row: Tensor,
    column: Tensor,
    sub: int,
    lead: int,
    q_len: int,
    k_len: int,
    left: int | None,
    right: int | None,
) -> tuple[Tensor, Tensor]:
    """Say of each pair of sub-blocks whether any of its pairs of tokens is seen, and whether any is not."""
    first_query = (row * sub - lead).clamp(min=0) + k_len - q_len
    last_query = ((row + 1) * sub - lead).clamp(max=q_len) - 1 + k_len - q_len
    first_key, last_key = column * sub, (column + 1) * sub - 1
    seen = torch.ones_like(row, dtype=torch.bool)
    cut = last_key >= k_len
    last_key = last_key.clamp(max=k_len - 1)
    if right is not None:
        seen = seen & (first_key <= last_query + right)
        cut = cut | (last_key > first_query + right)
    if left is not None:
        seen = seen & (last_key >= first_query - left)
        cut = cut | (first_key < last_query - left)
    return seen, cut


def _unite(
    tiling: Tiling, owner: Tensor, other: Tensor, cut: Tensor, other_count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unite the sub-blocks of each tile: tile, gathered sub-block, bit a place, and the mask that it needs.

    The mask is 0 for none, 1 for the bits, 2 for one of tokens besides.
    """
    key, index = (tiling.tile[owner] * max(1, other_count) + other).unique(return_inverse=True)
    bits = torch.zeros_like(key).index_add_(0, index, 1 << tiling.place[owner])
    pairs, cuts = torch.zeros(2, key.numel(), dtype=torch.int64).index_add_(
        1, index, torch.stack([torch.ones_like(cut), cut]).long()
    )
    tile, other = key // max(1, other_count), key % max(1, other_count)
    # Places that are left over hold nothing that a mask could protect.
    mask = torch.where(cuts > 0, 2, (pairs < tiling.present[tile]).long())
    return tile, other, bits, mask


def _steps(
    tile: Tensor, column: Tensor, bits: Tensor, mask: Tensor, slots: int, tiling: Tiling
) -> tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]:
    """Pack each tile's sub-blocks into steps, by their masks.

    Returns columns, bits, each tile's first step, and how many of its steps need no mask, none of tokens, and
    any or none.
    """
    tiles, rows = tiling.own.shape
    # What does not fill a step goes with the next mask: of those without one always, since they have no empty
    # places; of those with bits where that saves a step.
    count = torch.bincount(tile * 3 + mask, minlength=tiles * 3).view(tiles, 3)
    _spill(tile, mask, 0, count[:, 0] // slots * slots)
    left = count[:, 0] % slots
    some, others = count[:, 1] + left, count[:, 2]
    saves = -(-(some % slots + others) // slots) < -(-(some % slots) // slots) + -(-others // slots)
    _spill(tile, mask, 1, torch.where(saves, some // slots * slots, some))
    count = torch.bincount(tile * 3 + mask, minlength=tiles * 3).view(tiles, 3)
    ends = (-(-count // slots)).cumsum(1).unbind(1)
    first = ends[2].cumsum(0) - ends[2]
    total = int(ends[2].sum())
    table = torch.full(((total + 1) * slots,), -1, dtype=torch.int32)
    step_bits = torch.zeros(total + 1, dtype=torch.int64)
    for level, start in enumerate((torch.zeros_like(first), *ends[:2])):
        kind = mask == level
        its_tile = tile[kind]
        place = (first + start)[its_tile] * slots + _rank(its_tile, tiles)
        table[place] = column[kind].to(torch.int32)
        slot = place % slots
        for sub in range(rows):
            step_bits.index_add_(0, place // slots, ((bits[kind] >> sub) & 1) << (sub * slots + slot))
    table = table.view(total + 1, slots)
    # Empty places name what the first does, which is there to be loaded.
    table = torch.where(table < 0, table[:, :1].clamp(min=0), table)
    return table, _as_int32(step_bits), first, ends


def _spill(tile: Tensor, mask: Tensor, level: int, kept: Tensor) -> None:
    """Keep so many of a mask's sub-blocks of each tile, and give the others the next mask, in place."""
    mine = (mask == level).nonzero()[:, 0]
    mask[mine[_rank(tile[mine], kept.numel()) >= kept[tile[mine]]]] = level + 1


def _rank(group: Tensor, groups: int) -> Tensor:
    """Number the members of each group; ``group`` ascends."""
    counts = torch.bincount(group, minlength=groups)
    return torch.arange(group.numel()) - (counts.cumsum(0) - counts)[group]


def _as_int32(bits: Tensor) -> Tensor:
    return torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)


def _items(
    columns: Tensor,
    bits: Tensor,
    first: Tensor,
    ends: Sequence[Tensor],
    layout: BlockLayout,
    tiling: Tiling,
    max_split_steps: int,
    occupancy: float,
) -> TileSchedule:
    """Split long tiles, give heads with layouts of their own their items, and put all in their order."""
    steps = ends[2]
    rows = tiling.own.shape[1]
    # A tile of one sub-block is known by that, whatever its layout; others by their row of the table.
    own = tiling.own if rows > 1 else tiling.own[: tiling.per_layout]
    name = torch.arange(steps.numel()) if rows > 1 else tiling.own[:, 0]
    # A tile that meets nothing has its zeros to write, one without sub-blocks has not.
    segments = (-(-steps // max_split_steps)).clamp(min=1) * (tiling.present > 0)
    tile = torch.arange(steps.numel()).repeat_interleave(segments)
    number = torch.arange(tile.numel()) - (segments.cumsum(0) - segments)[tile]
    # Segments of a tile are of nearly equal length.
    start = steps[tile] * number // segments[tile]
    stop = steps[tile] * (number + 1) // segments[tile]
    is_split = segments[tile] > 1
    partial = torch.where(is_split, is_split.cumsum(0) - 1, -1)
    partials = int(is_split.sum())
    free, uncut = ((end[tile] - start).clamp(min=0).minimum(stop - start) for end in ends[:2])
    item = torch.stack(
        [name[tile], torch.full_like(tile, -1), first[tile] + start, free, uncut, stop - start, partial], 1
    )
    split_tile = (segments > 1).nonzero()[:, 0]
    split = torch.stack(
        [
            name[split_tile],
            torch.full_like(split_tile, -1),
            (segments * (segments > 1)).cumsum(0)[split_tile] - segments[split_tile],
            segments[split_tile],
        ],
        1,
    )
    shared = layout.layouts == 1
    if not shared:
        item = _per_head(item, tile // max(1, tiling.per_layout), layout)
        split = _per_head(split, split_tile // max(1, tiling.per_layout), layout)
    item, longs = _ordered(item)
    item, split, own = item.to(torch.int32), split.to(torch.int32), own.to(torch.int32)
    bitten, cut = (bool((item[:, one + 1] > item[:, one]).any()) for one in (3, 4))
    return TileSchedule(columns, bits, own, item, split, longs, partials, occupancy, shared, bitten, cut)


def _ordered(item: Tensor) -> tuple[Tensor, int]:
    """Put the longest items first, the others head by head; also how many come first."""
    if not item.numel():
        return item, 0
    item = item[(-item[:, 5]).argsort(stable=True)]
    long = item[:, 5] > _LONG_FACTOR * item[:, 5].median()
    rest = item[~long]
    return torch.cat([item[long], rest[rest[:, 1].argsort(stable=True)]]), int(long.sum())


def _per_head(table: Tensor, layout_of: Tensor, layout: BlockLayout) -> Tensor:
    """Repeat the rows of each layout for each head that has it, with the head's number."""
    parts = []
    for head, its_layout in enumerate(layout.head_layouts.tolist()):
        rows = table[layout_of == its_layout].clone()
        rows[:, 1] = head
        parts.append(rows)
    return torch.cat(parts)


_lock = threading.Lock()  # autograd runs backwards in threads of its own
_schedules: OrderedDict[tuple[object, ...], TileSchedule] = OrderedDict()


def schedule_for(
    layout: BlockLayout,
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
    """Give the schedule on a device, made at the first call and kept.

    Arguments as `make_schedule`; without ``split`` every tile is one item, however long.
    """
    key = (layout.digest, q_len, k_len, left, right, device, q_tile, k_tile, by_keys, split)
    with _lock:
        found = _schedules.get(key)
        if found is not None:
            _schedules.move_to_end(key)
            return found
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
