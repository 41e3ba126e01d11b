"""Union, intersection and difference of patterns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from longspan.sparsity.base import OPERATORS, SparsityConfig
from longspan.sparsity.checks import Attention
from longspan_kernels.layout import BlockLayout


@dataclass(frozen=True)
class CombinedSparsityConfig(SparsityConfig):
    """A pattern that combines the layouts of other patterns: the base of union, intersection and difference.

    Blocks are combined head by head, so a part may have a layout per head. All parts have the heads, the
    block and the direction of the whole: a kept block on the diagonal means other tokens in a causal pattern
    than in a bidirectional one, so no set of blocks is the union or the difference of the two.
    """

    different_layout_per_head: bool = field(default=False, init=False, repr=False)

    @property
    @abstractmethod
    def parts(self) -> dict[str, SparsityConfig]:
        """The combined patterns, in order, by their name in error messages."""

    @abstractmethod
    def combine(self, first: BlockLayout, second: BlockLayout) -> BlockLayout:
        """Combine the layouts of two parts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for where, part in self.parts.items():
            if not isinstance(part, SparsityConfig):
                raise ValueError(f"{where} must be a pattern, got {part!r}")
            for name in ("num_heads", "block", "attention"):
                expected, actual = getattr(self, name), getattr(part, name)
                if expected != actual:
                    raise ValueError(
                        f"{where} ({part.name}) must have the {name} of its {self.name}, {expected!r}, got "
                        f"{actual!r}"
                    )

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Raise NotImplementedError: a combination has layouts, only its parts have intervals."""
        raise NotImplementedError(f"{self.name} is made of the layouts of its parts")

    def check_num_blocks(self, num_blocks: int) -> None:
        """Raise ValueError if a part is not defined for ``num_blocks`` blocks."""
        for where, part in self.parts.items():
            try:
                part.check_num_blocks(num_blocks)
            except ValueError as error:
                raise ValueError(f"{where} ({part.name}): {error}") from error

    def _build(self, seq_len: int, q_len: int) -> BlockLayout:
        self.check_num_blocks(-(-seq_len // self.block))
        return reduce(self.combine, (part.layout(seq_len, q_len) for part in self.parts.values()))


@dataclass(frozen=True)
class _NaryCombination(CombinedSparsityConfig):
    """A pattern made of any number of others."""

    # Stored as a tuple.
    patterns: tuple[SparsityConfig, ...] | Mapping[str, SparsityConfig] = field(kw_only=True)
    attention: Attention = "bidirectional"

    def __post_init__(self) -> None:
        self._store("patterns", _as_patterns(self.patterns))
        super().__post_init__()

    @property
    def parts(self) -> dict[str, SparsityConfig]:
        """The patterns."""
        return {f"patterns[{n}]": pattern for n, pattern in enumerate(_as_patterns(self.patterns))}


@dataclass(frozen=True)
class UnionSparsityConfig(_NaryCombination):
    """The blocks that any of the patterns keeps; ``a | b`` is the union of two.

    Args:
        num_heads: number of attention heads, the same in every part.
        block: tokens per block, the same in every part.
        patterns: the parts, at least one: a list, or a mapping, whose keys are names for a command line.
        attention: "bidirectional" or "unidirectional", the same in every part.

    Raises:
        ValueError: no part is given, a part is not a pattern, or its heads, block or direction differ.

    """

    name: ClassVar[str] = "union"

    def combine(self, first: BlockLayout, second: BlockLayout) -> BlockLayout:
        """Unite the blocks."""
        return first | second


@dataclass(frozen=True)
class IntersectionSparsityConfig(_NaryCombination):
    """The blocks that all of the patterns keep; ``a & b`` is the intersection of two.

    A row without any block attends nothing.

    Args:
        num_heads: number of attention heads, the same in every part.
        block: tokens per block, the same in every part.
        patterns: the parts, at least one: a list, or a mapping, whose keys are names for a command line.
        attention: "bidirectional" or "unidirectional", the same in every part.

    Raises:
        ValueError: no part is given, a part is not a pattern, or its heads, block or direction differ.

    """

    name: ClassVar[str] = "intersection"

    def combine(self, first: BlockLayout, second: BlockLayout) -> BlockLayout:
        """Intersect the blocks."""
        return first & second


@dataclass(frozen=True)
class DifferenceSparsityConfig(CombinedSparsityConfig):
    """The blocks that one pattern keeps and another does not: ``a - b``.

    A row without any block attends nothing.

    Args:
        num_heads: number of attention heads, the same in both parts.
        block: tokens per block, the same in both parts.
        pattern: the pattern whose blocks are kept.
        without: the pattern whose blocks are removed.
        attention: "bidirectional" or "unidirectional", the same in both parts.

    Raises:
        ValueError: a part is not a pattern, or its heads, block or direction differ.

    """

    pattern: SparsityConfig = field(kw_only=True)
    without: SparsityConfig = field(kw_only=True)
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "difference"

    @property
    def parts(self) -> dict[str, SparsityConfig]:
        """The pattern and the subtracted one."""
        return {"pattern": self.pattern, "without": self.without}

    def combine(self, first: BlockLayout, second: BlockLayout) -> BlockLayout:
        """Remove the blocks of the second layout from the first."""
        return first - second


def _union(first: SparsityConfig, second: SparsityConfig) -> SparsityConfig:
    return UnionSparsityConfig(
        first.num_heads, first.block, attention=first.attention, patterns=(first, second)
    )


def _intersection(first: SparsityConfig, second: SparsityConfig) -> SparsityConfig:
    return IntersectionSparsityConfig(
        first.num_heads, first.block, attention=first.attention, patterns=(first, second)
    )


def _difference(first: SparsityConfig, second: SparsityConfig) -> SparsityConfig:
    return DifferenceSparsityConfig(
        first.num_heads, first.block, attention=first.attention, pattern=first, without=second
    )


OPERATORS.update({"|": _union, "&": _intersection, "-": _difference})


def _as_patterns(patterns: Any) -> tuple[Any, ...]:
    if isinstance(patterns, Mapping):
        patterns = patterns.values()
    if not isinstance(patterns, Iterable) or isinstance(patterns, str) or not (listed := tuple(patterns)):
        raise ValueError(f"patterns must be a list of at least one pattern, or a mapping, got {patterns!r}")
    return listed
