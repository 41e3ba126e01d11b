"""Pictures of patterns and reach with matplotlib, without the state of pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from longspan.analysis.reach import Reach
from longspan_kernels.layout import BlockLayout, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The most panels of a figure.
MAX_PANELS = 12
_PANELS_PER_ROW = 4


def draw_pattern(layouts: BlockLayout | Sequence[BlockLayout], title: str = "") -> Figure:
    """Draw a pattern, or the patterns of a model's layers: a panel for each distinct layout of a head.

    A panel shows query blocks downwards and key blocks to the right; for large layouts a cell stands for
    several blocks, and its darkness for the share that is kept. Layers and heads that share a layout share a
    panel, which lists them. Only the first twelve panels are drawn; the title counts the others.

    Args:
        layouts: one layout for all layers, or one per layer.
        title: title above the panels.

    Returns:
        A figure without a window; save it with ``figure.savefig(path)``. It needs no closing.

    Raises:
        ValueError: the sequence is empty.

    """
    from matplotlib.figure import Figure

    per_layer = None if isinstance(layouts, BlockLayout) else list(layouts)
    panels = _panels([layouts] if isinstance(layouts, BlockLayout) else list(layouts), per_layer is not None)
    shown = panels[:MAX_PANELS]
    across = min(len(shown), _PANELS_PER_ROW)
    down = -(-len(shown) // across)
    figure = Figure(figsize=(max(4.4, 3.1 * across), 3.5 * down + 0.4), layout="constrained")
    for number, panel in enumerate(shown):
        _draw_panel(figure.add_subplot(down, across, number + 1), *panel)
    left_out = f" ({len(panels) - len(shown)} more not shown)" if len(panels) > len(shown) else ""
    if title or left_out:
        figure.suptitle(f"{title}{left_out}".strip(), fontsize=11)
    return figure


def draw_reach(layouts: Sequence[BlockLayout | None], reach: Reach, title: str = "") -> Figure:
    """Draw the patterns of a model and their reach by layer, by distance and by position.

    The first row has at most four panels of `draw_pattern`. The second row shows the pairs of blocks with a
    path after some of the layers. The last row shows shares of the possible pairs, one line per layer.

    Args:
        layouts: one per layer; None for a dense layer, which has no panel.
        reach: reach of these layers.
        title: title of the figure.

    Returns:
        A figure without a window.

    """
    from matplotlib.figure import Figure

    kept = [layout for layout in layouts if layout is not None]
    panels = _panels(kept, many=True)[:_PANELS_PER_ROW] if kept else []
    # A single panel shares its row with those of reach.
    shown = _some_layers(reach.layers, _PANELS_PER_ROW - (len(panels) == 1))
    above = len(panels) > 1
    figure = Figure(figsize=(12.4, 10.4 if above else 7.0), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    parts: Any = figure.subfigures(2 + above, 1)
    axes = _row_of_axes(parts[0], len(panels) + (0 if above else len(shown)))
    for panel in panels:
        _draw_panel(axes.pop(0), *panel)
    if above:
        axes = _row_of_axes(parts[1], len(shown))
    for layer in shown:
        ax = axes.pop(0)
        ax.imshow(
            np.sqrt(reach.raster(layer)),
            cmap=_colours("#7a2e0e"),
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(0, reach.blocks, reach.blocks, 0),
        )
        ax.set_title(f"after {_layers(layer)}: {reach.share[layer]:.1%} reached", fontsize=9)
        _label(ax, f"source, block of {reach.block}", "token's block")
    _draw_lines(parts[-1], reach)
    return figure


def _draw_lines(part: Any, reach: Reach) -> None:
    """Draw shares by distance and by position, one line per layer."""
    from matplotlib import colormaps

    by_distance, by_position = part.subplots(1, 2)
    shown = _some_layers(reach.layers, 8)
    edges, shares = reach.by_distance_bins()
    # Middles of the bins on a logarithmic axis; distance 0 is the token itself.
    middles = np.sqrt(edges[1:-1] * (edges[2:] - 1.0))
    position = (np.arange(reach.blocks) + 0.5) * reach.block
    for number, layer in enumerate(shown):
        style = {
            "color": colormaps["viridis"](0.9 * number / max(1, len(shown) - 1)),
            "label": _layers(layer),
            "linewidth": 1.4,
        }
        by_distance.plot(middles, 100 * shares[layer, 1:], marker=".", **style)
        by_position.plot(position, 100 * reach.by_position()[layer], **style)
    by_distance.set_xscale("log", base=2)
    for ax, name in (
        (by_distance, "distance in tokens"),
        (by_position, "position of the token"),
    ):
        ax.set_ylim(-3, 103)
        ax.grid(color="#dddddd", linewidth=0.6)
        _label(ax, name, "% of the possible pairs reached")
    by_position.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_panel(ax: Axes, label: str, layout: BlockLayout, head: int) -> None:
    drawing.plot(layout, ax, head)
    _label(ax, "key block", "query block")
    offsets = layout.row_offsets[int(layout.head_layouts[head])]
    kept = int(offsets[-1] - offsets[0]) / max(1, layout.q_blocks * layout.k_blocks)
    lines = [*([label] if label else []), f"{kept:.1%} of the blocks of {layout.block}"]
    ax.set_title("\n".join(lines), fontsize=9)


def _label(ax: Axes, x: str, y: str) -> None:
    ax.tick_params(labelsize=7)
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)


def _row_of_axes(part: Any, wanted: int) -> list[Axes]:
    """Return axes in one row; unused ones stay blank, so that all panels have the same size."""
    axes = list(np.atleast_1d(part.subplots(1, _PANELS_PER_ROW)))
    for ax in axes[wanted:]:
        ax.set_axis_off()
    return axes


def _layers(number: int) -> str:
    return f"{number} layer" if number == 1 else f"{number} layers"


def _colours(dark: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("reached", ["#f4f1ea", dark]).with_extremes(bad="#ffffff")


def _some_layers(layers: int, most: int) -> list[int]:
    """Return at most ``most`` of the layers 1 … ``layers``: more of the first ones, and the last."""
    if layers <= most:
        return list(range(1, layers + 1))
    spread = np.unique(np.round(np.geomspace(1, layers, most)).astype(int)).tolist()
    missing = [layer for layer in range(1, layers + 1) if layer not in spread]
    return sorted(spread + missing[: most - len(spread)])


def _panels(layouts: list[BlockLayout], many: bool) -> list[tuple[str, BlockLayout, int]]:
    """Return label, layout and head of each panel, in order of first occurrence."""
    if not layouts:
        raise ValueError("layouts must hold at least one BlockLayout, got none")
    layers: dict[BlockLayout, list[int]] = {}
    for number, layout in enumerate(layouts):
        layers.setdefault(layout, []).append(number)
    panels = []
    for layout, numbers in layers.items():
        head_layouts = layout.head_layouts.tolist()
        for distinct in dict.fromkeys(head_layouts):
            heads = [head for head, one in enumerate(head_layouts) if one == distinct]
            parts = []
            if many and len(layers) > 1:
                parts.append(("layer " if len(numbers) == 1 else "layers ") + ranges(numbers))
            if layout.layouts > 1:
                parts.append(("head " if len(heads) == 1 else "heads ") + ranges(heads))
            panels.append((", ".join(parts), layout, heads[0]))
    return panels


def ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers with ranges for runs: ``0–2, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in runs)
