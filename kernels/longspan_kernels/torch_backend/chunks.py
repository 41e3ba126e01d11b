"""Chunks of a row group: as many rows, heads and batch entries at once as fit a bounded working set.

Shapes in this file: b batch entries, h heads, r segments of rows, n slots a segment, B tokens a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.torch_backend.row_groups import RowGroup


@dataclass(frozen=True, eq=False)
class Geometry:
    """Sizes of one call: the shapes that chunks index into."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    k_len: int
    block: int
    q_blocks: int
    k_blocks: int
    query_offset: int


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some segments of a row group for some heads and batch entries.

    An item is one segment for one head and batch entry; items are in the order ``[b, h, r]``.

    Attributes:
        batch: int64 ``[b, 1, 1, 1, 1]``, batch entries.
        heads: int64 ``[1, h, 1, 1, 1]``, heads.
        rows: int64 ``[r]``, block rows.
        queries: int64 ``[r, B, 1]``, index of each query, outside ``[0, q_len)`` for padding.
        keys: int64 ``[r, 1, n B]``, position of each key, at or past ``k_len`` only in masked slots.
        columns: int64 ``[r, n]``, key blocks.
        masked_keys: int64 ``[r, 1, masked B]``, positions of the last keys, past the end for padding slots.
        q_items: int64 ``[b h r]``, numbers of the query blocks in ``[batch, heads, q_blocks]``.
        k_items: int64 ``[b h r n]``, numbers of the key blocks in ``[batch, kv_heads, k_blocks]``.

    """

    batch: Tensor
    heads: Tensor
    rows: Tensor
    queries: Tensor
    keys: Tensor
    columns: Tensor
    masked_keys: Tensor
    q_items: Tensor
    k_items: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sizes ``(b, h, r, B, n B)`` of the chunk's scores."""
        segments, block, _ = self.queries.shape
        return self.batch.shape[0], self.heads.shape[1], segments, block, self.keys.shape[-1]


def chunks(group: RowGroup, heads: Tensor, geometry: Geometry, width: int, budget: int) -> Iterator[Chunk]:
    """Cut a group into chunks of at most about ``budget`` elements in the largest intermediate.

    Args:
        group: the segments.
        heads: int64 ``[h]``, the heads that use the group's layout, on the group's device.
        geometry: sizes.
        width: the larger of the dimensions of keys and values.
        budget: number of elements of the scores, or of the gathered keys, whichever are more.

    """
    item_size = geometry.block * group.slots * max(geometry.block, width)
    items = max(1, budget // item_size)
    segments, all_heads = group.rows.numel(), heads.numel()
    r_step = min(segments, max(1, items // max(1, geometry.batch * all_heads)))
    h_step = min(all_heads, items)
    b_step = max(1, items // all_heads)
    heads_per_kv_head = geometry.heads // geometry.kv_heads
    within = torch.arange(geometry.block, device=group.rows.device)
    for r in range(0, segments, r_step):
        rows, columns = group.rows[r : r + r_step], group.columns[r : r + r_step]
        queries = rows[:, None, None] * geometry.block - geometry.query_offset + within[:, None]
        keys = (columns[..., None] * geometry.block + within).flatten(1)[:, None]
        masked_keys = (group.key_starts[r : r + r_step, :, None] + within).flatten(1)[:, None]
        for b in range(0, geometry.batch, b_step):
            batch = torch.arange(b, min(b + b_step, geometry.batch), device=rows.device)
            for h in range(0, all_heads, h_step):
                chunk_heads = heads[h : h + h_step]
                q_head = batch[:, None] * geometry.heads + chunk_heads
                k_head = batch[:, None] * geometry.kv_heads + chunk_heads // heads_per_kv_head
                yield Chunk(
                    batch=batch.view(-1, 1, 1, 1, 1),
                    heads=chunk_heads.view(1, -1, 1, 1, 1),
                    rows=rows,
                    queries=queries,
                    keys=keys,
                    columns=columns,
                    masked_keys=masked_keys,
                    q_items=(q_head[..., None] * geometry.q_blocks + rows).flatten(),
                    k_items=(k_head[..., None, None] * geometry.k_blocks + columns).flatten(),
                )
