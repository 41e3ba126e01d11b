"""What the kernels of a call are launched with: shapes, schedules, grids, struct arguments, compiled kernels.

At every launch Triton looks up the compiled kernel that its arguments need; with some forty arguments that
takes longer than many of our kernels run. A `Launch` does so once, for all calls of one `cache_key`
(`backend.py`).

Shapes in this file: B batch, H query heads, K key heads, L queries, M keys, D width of q and k, E width of v.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# Triton's launch syntax is no type that a checker can follow.
from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

from longspan_kernels.arguments import Arguments
from longspan_kernels.philox import dropout_threshold
from longspan_kernels.triton_backend.kernel_configs import ConfigChoice, KernelConfig
from longspan_kernels.triton_backend.kernels.structs import (
    Distances,
    Dropout,
    Masks,
    Operand,
    Shape,
    Strided,
)
from longspan_kernels.triton_backend.schedule import TileSchedule, schedule_for

LOG2E = 1.4426950408889634
# Rows of a split tile that one program adds up; no tile has fewer.
SLICE = 16
# Bytes. TMA requires it of addresses and strides, and Triton specialises kernels on it.
ALIGNMENT = 16
_BUFFER_ALIGNMENT = 128
_TRUE, _FALSE = tl.constexpr(True), tl.constexpr(False)


class Launch:
    """A kernel with its grid and options, for calls that differ in no dtype, alignment or specialised number.

    Attributes:
        run: launches on the current stream, with all arguments of the kernel, constants too, in their order.
            The first call goes through Triton's look-up; after it this is the compiled kernel's own launcher.
        compiled: the compiled kernel, from the first call on; the interpreter has none.

    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], options: dict[str, Any] | None = None) -> None:
        self.kernel = kernel
        self.grid = (*grid, 1, 1)[:3]
        self.options = options or {}
        self.compiled: CompiledKernel | None = None
        self.run: Callable[..., None] = self._run_first

    def _run_first(self, *arguments: Any) -> None:
        compiled = self.kernel[self.grid](*arguments, **self.options)
        if isinstance(compiled, CompiledKernel):
            self.compiled = compiled
            self.run = compiled[self.grid]


@dataclass(frozen=True)
class CallShape:
    """The numbers that all kernels of a call share.

    It holds no tensor and no layout: prepared calls outlive the call and must not keep its tensors alive.
    """

    batch: int
    heads: int
    group: int  # query heads that share a key head
    q_len: int
    k_len: int
    dim: int
    value_dim: int
    block: int
    query_offset: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> CallShape:
        """Describe a call by its tensors."""
        (batch, heads, q_len, dim), (_, kv_heads, k_len, value_dim) = q.shape, v.shape
        layout = arguments.layout
        return cls(
            batch, heads, heads // kv_heads, q_len, k_len, dim, value_dim, layout.block, layout.query_offset,
            q.dtype, q.device,
        )  # fmt: skip


class KernelPlan:
    """The configuration and the schedule of one kernel of a call, and the arguments that follow from them.

    Args:
        call: the shapes.
        arguments: the options.
        kernel: a field of `KernelConfigs`: forward, queries, keys or bias.
        choice: the configurations.
        by_keys: whether tiles are of keys and steps of queries, as for dk and dv.
        split: whether long tiles are split.

    Attributes:
        config: tile sizes and launch options.
        schedule: tiles and steps.
        sub: tokens of the sub-blocks that a step gathers.
        shape: sizes that the compiler knows.
        tables: the schedule and how the grid runs it, as the kernels take them.
        lengths: heads, lengths and the offset of the first query, likewise.

    """

    def __init__(
        self,
        call: CallShape,
        arguments: Arguments,
        kernel: str,
        choice: ConfigChoice,
        *,
        by_keys: bool = False,
        split: bool = True,
    ) -> None:
        def schedule_of(config: KernelConfig) -> TileSchedule:
            return schedule_for(
                arguments.layout, call.q_len, call.k_len, arguments.left, arguments.right, call.device,
                q_tile=config.q_tile, k_tile=config.k_tile, by_keys=by_keys, split=split,
            )  # fmt: skip

        config = getattr(choice.configs, kernel)
        schedule = schedule_of(config)
        # Triton 3.6 widens the operand layout of a product (kWidth in its TTGIR) by the narrowest load that
        # the operand depends on, here the bytes of a boolean mask, and once more for the joined words of
        # dropout: to 8 elements a thread, which needs 32 keys. Tiles of 16 keys then multiply the wrong
        # weights and values. Calls without score terms and dropout load nothing narrow.
        if choice.one_block is not None and not arguments.has_score_terms and not arguments.dropout_p:
            one_block = getattr(choice.one_block, kernel, None)
            if one_block is not None and schedule.occupancy < choice.one_block.max_occupancy:
                config, schedule = one_block, schedule_of(one_block)
        self.call, self.config, self.schedule = call, config, schedule
        self.sub = min(call.block, config.q_tile, config.k_tile)
        self.shape = self._shape(arguments, by_keys)
        # Runs of the work list: one for each batch entry, and for each head if heads share it.
        self._runs = call.batch * call.heads if schedule.shared else call.batch
        self.lengths = (call.heads, call.q_len, call.k_len, call.query_offset)
        num_long = schedule.num_long
        self.tables = (
            schedule.step_blocks, schedule.pair_bits, schedule.tile_blocks, schedule.work_tiles, num_long,
            schedule.work_tiles.shape[0] - num_long, num_long * self._runs, schedule.num_partials,
        )  # fmt: skip

    def _shape(self, arguments: Arguments, by_keys: bool) -> Shape:
        call, config, schedule = self.call, self.config, self.schedule
        steps_end = call.q_len if by_keys else call.k_len
        ragged = steps_end % self.sub != 0 or (by_keys and call.query_offset > 0)
        steps = tuple(map(tl.constexpr, (True, schedule.has_partial_steps, schedule.has_token_mask_steps)))
        scale_in_exp2 = scale_is_positive(arguments.scale) and not arguments.has_score_terms
        numbers = (
            call.dim, padded(call.dim), call.value_dim, padded(call.value_dim), config.q_tile, config.k_tile,
            self.sub, call.group, schedule.shared, ragged,
        )  # fmt: skip
        return Shape(*map(tl.constexpr, numbers), steps, tl.constexpr(scale_in_exp2), tl.constexpr("ieee"))

    @property
    def grid(self) -> tuple[int]:
        """One program for each work tile of each run."""
        return (self.schedule.work_tiles.shape[0] * self._runs,)

    def slice_grid(self, tile: int) -> tuple[int, int]:
        """One program for each slice of the rows of each split tile of each run."""
        return self.schedule.split_tiles.shape[0] * self._runs, tile // SLICE

    def partials(self, stand_in: Tensor, tile: int, *width: int) -> Tensor:
        """Allocate the partial results of split tiles, float32; without any, return the stand-in."""
        if not self.schedule.num_partials:
            return stand_in
        shape = (self.call.batch, self.call.heads, self.schedule.num_partials, tile, *width)
        return torch.empty(shape, dtype=torch.float32, device=self.call.device)


