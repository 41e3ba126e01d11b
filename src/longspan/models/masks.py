"""The mask function that transformers calls once a forward for models whose attention is ``longspan``.

transformers describes a mask by a small Python function of (batch, head, query, key) which its own
implementations spell out over ``[q_len, k_len]``. Here only what is not known in the layers is handed on: the
padding mask, or the document numbers of a packed batch. Causality and a model's own window are known in each
layer, and anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_PACKED = "packed_sequence_mask_function"
_SERVED = {
    # Causality and windows: the layers know both.
    "causal_mask_function",
    "bidirectional_mask_function",
    "sliding_window_overlay",
    "sliding_window_bidirectional_overlay",
    # Documents, and what joins the parts.
    _PACKED,
    "packed_sequence_compatibility_function",
    "remap_positions_for_packed_sequence",
    "and_masks",
}


def longspan_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    *,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """Say which keys of each sequence may be attended; the signature is transformers' own for mask functions.

    Args:
        batch_size: sequences.
        q_length: queries of this forward.
        kv_length: keys that the layers will hold.
        q_offset: position of the first query.
        kv_offset: position of the first key.
        mask_function: transformers' description of the mask without the padding.
        attention_mask: bool ``[batch, k_len]``, True where a key may be attended, or None.
        device: where the mask shall lie.
        kwargs: options of transformers' own implementations, which change no mask.

    Returns:
        None where nothing is masked beyond causality and windows; bool ``[batch, k_len]``, True where a key
        may be attended; or, where transformers found documents packed into one sequence by position ids that
        restart, int64 ``[batch, k_len]`` document numbers. The latter happens without a padding mask only.

    Raises:
        ValueError: a cache whose last key is not the last query's (static caches), a cache that has dropped
            keys, a padding mask of another length, or a mask of a kind that is not known here.

    """
    parts = set(_parts(mask_function))
    if parts - _SERVED:
        raise ValueError(
            "attention implementation 'longspan' serves causal, windowed, padded and packed attention; this "
            f"model asks for a mask made of {', '.join(sorted(parts))}"
        )
    if isinstance(q_offset, Tensor) or q_offset + q_length != kv_offset + kv_length:
        raise ValueError(
            "attention implementation 'longspan' needs keys that end with the last query: "
            f"{q_length} queries from position {q_offset} on meet {kv_length} keys from position {kv_offset} "
            "on. Use a DynamicCache, not a static one, and an attention_mask as long as past and new tokens"
        )
    if kv_offset:
        raise ValueError(
            "attention implementation 'longspan' needs every key from position 0 on, but the cache has "
            f"dropped the first {kv_offset}; pass past_key_values=DynamicCache(), made without the model's "
            "configuration, which keeps them all"
        )
    if attention_mask is not None:
        if attention_mask.ndim != 2 or attention_mask.shape[1] != kv_length:
            raise ValueError(
                f"attention_mask must be [batch, {kv_length}] or 4-dimensional, "
                f"got {list(attention_mask.shape)}"
            )
        return None if bool(attention_mask.all()) else attention_mask
    if _PACKED in parts:
        numbers = _document_numbers(mask_function, batch_size, kv_length, device)
        # A compiled model asks for packing wherever it has position ids, restarting or not.
        return numbers if bool(numbers[:, -1].any()) else None
    return None


def _parts(mask_function: Callable[..., Any]) -> Iterator[str]:
    """Name the functions that a mask function is made of, by the outermost name of each one's definition."""
    yield mask_function.__qualname__.split(".")[0]
    for cell in mask_function.__closure__ or ():
        content = cell.cell_contents
        for inner in content if isinstance(content, tuple) else (content,):
            if callable(inner):
                yield from _parts(inner)


def _document_numbers(
    mask_function: Callable[..., Tensor], batch_size: int, length: int, device: torch.device | str
) -> Tensor:
    """Number the documents: a token that may not attend the one before it begins a new document."""
    batch = torch.arange(batch_size, device=device)[:, None]
    query = torch.arange(1, length, device=device)[None, :]
    head = torch.zeros((), dtype=torch.int64, device=device)
    begins = ~mask_function(batch, head, query, query - 1).expand(batch_size, -1)
    return torch.nn.functional.pad(begins.to(torch.int64).cumsum(-1), (1, 0))
