"""Inspection: the patterns of a configuration, their layouts and their reach."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.analysis.reach import Reach
from longspan.sparsity import SparsityConfig
from longspan_kernels.layout import BlockLayout


@dataclass(frozen=True)
class Inspection:
    """The patterns of the layers of a configuration, and what they reach at one sequence length.

    Attributes:
        patterns: one per layer; None for a dense layer.
        layouts: layout of each layer; None for a dense layer.
        seq_len: tokens in the sequence.
        causal: True for a causal model; None if each layer follows its pattern.
        head_dim: dimension of a head; None if the configuration does not give it.
        reach: reach of the layers.
        own_windows: whether layers of the model have sliding windows of the architecture, which are not
            counted.

    """

    patterns: tuple[SparsityConfig | None, ...]
    layouts: tuple[BlockLayout | None, ...]
    seq_len: int
    causal: bool | None
    head_dim: int | None
    reach: Reach
    own_windows: bool = False

    @property
    def title(self) -> str:
        """One line: names of the patterns, direction, length and number of layers."""
        names = ", ".join(dict.fromkeys("dense" if one is None else one.name for one in self.patterns))
        direction = "causal" if self.reach.causal else "both directions"
        layers = "1 layer" if len(self.patterns) == 1 else f"{len(self.patterns)} layers"
        return f"{names}: {direction}, {self.seq_len:,} tokens, {layers}"
