"""Tiles of sub-blocks: neighbours share a tile, but those that keep far more than others have separate tiles.

A tile visits every block that any of its sub-blocks keeps. A global sub-block among local ones would make
the tile visit all blocks, most of them without use to its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A sub-block has a separate tile if it keeps more than this many times the median of its layout (at least 2).
_APART_FACTOR = 4


@dataclass(frozen=True, eq=False)
class Tiling:
    """The tiles of all layouts, one layout after another.

    Attributes:
        tile: int64 ``[layouts * sub-blocks]``, the tile of each sub-block.
        slot: int64 ``[layouts * sub-blocks]``, the slot of each sub-block in that tile.
        tile_blocks: int64 ``[tiles, slots]``, the sub-blocks of each tile; an empty slot holds the number of
            sub-blocks, which is one past the last.
        per_layout: number of tiles of a layout; some may have no sub-blocks.

    """

    tile: Tensor
    slot: Tensor
    tile_blocks: Tensor
    per_layout: int

    @property
    def counts(self) -> Tensor:
        """Number of sub-blocks of each tile, int64 ``[tiles]``."""
        return self.tile_blocks.new_zeros(self.tile_blocks.shape[0]).index_add_(
            0, self.tile, torch.ones_like(self.tile)
        )


def make_tiling(kept: Tensor, layouts: int, num_blocks: int, slots: int) -> Tiling:
    """Assign each sub-block a tile and a slot in it.

    Args:
        kept: int64 ``[kept pairs]``, ``layout * num_blocks + sub-block`` of the side that tiles cover.
        layouts: number of distinct layouts.
        num_blocks: sub-blocks of that side, the same in each layout.
        slots: sub-blocks a tile.

    """
    number = torch.arange(num_blocks).expand(layouts, -1)
    tile, slot = number // slots, number % slots
    per_layout = -(-num_blocks // slots)
    if slots > 1 and num_blocks:
        counts = torch.bincount(kept, minlength=layouts * num_blocks).view(layouts, num_blocks)
        usual = counts.median(1, keepdim=True).values.clamp(min=2)
        apart = counts > _APART_FACTOR * usual
        rank = apart.cumsum(1) - 1
        tile = torch.where(apart, per_layout + rank // slots, tile)
        slot = torch.where(apart, rank % slots, slot)
        per_layout += -(-int(apart.sum(1).max()) // slots)
    tile = (tile + torch.arange(layouts)[:, None] * per_layout).reshape(-1)
    slot = slot.reshape(-1)
    tile_blocks = torch.full((layouts * per_layout, slots), num_blocks)
    tile_blocks[tile, slot] = number.reshape(-1)
    return Tiling(tile, slot, tile_blocks, per_layout)
