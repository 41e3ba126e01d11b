"""How results lie in memory: as the tensors that they belong to.

A model's projections lie token by token, ``[batch, length, heads, width]``, and attention sees them turned
about. If the context and the gradients lay head by head, turning them back would copy each of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_first(x: Tensor) -> bool:
    """Say whether ``[batch, heads, length, width]`` lies token by token, the heads of a token together.

    A part of one projection of queries, keys and values does, too.
    """
    return x.shape[1] > 1 and x.shape[2] > 1 and x.stride(3) == 1 and x.stride(2) > x.stride(1)


def empty_as(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make room for ``[batch, heads, length, width]`` that lies by tokens if another does, else by heads."""
    _, heads, length, width = shape
    if tokens_first(like):
        # No view of anything: users may change a result in place.
        strides = (length * heads * width, width, heads * width, 1)
        return like.new_empty_strided(shape, strides, dtype=dtype)
    return like.new_empty(shape, dtype=dtype)
