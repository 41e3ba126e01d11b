"""BertSparseSelfAttention: the self-attention of a BERT layer with a sparsity pattern.

Shapes in this file: B batch, H heads, L tokens, D head dimension, W hidden size, ``H * D``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from longspan.attention.sparse_self_attention import SparseSelfAttention

if TYPE_CHECKING:
    from longspan.sparsity import SparsityConfig

# Arguments of BERT layers that change the result and are not supported.
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
    """The projections of a BERT layer with `SparseSelfAttention`.

    The projections have the names of Hugging Face's ``BertSelfAttention`` (``query``, ``key``, ``value``), so
    its weights load without changes.

    Args:
        config: a Hugging Face ``BertConfig``, or an object with its ``hidden_size``, ``num_attention_heads``
            and ``attention_probs_dropout_prob`` (dropout of attention weights in training).
        sparsity_config: the pattern, with the same number of heads.

    Raises:
        ValueError: the hidden size is not a multiple of the number of heads, or the pattern has other heads.

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
        """Compute the self-attention of a batch.

        Args:
            hidden_states: ``[B, L, W]``.
            attention_mask: ``[B, L]`` or ``[B, 1, 1, L]``, or ``[B or 1, H or 1, L, L]``: bool or integers,
                nonzero where a token may be attended, or floating point, added to the scores.
            document_ids: integers ``[B, L]``; a token attends only tokens with its number.
            kwargs: other arguments of Hugging Face's layers; those that would change the result are refused.

        Returns:
            The context ``[B, L, W]``, and None for the attention weights, which are never stored.

        Raises:
            ValueError: an argument would change the result and is not supported.

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
        q_BHLD, k_BHLD, v_BHLD = (
            self._split_heads(projection(hidden_states)) for projection in (self.query, self.key, self.value)
        )
        context_BHLD = self.sparse_self_attention(q_BHLD, k_BHLD, v_BHLD, document_ids=document_ids, **masks)
        return context_BHLD.transpose(1, 2).flatten(2), None

    def _split_heads(self, x_BLW: Tensor) -> Tensor:
        return x_BLW.unflatten(-1, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)
