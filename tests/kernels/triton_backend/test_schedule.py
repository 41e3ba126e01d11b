"""Tile schedules of the Triton kernels: each seen pair of tokens is met once, and no other block is."""

import collections
import itertools
import time

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan import sparsity
from longspan_kernels import BlockLayout
from longspan_kernels.triton_backend.columns import EVERY_HEAD, WHOLE, SplitTileColumn, WorkTileColumn
from longspan_kernels.triton_backend.schedule import make_schedule, schedule_for

# `pair_bits` has room for this many pairs of sub-blocks.
BITS = 32


@st.composite
def calls(draw):
    """A layout of few tokens, the lengths and bounds of a call, and tiles."""
    block, q_tile, k_tile = (draw(st.sampled_from([2, 4, 8, 16])) for _ in range(3))
    sub = min(block, q_tile, k_tile)
    while (q_tile // sub) * (k_tile // sub) > BITS:
        q_tile //= 2
    q_len, k_len = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    lead = draw(st.integers(0, block - 1))
    shape = (draw(st.integers(1, 3)), -(-(lead + q_len) // block), -(-k_len // block))
    density = draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    dense = torch.rand(shape, generator=generator) < density
    if draw(st.booleans()):
        dense[:] = dense[:1].clone()  # heads that share a layout
    if draw(st.booleans()):
        dense[:, draw(st.integers(0, shape[1] - 1))] = True
        dense[:, :, draw(st.integers(0, shape[2] - 1))] = True
    bound = st.none() | st.integers(0, 40)
    return (
        (BlockLayout.from_dense(dense, block, lead=lead), q_len, k_len, draw(bound), draw(bound)),
        {"q_tile": q_tile, "k_tile": k_tile, "by_keys": draw(st.booleans())},
        draw(st.none() | st.integers(1, 5)),
    )


@settings(max_examples=300, deadline=None)
@given(calls())
def test_each_seen_pair_is_met_once(kit, call):
    (layout, q_len, k_len, left, right), tiles, cap = call
    schedule = make_schedule(layout, q_len, k_len, left, right, **tiles, max_split_steps=cap)
    assert schedule.shared == (layout.layouts == 1)
    kept = kit.token_mask(layout, q_len, k_len)
    seen = kit.token_mask(layout, q_len, k_len, window=(left, right))
    by_keys = tiles["by_keys"]
    if by_keys:
        kept, seen = kept.mT, seen.mT
    for head in range(layout.heads):
        met, free = _met(schedule, head, layout, q_len, k_len, **tiles)
        assert met.max() <= 1
        assert (met[seen[head]] == 1).all()
        assert (met[~kept[head]] == 0).all()
        # Where no mask is applied, the whole tile sees the whole step.
        assert seen[head][free].all()


WorkTile = collections.namedtuple("WorkTile", [column.name.lower() for column in WorkTileColumn])
SplitTile = collections.namedtuple("SplitTile", [column.name.lower() for column in SplitTileColumn])


def rows_of(schedule):
    """Rows of the tables of work tiles and of split tiles, by the names of their columns."""
    work_tiles = [WorkTile(*row) for row in schedule.work_tiles.tolist()]
    return work_tiles, [SplitTile(*row) for row in schedule.split_tiles.tolist()]


def _met(schedule, head, layout, q_len, k_len, q_tile, k_tile, by_keys):
    """How often each pair of a tile's and a step's token is met, and which without a mask of tokens."""
    sub = min(layout.block, q_tile, k_tile)
    tile_len, step_len = (k_len, q_len) if by_keys else (q_len, k_len)
    # Tokens are counted from where the first block of rows begins, before the first query.
    tile_offset, step_offset = (0, layout.lead) if by_keys else (layout.lead, 0)
    tile_slots, step_slots = (size // sub for size in ((k_tile, q_tile) if by_keys else (q_tile, k_tile)))
    num_blocks = -(-(tile_offset + tile_len) // sub)
    assert schedule.step_blocks.shape[1] == step_slots
    assert schedule.tile_blocks.shape[1] == tile_slots
    step_blocks, tile_blocks = schedule.step_blocks.tolist(), schedule.tile_blocks.tolist()
    pair_bits = schedule.pair_bits.tolist()
    met = torch.zeros((num_blocks + 1) * sub, step_offset + step_len + sub, dtype=torch.int64)
    free = torch.zeros_like(met, dtype=torch.bool)
    for work in rows_of(schedule)[0]:
        if work.head not in (EVERY_HEAD, head):
            continue
        assert 0 <= work.num_full <= work.num_full_or_partial <= work.num_steps
        assert schedule.has_partial_steps or work.num_full == work.num_full_or_partial
        assert schedule.has_token_mask_steps or work.num_full_or_partial == work.num_steps
        for number in range(work.num_steps):
            step = work.first_step + number
            is_full, is_uncut = number < work.num_full, number < work.num_full_or_partial
            for step_slot in range(step_slots):
                start = step_blocks[step][step_slot] * sub
                columns = slice(start, start + sub)
                for tile_slot, block in enumerate(tile_blocks[work.tile]):
                    rows = slice(block * sub, (block + 1) * sub)
                    is_kept = pair_bits[step] >> (tile_slot * step_slots + step_slot) & 1
                    if is_kept:
                        assert block < num_blocks
                        met[rows, columns] += 1
                    if block < num_blocks and (is_full or (is_kept and is_uncut)):
                        free[rows, columns] = True
                if is_uncut:
                    # Keys behind the end would be let through, and queries outside be loaded.
                    assert step_offset <= start
                    assert start + sub <= step_offset + step_len
    inside = slice(tile_offset, tile_offset + tile_len), slice(step_offset, step_offset + step_len)
    return met[inside], free[inside]


@settings(max_examples=200, deadline=None)
@given(calls())
def test_work_tiles_and_split_tiles(call):
    (layout, *lengths), tiles, cap = call
    schedule = make_schedule(layout, *lengths, **tiles, max_split_steps=cap)
    (work_tiles, split_tiles), num_long = rows_of(schedule), schedule.num_long
    # The long ones of all heads first, then head by head, the longest of each first.
    steps = [work.num_steps for work in work_tiles]
    assert steps[:num_long] == sorted(steps[:num_long], reverse=True)
    order = [(work.head, -work.num_steps) for work in work_tiles[num_long:]]
    assert order == sorted(order)
    assert num_long == (torch.tensor(steps) > 2 * torch.tensor(steps).median()).sum()
    assert cap is None or max(steps, default=0) <= cap
    heads = {work.head for work in work_tiles}
    assert heads == ({EVERY_HEAD} if schedule.shared else set(range(layout.heads)))
    q_len, k_len = lengths[:2]
    sub = min(layout.block, tiles["q_tile"], tiles["k_tile"])
    num_blocks = -(-k_len // sub) if tiles["by_keys"] else -(-(layout.lead + q_len) // sub)
    tile_blocks = schedule.tile_blocks.tolist()
    for head in heads:
        mine = [work for work in work_tiles if work.head == head]
        split = [one for one in split_tiles if one.head == head]
        # Each sub-block is in one tile, which has one work tile, or is split; also one that meets nothing has
        # zeros to write.
        once = [work.tile for work in mine if work.partial == WHOLE] + [one.tile for one in split]
        blocks = [block for tile in once for block in tile_blocks[tile] if block < num_blocks]
        assert sorted(blocks) == list(range(num_blocks))
        assert all(one.num_partials > 1 for one in split)
        expected = [(one.tile, one.first_partial + n) for one in split for n in range(one.num_partials)]
        assert sorted((work.tile, work.partial) for work in mine if work.partial != WHOLE) == sorted(expected)
        partials = [partial for _, partial in expected]
        assert len(set(partials)) == len(partials)
        assert all(0 <= partial < schedule.num_partials for partial in partials)
    splits = {}
    for work in work_tiles:
        splits.setdefault((work.head, work.tile), []).append((work.first_step, work.num_steps))
    for pieces in splits.values():
        # Splits follow one another, and none is more than a step longer than another.
        pieces.sort()
        assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(pieces))
        assert max(n for _, n in pieces) - min(n for _, n in pieces) <= 1


def test_sub_blocks_that_keep_far_more_share_tiles():
    """Global columns amid local ones: the tiles of the local ones do not walk through all queries."""
    layout = sparsity.FixedSparsityConfig(1, 16).layout(2048)  # every fourth column is global
    schedule = make_schedule(layout, 2048, 2048, None, None, q_tile=64, k_tile=64, by_keys=True)
    blocks = schedule.tile_blocks.tolist()
    steps = {tuple(blocks[work.tile]): work.num_steps for work in rows_of(schedule)[0]}
    end = 2048 // 16
    assert steps[0, 1, 2, end] == 1
    assert steps[3, 7, 11, 15] == 2048 // 64
    assert len(steps) == 32 + 8
    by_queries = make_schedule(layout, 2048, 2048, None, None, q_tile=64, k_tile=64, by_keys=False)
    assert by_queries.tile_blocks.tolist() == torch.arange(end).view(-1, 4).tolist()


def test_full_steps_come_first_and_have_no_empty_slots():
    layout = BlockLayout.from_dense(torch.ones(1, 8, 8), 16)
    tiles = {"q_tile": 32, "k_tile": 32, "by_keys": False}

    def counts(layout, k_len, right=None):
        """Tile, full, full or partial, all steps of each work tile."""
        schedule = make_schedule(layout, 128, k_len, None, right, **tiles)
        return [
            (work.tile, work.num_full, work.num_full_or_partial, work.num_steps)
            for work in rows_of(schedule)[0]
        ]

    assert counts(layout, 128) == [(tile, 4, 4, 4) for tile in range(4)]
    assert counts(layout, 127) == [(tile, 3, 3, 4) for tile in range(4)]  # the last step is ragged
    assert counts(layout, 128, right=0) == [(3, 3, 3, 4), (2, 2, 2, 3), (1, 1, 1, 2), (0, 0, 0, 1)]
    # Blocks of 16 in tiles of 32, a diagonal and a column: bits alone for what causality leaves whole.
    dense = torch.eye(8, dtype=torch.bool)
    dense[:, 0] = dense[4, 1] = True
    partial = counts(BlockLayout.from_dense(dense[None], 16), 128, right=0)
    assert partial == [(1, 0, 1, 2), (2, 0, 1, 2), (3, 0, 1, 2), (0, 0, 0, 1)]


def test_schedules_are_kept():
    layout = BlockLayout.from_dense(torch.ones(1, 2, 2), 16)
    same = BlockLayout.from_dense(torch.ones(1, 2, 2), 16)
    tiles = {"q_tile": 16, "k_tile": 16, "by_keys": False}
    cpu = torch.device("cpu")
    one = schedule_for(layout, 32, 32, None, None, cpu, **tiles)
    assert schedule_for(same, 32, 32, None, None, cpu, **tiles) is one
    for lengths in ((31, 32, None, None), (32, 31, None, None), (32, 32, 5, None), (32, 32, None, 0)):
        assert schedule_for(layout, *lengths, cpu, **tiles) is not one
    assert schedule_for(layout, 32, 32, None, None, cpu, **{**tiles, "by_keys": True}) is not one


def test_a_million_tokens():
    """In proportion to the kept blocks: a table of all pairs of blocks would have 268 million entries."""
    layout = sparsity.BigBirdSparsityConfig(16, 64).layout(2**20)
    started = time.process_time()
    for by_keys in (False, True):
        schedule = make_schedule(layout, 2**20, 2**20, None, None, q_tile=64, k_tile=64, by_keys=by_keys)
        assert schedule.shared
        assert schedule.nbytes < 25e6
        assert (
            schedule.work_tiles[:, WorkTileColumn.NUM_STEPS].max() < 2**14 // 8
        )  # the global row and column are split
    assert time.process_time() - started < 1.0
