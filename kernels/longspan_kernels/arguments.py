"""The options of one attention call as a backend takes them, and the memory layout of its results.

Shapes in this file: B batch, H query heads, K key heads, L queries, M keys, D width of q and k, E width of v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longspan_kernels.layout.csr import BlockCSR


class Arguments(NamedTuple):
    """The options of one call, checked and normalised: numbers first, then tensors in the order of the ops.

    Attributes:
        layout: the kept blocks. While a compiler traces the call, their `LayoutHandle` stands here, and
            only its number is read.
        scale: factor of the scores.
        left: key ``j`` is seen by a query at position ``i`` only if ``j >= i - left``; None for no bound.
        right: only if ``j <= i + right``; None for no bound. Causal attention is ``right = 0``.
        dropout_p: probability of dropping an attention weight.
        key_padding_mask: None, or ``[B, M]``, bool (True: attended) or floating point (added).
        attn_mask: None, or 4-dimensional with every size 1 or that of ``[B, H, L, M]``, bool (True: attended)
            or floating point (added, no gradient).
        bias: None, or floating point of such a shape, added; it has a gradient.
        document_ids: None, or integers ``[B, M]``; the queries take the last ``L``.
        dropout_seed: int64 of no dimension, None without dropout.
        relative_table: None, or floating point ``[buckets, H]``, added by distance; it has a gradient.
        relative_buckets: None, or int32 ``[2 span + 1]``: the bucket of each distance, key position minus
            query position, from -span to span; larger distances have the bucket of the end.
        slopes: None, or floating point ``[H]``: times the distance, subtracted.

    """

    layout: BlockCSR
    scale: float
    left: int | None = None
    right: int | None = None
    dropout_p: float = 0.0
    key_padding_mask: Tensor | None = None
    attn_mask: Tensor | None = None
    bias: Tensor | None = None
    document_ids: Tensor | None = None
    dropout_seed: Tensor | None = None
    relative_table: Tensor | None = None
    relative_buckets: Tensor | None = None
    slopes: Tensor | None = None

    @property
    def numbers(self) -> tuple[BlockCSR, float, int | None, int | None, float]:
        """The fields that are no tensors: ``Arguments(*numbers, *tensors)`` are these arguments."""
        return self[:5]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The other fields, in the order in which the ops take them."""
        return self[5:]

    @property
    def has_score_terms(self) -> bool:
        """Whether any mask, bias or document numbers change scores, besides the layout and the bounds."""
        return not (
            self.key_padding_mask is None
            and self.attn_mask is None
            and self.bias is None
            and self.document_ids is None
            and self.relative_table is None
            and self.slopes is None
        )


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of scores, sums and the log-sum-exp: float32 for the half types, else the same."""
    return torch.promote_types(dtype, torch.float32)


def is_token_major(x: Tensor) -> bool:
    """Say whether ``[B, H, length, width]`` lies in memory token by token, the heads of a token together.

    So do the projections of a model, ``[B, length, H, width]`` transposed, also as parts of one projection of
    queries, keys and values.
    """
    return x.shape[1] > 1 and x.shape[2] > 1 and x.stride(3) == 1 and x.stride(2) > x.stride(1)


def empty_as(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate ``[B, H, length, width]``, token by token in memory if ``like`` is, else head by head.

    A model transposes the context and the gradients back: it would copy each that lies head by head.
    """
    _, heads, length, width = shape
    if is_token_major(like):
        # No view of anything: users may change a result in place.
        strides = (length * heads * width, width, heads * width, 1)
        return like.new_empty_strided(shape, strides, dtype=dtype)
    return like.new_empty(shape, dtype=dtype)
