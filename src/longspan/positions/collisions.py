"""Which tokens would meet their copies after tiling.

With positions tiled from ``period`` trained ones, tokens a multiple of ``period`` apart have the same
position. A token that attends one of those takes it for itself, which no training has prepared it for: tiling
serves attention that reaches less than ``period`` tokens to either side. On a pretrained masked model of 512
positions, extended to 2,048 and not trained further, the loss at the new positions is that of its own length
with any such window and 2 nats higher with full attention (tests/positions/test_effect.py).
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


def tokens_that_meet_copies(layout: BlockLayout, length: int, period: int, causal: bool = False) -> Tensor:
    """Find the tokens that attend, in any head, another token a multiple of ``period`` away.

    Time and memory grow with the kept blocks.

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
    block, one_sided = layout.block, causal or layout.causal
    row = torch.arange(layout.q_blocks).repeat(layout.layouts)
    row = row.repeat_interleave(layout.row_offsets.long().diff(dim=-1).flatten())
    column = layout.columns.long()
    # The tokens that are found form runs: each adds one where it begins, and takes one off behind its end.
    steps = torch.zeros(length + 1, dtype=torch.int64)
    nearest = -((-((row - column) * block - block + 1)) // period)
    farthest = ((row - column) * block + block - 1) // period
    for index in range((2 * block - 2) // period + 1):
        multiple = nearest + index
        # The keys of the block, moved by the multiple, that are queries of the row.
        begin = torch.maximum(row * block, column * block + multiple * period)
        last_key, last_query = ((column + 1) * block).clamp(max=length), ((row + 1) * block).clamp(max=length)
        end = torch.minimum(last_query, last_key + multiple * period)
        kept = (multiple <= farthest) & (multiple > 0 if one_sided else multiple != 0) & (begin < end)
        steps.index_add_(0, begin[kept], torch.ones_like(begin[kept]))
        steps.index_add_(0, end[kept], -torch.ones_like(end[kept]))
    return steps[:-1].cumsum(0) > 0


def warn_of_collisions(model: PreTrainedModel, period: int, length: int) -> None:
    """Warn where a model's attention lets tokens meet their copies, tiled from ``period`` to ``length``."""
    if length <= period:
        return
    causal = _is_causal(model)
    patterns: list[SparsityConfig | None] = [None]
    if getattr(model.config, "_attn_implementation", None) == NAME:
        patterns = list(dict.fromkeys(sparsity_of(model.config)))
    found = torch.zeros(length, dtype=torch.bool)
    for pattern in patterns:
        if pattern is None or isinstance(pattern, DenseSparsityConfig):
            # Known without the square of blocks. A copy lies before the token, or else after it.
            found[period:] = True
            if not (causal or (pattern is not None and pattern.attention == "unidirectional")):
                found[: length - period] = True
        else:
            found |= tokens_that_meet_copies(pattern.layout(length), length, period, causal)
    count = int(found.sum())
    if count == 0:
        return
    blocks = {pattern.block for pattern in patterns if pattern is not None}
    warnings.warn(
        f"method 'tile' repeats the {period:,} trained positions of {type(model).__name__}, and {count:,} of "
        f"{length:,} tokens ({count / length:.1%}) attend tokens {period:,} or a multiple away, whose "
        "position is their own: expect a higher loss there until the model is trained on. A token meets no "
        f"such copy in windows of at most {_safe_window(period, blocks)}, without global or random blocks "
        "further away",
        stacklevel=3,
    )


def _safe_window(period: int, blocks: set[int]) -> str:
    """Name the widest window in which no token meets its copy, in tokens and in blocks."""
    # A window of n blocks reaches n // 2 blocks to a side, and from one end of a block to the other.
    widths = [f"{2 * (period // block) - 1} blocks of {block}" for block in sorted(blocks) if block <= period]
    tokens = f"{period - 1:,} tokens to a side"
    return f"{tokens} (num_sliding_window_blocks: {', '.join(widths)})" if widths else tokens


def _is_causal(model: PreTrainedModel) -> bool:
    """Ask the attention layers, and the configuration: a decoder's may be used in both directions."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "is_causal")]
    return any(layer.is_causal for layer in layers) and getattr(model.config, "is_causal", True)
