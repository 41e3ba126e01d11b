"""Rows and distances of layouts against matrices of tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.analysis.pair_counts import kept_by_distance
from longspan.analysis.rows import row_statistics
from longspan.sparsity import FixedSparsityConfig, LocalSlidingWindowSparsityConfig
from longspan_kernels.layout import BlockLayout
from longspan_kernels.layout.pair_counts import kept_pairs


@settings(max_examples=120)
@given(st.data())
def test_rows_and_distances_are_those_of_the_matrix(oracle, data):
    seq_len, block = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))
    blocks = -(-seq_len // block)
    heads, density = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    layout = oracle.random_layout(blocks, block, heads, density, data.draw(st.integers(0, 99)), True)
    causal = data.draw(st.sampled_from([None, True, False]))
    is_causal = causal is not False
    pairs = oracle.attended(layout, seq_len, is_causal)
    _, queries, keys = np.nonzero(pairs)
    by_distance = np.bincount(np.abs(queries - keys), minlength=seq_len)
    assert np.array_equal(kept_by_distance(layout, seq_len, causal), by_distance)
    if is_causal:
        assert by_distance.sum() == kept_pairs(layout, seq_len, seq_len)

    found = row_statistics(layout, seq_len, causal)
    kept = layout.to_dense().numpy()
    counts = (np.tril(kept) if is_causal else kept).sum(-1).reshape(-1)
    assert (found.minimum, found.median, found.maximum) == (counts.min(), np.median(counts), counts.max())
    assert (found.empty, found.rows) == ((counts == 0).sum(), heads * blocks)
    assert found.kept_pairs == pairs.sum()
    if queries.size:
        assert found.mean_distance == pytest.approx(np.abs(queries - keys).mean())
    else:
        assert math.isnan(found.mean_distance)
    every = np.ones((seq_len, seq_len), dtype=bool)
    rows, columns = np.nonzero(np.tril(every) if is_causal else every)
    assert found.all_pairs == heads * rows.size
    assert found.all_mean_distance == pytest.approx(np.abs(rows - columns).mean())
    assert found.pair_density == pytest.approx(pairs.sum() / (heads * rows.size))


def test_heads_that_share_a_layout_count_each():
    layout = LocalSlidingWindowSparsityConfig(num_heads=6, block=16).layout(100)
    one = LocalSlidingWindowSparsityConfig(num_heads=1, block=16).layout(100)
    assert layout.layouts == 1
    assert row_statistics(layout, 100).rows == 6 * 7
    assert row_statistics(layout, 100).kept_pairs == 6 * row_statistics(one, 100).kept_pairs


def test_the_share_of_pairs_is_the_share_of_attentions_operations():
    layout = FixedSparsityConfig(num_heads=2, block=16, attention="unidirectional").layout(500)
    dense = (~layout) | layout
    assert row_statistics(layout, 500).pair_density == pytest.approx(
        layout.flops(500, 64) / dense.flops(500, 64), rel=1e-12
    )


def test_a_layout_of_another_length_is_refused():
    layout = LocalSlidingWindowSparsityConfig(num_heads=1, block=16).layout(100)
    for call in (row_statistics, kept_by_distance):
        with pytest.raises(ValueError, match="seq_len=113 tokens in blocks of 16 is 8 x 8 blocks"):
            call(layout, 113)
    lower = LocalSlidingWindowSparsityConfig(num_heads=1, block=16).layout(100, q_len=90)
    with pytest.raises(ValueError, match="lead 10"):
        row_statistics(lower, 100)


def test_a_row_that_keeps_later_blocks_alone_is_empty_under_causality():
    layout = BlockLayout.from_dense(torch.tensor([[[0, 1], [1, 1]]]), 4)
    assert row_statistics(layout, 8).empty == 0
    assert row_statistics(layout, 8, causal=True).empty == 1
