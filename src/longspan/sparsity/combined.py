"""Union, intersection and difference of patterns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.checks import Attention
from longspan_kernels.layout import BlockLayout


@dataclass(frozen=True)
class CombinedSparsityConfig(SparsityConfig):
    """A pattern made of the layouts of others: what union, intersection and difference share.

    Blocks are combined head by head, so a part may have a layout for each head. All parts have the heads, the
    block and the direction of the whole: on the diagonal a kept block means other tokens in a causal pattern
    than in a bidirectional one, so that no set of blocks is the union or the difference of the two.
    """

    different_layout_per_head: bool = field(default=False, init=False, repr=False)

    @property
    @abstractmethod
    def parts(self) -> dict[str, SparsityConfig]:
        """The patterns it is made of, in order, by the words that an error calls them by."""

    @abstractmethod
    def combine(self, first: BlockLayout, second: BlockLayout) -> BlockLayout:
        """Combine the layouts of two parts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for where, part in self.parts.items():
            if not isinstance(part, SparsityConfig):
                raise ValueError(f"{where} must be a pattern, got {part!r}")
            for name in ("num_heads", "block", "attention"):
                own, theirs = getattr(self, name), getattr(part, name)
                if own != theirs:
                    raise ValueError(
                        f"{where} ({part.name}) must have the {name} of its {self.name}, {own!r}, got "
                        f"{theirs!r}"
                    )

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Raise NotImplementedError: only the parts have intervals."""
        raise NotImplementedError(f"{self.name} is made of the layouts of its parts")

    def check_num_blocks(self, num_blocks: int) -> None:
        """Raise ValueError where a part is not defined for so many blocks."""
        for where, part in self.parts.items():
            try:
                part.check_num_blocks(num_blocks)
            except ValueError as error:
                raise ValueError(f"{where} ({part.name}): {error}") from error

    def _build(self, seq_len: int, q_len: int) -> BlockLayout:
        self.check_num_blocks(-(-seq_len // self.block))
        return reduce(self.combine, (part.layout(seq_len, q_len) for part in self.parts.values()))


@dataclass(frozen=True)
class _SeveralSparsityConfig(CombinedSparsityConfig):
    """A pattern made of any number of others."""

    # A tuple, once it is checked.
    patterns: tuple[SparsityConfig, ...] | Mapping[str, SparsityConfig] = field(kw_only=True)
    attention: Attention = "bidirectional"

    def __post_init__(self) -> None:
        self._store("patterns", _listed(self.patterns))
        super().__post_init__()

    @property
    def parts(self) -> dict[str, SparsityConfig]:
        """The patterns."""
        return {f"patterns[{n}]": pattern for n, pattern in enumerate(_listed(self.patterns))}


@dataclass(frozen=True)
class UnionSparsityConfig(_SeveralSparsityConfig):
    """The blocks that any of the patterns keeps; ``a | b`` is the same of two.

    Args:
        num_heads: number of attention heads, of every part too.
        block: tokens a block, of every part too.
        patterns: the parts, at least one: a list, or a mapping, whose keys are names for a command line.
        attention: "bidirectional" or "unidirectional", of every part too.

    Raises:
        ValueError: there is no part, one is no pattern, or has other heads, another block or direction.

    """

    name: ClassVar[str] = "union"

    def combine(self, first: BlockLayout, second: BlockLayout) -> BlockLayout:
        """Unite the blocks."""
        return first | second


@dataclass(frozen=True)
class IntersectionSparsityConfig(_SeveralSparsityConfig):
    """The blocks that all of the patterns keep; ``a & b`` is the same of two.

    A row that is left without a block attends nothing.

    Args:
        num_heads: number of attention heads, of every part too.
        block: tokens a block, of every part too.
        patterns: the parts, at least one: a list, or a mapping, whose keys are names for a command line.
        attention: "bidirectional" or "unidirectional", of every part too.

    Raises:
        ValueError: there is no part, one is no pattern, or has other heads, another block or direction.

    """

    name: ClassVar[str] = "intersection"

    def combine(self, first: BlockLayout, second: BlockLayout) -> BlockLayout:
        """Intersect the blocks."""
        return first & second


@dataclass(frozen=True)
class DifferenceSparsityConfig(CombinedSparsityConfig):
    """The blocks that one pattern keeps and another does not; ``a - b`` is the same.

    A row that is left without a block attends nothing.

    Args:
        num_heads: number of attention heads, of both parts too.
        block: tokens a block, of both parts too.
        pattern: what is kept.
        without: what is taken away from it.
        attention: "bidirectional" or "unidirectional", of both parts too.

    Raises:
        ValueError: a part is no pattern, or has other heads, another block or direction.

    """

    pattern: SparsityConfig = field(kw_only=True)
    without: SparsityConfig = field(kw_only=True)
    attention: Attention = "bidirectional"

    name: ClassVar[str] = "difference"

    @property
    def parts(self) -> dict[str, SparsityConfig]:
        """The pattern and what is taken from it."""
        return {"pattern": self.pattern, "without": self.without}

    def combine(self, first: BlockLayout, second: BlockLayout) -> BlockLayout:
        """Take the blocks of the second from the first."""
        return first - second


def _listed(patterns: Any) -> tuple[Any, ...]:
    if isinstance(patterns, Mapping):
        patterns = patterns.values()
    if not isinstance(patterns, Iterable) or isinstance(patterns, str) or not (listed := tuple(patterns)):
        raise ValueError(f"patterns must be a list of at least one pattern, or a mapping, got {patterns!r}")
    return listed
