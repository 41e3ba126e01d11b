"""Which tokens meet their copies after tiling, and the warning of it."""

import re
import time
import warnings

import pytest
import torch

import longspan
from longspan.positions.collisions import tokens_that_meet_copies
from longspan.sparsity import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    VariableSparsityConfig,
)

HEADS = 4
DIRECTIONS = ("bidirectional", "unidirectional")


def spelled_out(pattern, length: int, period: int, causal: bool) -> torch.Tensor:
    """The same from the dense mask of tokens."""
    layout = pattern.layout(length)
    mask = layout.to_dense().bool().any(0)
    mask = mask.repeat_interleave(pattern.block, 0).repeat_interleave(pattern.block, 1)[:length, :length]
    if causal or layout.causal:
        mask = mask.tril()
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (mask & (distance != 0) & (distance % period == 0)).any(1)


def patterns(block: int, attention: str):
    yield DenseSparsityConfig(HEADS, block, attention=attention)
    yield BigBirdSparsityConfig(
        HEADS, block, True, num_random_blocks=1, num_sliding_window_blocks=1, attention=attention
    )
    yield FixedSparsityConfig(
        HEADS, block, True, num_local_blocks=2, attention=attention, num_different_global_patterns=2
    )
    yield VariableSparsityConfig(
        HEADS, block, num_random_blocks=1, local_window_blocks=(1, 2), attention=attention
    )
    for width in (1, 3, 5):
        yield LocalSlidingWindowSparsityConfig(HEADS, block, width, attention=attention)
        yield BSLongformerSparsityConfig(HEADS, block, num_sliding_window_blocks=width, attention=attention)


@pytest.mark.parametrize("attention", DIRECTIONS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("period", [1, 3, 7, 16, 20, 48, 63, 64, 100])
def test_is_that_of_the_dense_mask(period, block, causal, attention):
    for pattern in patterns(block, attention):
        for length in (49, 64):
            found = tokens_that_meet_copies(pattern.layout(length), length, period, causal)
            assert torch.equal(found, spelled_out(pattern, length, period, causal)), (pattern, length)


@pytest.mark.slow
def test_a_quarter_of_a_million_tokens_take_no_matrix_of_blocks():
    pattern = BigBirdSparsityConfig(HEADS, 64, num_random_blocks=2)
    layout = pattern.layout(2**18)
    started = time.perf_counter()
    found = tokens_that_meet_copies(layout, 2**18, 512)
    assert time.perf_counter() - started < 5
    assert 0 < int(found.sum()) < 2**18


@pytest.mark.parametrize("attention", DIRECTIONS)
@pytest.mark.parametrize("width", [1, 3, 5])
def test_windows_that_do_not_reach_a_copy_do_not_warn(kit, width, attention):
    """Blocks of 8, 24 positions: 5 blocks reach 2 blocks and 7 tokens, 23 tokens, to a side."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pattern = LocalSlidingWindowSparsityConfig(HEADS, 8, width, attention=attention)
        longspan.extend(kit.make("bert"), 96, "tile", sparsity=pattern)
        pattern = BSLongformerSparsityConfig(
            HEADS, 8, num_sliding_window_blocks=width, global_block_indices=(), attention=attention
        )
        longspan.extend(kit.make("bert"), 96, "tile", sparsity=pattern)


def test_the_window_that_the_warning_names_is_the_widest_without_one(kit):
    """7 blocks of 8 reach 31 tokens to a side."""
    pattern = LocalSlidingWindowSparsityConfig(HEADS, 8, 7, attention="bidirectional")
    with pytest.warns(UserWarning, match="96 of 96 tokens") as caught:
        longspan.extend(kit.make("bert"), 96, "tile", sparsity=pattern)
    text = str(caught[0].message)
    assert "23 tokens to a side (num_sliding_window_blocks: 5 blocks of 8)" in text
    assert caught[0].filename == __file__


def test_the_named_window_for_many_blocks_and_periods():
    for block in (1, 4, 16):
        for period in (16, 20, 48, 63):
            width = 2 * (period // block) - 1
            for extra, met in ((0, False), (2, True)):
                pattern = LocalSlidingWindowSparsityConfig(1, block, width + extra, attention="bidirectional")
                found = tokens_that_meet_copies(pattern.layout(256), 256, period)
                assert bool(found.any()) == met, (block, period, extra)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("bert", "96 of 96 tokens (100.0%)"), ("gpt2", "72 of 96 tokens (75.0%)")],
)
def test_full_attention_warns(kit, kind, expected):
    """Causal attention reaches no copy before the second one begins."""
    with pytest.warns(UserWarning, match=re.escape(expected)):
        longspan.extend(kit.make(kind), 96, "tile")
    with pytest.warns(UserWarning, match=re.escape(expected)):
        longspan.extend(kit.make(kind), 96, "tile", sparsity=DenseSparsityConfig(HEADS, 8))


def test_full_attention_under_twice_the_length(kit):
    with pytest.warns(UserWarning, match="12 of 30 tokens"):
        longspan.extend(kit.make("bert"), 30, "tile")


def test_random_blocks_warn(kit):
    pattern = BigBirdSparsityConfig(
        HEADS, 8, num_random_blocks=2, num_sliding_window_blocks=1, num_global_blocks=0
    )
    with pytest.warns(UserWarning, match="method 'tile' repeats the 24 trained positions"):
        longspan.extend(kit.make("bert"), 96, "tile", sparsity=pattern)


def test_global_blocks_warn_of_the_rows_they_touch(kit):
    """Block 0 sees blocks 3, 6 and 9, its copies; they see it; no other row is touched."""
    pattern = BSLongformerSparsityConfig(HEADS, 8, num_sliding_window_blocks=3)
    with pytest.warns(UserWarning, match=r"32 of 96 tokens \(33\.3%\)"):
        longspan.extend(kit.make("bert"), 96, "tile", sparsity=pattern)


def test_a_dense_layer_among_sparse_ones_warns(kit):
    pattern = LocalSlidingWindowSparsityConfig(HEADS, 8, attention="bidirectional")
    with pytest.warns(UserWarning, match="96 of 96 tokens"):
        longspan.extend(kit.make("bert"), 96, "tile", sparsity=[pattern, None])


def test_a_model_that_is_sparse_already_is_judged_by_its_pattern(kit):
    pattern = LocalSlidingWindowSparsityConfig(HEADS, 8, attention="bidirectional")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        longspan.extend(longspan.sparsify(kit.make("bert"), pattern), 96, "tile")


@pytest.mark.parametrize("method", ["interpolate", "truncate-and-normal", "zero"])
def test_other_methods_and_the_same_length_do_not_warn(kit, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        longspan.extend(kit.make("bert"), 96, method)
        longspan.extend(kit.make("bert"), 24, "tile")
