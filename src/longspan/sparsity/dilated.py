"""Dilated: segments of several lengths, with every d-th block of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from longspan.sparsity import checks
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention


@dataclass(frozen=True)
class DilatedSparsityConfig(SparsityConfig):
    """Dilated attention (LongNet, Ding et al. 2023, arXiv:2307.02486), over blocks.

    A segment length ``w`` with its dilation ``d`` cuts the sequence into segments of ``w`` blocks and selects
    every ``d``-th block of each, from the ``s``-th on: a selected row keeps the selected columns of its
    segment, other rows keep none. The pattern is the union over the pairs of lengths and dilations. The
    offset ``s`` is 0, or ``head % d`` with ``different_layout_per_head``, so that ``d`` heads select every
    block.

    LongNet weights the pairs by the denominators of their softmaxes, which counts a key once for each pair
    that selects it; here one softmax runs over the union. A row that no pair selects attends nothing, so one
    dilation should be 1.

    A row keeps at most ``sum of w / d`` blocks: density about that over ``nb``, linear in the length.

    Args:
        num_heads: number of attention heads.
        block: tokens per block.
        different_layout_per_head: whether the offset differs between heads.
        segment_blocks: length of the segments in blocks, one for each pair, each at least 1; a segment may be
            longer than the sequence.
        dilations: dilation of each pair, at least 1 and at most the length of its segments.
        attention: "bidirectional" or "unidirectional" (causal to the token).

    Raises:
        ValueError: an argument is out of range, or the two lists do not match.

    """

    segment_blocks: tuple[int, ...] = (4, 8, 16)
    dilations: tuple[int, ...] = (1, 2, 4)
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "dilated"

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths, dilations = checked_pairs(self.segment_blocks, self.dilations)
        self._store("segment_blocks", lengths)
        self._store("dilations", dilations)

    def head_variant(self, head: int) -> int:
        """Return the first head with the same offsets."""
        return head % math.lcm(*self.dilations) if self.different_layout_per_head else 0

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each pair, the selected blocks of the row's segment, or an empty interval."""
        starts, stops = [], []
        for length, dilation in zip(self.segment_blocks, self.dilations, strict=True):
            offset = head % dilation if self.different_layout_per_head else 0
            segment = (rows // length * length)[:, None]
            if dilation == 1:
                starts.append(segment)
                stops.append(segment + length)
                continue
            columns = segment + np.arange(offset, min(length, num_blocks), dilation)
            selected = (rows % length % dilation == offset)[:, None]
            starts.append(columns)
            stops.append(columns + selected)
        return np.concatenate(starts, axis=1), np.concatenate(stops, axis=1)


def checked_pairs(segment_blocks: Any, dilations: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the lengths and the dilations as tuples.

    Raises:
        ValueError: one is not a list of integers of at least 1, the lists are empty or their lengths differ,
            or a dilation exceeds its length.

    """
    lengths = checks.integers("segment_blocks", segment_blocks, 1)
    chosen = checks.integers("dilations", dilations, 1)
    if not lengths:
        raise ValueError("segment_blocks must hold at least one length, got []")
    if len(lengths) != len(chosen):
        raise ValueError(
            f"dilations must hold one for each of the {len(lengths)} segment_blocks {list(lengths)}, got "
            f"{len(chosen)}: {list(chosen)}"
        )
    for length, dilation in zip(lengths, chosen, strict=True):
        if dilation > length:
            raise ValueError(
                f"each of dilations must be at most its length in segment_blocks, got dilation {dilation} "
                f"and length {length}"
            )
    return lengths, chosen
