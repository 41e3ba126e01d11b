"""Padding of a batch to a multiple of the block, and its removal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

Padded = tuple[int, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def pad_to_block_size(
    block_size: int,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    pad_token_id: int | None,
    model_embeddings: Any,
) -> Padded:
    """Pad a batch at its end to a multiple of the block, with tokens that no other token attends.

    Longspan's attention takes any length, so nothing here needs this; code that comes from DeepSpeed works
    as it stands. What is None stays None, but for the mask: where padding is added there has to be one. Where
    ``position_ids`` is None the model counts on by itself, so its positions must reach to the padded length.

    Args:
        block_size: the length becomes a multiple of it.
        input_ids: int64 ``[batch, length]``, or None.
        attention_mask: the last dimension is the keys': bool or integers, nonzero where a key may be
            attended; or floating point, added to the scores, but where it holds zeros and ones alone, and a
            one, read as integers. ``[batch, length]``, or with dimensions for heads and queries before the
            last, as ``[batch, 1, 1, length]`` and ``[batch, heads, length, length]``; or None.
        token_type_ids: integers ``[batch, length]``, or None.
        position_ids: integers ``[batch or 1, length]``, or None.
        inputs_embeds: floating point ``[batch, length, width]``, or None.
        pad_token_id: the id of the padding token.
        model_embeddings: what embeds the padding token where there are ``inputs_embeds``: the model, its
            embedding module, or its word embedding.

    Returns:
        The number of tokens added, and the five tensors in the order of the arguments. Masks are padded so
        that the padding is not attended; ids with ``pad_token_id``; token types with 0; positions with
        ``pad_token_id``, RoBERTa's row for padding, or with a sequence's largest position where that is
        smaller.

    Raises:
        ValueError: a block size below 1, neither ids nor embeddings, tensors of unlike lengths, no padding
            token where one is needed, or no ``model_embeddings``.

    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    batch, length, device = _shape(input_ids, inputs_embeds)
    named = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids}
    for name, tensor in named.items():
        if tensor is not None and (tensor.ndim < 2 or tensor.shape[-1] != length):
            raise ValueError(
                f"{name} must be [batch, ..., length] with length {length}, as the tokens; got "
                f"{list(tensor.shape)}"
            )
    pad_len = -length % block_size
    if pad_len == 0:
        return 0, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
    if pad_token_id is None or pad_token_id < 0:
        raise ValueError(
            f"pad_token_id must be the id of a token, to add {pad_len} of them; got {pad_token_id}"
        )
    if inputs_embeds is not None:
        ids = torch.full((batch, pad_len), pad_token_id, dtype=torch.int64, device=device)
        added = _word_embedding(model_embeddings)(ids).to(inputs_embeds.dtype)
        inputs_embeds = torch.cat([inputs_embeds, added], dim=1)
    if input_ids is not None:
        input_ids = pad(input_ids, (0, pad_len), value=pad_token_id)
    if attention_mask is None:
        attention_mask = torch.ones(batch, length, dtype=torch.int64, device=device)
    if token_type_ids is not None:
        token_type_ids = pad(token_type_ids, (0, pad_len), value=0)
    if position_ids is not None:
        # A position that occurs is one that the model has; no one looks at it.
        of_padding = position_ids.amax(-1, keepdim=True).clamp(max=pad_token_id)
        position_ids = torch.cat([position_ids, of_padding.expand(-1, pad_len)], dim=-1)
    mask = _padded_mask(attention_mask, length, pad_len)
    return pad_len, input_ids, mask, token_type_ids, position_ids, inputs_embeds


def unpad_sequence_output(pad_len: int, sequence_output: Tensor) -> Tensor:
    """Drop the last tokens of a model's output, as many as `pad_to_block_size` has added.

    Args:
        pad_len: their number, 0 for none.
        sequence_output: ``[batch, length, ...]``.

    Returns:
        ``[batch, length - pad_len, ...]``, a view.

    Raises:
        ValueError: a negative number, or one that leaves no token.

    """
    length = sequence_output.shape[1]
    if not 0 <= pad_len < length:
        raise ValueError(f"pad_len must lie in [0, {length}), the length of sequence_output; got {pad_len}")
    return sequence_output[:, : length - pad_len]


def _shape(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[int, int, torch.device]:
    """Batch, length and device of a batch of token ids, of embeddings, or of both."""
    if input_ids is None and inputs_embeds is None:
        raise ValueError("input_ids or inputs_embeds must be given, got None for both")
    if input_ids is not None and input_ids.ndim != 2:
        raise ValueError(f"input_ids must be [batch, length], got {list(input_ids.shape)}")
    if inputs_embeds is not None and inputs_embeds.ndim != 3:
        raise ValueError(f"inputs_embeds must be [batch, length, width], got {list(inputs_embeds.shape)}")
    if input_ids is not None and inputs_embeds is not None and input_ids.shape != inputs_embeds.shape[:2]:
        raise ValueError(
            f"input_ids and inputs_embeds must agree in batch and length, got {list(input_ids.shape)} and "
            f"{list(inputs_embeds.shape)}"
        )
    tensor: Any = inputs_embeds if input_ids is None else input_ids
    return tensor.shape[0], tensor.shape[1], tensor.device


def _word_embedding(model_embeddings: Any) -> Any:
    """Find what makes ``inputs_embeds`` of ids: BERT's embedding module would add positions and normalise."""
    if model_embeddings is None:
        raise ValueError("model_embeddings must be given with inputs_embeds, to embed the padding; got None")
    if hasattr(model_embeddings, "get_input_embeddings"):
        return model_embeddings.get_input_embeddings()
    return getattr(model_embeddings, "word_embeddings", model_embeddings)


def _padded_mask(mask: Tensor, length: int, pad_len: int) -> Tensor:
    """Hide the added keys, and let the added queries attend what is there, so that no softmax is empty."""
    # What stock attention takes for a padding mask may be floating zeros and ones: they are not to be added.
    counted = not mask.is_floating_point() or bool(((mask == 0) | (mask == 1)).all() & (mask == 1).any())
    attend, hide = (1, 0) if counted else (0.0, -torch.inf)
    if mask.ndim > 2 and mask.shape[-2] not in (1, length):
        raise ValueError(
            f"attention_mask must have 1 or {length} queries in its dimension before the last, got "
            f"{list(mask.shape)}"
        )
    if mask.ndim > 2 and mask.shape[-2] == length > 1:
        mask = pad(mask, (0, 0, 0, pad_len), value=attend)
    return pad(mask, (0, pad_len), value=hide)
