"""The mean distance of attention against all pairs of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.analysis.distance import attention_distance
from longspan_kernels import BlockLayout


def by_pairs(layouts, length, causal):
    position = torch.arange(length)
    distance = (position[:, None] - position[None, :]).abs()
    total = pairs = 0
    for layout in layouts:
        heads = next(one.heads for one in layouts if one is not None)
        kept = torch.ones(heads, length, length, dtype=torch.int64)
        if layout is not None:
            kept = layout.to_dense()[:, position[:, None] // layout.block, position // layout.block]
        if causal or (layout is not None and layout.causal):
            kept = kept.tril()
        total, pairs = total + int((kept * distance).sum()), pairs + int(kept.sum())
    return total / pairs if pairs else 0.0


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 17), st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 2**32), st.booleans()
)
def test_mean_over_all_pairs(length, block, causal_layout, causal, seed, with_dense):
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-length // block)
    layouts: list = [
        BlockLayout.from_dense(
            torch.randint(2, (2, blocks, blocks), generator=generator), block, causal=causal_layout
        )
        for _ in range(2)
    ]
    layouts += [None] * with_dense
    expected = by_pairs(layouts, length, causal)
    assert attention_distance(layouts, length, causal) == pytest.approx(expected, rel=1e-12)


def test_known_means():
    # Of n tokens the mean distance of two is (n**2 - 1) / 3n; of a token to an earlier one, (n - 1) / 3.
    assert attention_distance([None], 10) == pytest.approx(99 / 30)
    assert attention_distance([None], 10, causal=True) == pytest.approx(3.0)
    diagonal = BlockLayout.from_dense(torch.eye(4)[None], 4)
    assert attention_distance([diagonal], 16, causal=True) == pytest.approx(1.0)
    assert attention_distance([BlockLayout.from_dense(torch.zeros(1, 4, 4), 4)], 16) == 0.0


def test_refuses_another_length():
    layout = BlockLayout.from_dense(torch.eye(4)[None], 4)
    with pytest.raises(ValueError, match="32 queries and 32 keys need 8 x 8"):
        attention_distance([layout], 32)
