"""Biases that depend only on the distance of query and key: T5's learned buckets and ALiBi's slopes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class T5Buckets:
    """T5's relative bias: a learned number for each head and bucket of distances (Raffel et al. 2020).

    Half of the buckets (a quarter for each direction, if bidirectional) hold one distance each. The others
    hold ranges that grow logarithmically up to ``max_distance``; all larger distances share the last bucket
    (arXiv:1910.10683).

    Args:
        table: floating point ``[num_buckets, heads]``, as T5's ``relative_attention_bias.weight``; it may
            require a gradient.
        bidirectional: whether keys behind the query have buckets of their own, as in T5's encoder; if not,
            they share that of distance 0, as in its decoder.
        max_distance: distance in tokens; all distances from there on share the last bucket.

    Raises:
        ValueError: the table has another shape, dtype or number of buckets, or ``max_distance`` is too small.

    """

    table: Tensor
    bidirectional: bool = True
    max_distance: int = 128

    def __post_init__(self) -> None:
        shape = tuple(self.table.shape)
        if self.table.ndim != 2 or not self.table.is_floating_point():
            raise ValueError(
                f"table must be floating point [num_buckets, heads], got {self.table.dtype} {list(shape)}"
            )
        exact = shape[0] // (4 if self.bidirectional else 2)
        if exact < 1 or shape[0] % (4 if self.bidirectional else 2):
            raise ValueError(
                f"table must have a positive multiple of {4 if self.bidirectional else 2} buckets with "
                f"bidirectional={self.bidirectional}, got {shape[0]}"
            )
        if not isinstance(self.max_distance, int) or self.max_distance <= exact:
            raise ValueError(
                f"max_distance must be a whole number over {exact}, the distances with buckets of their own, "
                f"got {self.max_distance!r}"
            )

    def buckets(self) -> Tensor:
        """Return the bucket of each distance, key minus query, from -max_distance to max_distance: int32."""
        make = _buckets if self._is_for_one_call() else _kept_buckets
        return make(self.table.shape[0], self.max_distance, self.bidirectional, self.table.device)

    def _is_for_one_call(self) -> bool:
        """Whether a tensor made now is valid in this call only: it is traced, fake or captured."""
        return (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack() > 0
            or type(self.table) not in (Tensor, torch.nn.Parameter)
            or (self.table.is_cuda and torch.cuda.is_current_stream_capturing())
        )


@dataclass(frozen=True, eq=False)
class Alibi:
    """ALiBi: each head lowers its scores in proportion to the distance, at a fixed slope (Press et al. 2022).

    The bias is ``-slope |i - j|`` (arXiv:2108.12409); without causality it falls on both sides.

    Args:
        slopes: floating point ``[heads]``, without a gradient; `Alibi.of` returns those of the paper.

    Raises:
        ValueError: the slopes have another shape or dtype.

    """

    slopes: Tensor

    def __post_init__(self) -> None:
        if self.slopes.ndim != 1 or not self.slopes.is_floating_point():
            raise ValueError(
                f"slopes must be floating point [heads], got {self.slopes.dtype} {list(self.slopes.shape)}"
            )

    @classmethod
    def of(cls, heads: int, device: torch.device | str | None = None) -> Alibi:
        """Return the slopes of the paper: ``2 ** (-8 h / heads)`` for h = 1 ... heads.

        If ``heads`` is no power of two: the slopes of the power of two below, then every other slope of the
        power of two above.

        Raises:
            ValueError: less than one head.

        """
        if heads < 1:
            raise ValueError(f"heads must be at least 1, got {heads}")
        below = 2 ** math.floor(math.log2(heads))
        exponents = [8 * head / below for head in range(1, below + 1)]
        exponents += [4 * head / below for head in range(1, 2 * (heads - below) + 1, 2)]
        return cls(torch.tensor([2.0**-exponent for exponent in exponents], device=device))


RelativeBias = T5Buckets | Alibi


def _buckets(number: int, max_distance: int, bidirectional: bool, device: torch.device) -> Tensor:
    distance = torch.arange(-max_distance, max_distance + 1, device=device)
    first = torch.zeros_like(distance)
    if bidirectional:
        number //= 2
        first = torch.where(distance > 0, number, 0)
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = number // 2
    # In float32 and in this order, so that distances fall into the buckets that T5 was trained with.
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    grown = (exact + (share * (number - exact)).long()).clamp(max=number - 1)
    return (first + torch.where(distance < exact, distance, grown)).int()


@functools.lru_cache(maxsize=16)
def _kept_buckets(number: int, max_distance: int, bidirectional: bool, device: torch.device) -> Tensor:
    # The result serves every later call: in training (so no inference tensor), and on any stream.
    with torch.inference_mode(False):
        buckets = _buckets(number, max_distance, bidirectional, device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return buckets
