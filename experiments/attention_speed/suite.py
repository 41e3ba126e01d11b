"""The cells of the GPU suite: patterns, blocks, head dimensions, lengths, and what is held out of tuning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from longspan.sparsity import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    SparsityConfig,
    VariableSparsityConfig,
)
from longspan_kernels import BlockLayout

HEADS = 16
TOKENS = 65536  # a batch holds so many; longer sequences go alone
BLOCKS = (16, 32, 64, 128)
DIMS = (64, 128)
LENGTHS = (4096, 16384, 65536, 131072)
SMALL_WINDOW = 256  # keys a query: no more than that is bound by memory, not by arithmetic

# Rows of eight blocks or more, as BigBird has them with its paper's three random and two global blocks.
_BIGBIRD: dict[str, Any] = {"num_random_blocks": 3, "num_global_blocks": 2}
PATTERNS: dict[str, tuple[type[SparsityConfig], dict[str, Any]]] = {
    "dense": (DenseSparsityConfig, {}),
    "fixed": (FixedSparsityConfig, {}),
    "fixed-causal": (FixedSparsityConfig, {"attention": "unidirectional"}),
    "variable": (
        VariableSparsityConfig,
        {"num_random_blocks": 1, "local_window_blocks": (2, 4, 8), "global_block_indices": (0, 16)},
    ),
    "bigbird": (BigBirdSparsityConfig, _BIGBIRD),
    "bigbird-heads": (BigBirdSparsityConfig, {**_BIGBIRD, "different_layout_per_head": True}),
    # Half of a window is left, hence five for the three of the other.
    "bigbird-causal": (
        BigBirdSparsityConfig,
        {**_BIGBIRD, "num_sliding_window_blocks": 5, "attention": "unidirectional"},
    ),
    "bigbird-causal-heads": (
        BigBirdSparsityConfig,
        {
            **_BIGBIRD,
            "num_sliding_window_blocks": 5,
            "attention": "unidirectional",
            "different_layout_per_head": True,
        },
    ),
    "bslongformer": (BSLongformerSparsityConfig, {"num_sliding_window_blocks": 7}),
    "local_sliding_window": (LocalSlidingWindowSparsityConfig, {"num_sliding_window_blocks": 15}),
}
# No kernel, ours or FlexAttention's, may be tuned on these.
HELD_OUT = ("variable", "bslongformer")
# FlexAttention is tuned on these, at `TUNING_LENGTH`, and so may ours be.
TUNING_PATTERN = {False: "bigbird", True: "bigbird-causal"}
TUNING_LENGTH = 16384
# Rows or columns that keep every block.
GLOBAL = ("variable", "bigbird", "bigbird-heads", "bigbird-causal", "bigbird-causal-heads", "bslongformer")


@dataclass(frozen=True)
class Cell:
    """One case: a pattern with a block size, a head dimension and a length.

    Attributes:
        pattern: a name of `PATTERNS`.
        block: tokens a block.
        dim: dimension of a head.
        length: tokens of a sequence.
        heads: number of heads.
        tokens: tokens of a batch, where a sequence is no longer.

    """

    pattern: str
    block: int
    dim: int
    length: int
    heads: int = HEADS
    tokens: int = TOKENS

    @property
    def name(self) -> str:
        """Name under which the result is kept, ``pattern/block/dim/length``."""
        return f"{self.pattern}/b{self.block}/d{self.dim}/{self.length}"

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return max(1, self.tokens // self.length)

    @property
    def causal(self) -> bool:
        """Whether the layout is causal."""
        return self.config.attention == "unidirectional"

    @property
    def config(self) -> SparsityConfig:
        """The pattern's configuration."""
        cls, arguments = PATTERNS[self.pattern]
        return cls(num_heads=self.heads, block=self.block, **arguments)

    def layout(self) -> BlockLayout:
        """Make the layout."""
        return self.config.layout(self.length)


def suite() -> Iterator[Cell]:
    """Every cell, short sequences first, so that a run that is cut off has seen every pattern."""
    for length in LENGTHS:
        for dim in DIMS:
            for block in BLOCKS:
                for pattern in PATTERNS:
                    yield Cell(pattern, block, dim, length)


def quick() -> list[Cell]:
    """The cells of a run of a few minutes: each pattern, block size and head dimension at least once."""
    names = [
        "bigbird/b64/d64/16384",
        "bigbird/b64/d64/65536",
        "bslongformer/b64/d64/65536",
        "bigbird-heads/b64/d64/16384",
        "dense/b64/d64/16384",
        "fixed-causal/b64/d64/16384",
        "variable/b64/d64/16384",
        "bigbird/b128/d64/65536",
        "local_sliding_window/b128/d64/16384",
        "local_sliding_window/b128/d128/16384",
        "bigbird/b128/d128/65536",
        "bigbird/b64/d128/16384",
        "bigbird/b16/d64/16384",
        "local_sliding_window/b16/d64/16384",
        "bigbird/b32/d64/16384",
    ]
    cells = {cell.name: cell for cell in suite()}
    return [cells[name] for name in names]


def tiny() -> list[Cell]:
    """A few cells of a size for a processor without an accelerator: to try the command, not to measure."""
    patterns = ("dense", "bigbird-heads", "local_sliding_window")
    return [Cell(pattern, 16, 16, 256, heads=2, tokens=512) for pattern in patterns]
