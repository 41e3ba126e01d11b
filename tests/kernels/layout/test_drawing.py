"""Pictures of layouts: golden text, and what matplotlib is given."""

from __future__ import annotations

import matplotlib
import pytest
import torch

from longspan_kernels.layout import BlockLayout
from longspan_kernels.layout.drawing import kept_share

STAIRS = BlockLayout.from_dense(torch.stack([torch.ones(5, 5).tril(), torch.eye(5)]), 4)


@pytest.fixture
def pyplot():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_draw_golden():
    assert STAIRS.draw() == "█▄···\n███▄·\n▀▀▀▀▀"
    assert STAIRS.draw(head=1) == "▀▄···\n··▀▄·\n····▀"


def test_a_wide_layout_is_drawn_in_coarser_cells_and_thin_lines_stay():
    dense = torch.zeros(1, 100, 100)
    dense[0, 57, :] = 1
    lines = BlockLayout.from_dense(dense, 4).draw(width=10).split("\n")
    assert [len(line) for line in lines] == [10] * 5
    assert [set(line) for line in lines] == [{"·"}, {"·"}, {"▄"}, {"·"}, {"·"}]


def test_the_lower_end_of_a_layout_keeps_its_proportions():
    assert BlockLayout.from_dense(torch.ones(1, 1, 64), 4).draw(width=8) == "▀" * 8
    assert BlockLayout.from_dense(torch.ones(1, 32, 64), 4).draw(width=8) == "\n".join(["█" * 8] * 2)


def test_empty_rectangle():
    assert BlockLayout.from_dense(torch.ones(1, 0, 3), 4).draw() == ""


def test_kept_share_of_uneven_cells():
    share = kept_share(STAIRS, 0, 2, 2)
    expected = torch.zeros(2, 2, dtype=torch.float64)
    sizes = torch.zeros(2, 2, dtype=torch.float64)
    for r in range(5):
        for c in range(5):
            expected[r * 2 // 5, c * 2 // 5] += c <= r
            sizes[r * 2 // 5, c * 2 // 5] += 1
    assert torch.equal(share, expected / sizes)


def test_plot_shows_each_block(pyplot):
    ax = STAIRS.plot(head=1)
    (image,) = ax.images
    assert image.get_array().tolist() == torch.eye(5).tolist()
    assert tuple(image.get_extent()) == (0, 5, 5, 0)  # row 0 on top
    assert ax.get_xlabel() == "key block"
    assert ax.get_ylabel() == "query block"
    ax.figure.canvas.draw()


def test_plot_draws_into_given_axes_with_a_style_and_coarse_cells(pyplot):
    figure, axes = pyplot.subplots()
    assert STAIRS.plot(axes, cells=1, alpha=0.5) is axes
    (image,) = axes.images
    assert image.get_alpha() == 0.5
    assert image.get_array()[0, 0] == pytest.approx((15 / 25) ** 0.5)
    figure.canvas.draw()


@pytest.mark.parametrize("head", [-1, 2])
def test_heads_that_are_not_there(head, pyplot):
    with pytest.raises(ValueError, match=rf"head must lie in \[0, 2\), got {head}"):
        STAIRS.draw(head=head)
    with pytest.raises(ValueError, match=rf"head must lie in \[0, 2\), got {head}"):
        STAIRS.plot(head=head)


def test_bad_sizes(pyplot):
    with pytest.raises(ValueError, match="width must be at least 1 character, got 0"):
        STAIRS.draw(width=0)
    with pytest.raises(ValueError, match="cells must be at least 1, got 0"):
        STAIRS.plot(cells=0)
