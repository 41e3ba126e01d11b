"""The closed form of `kept_pairs` against plain loops."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels import BlockLayout
from longspan_kernels.layout.pair_counts import kept_pairs

BOUND = st.none() | st.integers(0, 12)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 5), st.booleans(), st.integers(1, 12), st.integers(1, 12), BOUND, BOUND)
def test_pairs_inside_a_window(data, block, causal, q_len, k_len, left, right):
    lead = data.draw(st.integers(0, block - 1))
    shape = (2, -(-(lead + q_len) // block), -(-k_len // block))
    seed = data.draw(st.integers(0, 2**32))
    dense = torch.randint(2, shape, generator=torch.Generator().manual_seed(seed))
    pairs = 0
    for h, i, j in itertools.product(range(2), range(q_len), range(k_len)):
        distance = i + k_len - q_len - j
        seen = (not causal or distance >= 0) and (left is None or distance <= left)
        seen = seen and (right is None or -distance <= right)
        pairs += seen and int(dense[h, (i + lead) // block, j // block])
    layout = BlockLayout.from_dense(dense, block, causal=causal, lead=lead)
    assert kept_pairs(layout, q_len, k_len, left, right) == pairs
