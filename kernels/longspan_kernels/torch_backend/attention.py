"""Block-sparse attention in plain PyTorch, forward and backward: the path of CPUs, and the oracle.

Time and memory are in proportion to the kept blocks. Rows of equally many blocks run together (`row_groups`),
in chunks that stay in cache (`chunks`): gather the key and value blocks, one batched product for the scores,
an exact softmax in place, one batched product for the context. Segments of a long row are merged by their
log-sum-exp. The backward recomputes the probabilities from the saved log-sum-exp; no ``[q_len, k_len]``
object exists in either. It is deterministic on a CPU. Half types are computed in float32.

Shapes in this file: a chunk has I items, each one segment of a row of blocks for one head and batch entry;
B tokens a block, M keys a segment, D width of q and k, E width of v. Of a chunk, query is ``[I, B, D]``, key
``[I, M, D]``, value ``[I, M, E]``, scores and their gradient ``[I, B, M]``, grad and context ``[I, B, E]``.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

import torch
from torch import Tensor

from longspan_kernels.arguments import Arguments, accumulator_dtype
from longspan_kernels.torch_backend.chunks import Geometry, chunks
from longspan_kernels.torch_backend.masks import Masks
from longspan_kernels.torch_backend.row_groups import RowGroup, row_groups

# Elements of the largest intermediate of a chunk: together they stay within some megabytes, which caches
# hold, and each operation still does enough to be worth starting threads for.
_BUDGET = 1 << 19
# Groups of recent (layout, lengths, window, device): index tensors in proportion to the kept blocks.
_GROUPS_KEPT = 32
_lock = threading.Lock()  # autograd runs backwards in threads of its own
_groups: OrderedDict[tuple[object, ...], tuple[list[RowGroup], list[Tensor]]] = OrderedDict()


def forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Attend.

    Args:
        q: ``[batch, heads, q_len, dim]``.
        k: ``[batch, kv_heads, k_len, dim]``.
        v: ``[batch, kv_heads, k_len, v_dim]``.
        arguments: the options.

    Returns:
        The context ``[batch, heads, q_len, v_dim]`` in q's dtype, contiguous, and the log-sum-exp of the
        scores ``[batch, heads, q_len]`` in the accumulator's dtype, ``-inf`` where a query sees no key.

    """
    geometry = _geometry(q, k, arguments)
    dtype = accumulator_dtype(q.dtype)
    masks = Masks(arguments, geometry)
    q_tiles = _tiles(q, geometry.q_blocks, geometry.block, geometry.query_offset)
    k_tiles = _tiles(k, geometry.k_blocks, geometry.block)
    v_tiles = _tiles(v, geometry.k_blocks, geometry.block)
    out = torch.zeros(q_tiles.shape[0], geometry.block, v.shape[-1], dtype=dtype, device=q.device)
    lse = torch.full((q_tiles.shape[0], geometry.block), -math.inf, dtype=dtype, device=q.device)
    groups, heads = _row_groups(arguments, geometry, q.device)
    for group in groups:
        for chunk in chunks(group, heads[group.layout], geometry, max(q.shape[-1], v.shape[-1]), _BUDGET):
            query = _gather(q_tiles, chunk.q_items, dtype, geometry.block).mul_(arguments.scale)
            key = _gather(k_tiles, chunk.k_items, dtype, chunk.shape[-1])
            scores = torch.bmm(query, key.transpose(1, 2))
            masks.apply(scores.view(chunk.shape), chunk)
            row_max = scores.amax(-1, keepdim=True)
            row_max.masked_fill_(row_max == -math.inf, 0)
            row_sum = scores.sub_(row_max).exp_().sum(-1, keepdim=True)
            keep = masks.dropout(chunk, dtype)
            if keep is not None:
                scores.view(chunk.shape).mul_(keep)
            context = torch.bmm(scores, _gather(v_tiles, chunk.k_items, dtype, chunk.shape[-1]))
            context.div_(row_sum.masked_fill(row_sum == 0, 1))
            chunk_lse = row_max.add_(row_sum.log_()).squeeze(-1)
            if group.merge:
                earlier_lse = lse.index_select(0, chunk.q_items)
                merged = torch.logaddexp(earlier_lse, chunk_lse)
                finite = merged.masked_fill(merged == -math.inf, 0)
                context.mul_((chunk_lse - finite).exp_()[..., None])
                earlier_out = out.index_select(0, chunk.q_items)
                context.addcmul_(earlier_out, (earlier_lse - finite).exp_()[..., None])
                chunk_lse = merged
            out.index_copy_(0, chunk.q_items, context)
            lse.index_copy_(0, chunk.q_items, chunk_lse)
    return (
        _untile(out, q, geometry.q_blocks, geometry.query_offset).to(q.dtype),
        _untile(lse[..., None], q, geometry.q_blocks, geometry.query_offset).squeeze(-1),
    )


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    arguments: Arguments,
    bias_gradient: bool,
    table_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Differentiate.

    Args:
        q: ``[batch, heads, q_len, dim]``.
        k: ``[batch, kv_heads, k_len, dim]``.
        v: ``[batch, kv_heads, k_len, v_dim]``.
        out: the context that `forward` returned.
        lse: the log-sum-exp that `forward` returned.
        grad_out: gradient of the context.
        grad_lse: gradient of the log-sum-exp, None for zero.
        arguments: the options of the forward.
        bias_gradient: whether the gradient of ``arguments.bias`` is wanted.
        table_gradient: whether that of ``arguments.relative_table`` is.

    Returns:
        The gradients of q, k, v, in their shapes and dtypes, and those of the bias and the table or None.

    """
    geometry = _geometry(q, k, arguments)
    block, dtype = geometry.block, accumulator_dtype(q.dtype)
    masks = Masks(arguments, geometry)
    q_tiles = _tiles(q, geometry.q_blocks, block, geometry.query_offset)
    k_tiles = _tiles(k, geometry.k_blocks, block)
    v_tiles = _tiles(v, geometry.k_blocks, block)
    out_tiles = _tiles(out, geometry.q_blocks, block, geometry.query_offset)
    grad_tiles = _tiles(grad_out, geometry.q_blocks, block, geometry.query_offset)
    # +inf makes every probability of a row 0: for padding, and for rows without a key.
    lse_tiles = _tiles(
        lse.masked_fill(lse == -math.inf, math.inf)[..., None],
        geometry.q_blocks,
        block,
        geometry.query_offset,
        math.inf,
    )
    grad_lse_tiles = (
        None
        if grad_lse is None
        else _tiles(grad_lse[..., None], geometry.q_blocks, block, geometry.query_offset)
    )
    dq = torch.zeros_like(q_tiles, dtype=dtype)
    dk = torch.zeros_like(k_tiles, dtype=dtype)
    dv = torch.zeros_like(v_tiles, dtype=dtype)
    dbias = None
    if bias_gradient and arguments.bias is not None:
        dbias = torch.zeros(arguments.bias.shape, dtype=dtype, device=q.device)
    dtable = None
    if table_gradient and arguments.relative_table is not None:
        dtable = torch.zeros(arguments.relative_table.shape, dtype=dtype, device=q.device)
    groups, heads = _row_groups(arguments, geometry, q.device)
    for group in groups:
        for chunk in chunks(group, heads[group.layout], geometry, max(q.shape[-1], v.shape[-1]), _BUDGET):
            query = _gather(q_tiles, chunk.q_items, dtype, block).mul_(arguments.scale)
            key = _gather(k_tiles, chunk.k_items, dtype, chunk.shape[-1])
            value = _gather(v_tiles, chunk.k_items, dtype, chunk.shape[-1])
            grad = _gather(grad_tiles, chunk.q_items, dtype, block)
            delta = _gather(out_tiles, chunk.q_items, dtype, block).mul_(grad).sum(-1, keepdim=True)
            if grad_lse_tiles is not None:
                delta.sub_(_gather(grad_lse_tiles, chunk.q_items, dtype, block))
            scores = torch.bmm(query, key.transpose(1, 2))
            masks.apply(scores.view(chunk.shape), chunk)
            weights = scores.sub_(_gather(lse_tiles, chunk.q_items, dtype, block)).exp_()
            grad_weights = torch.bmm(grad, value.transpose(1, 2))
            keep = masks.dropout(chunk, dtype)
            if keep is None:
                dropped = weights
            else:
                dropped = weights * keep.view_as(weights)
                grad_weights.mul_(keep.view_as(weights))
            dv.index_add_(0, chunk.k_items, _blocks(torch.bmm(dropped.transpose(1, 2), grad), block))
            grad_scores = grad_weights.sub_(delta).mul_(weights)
            if dbias is not None:
                masks.add_bias_gradient(dbias, grad_scores.view(chunk.shape), chunk)
            if dtable is not None:
                masks.add_table_gradient(dtable, grad_scores.view(chunk.shape), chunk)
            dk.index_add_(0, chunk.k_items, _blocks(torch.bmm(grad_scores.transpose(1, 2), query), block))
            dq.index_add_(0, chunk.q_items, torch.bmm(grad_scores, key).mul_(arguments.scale))
    return (
        _untile(dq, q, geometry.q_blocks, geometry.query_offset).to(q.dtype),
        _untile(dk, k, geometry.k_blocks).to(k.dtype),
        _untile(dv, v, geometry.k_blocks).to(v.dtype),
        _like(dbias, arguments.bias),
        _like(dtable, arguments.relative_table),
    )


def _like(gradient: Tensor | None, x: Tensor | None) -> Tensor | None:
    return None if gradient is None or x is None else gradient.to(x.dtype)


def _geometry(q: Tensor, k: Tensor, arguments: Arguments) -> Geometry:
    layout = arguments.layout
    return Geometry(
        batch=q.shape[0],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        q_len=q.shape[2],
        k_len=k.shape[2],
        block=layout.block,
        q_blocks=layout.q_blocks,
        k_blocks=layout.k_blocks,
        query_offset=layout.query_offset,
    )


def _row_groups(
    arguments: Arguments, geometry: Geometry, device: torch.device
) -> tuple[list[RowGroup], list[Tensor]]:
    """The row groups of a call and the heads of each distinct layout, made once and kept."""
    layout = arguments.layout
    key = (layout.digest, geometry.q_len, geometry.k_len, arguments.left, arguments.right, device)
    with _lock:
        kept = _groups.pop(key, None)
        if kept is None:
            groups = row_groups(
                layout, geometry.q_len, geometry.k_len, arguments.left, arguments.right, device
            )
            head_layouts = layout.head_layouts.long()
            heads = [(head_layouts == number).nonzero()[:, 0].to(device) for number in range(layout.layouts)]
            kept = groups, heads
        _groups[key] = kept  # the last of them is the most recent
        while len(_groups) > _GROUPS_KEPT:
            _groups.popitem(last=False)
    return kept


def _tiles(x: Tensor, blocks: int, block: int, query_offset: int = 0, fill: float = 0.0) -> Tensor:
    """``[batch, heads, length, dim]`` as ``[batch heads blocks, block, dim]``, a view if it can be."""
    batch, heads, length, dim = x.shape
    if length != blocks * block:
        padded = x.new_full((batch, heads, blocks * block, dim), fill)
        padded[:, :, query_offset : query_offset + length] = x
        x = padded
    return x.reshape(batch * heads * blocks, block, dim)


def _untile(x: Tensor, like: Tensor, blocks: int, query_offset: int = 0) -> Tensor:
    """Undo `_tiles`: ``[batch, heads, length]`` of ``like``, then ``dim``; contiguous."""
    batch, heads, length = like.shape[:3]
    x = x.view(batch, heads, blocks * x.shape[1], x.shape[2])
    return x[:, :, query_offset : query_offset + length].contiguous()


def _gather(tiles: Tensor, items: Tensor, dtype: torch.dtype, length: int) -> Tensor:
    """Gather blocks: ``[items of length tokens, length, dim]``, an item's tokens in consecutive blocks."""
    return tiles.index_select(0, items).to(dtype).view(-1, length, tiles.shape[-1])


def _blocks(x: Tensor, block: int) -> Tensor:
    """``[items, n block, dim]`` as ``[items n, block, dim]``."""
    return x.view(-1, block, x.shape[-1])