def scale_is_positive(scale: float) -> bool:
    """Say whether larger products are larger scores, also in float32, where tiny numbers vanish."""
    return scale * LOG2E >= torch.finfo(torch.float32).tiny


def unit_stride(x: Tensor) -> Tensor:
    """Return the tensor with its last dimension contiguous, copied only if it is not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def padded(width: int) -> int:
    """Return the width that the matrix units take: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(width))


def operand(x: Tensor) -> Operand:
    """Bundle ``[B, H, length, width]`` for a kernel."""
    return Operand(x, x.stride()[:3])


_NO_MASKS = Masks(None, None, None, None, None, None, _FALSE)


def masks_of(arguments: Arguments) -> Masks:
    """Bundle the masks and biases of a call for a kernel."""
    if not arguments.has_score_terms:
        return _NO_MASKS
    slopes = arguments.slopes
    parts = (
        _strided(arguments.key_padding_mask), _strided(arguments.attn_mask), _strided(arguments.bias),
        _strided(arguments.document_ids), _distances(arguments),
        None if slopes is None else (slopes.float() * LOG2E).contiguous(),
    )  # fmt: skip
    return Masks(*parts, _TRUE)


def _distances(arguments: Arguments) -> Distances | None:
    table, buckets = arguments.relative_table, arguments.relative_buckets
    if table is None or buckets is None:
        return None
    values = (table.float() * LOG2E).t()[:, buckets.long()].contiguous()
    number = triton.next_power_of_2(table.shape[0])
    return Distances(values, buckets, buckets.numel() // 2, tl.constexpr(number))


def _strided(x: Tensor | None) -> Strided | None:
    if x is None:
        return None
    strides = tuple(0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return Strided(x.view(torch.uint8) if x.dtype == torch.bool else x, strides)


def dropout_of(arguments: Arguments) -> Dropout | None:
    """Bundle seed, threshold and factor of dropout for a kernel; None without dropout."""
    p = arguments.dropout_p
    return Dropout(arguments.dropout_seed, dropout_threshold(p), 1.0 / (1.0 - p)) if p > 0 else None


class TmaDescriptor:
    """How Hopper's tensor memory accelerator (TMA) fetches a tensor: in whole tiles of neighbouring rows.

    Args:
        x: ``[B, H, length, width]``, or ``[B, H, length]``.
        rows: rows a tile.

    """

    def __init__(self, x: Tensor, rows: int) -> None:
        made = TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, *x.shape[3:]])
        # Kept without the tensor, for later ones of the same shape and strides: the descriptor's own checks
        # take longer than a launch.
        self.fields = {name: value for name, value in vars(made).items() if name != "base"}


def descriptor_of(tma: TmaDescriptor | None, x: Tensor) -> TensorDescriptor | None:
    """Describe a tensor to TMA as an earlier one of its shape and strides; None where TMA is not used."""
    if tma is None:
        return None
    descriptor = object.__new__(TensorDescriptor)
    vars(descriptor).update(tma.fields, base=x)
    return descriptor


def can_use_tma(x: Tensor, rows: int, sub: int) -> bool:
    """Say whether TMA can fetch tiles of a tensor: sub-blocks are whole tiles, and all lies on 16 bytes.

    A tile has 128 bytes at least: in a pipeline's buffers the next one would lie off the alignment.
    """
    if sub != rows or not x.numel() or not has_tma(x.device):
        return False
    step = ALIGNMENT // x.element_size()
    widths = tuple(x.shape[3:])
    return (
        widths == tuple(map(padded, widths))
        and math.prod((rows, *widths)) * x.element_size() >= _BUFFER_ALIGNMENT
        and x.data_ptr() % ALIGNMENT == 0
        and all(stride > 0 and stride % step == 0 for stride in x.stride()[:-1])
    )


@functools.cache
def has_tma(device: torch.device) -> bool:
    """Say whether a device has the tensor memory accelerator."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device)[0] >= 9
    )
