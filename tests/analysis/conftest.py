"""Random layouts, and reach token by token from dense boolean matrices."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from longspan_kernels.layout import BlockLayout


def random_layout(
    blocks: int, block: int, heads: int, density: float, seed: int, causal: bool
) -> BlockLayout:
    """Any blocks, above the diagonal too, some rows empty."""
    kept = torch.rand(heads, blocks, blocks, generator=torch.Generator().manual_seed(seed)) < density
    return BlockLayout.from_dense(kept, block, causal=causal)


@st.composite
def models(draw, max_len: int = 40):
    """Layouts of 1 … 4 layers of one length (None: dense), the length, and what `causal` is asked for."""
    seq_len = draw(st.integers(1, max_len))
    unit = draw(st.integers(1, 5))
    causal = draw(st.sampled_from([None, True, False]))
    layouts = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 7)) == 0:
            layouts.append(None)
            continue
        block = unit * draw(st.sampled_from([1, 2, 3]))
        layouts.append(
            random_layout(
                -(-seq_len // block),
                block,
                draw(st.integers(1, 2)),
                draw(st.sampled_from([0.05, 0.2, 0.5, 1.0])),
                draw(st.integers(0, 999)),
                draw(st.booleans()),
            )
        )
    if causal is None and all(layout is None for layout in layouts):
        causal = True
    return layouts, seq_len, causal


def attended(layout: BlockLayout, seq_len: int, causal: bool) -> np.ndarray:
    """bool [heads, queries, keys]: the pairs of tokens that a layer attends."""
    dense = layout.to_dense().bool()
    tokens = dense.repeat_interleave(layout.block, 1).repeat_interleave(layout.block, 2)
    tokens = tokens[:, :seq_len, :seq_len].numpy()
    return np.tril(tokens) if causal else tokens


def token_reach(layouts, seq_len: int, causal) -> list[np.ndarray]:
    """bool [tokens, sources] after 0, 1, … layers, by boolean matrix products."""
    said = [layout.causal for layout in layouts if layout is not None]
    reached = [np.eye(seq_len, dtype=bool)]
    for layout in layouts:
        if layout is None:
            dense_causal = all(said) if causal is None else causal
            pairs = np.ones((seq_len, seq_len), dtype=bool)
            pairs = np.tril(pairs) if dense_causal else pairs
        else:
            pairs = attended(layout, seq_len, layout.causal if causal is None else causal).any(0)
        reached.append(reached[-1] | (pairs.astype(np.float32) @ reached[-1].astype(np.float32) > 0))
    return reached


def possible_pairs(layouts, seq_len: int, causal) -> np.ndarray:
    said = [layout.causal for layout in layouts if layout is not None]
    pairs = np.ones((seq_len, seq_len), dtype=bool)
    return np.tril(pairs) if (all(said) if causal is None else causal) else pairs


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    return SimpleNamespace(
        attended=attended,
        models=models,
        possible_pairs=possible_pairs,
        random_layout=random_layout,
        token_reach=token_reach,
    )
