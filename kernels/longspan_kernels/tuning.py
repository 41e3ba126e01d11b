"""Tile sizes, pipeline depths and warps of the kernels, by device, dtype and head dimension."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Size:
    """How one kernel is launched.

    Attributes:
        q_tile: queries a tile or step.
        k_tile: keys a step or tile.
        stages: depth of the software pipeline.
        warps: warps a program.
        registers: most registers a thread, None for no bound.

    """

    q_tile: int
    k_tile: int
    stages: int
    warps: int
    registers: int | None = None

    def launch(self) -> dict[str, Any]:
        """Keyword arguments of a Triton launch."""
        options: dict[str, Any] = {"num_stages": self.stages, "num_warps": self.warps}
        if self.registers is not None:
            options["maxnreg"] = self.registers
        return options


@dataclass(frozen=True)
class Sizes:
    """The sizes of all kernels for one kind of call."""

    forward: Size
    queries: Size
    keys: Size
    bias: Size


# Chosen by a sweep on an H100 in bfloat16, at 16,384 tokens, on BigBird and LocalSlidingWindow; the sweep is
# not recorded, so nothing here is claimed to be the best.
# (largest head dimension, whether steps gather blocks smaller than the tile) -> sizes.
_HOPPER = {
    (64, False): Sizes(Size(64, 64, 3, 4), Size(64, 64, 3, 4), Size(64, 64, 2, 4, 168), Size(32, 32, 1, 4)),
    (64, True): Sizes(
        Size(64, 64, 2, 4, 128), Size(64, 64, 2, 4, 128), Size(64, 64, 1, 4, 168), Size(32, 32, 1, 4)
    ),
    (128, False): Sizes(Size(64, 64, 3, 4), Size(64, 64, 2, 4), Size(32, 64, 3, 4), Size(32, 32, 1, 4)),
    (128, True): Sizes(Size(64, 64, 3, 4), Size(64, 64, 2, 4), Size(32, 64, 3, 4), Size(32, 32, 1, 4)),
    (256, False): Sizes(Size(64, 32, 2, 4), Size(64, 32, 2, 8), Size(64, 32, 1, 8), Size(32, 32, 1, 4)),
    (256, True): Sizes(Size(64, 32, 2, 4), Size(64, 32, 2, 8), Size(64, 32, 1, 8), Size(32, 32, 1, 4)),
}
# Products of float32 run on the ordinary units: small tiles keep them in registers.
_FLOAT32 = Sizes(*[Size(32, 32, 1, 4)] * 4)


@functools.cache
def sizes_for(dtype: torch.dtype, dim: int, gathered: bool) -> Sizes:
    """Give the sizes for a dtype, the larger head dimension, and whether a step gathers several blocks."""
    if dtype == torch.float32:
        return _FLOAT32
    return _HOPPER[next(limit for limit in (64, 128, 256) if dim <= limit), gathered]
