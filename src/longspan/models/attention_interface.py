"""The attention function that transformers calls in each layer of a model with attention ``longspan``.

Shapes in this file: B batch, H query heads, K key and value heads, L queries, M keys (past and new), D head
dimension.
"""

from __future__ import annotations

import difflib
import functools
from typing import Any

import torch
from torch import Tensor, nn

from longspan.models.layers import attention_of
from longspan_kernels.layout.handles import constant_in_graphs

# Keywords of transformers' attention functions that change the result and are not supported.
_REFUSED = {
    "softcap": "soft-capped scores",
    "s_aux": "attention sinks",
    "position_bias": "a bias of positions [heads, q_len, k_len]",
    "cache": "a paged cache",
    "cu_seq_lens_q": "cumulative lengths; pass document_ids=[batch, length] to the model",
    "cu_seq_lens_k": "cumulative lengths; pass document_ids=[batch, length] to the model",
}


def longspan_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    document_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention with the pattern of the layer, as an attention function of transformers.

    A causal layer is causal to the token with any pattern. The sliding window of a layer is intersected with
    the pattern, to the token.

    Args:
        module: the attention layer. It has its `SparseSelfAttention`, or its configuration has the pattern.
        query: ``[B, H, L, D]``; the last query is at the position of the last key.
        key: ``[B, K, M, D]``, ``H`` a multiple of ``K``.
        value: ``[B, K, M, D]``.
        attention_mask: None; bool ``[B, M]``, True where a key may be attended; integers ``[B, M]``, document
            numbers; or a mask of the user ``[B or 1, H or 1, L or 1, M]``: bool, True where attended, or
            floating point, added to the scaled scores.
        scaling: factor of the scores; None for ``D ** -0.5``.
        dropout: dropout probability of attention weights.
        is_causal: overrides the direction of the layer.
        sliding_window: number of tokens that a query attends to a side, itself included; None for all.
        document_ids: integers ``[B, M]``; a query attends only keys with its number. It is an argument of the
            forward of the model, and has precedence over documents that follow from position ids.
        kwargs: other arguments of attention functions. Models pass on unknown arguments, so names similar to
            ``document_ids`` are refused: attention would otherwise cross documents silently.

    Returns:
        The context ``[B, L, H, D]`` in the dtype of the values, and None for the weights, which are never
        stored.

    Raises:
        ValueError: an argument is not supported, the pattern is missing, or it has another number of heads.

    """
    for name, meaning in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"attention implementation 'longspan' does not serve {name}: {meaning}")
    for name in kwargs:
        if _means_document_ids(name):
            raise ValueError(f"unknown argument {name!r}; did you mean document_ids?")
    if kwargs.get("output_attentions"):
        raise ValueError(
            "output_attentions must be False with the attention implementation 'longspan': attention weights "
            "are never stored; model.set_attn_implementation('eager') shows those of dense attention"
        )
    attention = attention_of(module)
    heads = attention.sparsity_config.num_heads
    if query.shape[1] != heads:
        raise ValueError(
            f"the pattern has num_heads={heads}, but {type(module).__name__} brings {query.shape[1]} heads"
        )
    masks = _masks(attention_mask, query, key)
    if document_ids is not None:
        masks["document_ids"] = _checked_document_ids(document_ids, key)
    causal = _causal(module) if is_causal is None else is_causal
    context_BHLD = attention(
        query,
        key,
        value,
        # If the layer is not causal, the pattern decides.
        causal=True if causal else None,
        window=_window(sliding_window, causal),
        scale=scaling,
        dropout_p=dropout,
        **masks,
    )
    return context_BHLD.transpose(1, 2).contiguous(), None


@constant_in_graphs
def _means_document_ids(name: str) -> bool:
    """Return whether a name is a misspelling; the closest name of transformers is token_type_ids, at 0.62."""
    return _similarity(name) > 0.7


@functools.lru_cache(maxsize=256)  # every layer of every step passes the same few names
def _similarity(name: str) -> float:
    return difflib.SequenceMatcher(None, name, "document_ids").ratio()


def _causal(module: Any) -> bool:
    """Return whether the layer is causal; the configuration of a decoder can make it bidirectional."""
    return module.is_causal and getattr(module.config, "is_causal", True)


def _masks(attention_mask: Tensor | None, query: Tensor, key: Tensor) -> dict[str, Tensor]:
    """Return the mask as an argument of SparseSelfAttention, by its shape and dtype."""
    if attention_mask is None:
        return {}
    if attention_mask.ndim == 2:
        return {"key_padding_mask" if attention_mask.dtype == torch.bool else "document_ids": attention_mask}
    q_len, k_len = query.shape[2], key.shape[2]
    allowed = ((1, query.shape[0]), (1, query.shape[1]), (1, q_len), (k_len,))
    sizes = tuple(attention_mask.shape)
    if len(sizes) != 4 or not all(size in sides for size, sides in zip(sizes, allowed, strict=True)):
        raise ValueError(
            f"a 4-dimensional attention_mask must be [{query.shape[0]} or 1, {query.shape[1]} or 1, "
            f"{q_len} or 1, {k_len}], got {list(sizes)}"
        )
    if attention_mask.dtype == torch.bool:
        return {"attn_mask": attention_mask}
    if attention_mask.is_floating_point():
        return {"bias": attention_mask}
    raise ValueError(
        f"a 4-dimensional attention_mask must be bool or floating point, got {attention_mask.dtype}"
    )


def _checked_document_ids(document_ids: Tensor, key: Tensor) -> Tensor:
    expected = (key.shape[0], key.shape[2])
    if tuple(document_ids.shape) != expected or document_ids.is_floating_point():
        raise ValueError(
            f"document_ids must be integers [batch, keys] = {list(expected)} (with a cache: of past and new "
            f"tokens), got {document_ids.dtype} {list(document_ids.shape)}"
        )
    return document_ids


def _window(sliding_window: int | None, causal: bool) -> tuple[int | None, int | None] | None:
    """Convert transformers' window, which includes the query, into tokens to the left and to the right."""
    if sliding_window is None:
        return None
    if sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1 token, got {sliding_window}")
    return sliding_window - 1, None if causal else sliding_window - 1
