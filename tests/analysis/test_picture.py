"""The figures show the layouts they were given, once each, and name whose they are."""

import numpy as np
import pytest
import torch

from longspan.analysis.picture import MAX_PANELS, draw_pattern, ranges
from longspan.sparsity import BigBirdSparsityConfig, DenseSparsityConfig, LocalSlidingWindowSparsityConfig
from longspan_kernels.layout import BlockLayout

WINDOW = LocalSlidingWindowSparsityConfig(num_heads=2, block=16).layout(160)
DENSE = DenseSparsityConfig(num_heads=2, block=16).layout(160)


def cells(ax) -> np.ndarray:
    return np.asarray(ax.get_images()[0].get_array())


def test_one_layout_is_one_panel_that_shows_its_blocks():
    (ax,) = draw_pattern(WINDOW, title="window").axes
    assert np.array_equal(cells(ax), WINDOW.to_dense()[0].numpy())
    assert ax.get_title() == f"{WINDOW.density:.1%} of the blocks of 16"


def test_layers_that_share_a_layout_share_a_panel():
    figure = draw_pattern([WINDOW, WINDOW, DENSE, WINDOW], title="mixture")
    assert figure.get_suptitle() == "mixture"
    assert [ax.get_title().splitlines()[0] for ax in figure.axes] == ["layers 0–1, 3", "layer 2"]
    assert np.array_equal(cells(figure.axes[1]), np.ones((10, 10)))
    assert len(draw_pattern([WINDOW] * 5).axes) == 1


def test_each_distinct_head_has_a_panel():
    layout = BigBirdSparsityConfig(num_heads=3, block=16, different_layout_per_head=True).layout(320)
    figure = draw_pattern(layout)
    assert [ax.get_title().splitlines()[0] for ax in figure.axes] == ["head 0", "head 1", "head 2"]
    for head, ax in enumerate(figure.axes):
        assert np.array_equal(cells(ax), layout.to_dense()[head].numpy())


def test_more_panels_than_can_be_seen_are_counted():
    random = torch.rand(MAX_PANELS + 3, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.4
    figure = draw_pattern(BlockLayout.from_dense(random, block=4), title="many")
    assert len(figure.axes) == MAX_PANELS
    assert figure.get_suptitle() == "many (3 more not shown)"


def test_no_layout_is_refused():
    with pytest.raises(ValueError, match="layouts must hold at least one BlockLayout"):
        draw_pattern([])


def test_ranges():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
