"""BertSparseSelfAttention: the self-attention of a BERT layer under a pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from longspan.attention.sparse_self_attention import SparseSelfAttention

if TYPE_CHECKING:
    from longspan.sparsity import SparsityConfig

# What a BERT layer may hand to its self-attention that changes the result, and that is not served.
_REFUSED = (
    "head_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "past_key_value",
    "past_key_values",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
)


class BertSparseSelfAttention(nn.Module):
    """Query, key and value projections of a BERT layer around `SparseSelfAttention`.

    The projections are named as in Hugging Face's ``BertSelfAttention`` (``query``, ``key``, ``value``), so
    its weights load as they are.

    Args:
        config: has ``hidden_size``, ``num_attention_heads`` and ``attention_probs_dropout_prob`` (the dropout
            of attention weights in training), as a Hugging Face ``BertConfig``.
        sparsity_config: the pattern, of as many heads.

    Raises:
        ValueError: the hidden size is no multiple of the number of heads, or the pattern has another number.

    """

    def __init__(self, config: Any, sparsity_config: SparsityConfig) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        if hidden % heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {hidden} and {heads}"
            )
        if sparsity_config.num_heads != heads:
            raise ValueError(
                f"the pattern must have the layer's num_attention_heads={heads}, got num_heads="
                f"{sparsity_config.num_heads}"
            )
        self.num_attention_heads = heads
        self.attention_head_size = hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.sparse_self_attention = SparseSelfAttention(
            sparsity_config, dropout_p=config.attention_probs_dropout_prob
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        document_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            hidden_states: ``[batch, length, hidden_size]``, any length.
            attention_mask: ``[batch, length]`` or ``[batch, 1, 1, length]``: bool or integers, nonzero where
                a token may be attended, or floating point, added to the scores; or ``[batch or 1, heads or 1,
                length, length]``, likewise.
            document_ids: integers ``[batch, length]``; attention stays between equal numbers.
            kwargs: what Hugging Face's layers hand on beside these. What would change the result is refused.

        Returns:
            The context ``[batch, length, hidden_size]``, and None for the weights, which are never stored.

        Raises:
            ValueError: an argument that would change the result and is not served here.

        """
        for name in _REFUSED:
            if kwargs.get(name) is not None:
                raise ValueError(f"BertSparseSelfAttention does not serve {name}; leave it out or pass None")
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions must be False: attention weights are never stored")
        masks: dict[str, Tensor] = {}
        if attention_mask is not None:
            if attention_mask.dtype != torch.bool and not attention_mask.is_floating_point():
                attention_mask = attention_mask != 0
            if attention_mask.ndim == 2 or (attention_mask.ndim == 4 and attention_mask.shape[1:3] == (1, 1)):
                masks["key_padding_mask"] = attention_mask.expand(
                    hidden_states.shape[0], *attention_mask.shape[1:]
                )
            elif attention_mask.is_floating_point():
                masks["bias"] = attention_mask
            else:
                masks["attn_mask"] = attention_mask
        context = self.sparse_self_attention(
            *(self._heads(projection(hidden_states)) for projection in (self.query, self.key, self.value)),
            document_ids=document_ids,
            **masks,
        )
        return context.transpose(1, 2).flatten(2), None

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)
