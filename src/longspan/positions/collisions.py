"""Which tokens would see two positions that tiling made alike.

With positions tiled from ``period`` trained ones, tokens a multiple of ``period`` apart have the same position. A
token that attends two of those (itself included) cannot tell near from far, and the model was never trained on that:
tiling serves attention that is no wider than ``period`` tokens in all. Measured on a masked model of 512 positions
extended to 2,048 without training, its loss at the new positions is 1.26 with a window of 255 tokens to either side
and 3.25 with full attention, against 1.28 at its own length.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longspan.models.layers import sparsity_of
from longspan.models.registration import NAME
from longspan.sparsity import DenseSparsityConfig, SparsityConfig
from longspan_kernels import BlockLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def colliding_tokens(layout: BlockLayout, length: int, period: int, causal: bool = False) -> Tensor:
    """Find the tokens that attend two tokens of equal tiled position, in any head.

    Time and memory grow with the kept blocks. A token counts as attending itself.

    Args:
        layout: of ``length`` queries and keys.
        length: tokens.
        period: trained positions.
        causal: whether attention is causal to the token even if the layout does not say so.

    Returns:
        bool ``[length]``.

    Raises:
        ValueError: the layout is one of another length.

    """
    layout.check_lengths(length, length)
    found = torch.zeros(length, dtype=torch.bool)
    offsets, columns = layout.row_offsets.long(), layout.columns.long()
    for index in range(layout.layouts):
        begin, end = int(offsets[index, 0]), int(offsets[index, -1])
        rows = torch.repeat_interleave(torch.arange(layout.q_blocks), offsets[index].diff())
        found |= _colliding(
            rows, columns[begin:end], layout.q_blocks, layout.block, length, period, causal or layout.causal
        )
    return found


def _colliding(
    rows: Tensor, columns: Tensor, blocks: int, block: int, length: int, period: int, causal: bool
) -> Tensor:
    """`colliding_tokens` of one head, its kept blocks given as rows and columns ``[kept]``."""
    if causal:
        # The diagonal block, of which a token sees a part, is treated apart.
        keep = columns < rows
        rows, columns = rows[keep], columns[keep]
    else:
        diagonal = torch.arange(blocks)
        keys = torch.cat([rows * blocks + columns, diagonal * blocks + diagonal]).unique()
        rows, columns = keys // blocks, keys % blocks
    start = columns * block
    sizes = (length - start).clamp(max=block)
    # The positions of a block are an arc of the circle of `period`: two arcs of a row must not overlap.
    arc = start % period
    order = (rows * period + arc).argsort(stable=True)
    row, arc, size = rows[order], arc[order], sizes[order]
    whole = torch.zeros(blocks, dtype=torch.bool)
    whole[row[size > period]] = True
    if len(row) > 1:
        beside = row[1:] == row[:-1]
        whole[row[1:][beside & (arc[1:] < (arc + size)[:-1])]] = True
        # Around the circle: the last arc of a row against the first.
        last = torch.cat([~beside, beside.new_ones(1)])
        first = torch.cat([beside.new_ones(1), ~beside])
        around = (arc + size)[last] - period > arc[first]
        whole[row[last][around & (first.nonzero() != last.nonzero())[:, 0]]] = True
    # In each row, the first token that sees a collision; without causality it is the first or none.
    since = torch.where(whole, 0, block)
    if causal:
        since = since.clamp(max=period)
        ahead = (arc - row * block) % period
        inside = (-ahead) % period < size
        since = since.scatter_reduce(0, row, torch.where(inside, 0, ahead), "amin")
    token = torch.arange(length)
    return token % block >= since[token // block]


def warn_of_collisions(model: PreTrainedModel, period: int, length: int) -> None:
    """Warn where a model's attention lets tokens see two equal positions, tiled from ``period`` to ``length``."""
    if length <= period:
        return
    causal = _is_causal(model)
    patterns: list[SparsityConfig | None] = [None]
    if getattr(model.config, "_attn_implementation", None) == NAME:
        patterns = list(dict.fromkeys(sparsity_of(model.config)))
    found = torch.zeros(length, dtype=torch.bool)
    for pattern in patterns:
        if pattern is None or isinstance(pattern, DenseSparsityConfig):
            # Known without the square of blocks: a token sees its copy as soon as it sees `period` tokens.
            one_sided = causal or (pattern is not None and pattern.attention == "unidirectional")
            found[period if one_sided else 0 :] = True
        else:
            found |= colliding_tokens(pattern.layout(length), length, period, causal)
    count = int(found.sum())
    if count == 0:
        return
    blocks = {pattern.block for pattern in patterns if pattern is not None}
    warnings.warn(
        f"method 'tile' repeats the {period:,} trained positions of {type(model).__name__}, and "
        f"{count:,} of {length:,} tokens ({count / length:.1%}) attend two tokens of the same position: expect a "
        f"high loss there until it is trained. Safe is attention that is at most {period:,} tokens wide: "
        f"{_safe_window(period, causal, blocks)}, without global or random blocks further away. Other methods: "
        "interpolate, truncate-and-normal, zero",
        stacklevel=3,
    )


def _safe_window(period: int, causal: bool, blocks: set[int]) -> str:
    """Name the widest window in which no two positions are equal, in tokens and in blocks."""
    tokens = f"{period - 1:,} tokens before each" if causal else f"{(period - 1) // 2:,} tokens to either side"
    wide = []
    for block in sorted(blocks):
        whole = period // block
        # A window of n blocks reaches n // 2 to a side; a causal one has no other side.
        most = 2 * (whole - 1) + 1 if causal else whole - (1 - whole % 2)
        if whole >= 1:
            wide.append(f"num_sliding_window_blocks of at most {most} with blocks of {block}")
    return f"{tokens} ({', '.join(wide)})" if wide else tokens


def _is_causal(model: PreTrainedModel) -> bool:
    """Ask the attention layers, and the configuration: a decoder's may be used in both directions."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "is_causal")]
    return any(layer.is_causal for layer in layers) and getattr(model.config, "is_causal", True)
