"""The patterns of papers: arguments, what is refused, pictures by hand, and draws that stay the same."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

from longspan.sparsity import (
    AShapeSparsityConfig,
    AttentionSinksSparsityConfig,
    DilatedSparsityConfig,
    HierarchicalSparsityConfig,
    RandomSparsityConfig,
    StridedSparsityConfig,
    VerticalSlashSparsityConfig,
)

SINKS, A_SHAPE, SLASH = AttentionSinksSparsityConfig, AShapeSparsityConfig, VerticalSlashSparsityConfig
STRIDED, DILATED, LEVELS = StridedSparsityConfig, DilatedSparsityConfig, HierarchicalSparsityConfig
RANDOM = RandomSparsityConfig
UNI = {"attention": "unidirectional"}
BI = "attention='bidirectional'"
ONE, EACH = "num_heads, block=16, ", "num_heads, block=16, different_layout_per_head=False, "
SIGNATURES = {
    STRIDED: EACH + f"stride=4, {BI}",
    DILATED: EACH + f"segment_blocks=(4, 8, 16), dilations=(1, 2, 4), {BI}",
    SINKS: ONE + f"num_sink_blocks=1, num_sliding_window_blocks=3, {BI}",
    A_SHAPE: ONE + f"num_initial_blocks=1, num_local_blocks=4, {BI}",
    SLASH: ONE + f"vertical_blocks=(0,), slash_offsets=(0, 1, 4), {BI}",
    RANDOM: EACH + f"density=0.1, {BI}, seed=0",
    LEVELS: ONE + f"num_sliding_window_blocks=3, {BI}",
}
ALL = list(SIGNATURES)


@pytest.mark.parametrize("cls", ALL)
def test_arguments_order_and_defaults(cls):
    signature = inspect.signature(cls)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    ]
    assert ", ".join(map(str, bare)) == SIGNATURES[cls]


NOT_A_SHARE = "density must be a number above 0 and at most 1, got "
REFUSED = [
    *[(cls, {"attention": "causal"}, "attention must be .* got 'causal'") for cls in ALL],
    *[(cls, {"num_heads": 0}, "num_heads must be an integer of at least 1, got 0") for cls in ALL],
    *[(cls, {"block": 1.5}, "block must be an integer of at least 1, got 1.5") for cls in ALL],
    (STRIDED, {"stride": 0}, "stride must be an integer of at least 1, got 0"),
    (DILATED, {"segment_blocks": []}, r"segment_blocks must hold at least one length, got \[\]"),
    (DILATED, {"segment_blocks": [4, 0, 8]}, r"segment_blocks\[1\] must be .* at least 1, got 0"),
    (DILATED, {"dilations": [1, 2]}, r"one for each of the 3 segment_blocks \[4, 8, 16\], got 2: \[1, 2\]"),
    (DILATED, {"dilations": [5, 1, 1]}, "at most its length .* got dilation 5 and length 4"),
    (SINKS, {"num_sink_blocks": -1}, "num_sink_blocks must be an integer of at least 0, got -1"),
    (SINKS, {"num_sliding_window_blocks": "3"}, "num_sliding_window_blocks must be .* got '3'"),
    (A_SHAPE, {"num_initial_blocks": -1}, "num_initial_blocks must be an integer of at least 0, got -1"),
    (A_SHAPE, {"num_local_blocks": None}, "num_local_blocks must be .* got None"),
    (SLASH, {"vertical_blocks": 3}, "vertical_blocks must be a list of integers of at least 0, got 3"),
    (SLASH, {"slash_offsets": [1, -1]}, r"slash_offsets\[1\] must be an integer of at least 0, got -1"),
    (SLASH, {"vertical_blocks": [], "slash_offsets": []}, "must not both be empty"),
    *[
        (RANDOM, {"density": value}, NOT_A_SHARE)
        for value in (0, -0.5, 1.01, "0.5", None, True, float("nan"))
    ],
    (RANDOM, {"seed": -1}, "seed must be an integer of at least 0 and at most 18446744073709551615, got -1"),
    (LEVELS, {"num_sliding_window_blocks": -1}, "num_sliding_window_blocks must be .* at least 0, got -1"),
]


@pytest.mark.parametrize(("cls", "change", "message"), REFUSED)
def test_refused_arguments(cls, change, message):
    with pytest.raises(ValueError, match=message):
        cls(**({"num_heads": 4} | change))


@pytest.mark.parametrize("cls", ALL)
def test_patterns_are_values(cls):
    pattern = cls(4, 32)
    assert pattern == cls(4, 32) != cls(4, 16)
    assert hash(pattern) == hash(cls(4, 32))
    assert copy.deepcopy(pattern) == pickle.loads(pickle.dumps(pattern)) == pattern
    assert cls(4, 32).layout(500) is pattern.layout(500)


PICTURES = {
    # The second figure of arXiv:1904.10509, its strided matrix, with a stride of 3.
    "strided": (
        STRIDED(1, 1, stride=3, **UNI),
        ["#.......", "##......", "###.....", "####....", ".####...", "..####..", "#..####.", ".#..####"],
    ),
    # LongNet's segments of 4 and 8, dilations 1 and 2.
    "dilated": (
        DILATED(1, 1, segment_blocks=(4, 8), dilations=(1, 2)),
        ["#####.#.", "####....", "#####.#.", "####....", "#.#.####", "....####", "#.#.####", "....####"],
    ),
    # StreamingLLM: two sinks, the window of a block and the one before.
    "attention_sinks": (
        SINKS(1, 1, num_sink_blocks=2, num_sliding_window_blocks=3, **UNI),
        ["#.....", "##....", "###...", "####..", "##.##.", "##..##"],
    ),
    "a_shape": (
        A_SHAPE(1, 1, num_initial_blocks=1, num_local_blocks=3, **UNI),
        ["#.....", "##....", "###...", "####..", "#.###.", "#..###"],
    ),
    "vertical_slash": (
        SLASH(1, 1, vertical_blocks=(2,), slash_offsets=(0, 3), **UNI),
        ["#.....", ".#....", "..#...", "#.##..", ".##.#.", "..#..#"],
    ),
    # Distances 0, 1, 2, 4.
    "hierarchical": (
        LEVELS(1, 1, num_sliding_window_blocks=0, **UNI),
        ["#......", "##.....", "###....", ".###...", "#.###..", ".#.###.", "..#.###"],
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name):
    pattern, picture = PICTURES[name]
    kept = [[mark == "#" for mark in line] for line in picture]
    assert (pattern.make_layout(len(picture))[0].numpy() == np.array(kept)).all()


def test_dilated_heads_select_every_block_between_them():
    pattern = DILATED(4, 1, True, segment_blocks=(16,), dilations=(4,))
    layout = pattern.make_layout(32)
    assert layout.any(0).any(1).all()
    assert torch.equal(layout.sum((1, 2)), torch.full((4,), 2 * 4 * 4))
    assert not (layout.sum(0) > 1).any()


def test_strided_heads_take_a_factor_each_and_together_make_the_whole():
    heads = STRIDED(5, 1, True, stride=3, **UNI).make_layout(20)
    assert torch.equal(heads[0] | heads[1], STRIDED(1, 1, stride=3, **UNI).make_layout(20)[0])
    assert [torch.equal(head, heads[n % 2]) for n, head in enumerate(heads)] == [True] * 5


@pytest.mark.parametrize("blocks", [2, 5, 16, 37])
def test_levels_reach_everything_in_as_many_layers_as_the_length_has_bits(blocks):
    one = LEVELS(1, 1, num_sliding_window_blocks=0, **UNI).make_layout(blocks)[0]
    reached = torch.linalg.matrix_power(one.double(), (blocks - 1).bit_length()) > 0
    assert torch.equal(reached, torch.ones_like(reached).tril())


def test_a_random_row_keeps_its_share_and_its_own_block():
    for direction in ("bidirectional", "unidirectional"):
        dense = RANDOM(3, 1, True, density=0.3, attention=direction, seed=9).make_layout(41)
        allowed = torch.full((41,), 41) if direction == "bidirectional" else torch.arange(1, 42)
        assert torch.equal(dense.sum(-1), (allowed * 0.3 + 0.5).floor().clamp(min=1).long().expand(3, 41))
        assert dense.diagonal(dim1=1, dim2=2).all()
    assert abs(RANDOM(1, 64, density=0.25).layout(64 * 400).density - 0.25) < 1e-3


def test_random_columns_are_drawn_equally_often():
    pattern = RANDOM(64, 1, True, density=4 / 64)
    hits = (pattern.make_layout(64).sum((0, 1)) - 64).double()  # the own blocks aside
    expected = 64 * 63 * 3 / 63
    assert hits.sum() == 64 * 64 * 3
    # The 99.9th percentile with 63 degrees of freedom; the draw is the same in every run.
    assert ((hits - expected) ** 2 / expected).sum() < 103.4


def test_random_draws_are_the_same_for_ever():
    pattern = RANDOM(2, 16, True, density=0.2, seed=7)
    assert [head[5].nonzero()[:, 0].tolist() for head in pattern.make_layout(256)] == GOLDEN
    different = {
        RANDOM(2, 16, True, density=0.2, seed=seed).make_layout(256)[head].numpy().tobytes()
        for seed in (7, 8)
        for head in (0, 1)
    }
    assert len(different) == 4


GOLDEN = [[0, 3, 5], [3, 5, 13]]


def test_a_causal_random_layout_does_not_depend_on_the_length():
    pattern = RANDOM(1, 1, density=0.4, **UNI)
    assert torch.equal(pattern.make_layout(50)[:, :30, :30], pattern.make_layout(30))


def test_random_temporaries_do_not_change_the_draw(monkeypatch):
    pattern = RANDOM(1, 1, density=0.3, seed=2)
    whole = pattern._build(60, 60)
    monkeypatch.setattr("longspan.sparsity.random._KEYS_AT_ONCE", 130)
    monkeypatch.setattr("longspan.sparsity.rows._CELLS_AT_ONCE", 70)
    assert pattern._build(60, 60) == whole
