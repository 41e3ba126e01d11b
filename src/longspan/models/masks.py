"""The mask function that transformers calls once per forward of a model with the implementation ``longspan``.

Shapes in this file: B batch, L queries, M keys (past and new).

transformers describes a mask by a Python function of (batch, head, query, key), which other implementations
evaluate over ``[L, M]``. This one returns only the padding mask, or the document numbers of a packed batch.
Each layer knows causality and its sliding window; any other mask is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_PACKED = "packed_sequence_mask_function"
_SERVED = {
    # Causality and windows, which the layers know.
    "causal_mask_function",
    "bidirectional_mask_function",
    "sliding_window_overlay",
    "sliding_window_bidirectional_overlay",
    # Documents, and combinations of masks.
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
    """Return the padding mask or the document numbers; the signature is that of transformers' mask functions.

    Args:
        batch_size: number of sequences B.
        q_length: number of queries L of this forward.
        kv_length: number of keys M in the layers.
        q_offset: position of the first query.
        kv_offset: position of the first key.
        mask_function: transformers' description of the mask without the padding.
        attention_mask: bool ``[B, M]``, True where a key may be attended, or None.
        device: device of the mask.
        kwargs: options of transformers' implementations that do not change the mask.

    Returns:
        None if only causality and windows apply; bool ``[B, M]``, True where a key may be attended; or int64
        ``[B, M]`` document numbers, if there is no padding mask and transformers detects packed documents by
        position ids that restart.

    Raises:
        ValueError: the last key of the cache is not that of the last query (static caches), the cache has
            dropped keys, the padding mask has another length, or the mask has an unknown part.

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
        ids_BM = _document_ids(mask_function, batch_size, kv_length, device)
        # A compiled model has this part with all position ids, also without a restart.
        return ids_BM if bool(ids_BM[:, -1].any()) else None
    return None


def _parts(mask_function: Callable[..., Any]) -> Iterator[str]:
    """Yield the outermost names of the functions that a mask function consists of."""
    yield mask_function.__qualname__.split(".")[0]
    for cell in mask_function.__closure__ or ():
        content = cell.cell_contents
        for inner in content if isinstance(content, tuple) else (content,):
            if callable(inner):
                yield from _parts(inner)


def _document_ids(
    mask_function: Callable[..., Tensor], batch_size: int, length: int, device: torch.device | str
) -> Tensor:
    """Return document numbers, int64 ``[B, M]``; a token that may not attend its predecessor begins one."""
    batch = torch.arange(batch_size, device=device)[:, None]
    query = torch.arange(1, length, device=device)[None, :]
    head = torch.zeros((), dtype=torch.int64, device=device)
    begins = ~mask_function(batch, head, query, query - 1).expand(batch_size, -1)
    return torch.nn.functional.pad(begins.to(torch.int64).cumsum(-1), (1, 0))
