"""What the kernels of a kind of call share: shapes, sizes, schedules, grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from longspan_kernels.arguments import Arguments
from longspan_kernels.layout.csr import BlockCSR
from longspan_kernels.triton_backend.kernel_configs import ConfigChoice, KernelConfig
from longspan_kernels.triton_backend.kernels.structs import Shape
from longspan_kernels.triton_backend.launch import Tiles, padded, rising
from longspan_kernels.triton_backend.schedule import TileSchedule, schedule_for

# Rows of a split tile that one program adds up; no tile has fewer.
SLICE = 16


@dataclass(frozen=True)
class Call:
    """What the kernels of a kind of call have in common: shapes, no tensor and no layout.

    What is prepared outlives the call, and must not keep alive what its caller lets go.
    """

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    block: int
    lead: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, layout: BlockCSR) -> Call:
        """Describe a call."""
        shapes = tuple(q.shape), tuple(k.shape), tuple(v.shape)
        return cls(*shapes, q.dtype, q.device, layout.block, layout.query_offset)

    @property
    def batch(self) -> int:
        """Number of batch entries."""
        return self.q[0]

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.q[1]

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.q[1] // self.k[1]

    def sub(self, size: KernelConfig) -> int:
        """Tokens of the sub-blocks that a kernel gathers."""
        return min(self.block, size.q_tile, size.k_tile)

    def schedule(
        self, arguments: Arguments, kernel: str, choice: ConfigChoice, *, by_keys: bool, split: bool = True
    ) -> tuple[KernelConfig, TileSchedule]:
        """Decide between the ordinary and the one-block configuration of a kernel, and make its schedule."""

        def make(size: KernelConfig) -> tuple[KernelConfig, TileSchedule]:
            return size, schedule_for(
                arguments.layout, self.q[2], self.k[2], arguments.left, arguments.right, self.device,
                q_tile=size.q_tile, k_tile=size.k_tile, by_keys=by_keys, split=split,
            )  # fmt: skip

        chosen = make(getattr(choice.configs, kernel))
        # Compiled by Triton 3.6 for an H100, tiles of one block multiply the wrong weights and values where
        # a padding mask, a window and dropout meet (the log-sum-exp is right, and so is all under the
        # interpreter); what nothing is added to or dropped from is tested throughout.
        plain = not arguments.masked and not arguments.dropout_p
        one_block = choice.one_block if plain else None
        size = getattr(one_block, kernel, None)
        if one_block is not None and size is not None and chosen[1].occupancy < one_block.max_occupancy:
            return make(size)
        return chosen

    def shape(
        self, arguments: Arguments, size: KernelConfig, schedule: TileSchedule, *, by_keys: bool = False
    ) -> Shape:
        """Give the sizes that the compiler knows; ``by_keys`` where tiles are of keys."""
        dim, value_dim = self.q[3], self.v[3]
        sub = self.sub(size)
        ragged = (self.lead > 0 or self.q[2] % sub != 0) if by_keys else self.k[2] % sub != 0
        scale_in_exp2 = rising(arguments.scale) and not arguments.masked
        numbers = (
            dim, padded(dim), value_dim, padded(value_dim), size.q_tile, size.k_tile, sub, self.group,
            schedule.shared, ragged,
        )  # fmt: skip
        steps = tuple(map(tl.constexpr, (True, schedule.has_partial_steps, schedule.has_token_mask_steps)))
        return Shape(*[*map(tl.constexpr, numbers), steps, tl.constexpr(scale_in_exp2), tl.constexpr("ieee")])

    def programs(self, table: Tensor, schedule: TileSchedule) -> tuple[int]:
        """Grid of a work list: every batch entry runs it, and every head if they share it."""
        return (table.shape[0] * self.runs(schedule),)

    def slices(self, schedule: TileSchedule, tile: int) -> tuple[int, int]:
        """Grid of what adds segments up: split tiles, and slices of their rows."""
        return (*self.programs(schedule.split_tiles, schedule), tile // SLICE)

    def runs(self, schedule: TileSchedule) -> int:
        """How often a work list is run."""
        return self.batch * self.heads if schedule.shared else self.batch

    def lengths(self) -> tuple[int, ...]:
        """Give what the kernels ask of lengths."""
        return self.heads, self.q[2], self.k[2], self.lead

    def tables(self, schedule: TileSchedule) -> tuple[Any, ...]:
        """Give the tables of a schedule and how the grid runs them, as the kernels take them."""
        num_long = schedule.num_long
        return (
            schedule.step_blocks, schedule.pair_bits, schedule.tile_blocks, schedule.work_tiles, num_long,
            schedule.work_tiles.shape[0] - num_long, num_long * self.runs(schedule), schedule.num_partials,
        )  # fmt: skip

    def partials(self, schedule: TileSchedule, stand_in: Tensor, tile: int, *width: int) -> Tensor:
        """Room for what the segments of split tiles compute, float32; where none is split, the stand-in."""
        if not schedule.num_partials:
            return stand_in
        shape = (self.batch, self.heads, schedule.num_partials, tile, *width)
        return torch.empty(shape, dtype=torch.float32, device=self.device)


def tile_of(tiles: Tiles | None, x: Tensor) -> Any:
    """Describe a tensor to the bulk copy engine, if it fetches that."""
    return None if tiles is None else tiles.of(x)
