"""Arguments of DeepSpeed's patterns: order and defaults, what is refused, identity, copies and the cache."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from longspan.sparsity import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    SparsityConfig,
    VariableSparsityConfig,
)
from longspan.sparsity.cache import LayoutCache

HEAD = "num_heads, block=16, different_layout_per_head=False, "
RANGES = "global_block_indices=(0,), global_block_end_indices=None, "
BI = "attention='bidirectional'"
SIGNATURES = {
    DenseSparsityConfig: HEAD + BI,
    FixedSparsityConfig: HEAD
    + f"num_local_blocks=4, num_global_blocks=1, {BI}, horizontal_global_attention=False, "
    + "num_different_global_patterns=1",
    VariableSparsityConfig: HEAD
    + f"num_random_blocks=0, local_window_blocks=(4,), {RANGES}{BI}, "
    + "horizontal_global_attention=False, seed=0",
    BigBirdSparsityConfig: HEAD
    + f"num_random_blocks=1, num_sliding_window_blocks=3, num_global_blocks=1, {BI}, seed=0",
    BSLongformerSparsityConfig: HEAD + f"num_sliding_window_blocks=3, {RANGES}{BI}",
    LocalSlidingWindowSparsityConfig: (
        "num_heads, block=16, num_sliding_window_blocks=3, attention='unidirectional'"
    ),
}
ALL = list(SIGNATURES)


@pytest.mark.parametrize("cls", ALL)
def test_arguments_order_and_defaults(cls):
    signature = inspect.signature(cls)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    ]
    assert ", ".join(map(str, bare)) == SIGNATURES[cls]


BIGBIRD, FIXED, VARIABLE = BigBirdSparsityConfig, FixedSparsityConfig, VariableSparsityConfig
LONGFORMER, WINDOW = BSLongformerSparsityConfig, LocalSlidingWindowSparsityConfig
UNI = "unidirectional"
REFUSED = [
    *[(cls, {"attention": "causal"}, "attention must be .* got 'causal'") for cls in ALL],
    *[(cls, {"attention": None}, "attention must be .* got None") for cls in ALL],
    *[(cls, {"num_heads": 0}, "num_heads must be an integer of at least 1, got 0") for cls in ALL],
    *[(cls, {"num_heads": 2.0}, "num_heads must be an integer of at least 1, got 2.0") for cls in ALL],
    *[(cls, {"block": -16}, "block must be an integer of at least 1, got -16") for cls in ALL],
    *[(cls, {"block": "16"}, "block must be an integer of at least 1, got '16'") for cls in ALL],
    *[(cls, {"block": True}, "block must be an integer of at least 1, got True") for cls in ALL],
    *[
        (cls, {"different_layout_per_head": 1}, "different_layout_per_head must be True or False, got 1")
        for cls in ALL[:-1]
    ],
    (FIXED, {"num_local_blocks": 0}, "num_local_blocks must be an integer of at least 1, got 0"),
    (FIXED, {"num_global_blocks": -1}, "num_global_blocks must be an integer of at least 0, got -1"),
    (
        FIXED,
        {"num_global_blocks": 3},
        "num_global_blocks must be 0 or divide num_local_blocks, which is 4, got 3",
    ),
    (FIXED, {"num_local_blocks": 2, "num_global_blocks": 4}, "divide num_local_blocks, which is 2, got 4"),
    (
        FIXED,
        {"attention": UNI, "horizontal_global_attention": True},
        "horizontal_global_attention must be False",
    ),
    (FIXED, {"horizontal_global_attention": "yes"}, "horizontal_global_attention must be True or False"),
    (
        FIXED,
        {"num_different_global_patterns": 0},
        "num_different_global_patterns must be an integer of at least 1",
    ),
    (FIXED, {"num_different_global_patterns": 2}, "unless different_layout_per_head is True, got 2"),
    (
        FIXED,
        {"num_different_global_patterns": 5, "different_layout_per_head": True},
        "num_different_global_patterns must be at most 4.* got 5",
    ),
    (
        FIXED,
        {"num_different_global_patterns": 2, "different_layout_per_head": True, "num_global_blocks": 0},
        "num_different_global_patterns must be at most 1.* got 2",
    ),
    (VARIABLE, {"num_random_blocks": -1}, "num_random_blocks must be an integer of at least 0, got -1"),
    (VARIABLE, {"local_window_blocks": []}, "local_window_blocks must hold at least one window size"),
    (VARIABLE, {"local_window_blocks": [4, 0]}, r"local_window_blocks\[1\] must be .* at least 1, got 0"),
    (VARIABLE, {"local_window_blocks": 4}, "local_window_blocks must be a list of integers .* got 4"),
    (VARIABLE, {"local_window_blocks": "44"}, "local_window_blocks must be a list of integers .* got '44'"),
    (
        VARIABLE,
        {"attention": UNI, "horizontal_global_attention": True},
        "horizontal_global_attention must be False",
    ),
    (
        VARIABLE,
        {"seed": -1},
        "seed must be an integer of at least 0 and at most 18446744073709551615, got -1",
    ),
    (VARIABLE, {"seed": 2**64}, "seed must be"),
    *[
        (cls, change, message)
        for cls in (VARIABLE, LONGFORMER)
        for change, message in [
            ({"global_block_indices": [-1]}, r"global_block_indices\[0\] must be .* at least 0, got -1"),
            ({"global_block_indices": [0.5]}, r"global_block_indices\[0\] must be .* got 0.5"),
            ({"global_block_indices": None}, "global_block_indices must be a list of integers .* got None"),
            ({"global_block_end_indices": []}, r"one end for each of the 1 .* got 0: \[\]"),
            ({"global_block_end_indices": [1, 2]}, r"one end for each of the 1 .* got 2: \[1, 2\]"),
            (
                {"global_block_indices": [0, 5], "global_block_end_indices": [1, 5]},
                "must lie beyond its start .* got start 5 and end 5",
            ),
        ]
    ],
    (BIGBIRD, {"num_random_blocks": -1}, "num_random_blocks must be an integer of at least 0, got -1"),
    (BIGBIRD, {"num_global_blocks": 1.5}, "num_global_blocks must be an integer of at least 0, got 1.5"),
    (BIGBIRD, {"seed": None}, "seed must be an integer"),
    *[
        (cls, {"num_sliding_window_blocks": -3}, "num_sliding_window_blocks must be .* at least 0, got -3")
        for cls in (BIGBIRD, LONGFORMER, WINDOW)
    ],
]


@pytest.mark.parametrize(("cls", "change", "message"), REFUSED)
def test_refused_arguments(cls, change, message):
    with pytest.raises(ValueError, match=message):
        cls(**({"num_heads": 4} | change))


@pytest.mark.parametrize(
    ("pattern", "seq_len", "message"),
    [
        (BIGBIRD(1), 32, "num_sliding_window_blocks must be at most the number of blocks, 2 here, got 3"),
        (BIGBIRD(1, num_random_blocks=5), 64, "num_random_blocks must be at most .* 4 here, got 5"),
        (BIGBIRD(1, num_global_blocks=5), 64, "num_global_blocks must be at most .* 4 here, got 5"),
        (VARIABLE(1, num_random_blocks=5), 64, "num_random_blocks must be at most .* 4 here, got 5"),
    ],
)
def test_sequences_too_short_for_a_pattern(pattern, seq_len, message):
    with pytest.raises(ValueError, match=message):
        pattern.layout(seq_len)
    with pytest.raises(ValueError, match=message):
        pattern.make_layout(seq_len)
    pattern.layout(seq_len + 16)


@pytest.mark.parametrize("cls", ALL)
def test_refused_lengths(cls):
    pattern = cls(2)
    for seq_len in (0, -16, 64.0, "64", None, True):
        with pytest.raises(ValueError, match=f"seq_len must be an integer of at least 1, got {seq_len!r}"):
            pattern.layout(seq_len)
    for q_len in (0, -1, 65, 8.0):
        with pytest.raises(ValueError, match=f"q_len must be an integer .* at most 64, got {q_len!r}"):
            pattern.layout(64, q_len)


def test_too_many_blocks_are_refused_before_they_are_made():
    with pytest.raises(ValueError, match=r"50,000 blocks a side .* more than the 2,147,483,647 blocks"):
        DenseSparsityConfig(1, 1).layout(50_000)


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        SparsityConfig(4)


@pytest.mark.parametrize("cls", ALL)
def test_patterns_are_values(cls):
    pattern = cls(4, 32)
    assert pattern == cls(4, 32)
    assert hash(pattern) == hash(cls(4, 32))
    assert pattern != cls(4, 16)
    assert copy.deepcopy(pattern) == pattern
    assert pickle.loads(pickle.dumps(pattern)) == pattern
    with pytest.raises(dataclasses.FrozenInstanceError):
        pattern.block = 64
    assert len({other(4, 32) for other in ALL}) == len(ALL)


@pytest.mark.parametrize("as_list", [list, tuple, OmegaConf.create, np.array, torch.tensor])
def test_list_arguments_become_tuples_of_ints(as_list):
    pattern = VARIABLE(
        1,
        local_window_blocks=as_list([2, 4]),
        global_block_indices=as_list([0, 6]),
        global_block_end_indices=as_list([2, 9]),
    )
    expected = VARIABLE(
        1, local_window_blocks=(2, 4), global_block_indices=(0, 6), global_block_end_indices=(2, 9)
    )
    assert pattern == expected
    assert hash(pattern) == hash(expected)
    assert type(pattern.local_window_blocks) is tuple
    assert {type(item) for item in pattern.global_block_indices} == {int}


@dataclasses.dataclass(frozen=True)
class Steps(SparsityConfig):
    """A pattern of one's own that says nothing of what its arguments are stored as."""

    steps: tuple[int, ...] = (1, 2)
    name = "steps"
    attention = "bidirectional"

    def intervals(self, rows, num_blocks, head):
        starts = np.stack([rows - step - head for step in self.steps], axis=1)
        return starts, starts + 1


