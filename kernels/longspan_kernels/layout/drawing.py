"""Pictures of a layout, for the terminal and with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longspan_kernels.layout.csr import BlockCSR, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def kept_share(layout: BlockCSR, head: int, rows: int, columns: int) -> Tensor:
    """Return the share of kept blocks in each cell of a raster over one head: float64 ``[rows, columns]``.

    Raises:
        ValueError: the layout has no such head.

    """
    if not 0 <= head < layout.heads:
        raise ValueError(f"head must lie in [0, {layout.heads}), got {head}")
    offsets = layout.row_offsets[int(layout.head_layouts[head])]
    start, stop = int(offsets[0]), int(offsets[-1])
    block_row = rows_of(offsets[None] - start)
    block_column = layout.columns[start:stop].long()
    cell = block_row * rows // layout.q_blocks * columns + block_column * columns // layout.k_blocks
    kept = torch.bincount(cell, minlength=rows * columns).reshape(rows, columns).double()
    row_size = torch.bincount(torch.arange(layout.q_blocks) * rows // layout.q_blocks, minlength=rows)
    column_size = torch.bincount(
        torch.arange(layout.k_blocks) * columns // layout.k_blocks, minlength=columns
    )
    return kept / (row_size[:, None] * column_size[None, :])


def draw(layout: BlockCSR, head: int = 0, width: int = 64) -> str:
    """Draw one head in half-block characters, a cell for each block or, above ``width`` blocks, for several.

    A cell is filled where any of its blocks is kept, so that thin lines stay visible.

    Raises:
        ValueError: ``width`` is under 1, or the layout has no such head.

    """
    if width < 1:
        raise ValueError(f"width must be at least 1 character, got {width}")
    if layout.q_blocks == 0 or layout.k_blocks == 0:
        return ""
    columns = min(width, layout.k_blocks)
    rows = min(layout.q_blocks, max(1, round(layout.q_blocks * columns / layout.k_blocks)))
    filled = (kept_share(layout, head, rows, columns) > 0).tolist()
    filled.extend([[False] * columns] * (rows % 2))
    glyph = {(False, False): "·", (True, False): "▀", (False, True): "▄", (True, True): "█"}
    return "\n".join(
        "".join(glyph[upper, lower] for upper, lower in zip(filled[r], filled[r + 1], strict=True))
        for r in range(0, len(filled), 2)
    )


def plot(
    layout: BlockCSR,
    ax: Axes | None = None,
    head: int = 0,
    *,
    cells: int = 512,
    color: str = "#1f4e79",
    **style: Any,
) -> Axes:
    """Draw one head with matplotlib.

    Args:
        layout: the layout.
        ax: axes to draw into; new ones if not given.
        head: which head.
        cells: largest number of cells a side; above it a cell shows the kept share of several blocks.
        color: colour of a kept block.
        style: keyword arguments for ``Axes.imshow``.

    Raises:
        ValueError: the layout has no such head, or ``cells`` is under 1.

    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap

    if cells < 1:
        raise ValueError(f"cells must be at least 1, got {cells}")
    if ax is None:
        ax = plt.figure(figsize=(4, 4)).add_subplot()
    share = kept_share(layout, head, min(cells, layout.q_blocks), min(cells, layout.k_blocks))
    options = {
        "cmap": LinearSegmentedColormap.from_list("kept", ["#f4f1ea", color]),
        "vmin": 0.0,
        "vmax": 1.0,
        "interpolation": "nearest",
        "extent": (0, layout.k_blocks, layout.q_blocks, 0),
    }
    # The square root keeps a single kept block of a large cell visible.
    ax.imshow(share.sqrt().numpy(), **(options | style))
    ax.set_xlabel("key block")
    ax.set_ylabel("query block")
    return ax
