"""What a kind of call needs, worked out at its first: schedules, sizes, launches of its kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan_kernels.arguments import Arguments
from longspan_kernels.strides import empty_as
from longspan_kernels.triton_backend.call import SLICE, Call, tile_of
from longspan_kernels.triton_backend.kernel_configs import ConfigChoice
from longspan_kernels.triton_backend.kernels import backward as backward_kernels
from longspan_kernels.triton_backend.kernels import bias_gradient as bias_kernels
from longspan_kernels.triton_backend.kernels import forward as forward_kernels
from longspan_kernels.triton_backend.kernels.structs import Strided
from longspan_kernels.triton_backend.launch import LOG2E, Launch, Tiles, dropout_of, masks_of, operand, padded
from longspan_kernels.triton_backend.schedule import TileSchedule


class Forward:
    """The forward of a kind of call."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, choice: ConfigChoice) -> None:
        call = self._call = Call.of(q, k, v, arguments.layout)
        self.settled = choice.is_final
        size, schedule = self._size, self._schedule = call.schedule(
            arguments, "forward", choice, by_keys=False
        )
        self._shape = call.shape(arguments, size, schedule)
        self._tables, self._lengths = call.tables(schedule), call.lengths()
        fetched = all(Tiles.serve(x, size.k_tile, call.sub(size)) for x in (k, v))
        self._k_tiles, self._v_tiles = (Tiles(x, size.k_tile) if fetched else None for x in (k, v))
        self._attend = Launch(
            forward_kernels.attention_fwd_kernel,
            call.programs(schedule.work_tiles, schedule),
            size.launch_options(),
        )
        self._combine = Launch(forward_kernels.combine_splits_kernel, call.slices(schedule, size.q_tile))
        self._combined = (call.heads, call.q[2], call.lead, call.v[3], padded(call.v[3]))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
        """Return the context and the log-sum-exp."""
        call, schedule, size = self._call, self._schedule, self._size
        out = empty_as(q, (*call.q[:3], call.v[3]), call.dtype)
        lse = torch.empty(call.q[:3], dtype=torch.float32, device=call.device)
        partial_out = call.partials(schedule, lse, size.q_tile, call.v[3])
        partial_lse = call.partials(schedule, lse, size.q_tile)
        self._attend(
            operand(q), operand(k), operand(v), operand(out), lse, partial_out, partial_lse,
            tile_of(self._k_tiles, k), tile_of(self._v_tiles, v), *self._tables, *self._lengths,
            arguments.scale * LOG2E, arguments.left, arguments.right, masks_of(arguments),
            dropout_of(arguments), self._shape,
        )  # fmt: skip
        if schedule.num_partials:
            heads, q_len, lead, width, wide = self._combined
            self._combine(
                operand(out), lse, partial_out, partial_lse, schedule.tile_blocks, schedule.split_tiles, 0,
                schedule.split_tiles.shape[0], 0, schedule.num_partials, heads, q_len, lead, width, wide,
                size.q_tile, call.sub(size), SLICE, schedule.shared,
            )  # fmt: skip
        return out, lse


class Backward:
    """The backward of a kind of call."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grad: Tensor,
        arguments: Arguments,
        bias_gradient: bool,
        table_gradient: bool,
        choice: ConfigChoice,
    ) -> None:
        call = self._call = Call.of(q, k, v, arguments.layout)
        self.settled = choice.is_final
        self._bias = arguments.bias is not None and bias_gradient
        # A bias of one number a query or key takes the sums that the kernels of dq, dk and dv make anyway.
        shape = arguments.bias.shape if arguments.bias is not None and bias_gradient else (0,) * 4
        self._row_sums = self._bias and shape[3] == 1
        self._column_sums = self._bias and not self._row_sums and shape[2] == 1
        self._queries = _Queries(call, arguments, choice, k, v, self._row_sums, table_gradient)
        self._keys = _Keys(call, arguments, choice, q, grad, self._statistics(), self._column_sums)
        pairs = self._bias and not self._row_sums and not self._column_sums
        self._pairs = _Pairs(call, arguments, choice, tuple(shape)) if pairs else None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        grad: Tensor,
        grad_lse: Tensor | None,
        arguments: Arguments,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return the gradients of q, k, v, the bias and the table."""
        bias = arguments.bias if self._bias else None
        log2, delta = self._statistics()
        common = (
            arguments.scale * LOG2E, arguments.scale, arguments.left, arguments.right, masks_of(arguments),
            dropout_of(arguments),
        )  # fmt: skip
        dq, row_sums, dtable = self._queries(q, k, v, out, grad, lse, grad_lse, delta, log2, common)
        dk, dv, column_sums = self._keys(q, k, v, grad, delta, log2, common)
        if dtable is not None and arguments.relative_table is not None:
            table = arguments.relative_table
            dtable = dtable[:, : table.shape[0]].t().to(table.dtype).contiguous()
        if bias is None:
            return dq, dk, dv, None, dtable
        if self._pairs is not None:
            dbias = self._pairs(q, k, v, grad, delta, log2, common)
        elif row_sums is not None:
            dbias = row_sums[..., None]
        else:
            assert column_sums is not None
            dbias = column_sums[:, :, None]
        return dq, dk, dv, dbias.sum_to_size(bias.shape).to(bias.dtype), dtable

    def _statistics(self) -> Tensor:
        """Room for what dq's kernel tells the others of each query: log2 and delta."""
        return torch.empty(2, *self._call.q[:3], dtype=torch.float32, device=self._call.device)