def test_a_pattern_of_ones_own_is_a_value_and_may_tell_heads_apart():
    assert Steps(2, 1, steps=[1, 3]) == Steps(2, 1, steps=(1, 3))
    dense = Steps(3, 1, True, steps=[1, 3]).layout(8).to_dense()
    for head in range(3):
        rows, columns = dense[head].nonzero().T
        assert {int(one) for one in rows - columns} == {1 + head, 3 + head}


def test_integers_of_numpy_are_stored_as_ints():
    pattern = BIGBIRD(np.int64(2), np.int32(32), seed=np.uint64(5))
    assert {type(value) for value in (pattern.num_heads, pattern.block, pattern.seed)} == {int}


def test_a_layout_is_made_once():
    pattern = BIGBIRD(2, num_random_blocks=2)
    layout = pattern.layout(512)
    assert BIGBIRD(2, num_random_blocks=2).layout(512) is layout
    assert pattern.layout(512, 512) is layout


def test_no_two_patterns_share_a_layout_by_mistake():
    patterns = [
        *[cls(2) for cls in ALL],
        *[cls(2, attention=UNI) for cls in ALL],
        BIGBIRD(2, seed=1),
        BIGBIRD(2, num_random_blocks=2),
        BIGBIRD(2, 32),
        BIGBIRD(2, different_layout_per_head=True),
        FIXED(2, num_local_blocks=8),
        FIXED(4),
        VARIABLE(2, local_window_blocks=[2]),
        LONGFORMER(2, global_block_indices=[3]),
    ]
    for _ in range(2):  # made, then taken from the cache
        for pattern in patterns:
            for lengths in [(512, None), (500, None), (512, 40)]:
                assert pattern.layout(*lengths) == pattern._build(lengths[0], lengths[1] or lengths[0])


def test_the_layout_of_a_length_is_no_crop_of_a_longer_one():
    short, long = FIXED(1).make_layout(16 * 6), FIXED(1).make_layout(16 * 8)
    assert not torch.equal(short, long[:, :6, :6])


def test_the_cache_is_bounded():
    layouts = {n: FIXED(1).layout(16 * n) for n in range(1, 9)}
    cache = LayoutCache(max_layouts=3, max_bytes=1 << 20)
    for n, layout in layouts.items():
        cache.get(n, lambda layout=layout: layout)
    assert len(cache) == 3

    def unwanted():
        raise AssertionError("kept layouts are not built again")

    assert [cache.get(n, unwanted) for n in (6, 7, 8)] == [layouts[6], layouts[7], layouts[8]]
    with pytest.raises(AssertionError):
        cache.get(5, unwanted)


def test_the_cache_keeps_the_latest_layout_even_above_its_bytes():
    layouts = [FIXED(1).layout(16 * n) for n in (4, 8)]
    cache = LayoutCache(max_layouts=3, max_bytes=1)
    for n, layout in enumerate(layouts):
        assert cache.get(n, lambda layout=layout: layout) is layout
        assert len(cache) == 1
