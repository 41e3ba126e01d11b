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

    Longspan's attention takes any length, so only code that comes from DeepSpeed needs this. Arguments that
    are None stay None, except for the mask, which is made if padding is added. Without ``position_ids`` the
    model numbers the padding too, so its positions must cover the padded length.

    Args:
        block_size: block in tokens; the padded length is a multiple of it.
        input_ids: int64 ``[batch, length]``, or None.
        attention_mask: None, or a mask whose last dimension is keys: bool or integers, nonzero where a key
            may be attended; or floating point, added to the scores. A floating-point mask of only zeros and
            ones, with at least one 1, is read as integers. The shape is ``[batch, length]``, or has
            dimensions for heads and queries, as ``[batch, 1, 1, length]`` and ``[batch, heads, length,
            length]``.
        token_type_ids: integers ``[batch, length]``, or None.
        position_ids: integers ``[batch or 1, length]``, or None.
        inputs_embeds: floating point ``[batch, length, width]``, or None.
        pad_token_id: id of the padding token.
        model_embeddings: with ``inputs_embeds``, the module that embeds the padding token: the model, its
            embedding module, or its word embedding.

    Returns:
        The number of added tokens, and the five tensors in the order of the arguments. Masks hide the
        padding; ids are padded with ``pad_token_id``, token types with 0, positions with the smaller of
        ``pad_token_id`` (RoBERTa's row for padding) and the largest position of the sequence.

    Raises:
        ValueError: the block size is below 1, both ids and embeddings are None, lengths differ, or the
            padding token or ``model_embeddings`` is missing but needed.

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
        # An existing position, so that it is in the table of the model; nothing attends it.
        padding_position = position_ids.amax(-1, keepdim=True).clamp(max=pad_token_id)
        position_ids = torch.cat([position_ids, padding_position.expand(-1, pad_len)], dim=-1)
    mask = _padded_mask(attention_mask, length, pad_len)
    return pad_len, input_ids, mask, token_type_ids, position_ids, inputs_embeds


def unpad_sequence_output(pad_len: int, sequence_output: Tensor) -> Tensor:
    """Remove the tokens that `pad_to_block_size` added from the output of a model.

    Args:
        pad_len: number of added tokens, may be 0.
        sequence_output: ``[batch, length, ...]``.

    Returns:
        ``[batch, length - pad_len, ...]``, a view.

    Raises:
        ValueError: ``pad_len`` is negative or leaves no token.

    """
    length = sequence_output.shape[1]
    if not 0 <= pad_len < length:
        raise ValueError(f"pad_len must lie in [0, {length}), the length of sequence_output; got {pad_len}")
    return sequence_output[:, : length - pad_len]


def _shape(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[int, int, torch.device]:
    """Return batch size, length and device of token ids, embeddings, or both."""
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
    """Return the word embedding: BERT's embedding module also adds positions and normalises."""
    if model_embeddings is None:
        raise ValueError("model_embeddings must be given with inputs_embeds, to embed the padding; got None")
    if hasattr(model_embeddings, "get_input_embeddings"):
        return model_embeddings.get_input_embeddings()
    return getattr(model_embeddings, "word_embeddings", model_embeddings)


def _padded_mask(mask: Tensor, length: int, pad_len: int) -> Tensor:
    """Hide the added keys, and let the added queries attend the others, so that no softmax is empty."""
    # transformers takes floating-point zeros and ones as a padding mask, which is not added to the scores.
    is_boolean = not mask.is_floating_point() or bool(((mask == 0) | (mask == 1)).all() & (mask == 1).any())
    attend, hide = (1, 0) if is_boolean else (0.0, -torch.inf)
    if mask.ndim > 2 and mask.shape[-2] not in (1, length):
        raise ValueError(
            f"attention_mask must have 1 or {length} queries in its dimension before the last, got "
            f"{list(mask.shape)}"
        )
    if mask.ndim > 2 and mask.shape[-2] == length > 1:
        mask = pad(mask, (0, 0, 0, pad_len), value=attend)
    return pad(mask, (0, pad_len), value=hide)
