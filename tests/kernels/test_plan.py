"""Schedules of the Triton kernels: each pair of tokens that is seen is met once, and no other block is."""

import itertools
import time

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan import sparsity
from longspan_kernels import BlockLayout
from longspan_kernels.triton_backend.schedule import make_schedule, schedule_for

# `bits` has room for this many pairs of sub-blocks.
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


def _met(schedule, head, layout, q_len, k_len, q_tile, k_tile, by_keys):
    """How often each pair of an owned and a gathered token is met, and which without a mask of tokens."""
    sub = min(layout.block, q_tile, k_tile)
    own_tile, other_tile = (k_tile, q_tile) if by_keys else (q_tile, k_tile)
    own_len, other_len = (k_len, q_len) if by_keys else (q_len, k_len)
    # Tokens are counted from where the first block of rows begins, `lead` before the first query.
    own_lead, other_lead = (0, layout.lead) if by_keys else (layout.lead, 0)
    rows, slots = own_tile // sub, other_tile // sub
    own_count = -(-(own_lead + own_len) // sub)
    assert schedule.step_blocks.shape[1] == slots
    assert schedule.tile_blocks.shape[1] == rows
    columns, bits, owned = (
        schedule.step_blocks.tolist(),
        schedule.pair_bits.tolist(),
        schedule.tile_blocks.tolist(),
    )
    met = torch.zeros((own_count + 1) * sub, other_lead + other_len + sub, dtype=torch.int64)
    free = torch.zeros_like(met, dtype=torch.bool)
    for tile, of_head, first, whole, uncut, steps, _ in schedule.work_tiles.tolist():
        if of_head not in (-1, head):
            continue
        assert 0 <= whole <= uncut <= steps
        assert schedule.has_partial_steps or whole == uncut
        assert schedule.has_token_mask_steps or uncut == steps
        for step in range(first, first + steps):
            for slot in range(slots):
                start = columns[step][slot] * sub
                for row, own in enumerate(owned[tile]):
                    seen = bits[step] >> (row * slots + slot) & 1
                    if seen:
                        assert own < own_count
                        met[own * sub : (own + 1) * sub, start : start + sub] += 1
                    if own < own_count and (step < first + whole or (seen and step < first + uncut)):
                        free[own * sub : (own + 1) * sub, start : start + sub] = True
                if step < first + uncut:
                    # Keys behind the end would be let through, and queries outside be loaded.
                    assert other_lead <= start
                    assert start + sub <= other_lead + other_len
    inside = slice(own_lead, own_lead + own_len), slice(other_lead, other_lead + other_len)
    return met[inside], free[inside]


@settings(max_examples=200, deadline=None)
@given(calls())
def test_items_and_splits(call):
    (layout, *lengths), tiles, cap = call
    schedule = make_schedule(layout, *lengths, **tiles, max_split_steps=cap)
    items, splits, longs = schedule.work_tiles.tolist(), schedule.split_tiles.tolist(), schedule.num_long
    # The long ones of all heads first, then head by head, the longest of each first.
    assert [item[5] for item in items[:longs]] == sorted((item[5] for item in items[:longs]), reverse=True)
    order = [(item[1], -item[5]) for item in items[longs:]]
    assert order == sorted(order)
    steps = torch.tensor([item[5] for item in items])
    assert longs == (steps > 2 * steps.median()).sum()
    assert cap is None or max((item[5] for item in items), default=0) <= cap
    assert {item[1] for item in items} == ({-1} if schedule.shared else set(range(layout.heads)))
    q_len, k_len = lengths[:2]
    sub = min(layout.block, tiles["q_tile"], tiles["k_tile"])
    own_count = -(-k_len // sub) if tiles["by_keys"] else -(-(layout.lead + q_len) // sub)
    owned = schedule.tile_blocks.tolist()
    for head in {item[1] for item in items}:
        mine = [item for item in items if item[1] == head]
        of_splits = [split for split in splits if split[1] == head]
        # Each sub-block is in one tile, which has one item, or is split; also one that meets nothing has its
        # zeros to write.
        whole = [item[0] for item in mine if item[6] == -1] + [split[0] for split in of_splits]
        assert sorted(own for tile in whole for own in owned[tile] if own < own_count) == list(
            range(own_count)
        )
        expected = [(tile, first + n) for tile, _, first, number in of_splits for n in range(number)]
        assert all(number > 1 for *_, number in of_splits)
        assert sorted((item[0], item[6]) for item in mine if item[6] != -1) == sorted(expected)
        results = [partial for _, partial in expected]
        assert len(set(results)) == len(results)
        assert all(0 <= partial < schedule.num_partials for partial in results)
    segments = {}
    for tile, head, first, _, _, steps, _ in items:
        segments.setdefault((head, tile), []).append((first, steps))
    for pieces in segments.values():
        # Segments follow one another, and none is more than a step longer than another.
        pieces.sort()
        assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(pieces))
        assert max(n for _, n in pieces) - min(n for _, n in pieces) <= 1


def test_what_keeps_far_more_shares_tiles():
    """Global columns amid local ones: the tiles of the local ones do not walk through all queries."""
    layout = sparsity.FixedSparsityConfig(1, 16).layout(2048)  # every fourth column is global
    schedule = make_schedule(layout, 2048, 2048, None, None, q_tile=64, k_tile=64, by_keys=True)
    steps = {
        tuple(schedule.tile_blocks[tile].tolist()): steps
        for tile, *_, steps, _ in schedule.work_tiles.tolist()
    }
    end = 2048 // 16
    assert steps[0, 1, 2, end] == 1
    assert steps[3, 7, 11, 15] == 2048 // 64
    assert len(steps) == 32 + 8
    rows = make_schedule(layout, 2048, 2048, None, None, q_tile=64, k_tile=64, by_keys=False)
    assert rows.tile_blocks.tolist() == torch.arange(end).view(-1, 4).tolist()


def test_steps_that_need_no_mask_come_first_and_are_full():
    layout = BlockLayout.from_dense(torch.ones(1, 8, 8), 16)
    tiles = {"q_tile": 32, "k_tile": 32, "by_keys": False}
    whole = make_schedule(layout, 128, 128, None, None, **tiles)
    assert whole.work_tiles[:, 3:6].tolist() == [[4, 4, 4]] * 4
    ragged = make_schedule(layout, 128, 127, None, None, **tiles)
    assert ragged.work_tiles[:, 3:6].tolist() == [[3, 3, 4]] * 4
    causal = make_schedule(layout, 128, 128, None, 0, **tiles)
    assert causal.work_tiles[:, [0, 3, 4, 5]].tolist() == [
        [3, 3, 3, 4],
        [2, 2, 2, 3],
        [1, 1, 1, 2],
        [0, 0, 0, 1],
    ]
    # Blocks of 16 in tiles of 32, a diagonal and a column: bits alone for what causality leaves whole.
    dense = torch.eye(8, dtype=torch.bool)
    dense[:, 0] = dense[4, 1] = True
    bitten = make_schedule(BlockLayout.from_dense(dense[None], 16), 128, 128, None, 0, **tiles)
    assert bitten.work_tiles[:, [0, 3, 4, 5]].tolist() == [
        [1, 0, 1, 2],
        [2, 0, 1, 2],
        [3, 0, 1, 2],
        [0, 0, 0, 1],
    ]


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
        assert schedule.work_tiles[:, 5].max() < 2**14 // 8  # the global row and column are split
    assert time.process_time() - started < 1.0