class _Queries:
    """dq, and for the other kernels of the backward what they need of each query."""

    def __init__(
        self,
        call: Call,
        arguments: Arguments,
        choice: ConfigChoice,
        k: Tensor,
        v: Tensor,
        row_sums: bool,
        table_sums: bool,
    ) -> None:
        size, schedule = self._size, self._schedule = call.schedule(
            arguments, "queries", choice, by_keys=False, split=not row_sums
        )
        self._call, self._sums = call, row_sums
        self._shape = call.shape(arguments, size, schedule)
        self._tables, self._lengths = call.tables(schedule), call.lengths()
        fetched = all(Tiles.serve(x, size.k_tile, call.sub(size)) for x in (k, v))
        self._k_tiles, self._v_tiles = (Tiles(x, size.k_tile) if fetched else None for x in (k, v))
        programs = self._programs = call.programs(schedule.work_tiles, schedule)
        self._table_sums = table_sums
        # Where heads have items of their own, which those of each head are.
        self._items = None
        if table_sums and not schedule.shared:
            self._items = [(schedule.work_tiles[:, 1] == head).nonzero()[:, 0] for head in range(call.heads)]
        self._differentiate = Launch(
            backward_kernels.attention_bwd_dq_kernel, programs, size.launch_options()
        )
        self._add = _Add(call, schedule, call.q[2], call.lead, size.q_tile, call.sub(size))

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        grad: Tensor,
        lse: Tensor,
        grad_lse: Tensor | None,
        delta: Tensor,
        log2: Tensor,
        common: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        call = self._call
        dq = empty_as(q, call.q, call.dtype)
        sums = torch.empty(call.q[:3], dtype=torch.float32, device=call.device) if self._sums else None
        *_, masks, _ = common
        bucket_sums = None
        if self._table_sums:
            shape = (self._programs[0], masks.distances.PADDED.value)
            bucket_sums = torch.empty(shape, dtype=torch.float32, device=call.device)
        partial = call.partials(self._schedule, delta, self._size.q_tile, call.q[3])
        self._differentiate(
            operand(q), operand(k), operand(v), operand(out), operand(grad), lse, grad_lse, delta, log2,
            operand(dq), partial, sums, bucket_sums, tile_of(self._k_tiles, k), tile_of(self._v_tiles, v),
            *self._tables, *self._lengths, *common, self._shape,
        )  # fmt: skip
        self._add(dq, partial)
        return dq, sums, None if bucket_sums is None else self._of_heads(bucket_sums)

    def _of_heads(self, sums: Tensor) -> Tensor:
        """Add up what the programs of each head summed, in their order: ``[heads, numbers]``."""
        sums = sums.view(self._call.batch, -1, sums.shape[1]).sum(0)
        if self._schedule.shared:
            return sums.view(self._call.heads, -1, sums.shape[1]).sum(1)
        assert self._items is not None
        return torch.stack([sums[items].sum(0) for items in self._items])


