"""Reach by packed blocks against boolean matrix products token by token."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.analysis.reach import reach
from longspan.sparsity import (
    BigBirdSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
)


def by_distance(pairs: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(pairs)
    return np.bincount(np.abs(rows - columns), minlength=pairs.shape[0])


def of_blocks(pairs: np.ndarray, block: int) -> np.ndarray:
    return np.add.reduceat(pairs.sum(1), np.arange(0, pairs.shape[0], block))


@settings(max_examples=150)
@given(st.data())
def test_every_number_is_that_of_boolean_matrix_products(oracle, data):
    layouts, seq_len, causal = data.draw(oracle.models())
    found = reach(layouts, seq_len, causal)
    expected, possible = (
        oracle.token_reach(layouts, seq_len, causal),
        oracle.possible_pairs(layouts, seq_len, causal),
    )
    # What one layer of several that is not causal reaches ahead counts in all of them.
    assert found.causal == (not np.triu(possible, 1).any() if seq_len > 1 else found.causal)
    assert (found.layers, found.sampled) == (len(layouts), False)
    for layer, pairs in enumerate(expected):
        assert np.array_equal(found.reached_pairs[layer], of_blocks(pairs, found.block))
        assert np.array_equal(found.pairs_by_distance(layer), by_distance(pairs))
    assert np.array_equal(found.possible_pairs, of_blocks(possible, found.block))
    assert np.array_equal(found.possible_by_distance(), by_distance(possible))
    assert found.all_pairs == possible.sum()
    assert found.unreachable_pairs == possible.sum() - expected[-1].sum()
    for layer in {1, len(layouts)}:
        everything = [[found.reaches(s, t, layer) for s in range(seq_len)] for t in range(seq_len)]
        assert np.array_equal(np.array(everything), expected[layer])


@settings(max_examples=60)
@given(st.data(), st.integers(1, 3), st.integers(0, 9))
def test_a_sample_counts_the_pairs_of_its_sources_alone(oracle, data, max_sources, seed):
    layouts, seq_len, causal = data.draw(oracle.models())
    found = reach(layouts, seq_len, causal, max_sources=max_sources, sample=max_sources, seed=seed)
    sampled = np.isin(np.arange(seq_len) // found.block, found.sources)
    assert found.sources.size == min(max_sources, found.blocks)
    possible = oracle.possible_pairs(layouts, seq_len, causal) & sampled
    for layer, pairs in enumerate(oracle.token_reach(layouts, seq_len, causal)):
        assert np.array_equal(found.reached_pairs[layer], of_blocks(pairs & sampled, found.block))
        assert np.array_equal(found.pairs_by_distance(layer), by_distance(pairs & sampled))
    assert np.array_equal(found.possible_by_distance(), by_distance(possible))


@settings(max_examples=60)
@given(st.data(), st.integers(1, 8))
def test_examples_have_no_path_and_are_all_where_few_are_missing(oracle, data, limit):
    layouts, seq_len, causal = data.draw(oracle.models())
    found = reach(layouts, seq_len, causal)
    examples = found.unreachable_examples(limit)
    last = oracle.token_reach(layouts, seq_len, causal)[-1]
    possible = oracle.possible_pairs(layouts, seq_len, causal)
    assert all(possible[t, s] and not last[t, s] for s, t in examples)
    token, source = np.nonzero(possible & ~last)
    blocks = {(s // found.block, t // found.block) for s, t in zip(source, token, strict=True)}
    apart = {pair for pair in blocks if pair[0] != pair[1]}
    assert len(examples) == len(set(examples)) == min(limit, len(apart))


@pytest.mark.parametrize("part", [1, 3, 40])
def test_rows_gathered_in_parts_are_the_same(oracle, monkeypatch, part):
    layouts = [oracle.random_layout(70, 2, 2, 0.1, seed, False) for seed in range(2)]
    monkeypatch.setattr("longspan.analysis.reach._MAX_GATHERED_WORDS", part)
    found = reach(layouts, 139)
    for layer, pairs in enumerate(oracle.token_reach(layouts, 139, None)):
        assert np.array_equal(found.reached_pairs[layer], of_blocks(pairs, 2))


def test_a_window_reaches_one_window_further_a_layer():
    layout = LocalSlidingWindowSparsityConfig(
        num_heads=2, block=16, num_sliding_window_blocks=3, attention="unidirectional"
    ).layout(512)
    found = reach([layout] * 4, 512)
    for layers in range(5):
        share = found.by_distance(layers)
        # The first tokens of a block see the least before it, the last ones the most.
        assert (share[: 16 * layers + 1] == 1).all()
        assert (share[16 * (layers + 1) :] == 0).all()
    assert found.by_position()[4, 5] == pytest.approx((4 * 16 * 16 + 16 * 17 / 2) / (5 * 256 + 136))
    assert found.unreachable_examples(1) == [(0, 511)]


def test_a_global_block_joins_everything_in_two_layers_only_where_it_may_read_ahead():
    bidirectional = BigBirdSparsityConfig(num_heads=1, block=16, num_random_blocks=0).layout(1024)
    assert reach([bidirectional] * 2, 1024).share[2] == 1
    causal = BigBirdSparsityConfig(
        num_heads=1, block=16, num_random_blocks=0, attention="unidirectional"
    ).layout(1024)
    assert reach([causal] * 2, 1024).share[2] < 0.2
    assert reach([bidirectional] * 2, 1024, causal=True).share[2] < 0.2


def test_layers_count_in_their_order(oracle):
    # Token 3 reads 2, and 2 reads 0: the lower layer must be the one in which 2 reads 0.
    low, high = (oracle.random_layout(4, 1, 1, 0.0, 0, False) for _ in range(2))
    dense = low.to_dense()
    dense[0, 2, 0] = 1
    low = type(low).from_dense(dense, 1)
    dense = high.to_dense()
    dense[0, 3, 2] = 1
    high = type(high).from_dense(dense, 1)
    assert reach([low, high], 4).reaches(0, 3)
    assert not reach([high, low], 4).reaches(0, 3)


def test_bins_add_up_and_their_shares_are_means():
    layout = FixedSparsityConfig(num_heads=1, block=8, attention="unidirectional").layout(200)
    found = reach([layout] * 2, 200)
    edges, shares = found.by_distance_bins()
    assert edges.tolist() == [0, 1, 2, 4, 8, 16, 32, 64, 128, 200]
    pairs = np.arange(200, 0, -1)
    for layer in range(3):
        expected = [
            (found.by_distance(layer) * pairs)[a:b].sum() / pairs[a:b].sum() for a, b in pairwise(edges)
        ]
        assert shares[layer] == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"edges must ascend within \[0, 200\], got \[5, 3\]"):
        found.by_distance_bins([5, 3])


def test_a_sample_is_near_the_whole():
    layout = BigBirdSparsityConfig(num_heads=1, block=16, attention="unidirectional").layout(16384)
    exact, sample = (
        reach([layout] * 6, 16384),
        reach([layout] * 6, 16384, max_sources=256, sample=256, seed=1),
    )
    assert sample.sampled
    assert not exact.sampled
    assert sample.share == pytest.approx(exact.share, abs=0.03)
    assert sample.unreachable_pairs == pytest.approx(exact.unreachable_pairs, rel=0.05)
    assert np.nanmax(np.abs(sample.by_distance_bins()[1] - exact.by_distance_bins()[1])) < 0.15


def test_a_thousand_blocks_take_less_than_seconds():
    layout = BigBirdSparsityConfig(num_heads=4, block=64, attention="unidirectional").layout(65536)
    dense = DenseSparsityConfig(num_heads=4, block=64, attention="unidirectional").layout(65536)
    start = time.process_time()
    found = reach([layout] * 8 + [dense], 65536)
    assert time.process_time() - start < 5
    assert found.blocks == 1024
    assert 0.1 < found.share[8] < found.share[9] == 1


def test_refusals(oracle):
    layout = oracle.random_layout(4, 8, 1, 0.5, 0, True)
    with pytest.raises(ValueError, match="layouts must hold one for each layer, got none"):
        reach([], 32)
    with pytest.raises(ValueError, match="seq_len=33 tokens in blocks of 8 is 5 x 5 blocks without a lead"):
        reach([layout], 33)
    with pytest.raises(ValueError, match="max_sources must be at least 1"):
        reach([layout], 32, max_sources=0)
    with pytest.raises(ValueError, match="causal must be True or False where every layer is dense"):
        reach([None], 32)
    found = reach([layout], 32, max_sources=1, sample=1)
    outside = next(block for block in range(4) if block not in found.sources) * 8
    with pytest.raises(ValueError, match="which the sample does not hold"):
        found.reaches(outside, 31)
    with pytest.raises(ValueError, match=r"token must lie in \[0, 32\), got 32"):
        found.reaches(0, 32)
