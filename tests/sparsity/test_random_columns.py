"""The draw: reference values of the hash, uniformity, and what it depends on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from longspan.sparsity import BigBirdSparsityConfig, VariableSparsityConfig
from longspan.sparsity.random_columns import draw_ranks, mix

RANDOM_ALONE = VariableSparsityConfig(
    1, 16, num_random_blocks=3, local_window_blocks=(1,), global_block_indices=()
)


def test_the_hash_is_splitmix64():
    golden = 0x9E3779B97F4A7C15
    states = np.array([n * golden % 2**64 for n in range(3)], dtype=np.uint64)
    # The first outputs of SplitMix64 from seed 0, as published with its reference implementation.
    assert [hex(value) for value in mix(states)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_a_layout_is_the_same_for_ever():
    layout = BigBirdSparsityConfig(2, 16, True, num_random_blocks=2, seed=7).layout(256)
    drawn = layout.to_dense() - BigBirdSparsityConfig(2, 16, num_random_blocks=0).make_layout(256)
    assert drawn[0].nonzero()[:6].tolist() == GOLDEN[0]
    assert drawn[1].nonzero()[:6].tolist() == GOLDEN[1]


GOLDEN = [
    [[1, 3], [1, 5], [2, 9], [2, 13], [3, 7], [3, 15]],
    [[1, 13], [1, 14], [2, 4], [2, 14], [3, 6], [3, 12]],
]


def test_every_set_of_columns_is_equally_likely():
    rows = np.arange(20_000)
    ranks = draw_ranks(np.full(rows.size, 6), 3, seed=1, head=0, rows=rows)
    seen = Counter(tuple(sorted(row)) for row in ranks.tolist())
    sets = list(combinations(range(6), 3))
    assert set(seen) == set(sets)
    expected = rows.size / len(sets)
    chi_squared = sum((seen[one] - expected) ** 2 / expected for one in sets)
    assert (
        chi_squared < 43.8
    )  # the 99.9th percentile with 19 degrees of freedom; the draw is the same in every run


def test_columns_of_a_layout_are_hit_equally_often():
    pattern = replace(RANDOM_ALONE, num_heads=64, different_layout_per_head=True, block=1)
    dense = pattern.make_layout(64)
    hits = dense.sum((0, 1)).double()
    assert hits.sum() == 64 * 64 * 4
    drawn = hits - 64  # the diagonal is certain: each column is free in 63 rows of 64 heads
    expected = 64 * 63 * 3 / 63
    spread = ((drawn - expected) ** 2 / expected).sum()
    assert spread < 103.4  # the 99.9th percentile with 63 degrees of freedom


@pytest.mark.parametrize("free", [0, 1, 2, 3, 7])
def test_as_many_as_there_are(free):
    rows = np.arange(50)
    ranks = draw_ranks(np.full(50, free), 3, seed=0, head=0, rows=rows)
    for row in ranks.tolist():
        drawn = [rank for rank in row if rank >= 0]
        assert len(set(drawn)) == len(drawn) == min(3, free)
        assert all(rank < free for rank in drawn)


def test_a_draw_does_not_depend_on_the_other_rows():
    rows, free = np.arange(100), np.arange(100) // 3 + 1
    whole = draw_ranks(free, 4, seed=5, head=2, rows=rows)
    part = draw_ranks(free[60:], 4, seed=5, head=2, rows=rows[60:])
    assert (whole[60:] == part).all()


def test_heads_seeds_and_rows_draw_differently():
    pattern = BigBirdSparsityConfig(8, 16, True, num_random_blocks=2)
    dense = pattern.make_layout(1024)
    layouts = {head.numpy().tobytes() for head in dense}
    for seed in (1, 2, 2**32, 2**64 - 1):
        layouts |= {head.numpy().tobytes() for head in replace(pattern, seed=seed).make_layout(1024)}
    assert len(layouts) == 5 * 8
    drawn = dense[0] - replace(pattern, num_random_blocks=0).make_layout(1024)[0]
    assert len({row.numpy().tobytes() for row in drawn}) > 60


def test_head_0_serves_all_unless_each_has_its_own():
    own = BigBirdSparsityConfig(4, 16, True)
    shared = replace(own, different_layout_per_head=False)
    assert shared.layout(1024).layouts == 1
    assert own.layout(1024).layouts == 4
    assert torch.equal(shared.make_layout(1024)[3], own.make_layout(1024)[0])


def test_a_short_causal_row_draws_what_there_is():
    pattern = BigBirdSparsityConfig(1, 16, num_random_blocks=5, attention="unidirectional")
    kept = pattern.make_layout(16 * 12)[0].sum(-1).tolist()
    # The window's two and the global block's one, then up to five of what lies between.
    assert kept == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8]


def test_all_columns_can_be_drawn():
    pattern = replace(RANDOM_ALONE, num_random_blocks=8)
    assert bool((pattern.make_layout(8 * 16) == 1).all())
