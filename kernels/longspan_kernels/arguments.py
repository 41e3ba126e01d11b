"""What a backend is asked for: everything of one attention call but the tensors that it differentiates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.layout.csr import BlockCSR


@dataclass(frozen=True, eq=False)
class Arguments:
    """The options of one call, checked and normalised.

    Attributes:
        layout: the kept blocks.
        scale: factor of the scores.
        left: key ``j`` is seen by a query at position ``i`` only if ``j >= i - left``; None for no bound.
        right: only if ``j <= i + right``; None for no bound. Causal attention is ``right = 0``.
        key_padding_mask: None, or ``[batch, k_len]``, bool (True: attended) or floating point (added).
        attn_mask: None, or 4-dimensional with every size 1 or that of ``[batch, heads, q_len, k_len]``, bool
            (True: attended) or floating point (added, no gradient).
        bias: None, or floating point of such a shape, added; it has a gradient.
        document_ids: None, or integers ``[batch, k_len]``; the queries take the last ``q_len``.
        relative_table: None, or floating point ``[buckets, heads]``, added by distance; it has a gradient.
        relative_buckets: None, or int32 ``[2 span + 1]``: the bucket of each distance, key position minus
            query position, from -span to span; what is farther has that of the end.
        slopes: None, or floating point ``[heads]``: times the distance, subtracted.
        dropout_p: probability of dropping an attention weight.
        dropout_seed: int64 of no dimension, None without dropout.

    """

    layout: BlockCSR
    scale: float
    left: int | None = None
    right: int | None = None
    key_padding_mask: Tensor | None = None
    attn_mask: Tensor | None = None
    bias: Tensor | None = None
    document_ids: Tensor | None = None
    dropout_p: float = 0.0
    dropout_seed: Tensor | None = None
    relative_table: Tensor | None = None
    relative_buckets: Tensor | None = None
    slopes: Tensor | None = None

    @property
    def masked(self) -> bool:
        """Whether anything strikes scores, or is added to them, besides the layout and the bounds."""
        return not (
            self.key_padding_mask is None
            and self.attn_mask is None
            and self.bias is None
            and self.document_ids is None
            and self.relative_table is None
            and self.slopes is None
        )


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that scores, sums and the log-sum-exp are kept in: float32 for the half types."""
    return torch.promote_types(dtype, torch.float32)
