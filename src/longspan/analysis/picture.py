"""Pictures of patterns with matplotlib; nothing here touches pyplot's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longspan_kernels import drawing
from longspan_kernels.layout import BlockLayout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More panels than this say no more at a glance.
MAX_PANELS = 12
_PANELS_A_ROW = 4


def draw_pattern(layouts: BlockLayout | Sequence[BlockLayout], title: str = "") -> Figure:
    """Draw a pattern, or the patterns of a model's layers: a panel for each distinct layout of a head.

    A panel shows query blocks downwards and key blocks to the right; of large layouts a cell stands for
    several blocks and is the darker the more of them are kept. Layers and heads that share a layout share a
    panel, which names them. Panels beyond the first twelve are not drawn; the title says how many.

    Args:
        layouts: one layout for all layers, or one for each layer.
        title: written above the panels.

    Returns:
        A figure that belongs to no window: save it with ``figure.savefig(path)``; it needs no closing.

    Raises:
        ValueError: the sequence is empty.

    """
    from matplotlib.figure import Figure

    per_layer = None if isinstance(layouts, BlockLayout) else list(layouts)
    panels = _panels([layouts] if isinstance(layouts, BlockLayout) else list(layouts), per_layer is not None)
    shown = panels[:MAX_PANELS]
    across = min(len(shown), _PANELS_A_ROW)
    down = -(-len(shown) // across)
    figure = Figure(figsize=(max(4.4, 3.1 * across), 3.5 * down + 0.4), layout="constrained")
    for number, (label, layout, head) in enumerate(shown):
        ax = figure.add_subplot(down, across, number + 1)
        drawing.plot(layout, ax, head)
        ax.tick_params(labelsize=7)
        ax.set_xlabel("key block", fontsize=8)
        ax.set_ylabel("query block", fontsize=8)
        offsets = layout.row_offsets[int(layout.head_layouts[head])]
        kept = int(offsets[-1] - offsets[0]) / max(1, layout.q_blocks * layout.k_blocks)
        lines = [*([label] if label else []), f"{kept:.1%} of the blocks of {layout.block}"]
        ax.set_title("\n".join(lines), fontsize=9)
    left_out = f" ({len(panels) - len(shown)} more not shown)" if len(panels) > len(shown) else ""
    if title or left_out:
        figure.suptitle(f"{title}{left_out}".strip(), fontsize=11)
    return figure


def _panels(layouts: list[BlockLayout], many: bool) -> list[tuple[str, BlockLayout, int]]:
    """Label, layout and head of each panel, in the order in which they first occur."""
    if not layouts:
        raise ValueError("layouts must hold at least one BlockLayout, got none")
    layers: dict[BlockLayout, list[int]] = {}
    for number, layout in enumerate(layouts):
        layers.setdefault(layout, []).append(number)
    panels = []
    for layout, numbers in layers.items():
        of_heads = layout.head_layouts.tolist()
        for distinct in dict.fromkeys(of_heads):
            heads = [head for head, one in enumerate(of_heads) if one == distinct]
            parts = []
            if many and len(layers) > 1:
                parts.append(("layer " if len(numbers) == 1 else "layers ") + ranges(numbers))
            if layout.layouts > 1:
                parts.append(("head " if len(heads) == 1 else "heads ") + ranges(heads))
            panels.append((", ".join(parts), layout, heads[0]))
    return panels


def ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers with their runs drawn together: ``0–2, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in runs)
