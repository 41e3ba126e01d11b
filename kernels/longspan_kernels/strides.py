"""How results lie in memory: as the tensors that they belong to.

A model's projections lie token by token, ``[batch, length, heads, width]``, and attention sees them turned
about. If the context and the gradients lay head by head, turning them back would copy each of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_first(x: Tensor) -> bool:
    """Say whether ``[batch, heads, length, width]`` lies token by token, all heads of a token together."""
    return not x.is_contiguous() and x.transpose(1, 2).is_contiguous()


def empty_as(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make room for ``[batch, heads, length, width]`` that lies by tokens if another does, else by heads."""
    batch, heads, length, width = shape
    if tokens_first(like):
        return like.new_empty((batch, length, heads, width), dtype=dtype).transpose(1, 2)
    return like.new_empty(shape, dtype=dtype)
