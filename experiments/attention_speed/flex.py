"""FlexAttention as a peer: block masks straight from a BlockLayout, and a compiled call for each case.

A mask at the layout's own block size needs no look-up; one of larger blocks (where the kernels refuse the own
size, or are slow at it) keeps every large block that holds a kept one and looks the small blocks up in a
table of one byte for each small row and large column.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention, noop_mask

from longspan_kernels import BlockLayout

# A table as wide as there are columns is what FlexAttention itself makes; one code then serves all patterns.
WIDE_TABLE_BYTES = 2**30


def _causal_mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def lookup_mask(
    bits: Tensor, heads: Tensor | None, block: int, size: int, causal: bool
) -> Callable[..., Tensor]:
    """Make the mask that looks small blocks up in ``bits`` (uint8 ``[layouts, rows, large columns]``)."""

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        layout = head * 0 if heads is None else heads[head]
        byte = bits[layout, query // block, key // size].to(torch.int32)
        kept = ((byte >> (key % size // block)) & 1) == 1
        return kept & (query >= key) if causal else kept

    return mask


def _tables(flat: Tensor, index: Tensor, layouts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Counts ``[1, layouts, rows]`` and indices ``[1, layouts, rows, width]`` of sorted flat rows."""
    width = rows
    counts = torch.bincount(flat, minlength=layouts * rows)
    longest = int(counts.max()) if flat.numel() else 0
    if layouts * rows * width * 4 > WIDE_TABLE_BYTES:
        width = max(1, longest)
    table = torch.zeros(layouts * rows * width, dtype=torch.int32, device=flat.device)
    starts = counts.cumsum(0) - counts
    table[flat * width + torch.arange(flat.numel(), device=flat.device) - starts[flat]] = index.int()
    return counts.int().view(1, layouts, rows), table.view(1, layouts, rows, width)


