"""HeadMixture: different patterns for the heads of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention
from longspan.sparsity.mixture import named_pattern, parse
from longspan.sparsity.registry import from_dict
from longspan_kernels.layout import BlockLayout, stack_heads


@dataclass(frozen=True)
class HeadMixtureSparsityConfig(SparsityConfig):
    """A layer whose heads have different patterns, as those of Sparse Transformers may (arXiv:1904.10509).

    The first heads have the first pattern, and so on. The layout of the layer is a list of the distinct
    layouts and a map from heads to them, so heads of one pattern share memory.

    The patterns are given as a line, ``"local*3 dense"``, in the form of
    `longspan.sparsity.mixture.layer_patterns`: counts are heads, and the patterns get ``block`` and
    ``attention`` of the whole. If the counts sum to a divisor of ``num_heads``, each is multiplied. Or they
    are given as patterns, each with its ``num_heads``. Both forms are stored as a tuple of patterns.

    Args:
        num_heads: number of attention heads: the sum over the patterns.
        block: tokens per block, the same in every pattern.
        patterns: a line, a list of patterns, or a mapping of them, whose keys are names for a command line.
        attention: "bidirectional" or "unidirectional" (causal to the token), the same in every pattern.

    Raises:
        ValueError: the line is malformed, a pattern is unknown, or the heads, block or direction of a pattern
            differ from those of the whole; in ``layout``, a pattern is not defined for the sequence.

    """

    # The patterns decide whether heads differ.
    different_layout_per_head: bool = field(default=True, init=False, repr=False)
    patterns: str | Sequence[SparsityConfig] | Mapping[str, SparsityConfig] = "local_sliding_window dense"
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "heads"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store("patterns", self._as_patterns(self.patterns))
        for where, pattern in enumerate(self.children):
            for argument in ("block", "attention"):
                expected, actual = getattr(self, argument), getattr(pattern, argument)
                if expected != actual:
                    raise ValueError(
                        f"patterns[{where}] ({pattern.name}) must have the {argument} of the whole, "
                        f"{expected!r}, got {actual!r}"
                    )
        heads = [pattern.num_heads for pattern in self.children]
        if sum(heads) != self.num_heads:
            raise ValueError(
                f"num_heads must be the sum of the patterns' num_heads, {' + '.join(map(str, heads))} = "
                f"{sum(heads)}, got {self.num_heads}"
            )

    @property
    def children(self) -> tuple[SparsityConfig, ...]:
        """The patterns, in the order of the heads, each with its number of heads."""
        assert isinstance(self.patterns, tuple)
        return self.patterns

    def check_num_blocks(self, num_blocks: int) -> None:
        """Raise ValueError if one of the patterns is not defined for ``num_blocks`` blocks."""
        for pattern in self.children:
            try:
                pattern.check_num_blocks(num_blocks)
            except ValueError as error:
                raise ValueError(f"{pattern.name}: {error}") from error

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the intervals of the pattern that ``head`` has."""
        for pattern in self.children:
            if head < pattern.num_heads:
                return pattern.intervals(rows, num_blocks, head)
            head -= pattern.num_heads
        raise ValueError(f"head must be less than {self.num_heads}")

    def _build(self, seq_len: int, q_len: int) -> BlockLayout:
        self.check_num_blocks(-(-seq_len // self.block))
        return stack_heads([pattern.layout(seq_len, q_len) for pattern in self.children])

    def _as_patterns(self, patterns: Any) -> tuple[SparsityConfig, ...]:
        if isinstance(patterns, str):
            return self._from_line(patterns)
        if isinstance(patterns, Mapping):
            patterns = patterns.values()
        if not isinstance(patterns, Iterable) or not (listed := tuple(patterns)):
            raise ValueError(f"patterns must be a line, or a list of at least one pattern, got {patterns!r}")
        made = tuple(from_dict(one) if isinstance(one, Mapping) else one for one in listed)
        for where, pattern in enumerate(made):
            if not isinstance(pattern, SparsityConfig):
                raise ValueError(f"patterns[{where}] must be a pattern, got {pattern!r}")
        return made

    def _from_line(self, line: str) -> tuple[SparsityConfig, ...]:
        shares = parse(line, "patterns")
        total = sum(share.count for share in shares)
        times, rest = divmod(self.num_heads, total)
        if rest:
            raise ValueError(
                f"patterns={line!r} gives {total} heads their pattern and num_heads is {self.num_heads}: "
                f"{self.num_heads} must be a multiple of {total}"
            )
        shared = {"block": self.block, "attention": self.attention}
        for share in shares:
            if "num_heads" in share.arguments:
                raise ValueError(f"patterns={line!r}: heads are counted by *k, not by num_heads")
        # With the index of the first head as seed, patterns of one class draw different random blocks.
        first, made = 0, []
        for share in shares:
            heads = share.count * times
            made.append(named_pattern(share, {**shared, "num_heads": heads, "seed": first}))
            first += heads
        return tuple(made)
