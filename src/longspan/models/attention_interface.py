"""The attention function that transformers calls in each layer of a model whose attention is ``longspan``.

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

# Keywords of transformers' attention functions that change what attention computes and are not served here.
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
    """Attend under the layer's pattern; the signature is transformers' own for attention functions.

    A causal layer is causal to the token whatever its pattern says, and a layer's own window is intersected
    with the pattern, to the token.

    Args:
        module: the attention layer; it holds its `SparseSelfAttention`, or its configuration says which to
            make.
        query: ``[B, H, L, D]``; the last query meets the last key.
        key: ``[B, K, M, D]``, ``H`` a multiple of ``K``.
        value: ``[B, K, M, D]``.
        attention_mask: None; bool ``[B, M]``, True where a key may be attended; integers ``[B, M]``, document
            numbers; or a mask of the user's own ``[B or 1, H or 1, L or 1, M]``: bool, True where attended,
            or floating point, added to the scaled scores.
        scaling: factor of the scores, ``D ** -0.5`` if None.
        dropout: probability with which attention weights are dropped.
        is_causal: overrides what the layer says of itself.
        sliding_window: a query attends keys fewer than this many tokens away, itself included; None for all.
        document_ids: integers ``[B, M]``: attention stays between equal numbers. Pass it to the model's
            forward; it alone then says where documents are, whatever the position ids look like.
        kwargs: what else the model hands to every attention function. Models pass on whatever they are given,
            so one that is nearly ``document_ids`` is refused: attention would cross documents without a word.

    Returns:
        The context ``[B, L, H, D]`` in the dtype of the values, and None for the weights, which never exist.

    Raises:
        ValueError: an argument that cannot be served, a pattern of another number of heads, or no pattern.

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
    context = attention(
        query,
        key,
        value,
        # A layer that is not causal leaves it to the pattern: a unidirectional one stays so.
        causal=True if causal else None,
        window=_window(sliding_window, causal),
        scale=scaling,
        dropout_p=dropout,
        **masks,
    )
    return context.transpose(1, 2).contiguous(), None


@constant_in_graphs
def _means_document_ids(name: str) -> bool:
    """Tell a misspelling from what transformers passes, of which the nearest is token_type_ids, at 0.62."""
    return _likeness(name) > 0.7


@functools.lru_cache(maxsize=256)  # each layer of each step asks for the same few names
def _likeness(name: str) -> float:
    return difflib.SequenceMatcher(None, name, "document_ids").ratio()


def _causal(module: Any) -> bool:
    """Ask the layer, and the configuration: a decoder's may say that it is used in both directions."""
    return module.is_causal and getattr(module.config, "is_causal", True)


def _masks(attention_mask: Tensor | None, query: Tensor, key: Tensor) -> dict[str, Tensor]:
    """Tell by its form what the mask function, or the user, handed on."""
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
    """Turn transformers' window, which counts the query itself, into tokens to the left and to the right."""
    if sliding_window is None:
        return None
    if sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1 token, got {sliding_window}")
    return sliding_window - 1, None if causal else sliding_window - 1