def _both_ways(keys: Tensor, layouts: int, nb: int) -> tuple[Tensor, ...]:
    """Tables of rows and of columns of sorted block numbers ``(layout * nb + row) * nb + column``."""
    flat, column = keys // nb, keys % nb
    turned = ((flat // nb * nb + column) * nb + flat % nb).sort().values
    return (*_tables(flat, column, layouts, nb), *_tables(turned // nb, turned % nb, layouts, nb))


def block_mask(layout: BlockLayout, size: int, length: int, device: torch.device) -> BlockMask:
    """Make the mask of square blocks of ``size`` tokens, a multiple of the layout's, without a dense object.

    Args:
        layout: the kept blocks, as many rows as columns, without a lead.
        size: tokens a block of the mask.
        length: tokens, a multiple of ``size``.
        device: where the tables are made.

    """
    ratio, rows, nb = size // layout.block, layout.q_blocks, length // size
    offsets = layout.row_offsets.to(device)
    counts = (offsets[:, 1:] - offsets[:, :-1]).reshape(-1).long()
    flat = torch.repeat_interleave(torch.arange(counts.numel(), device=device), counts)
    column = layout.columns.to(device).long()
    large = (flat // rows * nb + flat % rows // ratio) * nb + column // ratio
    keys, held = large.unique(return_counts=True) if ratio > 1 else (large, torch.ones_like(large))
    full = held == ratio * ratio
    row, large_column = keys // nb % nb, keys % nb
    if layout.causal:
        seen = large_column <= row
        keys, full = keys[seen], (full & (large_column < row))[seen]
    layouts = layout.layouts
    if layouts > 1:  # a list for each head, in the order of the heads
        of, which = keys // (nb * nb), layout.head_layouts.tolist()
        full = torch.cat([full[of == u] for u in which])
        keys = torch.cat([keys[of == u] % (nb * nb) + h * nb * nb for h, u in enumerate(which)])
        layouts = layout.heads
    mask = _causal_mask if layout.causal else noop_mask
    if ratio > 1:
        bits = torch.zeros(layout.layouts * rows * nb, dtype=torch.int32, device=device)
        bits.index_add_(0, flat * nb + column // ratio, (1 << (column % ratio)).int())
        bits = bits.to(torch.uint8).view(layout.layouts, rows, nb)
        heads = layout.head_layouts.to(device) if layout.layouts > 1 else None
        mask = lookup_mask(bits, heads, layout.block, size, layout.causal)
    whole: tuple[Tensor | None, ...] = (None,) * 4
    if layout.causal or ratio > 1:  # what needs no mask has lists of its own
        whole = _both_ways(keys[full], layouts, nb)
        keys = keys[~full]
    part = _both_ways(keys, layouts, nb)
    return BlockMask(
        seq_lengths=(length, length),
        kv_num_blocks=part[0],
        kv_indices=part[1],
        full_kv_num_blocks=whole[0],
        full_kv_indices=whole[1],
        q_num_blocks=part[2],
        q_indices=part[3],
        full_q_num_blocks=whole[2],
        full_q_indices=whole[3],
        BLOCK_SIZE=(size, size),
        mask_mod=mask,
    )


def mask_bytes(mask: BlockMask) -> int:
    """Bytes of a mask's tables, without what its mask function looks up."""
    names = ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices")
    tensors = [getattr(mask, prefix + name) for name in names for prefix in ("", "full_")]
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


@dataclass(frozen=True)
class Options:
    """Tiles, stages and warps of the forward (M, N) and of the backward (M1, N1, M2, N2)."""

    forward: tuple[int, int, int, int]
    backward: tuple[int, int, int, int, int, int]

    def kernel_options(self, safe: bool) -> dict[str, Any]:
        """Return them as FlexAttention takes them; ``safe``: each visited block shows each query a key."""
        m, n, stages, warps = self.forward
        m1, n1, m2, n2, back_stages, back_warps = self.backward
        options = {"fwd_BLOCK_M": m, "fwd_BLOCK_N": n, "fwd_num_stages": stages, "fwd_num_warps": warps}
        options |= {"bwd_BLOCK_M1": m1, "bwd_BLOCK_N1": n1, "bwd_BLOCK_M2": m2, "bwd_BLOCK_N2": n2}
        options |= {"bwd_num_stages": back_stages, "bwd_num_warps": back_warps}
        return options | ({"ROWS_GUARANTEED_SAFE": True} if safe else {})

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {key: list(value) for key, value in asdict(self).items()}


def candidates(size: int, dim: int) -> list[Options]:
    """Options to try for blocks of ``size``, the likeliest first."""
    if size == 16:
        tile, back = (16, 16), (16, 16, 16, 16)
        return [Options((*tile, s, w), (*back, s, w)) for s, w in ((3, 1), (2, 1), (4, 2))]
    if size == 32:
        tile, back = (32, 32), (32, 32, 32, 32)
        return [Options((*tile, s, w), (*back, s, w)) for s, w in ((3, 4), (3, 2), (3, 1))]
    forward = [(64, 64, 3, 4), (64, 32, 3, 4), (64, 64, 2, 4), (64, 64, 4, 4)]
    backward = [
        (64, 64, 64, 64, 3, 4),
        (32, 64, 64, 32, 3, 4),
        (32, 32, 32, 32, 3, 4),
        (32, 64, 64, 32, 4, 4),
    ]
    if size == 128:
        forward[2] = (128, 64, 3, 8)
        backward[2] = (64, 128, 128, 64, 3, 8)
        backward[3] = (32, 128, 128, 32, 3, 4) if dim == 64 else (64, 128, 128, 64, 2, 8)
        if dim == 128:  # the winners of an earlier measurement first
            backward[0], backward[2] = backward[2], backward[0]
    return [Options(f, b) for f, b in zip(forward, backward, strict=True)]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return flex_attention(q, k, v, block_mask=mask, kernel_options=OPTIONS)  # type: ignore[return-value,name-defined] # noqa: F821


def compiled(options: Options, safe: bool) -> Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]:
    """Return FlexAttention compiled with these options; call it the first time inside `pinned`."""
    # Code of its own, so that Dynamo checks the guards of this case alone at each call.
    code = _attend.__code__.replace(co_name=f"attend_{next(_NUMBERS)}")
    scope = {**globals(), "OPTIONS": options.kernel_options(safe)}
    return torch.compile(types.FunctionType(code, scope), dynamic=False, fullgraph=True)


_NUMBERS = iter(range(10**9))


def pinned(options: Options) -> Any:
    """Leave the compiler one configuration of the backward: these options, instead of its own list.

    FlexAttention holds block sizes against its built-in list before it reads ``kernel_options``, and so
    refuses blocks of 64, unless max-autotune brings a longer list; that one has these options for 32 and more
    in it. At 16 no list short of the exhaustive one has an entry.
    """
    from torch._inductor.choices import InductorChoices

    original = InductorChoices.get_flex_attention_bwd_configs
    m1, n1, m2, n2, stages, warps = options.backward

    def one(self: Any, *arguments: Any, **keywords: Any) -> list[Any]:
        first = original(self, *arguments, **keywords)[0]
        tiles = {"block_m1": m1, "block_n1": n1, "block_m2": m2, "block_n2": n2}
        if not hasattr(first, "block_m1"):  # older entries hold one pair, for both halves of the kernel
            tiles = {"block_m": m1, "block_n": n1}
        return [replace(first, **tiles, num_stages=stages, num_warps=warps)]

    return mock.patch.object(InductorChoices, "get_flex_attention_bwd_configs", one)
