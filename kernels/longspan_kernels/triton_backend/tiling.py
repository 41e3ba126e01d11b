"""Which sub-blocks own a tile together: neighbours, but those that keep far more than others by themselves.

All sub-blocks of a tile walk through whatever one of them keeps. A global one amid local ones would have its
neighbours walk through everything, to no use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A sub-block is apart if it keeps so many times what the median one of its layout keeps (at least 2).
_APART = 4


@dataclass(frozen=True, eq=False)
class Tiling:
    """The tiles of all layouts, one layout after another.

    Attributes:
        tile: int64 ``[layouts * sub-blocks]``, the tile of each sub-block.
        place: int64, likewise, its place in that tile.
        own: int64 ``[tiles, rows]``, the sub-blocks of each tile; a place left over names one behind the end.
        per_layout: number of tiles of a layout, some of which may be left without sub-blocks.

    """

    tile: Tensor
    place: Tensor
    own: Tensor
    per_layout: int

    @property
    def present(self) -> Tensor:
        """How many sub-blocks each tile has, int64 ``[tiles]``."""
        return self.own.new_zeros(self.own.shape[0]).index_add_(0, self.tile, torch.ones_like(self.tile))


def make_tiling(kept: Tensor, layouts: int, count: int, rows: int) -> Tiling:
    """Give each sub-block a tile.

    Args:
        kept: int64, for each kept pair ``layout * count + sub-block``, the one that owns.
        layouts: number of distinct layouts.
        count: sub-blocks a layout.
        rows: sub-blocks a tile.

    """
    number = torch.arange(count).expand(layouts, -1)
    tile, place = number // rows, number % rows
    per_layout = -(-count // rows)
    if rows > 1 and count:
        counts = torch.bincount(kept, minlength=layouts * count).view(layouts, count)
        usual = counts.median(1, keepdim=True).values.clamp(min=2)
        apart = counts > _APART * usual
        rank = apart.cumsum(1) - 1
        tile = torch.where(apart, per_layout + rank // rows, tile)
        place = torch.where(apart, rank % rows, place)
        per_layout += -(-int(apart.sum(1).max()) // rows)
    tile = (tile + torch.arange(layouts)[:, None] * per_layout).reshape(-1)
    place = place.reshape(-1)
    own = torch.full((layouts * per_layout, rows), count)
    own[tile, place] = number.reshape(-1)
    return Tiling(tile, place, own, per_layout)
