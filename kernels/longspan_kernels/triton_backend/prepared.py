"""The kernels of a call, prepared once and then launched: a closure for the forward, one for the backward.

`prepare_forward` and `prepare_backward` choose configurations, make schedules and look up compiled kernels;
what they return allocates the results and launches. It serves every call with an equal `cache_key`
(`backend.py`), and keeps no tensor of the call that it was prepared for.

Shapes in this file: B batch, H query heads, K key heads, L queries, M keys, D width of q and k, E width of v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longspan_kernels.arguments import Arguments, empty_as
from longspan_kernels.triton_backend.columns import WorkTileColumn
from longspan_kernels.triton_backend.kernel_configs import ConfigChoice
from longspan_kernels.triton_backend.kernels import backward as backward_kernels
from longspan_kernels.triton_backend.kernels import forward as forward_kernels
from longspan_kernels.triton_backend.kernels.structs import Strided
from longspan_kernels.triton_backend.launch import (
    LOG2E,
    SLICE,
    CallShape,
    KernelPlan,
    Launch,
    TmaDescriptor,
    can_use_tma,
    descriptor_of,
    dropout_of,
    masks_of,
    operand,
    padded,
)

# (q, k, v, arguments) -> context [B, H, L, E], log-sum-exp [B, H, L]
Forward = Callable[[Tensor, Tensor, Tensor, Arguments], tuple[Tensor, Tensor]]
# (q, k, v, out, lse, grad, grad_lse, arguments) -> dq, dk, dv, dbias, dtable
Backward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]]


def prepare_forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, choice: ConfigChoice) -> Forward:
    """Prepare the forward of calls like this one.

    Args:
        q: ``[B, H, L, D]``, contiguous along D.
        k: ``[B, K, M, D]``, likewise.
        v: ``[B, K, M, E]``, likewise.
        arguments: the options.
        choice: the configurations.

    """
    call = CallShape.of(q, k, v, arguments)
    plan = KernelPlan(call, arguments, "forward", choice)
    schedule, q_tile = plan.schedule, plan.config.q_tile
    k_tma, v_tma = _key_descriptors(plan, k, v)
    attend = Launch(forward_kernels.attention_fwd_kernel, plan.grid, plan.config.launch_options())
    combine = Launch(forward_kernels.combine_splits_kernel, plan.slice_grid(q_tile))
    combine_numbers = (
        schedule.tile_blocks, schedule.split_tiles, 0, schedule.split_tiles.shape[0], 0,
        schedule.num_partials, call.heads, call.q_len, call.query_offset, call.value_dim,
        padded(call.value_dim), q_tile, plan.sub, SLICE, schedule.shared,
    )  # fmt: skip
    lse_shape = (call.batch, call.heads, call.q_len)
    out_shape = (*lse_shape, call.value_dim)

    def forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
        out = empty_as(q, out_shape, call.dtype)
        lse = torch.empty(lse_shape, dtype=torch.float32, device=call.device)
        partial_out = plan.partials(lse, q_tile, call.value_dim)
        partial_lse = plan.partials(lse, q_tile)
        attend.run(
            operand(q), operand(k), operand(v), operand(out), lse, partial_out, partial_lse,
            descriptor_of(k_tma, k), descriptor_of(v_tma, v), *plan.tables, *plan.lengths,
            arguments.scale * LOG2E, arguments.left, arguments.right, masks_of(arguments),
            dropout_of(arguments), plan.shape,
        )  # fmt: skip
        if schedule.num_partials:
            combine.run(operand(out), lse, partial_out, partial_lse, *combine_numbers)
        return out, lse

    return forward


def prepare_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    arguments: Arguments,
    bias_gradient: bool,
    table_gradient: bool,
    choice: ConfigChoice,
) -> Backward:
    """Prepare the backward of calls like this one.

    Args:
        q: ``[B, H, L, D]``, contiguous along D.
        k: ``[B, K, M, D]``, likewise.
        v: ``[B, K, M, E]``, likewise.
        grad: the gradient of the context, ``[B, H, L, E]``, contiguous along E.
        arguments: the options.
        bias_gradient: whether the gradient of the bias is wanted.
        table_gradient: whether that of the table of distances is.
        choice: the configurations.

    """
    call = CallShape.of(q, k, v, arguments)
    bias_shape = tuple(arguments.bias.shape) if arguments.bias is not None and bias_gradient else None
    # A bias with one number a query or a key takes the sums that the kernels of dq, dk and dv make anyway.
    by_row = bias_shape is not None and bias_shape[3] == 1
    by_column = bias_shape is not None and not by_row and bias_shape[2] == 1
    statistics_shape = (2, call.batch, call.heads, call.q_len)

    def statistics() -> Tensor:
        """Allocate what the kernel of dq hands to the others for each query: lse_log2 and delta."""
        return torch.empty(statistics_shape, dtype=torch.float32, device=call.device)

    dq_of = _prepare_dq(call, k, v, arguments, choice, by_row, table_gradient)
    dkdv_of = _prepare_dkdv(call, q, grad, statistics(), arguments, choice, by_column)
    dbias_of = None
    if bias_shape is not None and not by_row and not by_column:
        dbias_of = _prepare_dbias(call, arguments, choice, bias_shape)

    def backward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        grad: Tensor,
        grad_lse: Tensor | None,
        arguments: Arguments,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        lse_log2, delta = statistics()
        options = (
            arguments.scale * LOG2E, arguments.scale, arguments.left, arguments.right, masks_of(arguments),
            dropout_of(arguments),
        )  # fmt: skip
        dq, row_sums, dtable = dq_of(q, k, v, out, grad, lse, grad_lse, delta, lse_log2, options)
        dk, dv, column_sums = dkdv_of(q, k, v, grad, delta, lse_log2, options)
        if dtable is not None and arguments.relative_table is not None:
            table = arguments.relative_table
            dtable = dtable[:, : table.shape[0]].t().to(table.dtype).contiguous()
        if arguments.bias is None or bias_shape is None:
            return dq, dk, dv, None, dtable
        if dbias_of is not None:
            dbias = dbias_of(q, k, v, grad, delta, lse_log2, options)
        else:
            dbias = row_sums[..., None] if by_row else column_sums[:, :, None]
        return dq, dk, dv, dbias.sum_to_size(bias_shape).to(arguments.bias.dtype), dtable

    return backward


def _prepare_dq(
    call: CallShape,
    k: Tensor,
    v: Tensor,
    arguments: Arguments,
    choice: ConfigChoice,
    with_row_sums: bool,
    with_bucket_sums: bool,
) -> Callable[..., Any]:
    """Prepare dq, and lse_log2 and delta of each query for the other kernels of the backward."""
    plan = KernelPlan(call, arguments, "queries", choice, split=not with_row_sums)
    schedule, q_tile = plan.schedule, plan.config.q_tile
    k_tma, v_tma = _key_descriptors(plan, k, v)
    launch = Launch(backward_kernels.attention_bwd_dq_kernel, plan.grid, plan.config.launch_options())
    add_splits = _prepare_sum(plan, call.q_len, call.query_offset, q_tile)
    dq_shape = (call.batch, call.heads, call.q_len, call.dim)
    # Where heads have layouts of their own: the work tiles of each head.
    work_tiles_of = None
    if with_bucket_sums and not schedule.shared:
        head_of = schedule.work_tiles[:, WorkTileColumn.HEAD]
        work_tiles_of = [(head_of == head).nonzero()[:, 0] for head in range(call.heads)]

    def by_head(sums: Tensor) -> Tensor:
        """Add up the sums of the programs of each head, in their order: ``[H, buckets]``."""
        sums = sums.view(call.batch, -1, sums.shape[1]).sum(0)
        if work_tiles_of is None:
            return sums.view(call.heads, -1, sums.shape[1]).sum(1)
        return torch.stack([sums[work_tiles].sum(0) for work_tiles in work_tiles_of])

    def dq_of(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        grad: Tensor,
        lse: Tensor,
        grad_lse: Tensor | None,
        delta: Tensor,
        lse_log2: Tensor,
        options: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dq = empty_as(q, dq_shape, call.dtype)
        row_sums = bucket_sums = None
        if with_row_sums:
            row_sums = torch.empty(dq_shape[:3], dtype=torch.float32, device=call.device)
        if with_bucket_sums:
            buckets = options[4].distances.PADDED.value
            bucket_sums = torch.empty((plan.grid[0], buckets), dtype=torch.float32, device=call.device)
        partial = plan.partials(delta, q_tile, call.dim)
        launch.run(
            operand(q), operand(k), operand(v), operand(out), operand(grad), lse, grad_lse, delta, lse_log2,
            operand(dq), partial, row_sums, bucket_sums, descriptor_of(k_tma, k), descriptor_of(v_tma, v),
            *plan.tables, *plan.lengths, *options, plan.shape,
        )  # fmt: skip
        if add_splits is not None:
            add_splits(dq, partial)
        return dq, row_sums, None if bucket_sums is None else by_head(bucket_sums)

    return dq_of


def _prepare_dkdv(
    call: CallShape,
    q: Tensor,
    grad: Tensor,
    statistics: Tensor,
    arguments: Arguments,
    choice: ConfigChoice,
    with_column_sums: bool,
) -> Callable[..., Any]:
    """Prepare dk and dv."""
    plan = KernelPlan(call, arguments, "keys", choice, by_keys=True, split=not with_column_sums)
    q_tile, k_tile = plan.config.q_tile, plan.config.k_tile

    def descriptors(*tensors: Tensor) -> tuple[TmaDescriptor | None, ...]:
        # With an offset the blocks of queries do not begin at multiples of the tile.
        uses_tma = call.query_offset == 0 and all(can_use_tma(x, q_tile, plan.sub) for x in tensors)
        return tuple(TmaDescriptor(x, q_tile) if uses_tma else None for x in tensors)

    q_tma, grad_tma = descriptors(q, grad)
    lse_tma, delta_tma = descriptors(*statistics)
    launch = Launch(backward_kernels.attention_bwd_dkdv_kernel, plan.grid, plan.config.launch_options())
    add_splits = _prepare_sum(plan, call.k_len, 0, k_tile)
    sums_shape = (call.batch, call.heads, call.k_len)
    dk_shape, dv_shape = (*sums_shape, call.dim), (*sums_shape, call.value_dim)

    def of_key_heads(x: Tensor) -> Tensor:
        """Add up the parts of the query heads that share a key head, in order."""
        return x.view(call.batch, -1, call.group, *x.shape[2:]).sum(2).to(call.dtype)

    def dkdv_of(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grad: Tensor,
        delta: Tensor,
        lse_log2: Tensor,
        options: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if call.group == 1:
            dk, dv = empty_as(k, dk_shape, call.dtype), empty_as(v, dv_shape, call.dtype)
        else:
            # Each query head writes its part of the gradient of its key head.
            dk = torch.empty(dk_shape, dtype=torch.float32, device=call.device)
            dv = torch.empty(dv_shape, dtype=torch.float32, device=call.device)
        column_sums = None
        if with_column_sums:
            column_sums = torch.empty(sums_shape, dtype=torch.float32, device=call.device)
        partial_dk = plan.partials(delta, k_tile, call.dim)
        partial_dv = plan.partials(delta, k_tile, call.value_dim)
        launch.run(
            operand(q), operand(k), operand(v), operand(grad), lse_log2, delta, operand(dk), operand(dv),
            partial_dk, partial_dv, column_sums, descriptor_of(q_tma, q), descriptor_of(grad_tma, grad),
            descriptor_of(lse_tma, lse_log2), descriptor_of(delta_tma, delta), *plan.tables, *plan.lengths,
            *options, plan.shape,
        )  # fmt: skip
        if add_splits is not None:
            add_splits(dk, partial_dk, dv, partial_dv)
        if call.group > 1:
            dk, dv = of_key_heads(dk), of_key_heads(dv)
        return dk, dv, column_sums

    return dkdv_of


def _prepare_sum(plan: KernelPlan, length: int, offset: int, tile: int) -> Callable[..., None] | None:
    """Prepare the sums of the segments of split tiles; None if no tile is split.

    Of a gradient as wide as queries, and on request of a second one as wide as values.
    """
    call, schedule = plan.call, plan.schedule
    if not schedule.num_partials:
        return None
    numbers = (
        schedule.tile_blocks, schedule.split_tiles, 0, schedule.split_tiles.shape[0], 0,
        schedule.num_partials, call.heads, length, offset, call.dim, padded(call.dim), call.value_dim,
        padded(call.value_dim), tile, plan.sub, SLICE, schedule.shared,
    )  # fmt: skip
    launch = Launch(backward_kernels.sum_splits_kernel, plan.slice_grid(tile))

    def add_splits(
        out: Tensor, partial: Tensor, second: Tensor | None = None, second_partial: Tensor | None = None
    ) -> None:
        if second is None:
            launch.run(operand(out), partial, operand(out), partial, *numbers, False)
        else:
            launch.run(operand(out), partial, operand(second), second_partial, *numbers, True)

    return add_splits


def _prepare_dbias(
    call: CallShape, arguments: Arguments, choice: ConfigChoice, bias_shape: tuple[int, ...]
) -> Callable[..., Tensor]:
    """Prepare the gradient of a bias that has queries and keys."""
    plan = KernelPlan(call, arguments, "bias", choice)
    schedule = plan.schedule
    # Each program adds up the batch entries and heads over which the bias broadcasts.
    batches, batch_step = (1, 1) if bias_shape[0] == call.batch else (call.batch, 0)
    heads, head_step = (call.heads, 0) if schedule.shared and bias_shape[1] != call.heads else (1, 1)
    dbias_heads = bias_shape[1] if schedule.shared else call.heads
    dbias_shape = (bias_shape[0], dbias_heads, call.q_len, call.k_len)
    grid = (schedule.work_tiles.shape[0], bias_shape[0], dbias_heads if schedule.shared else 1)
    launch = Launch(backward_kernels.attention_bwd_dbias_kernel, grid, plan.config.launch_options())
    numbers = (
        schedule.step_blocks, schedule.pair_bits, schedule.tile_blocks, schedule.work_tiles, call.heads,
        batches, heads, batch_step, head_step, call.group, *plan.lengths[1:],
    )  # fmt: skip

    def dbias_of(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grad: Tensor,
        delta: Tensor,
        lse_log2: Tensor,
        options: tuple[Any, ...],
    ) -> Tensor:
        """Return it as ``[bias's batch, bias's heads or H, L, M]``, float32."""
        dbias = torch.zeros(dbias_shape, dtype=torch.float32, device=call.device)
        scale, _, *other_options = options
        launch.run(
            operand(q), operand(k), operand(v), operand(grad), lse_log2, delta,
            Strided(dbias, dbias.stride()), *numbers, scale, *other_options, plan.shape,
        )  # fmt: skip
        return dbias

    return dbias_of


def _key_descriptors(
    plan: KernelPlan, k: Tensor, v: Tensor
) -> tuple[TmaDescriptor | None, TmaDescriptor | None]:
    """Describe keys and values to TMA, both or neither."""
    k_tile = plan.config.k_tile
    if not all(can_use_tma(x, k_tile, plan.sub) for x in (k, v)):
        return None, None
    return TmaDescriptor(k, k_tile), TmaDescriptor(v, k_tile)