class _Keys:
    """dk and dv."""

    def __init__(
        self,
        call: Call,
        arguments: Arguments,
        choice: ConfigChoice,
        q: Tensor,
        grad: Tensor,
        statistics: Tensor,
        column_sums: bool,
    ) -> None:
        size, schedule = self._size, self._schedule = call.schedule(
            arguments, "keys", choice, by_keys=True, split=not column_sums
        )
        self._call, self._sums = call, column_sums
        self._shape = call.shape(arguments, size, schedule, by_keys=True)
        self._tables, self._lengths = call.tables(schedule), call.lengths()
        # With a lead the blocks of queries do not begin at multiples of the tile.
        sub, wanted = call.sub(size), (q, grad, *statistics)
        served = [call.lead == 0 and Tiles.serve(x, size.q_tile, sub) for x in wanted]
        # Both of q and the gradient, and both of the others.
        served = [served[0] and served[1]] * 2 + [served[2] and served[3]] * 2
        self._tiles = [Tiles(x, size.q_tile) if its else None for x, its in zip(wanted, served, strict=True)]
        programs = call.programs(schedule.work_tiles, schedule)
        self._differentiate = Launch(
            backward_kernels.attention_bwd_dkdv_kernel, programs, size.launch_options()
        )
        self._add = _Add(call, schedule, call.k[2], 0, size.k_tile, call.sub(size))

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grad: Tensor,
        delta: Tensor,
        log2: Tensor,
        common: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        call, tile = self._call, self._size.k_tile
        batch, heads, k_len = call.batch, call.heads, call.k[2]
        shapes = (batch, heads, k_len, call.q[3]), (batch, heads, k_len, call.v[3])
        if call.group == 1:
            dk, dv = (empty_as(x, shape, call.dtype) for x, shape in zip((k, v), shapes, strict=True))
        else:
            # Query heads that share a key head each write their part, added up in order below.
            dk, dv = (torch.empty(shape, dtype=torch.float32, device=call.device) for shape in shapes)
        sums = None
        if self._sums:
            sums = torch.empty(batch, heads, k_len, dtype=torch.float32, device=call.device)
        partial_dk = call.partials(self._schedule, delta, tile, call.q[3])
        partial_dv = call.partials(self._schedule, delta, tile, call.v[3])
        self._differentiate(
            operand(q), operand(k), operand(v), operand(grad), log2, delta, operand(dk), operand(dv),
            partial_dk, partial_dv, sums, *self._fetched(q, grad, log2, delta), *self._tables,
            *self._lengths, *common, self._shape,
        )  # fmt: skip
        self._add(dk, partial_dk, dv, partial_dv)
        if call.group > 1:
            dk = dk.view(batch, -1, call.group, k_len, call.q[3]).sum(2).to(call.dtype)
            dv = dv.view(batch, -1, call.group, k_len, call.v[3]).sum(2).to(call.dtype)
        return dk, dv, sums

    def _fetched(self, *tensors: Tensor) -> tuple[Any, ...]:
        return tuple(tile_of(tiles, x) for tiles, x in zip(self._tiles, tensors, strict=True))


class _Add:
    """The sums of what the segments of split tiles computed."""

    def __init__(
        self, call: Call, schedule: TileSchedule, length: int, lead: int, tile: int, sub: int
    ) -> None:
        widths = (call.q[3], padded(call.q[3]), call.v[3], padded(call.v[3]))
        self._tail = (
            schedule.tile_blocks, schedule.split_tiles, 0, schedule.split_tiles.shape[0], 0,
            schedule.num_partials, call.heads, length, lead, *widths, tile, sub, SLICE, schedule.shared,
        )  # fmt: skip
        self._split = schedule.num_partials > 0
        self._add = Launch(backward_kernels.sum_splits_kernel, call.slices(schedule, tile))

    def __call__(
        self, whole: Tensor, partial: Tensor, second: Tensor | None = None, others: Tensor | None = None
    ) -> None:
        """Add into a gradient as wide as queries, and into a second as wide as values."""
        if self._split:
            both = second is not None
            stand_in = operand(second if second is not None else whole)
            self._add(operand(whole), partial, stand_in, others if both else partial, *self._tail, both)


class _Pairs:
    """The gradient of a bias that has queries and keys."""

    def __init__(self, call: Call, arguments: Arguments, choice: ConfigChoice, bias: tuple[int, ...]) -> None:
        size, schedule = call.schedule(arguments, "bias", choice, by_keys=False)
        own_heads = bias[1] if schedule.shared else call.heads
        self._dbias = (bias[0], own_heads, call.q[2], call.k[2])
        batches, batch_step = (1, 1) if bias[0] == call.batch else (call.batch, 0)
        heads, head_step = (call.heads, 0) if schedule.shared and bias[1] != call.heads else (1, 1)
        self._head = (
            schedule.step_blocks, schedule.pair_bits, schedule.tile_blocks, schedule.work_tiles, call.heads,
            batches, heads,
        )  # fmt: skip
        self._lengths = (batch_step, head_step, call.group, *call.lengths()[1:])
        self._shape = call.shape(arguments, size, schedule)
        grid = (schedule.work_tiles.shape[0], bias[0], own_heads if schedule.shared else 1)
        self._differentiate = Launch(bias_kernels.attention_bwd_dbias_kernel, grid, size.launch_options())

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grad: Tensor,
        delta: Tensor,
        log2: Tensor,
        common: tuple[Any, ...],
    ) -> Tensor:
        """Return it as ``[its batch, its heads or all, q_len, k_len]``, float32."""
        dbias = torch.zeros(self._dbias, dtype=torch.float32, device=q.device)
        scale, _, *rest = common
        self._differentiate(
            operand(q), operand(k), operand(v), operand(grad), log2, delta, Strided(dbias, dbias.stride()),
            *self._head, *self._lengths, scale, *rest, self._shape,
        )  # fmt: skip
        return dbias
