"""The figures show the layouts they were given, once each, and name whose they are."""

import numpy as np
import pytest
import torch

from longspan.analysis.picture import MAX_PANELS, _some_layers, draw_pattern, draw_reach, ranges
from longspan.analysis.reach import reach
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


def test_the_picture_of_reach_shows_the_layers_and_their_shares():
    layouts = [WINDOW, DENSE, WINDOW]
    found = reach(layouts, 160)
    figure = draw_reach(layouts, found, title="mixture")
    drawn = [ax for ax in figure.axes if ax.get_images()]
    titles = [ax.get_title().splitlines()[0] for ax in drawn]
    shares = [f"after {n} layer{'s' if n > 1 else ''}: {found.share[n]:.1%} reached" for n in (1, 2, 3)]
    assert titles == ["layers 0, 2", "layer 1", *shares]
    first = cells(drawn[2])
    assert np.array_equal(first > 0, WINDOW.to_dense()[0].numpy() > 0)
    by_distance, by_position = (ax for ax in figure.axes if ax.get_lines())
    for layer, line in enumerate(by_position.get_lines(), start=1):
        assert line.get_ydata() == pytest.approx(100 * found.by_position()[layer])
    for layer, line in enumerate(by_distance.get_lines(), start=1):
        assert line.get_ydata() == pytest.approx(100 * found.by_distance_bins()[1][layer, 1:])


def test_rasters_count_blocks():
    layout = BigBirdSparsityConfig(num_heads=1, block=4).layout(80)
    found = reach([layout], 80)
    kept = (layout.to_dense()[0].bool() | torch.eye(20).bool()).double()
    assert np.array_equal(found.raster(1), kept.numpy())
    coarse = kept.view(5, 4, 5, 4).mean((1, 3))
    assert found.raster(1, cells=5) == pytest.approx(coarse.numpy())
    sampled = reach([layout], 80, max_sources=3, sample=3)
    columns = np.isin(np.arange(20), sampled.sources)
    assert np.array_equal(sampled.raster(1)[:, columns], kept.numpy()[:, columns])
    assert np.isnan(sampled.raster(1)[:, ~columns]).all()


@pytest.mark.parametrize(("layers", "most"), [(1, 4), (4, 4), (12, 4), (100, 8), (9, 8)])
def test_some_layers_hold_the_first_and_the_last(layers, most):
    shown = _some_layers(layers, most)
    assert shown == sorted(set(shown))
    assert (shown[0], shown[-1], len(shown)) == (1, layers, min(layers, most))
