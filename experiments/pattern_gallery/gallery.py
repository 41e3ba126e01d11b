"""Draw every pattern side by side; writes gallery.png beside this file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from longspan import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    SparsityConfig,
    VariableSparsityConfig,
)

DIRECTIONS = ("bidirectional", "unidirectional")


def patterns(direction: str, block: int) -> dict[str, SparsityConfig]:
    """One configuration of each pattern, by the name under which `sparsity=` takes it."""
    common: dict[str, Any] = {"num_heads": 1, "block": block, "attention": direction}
    return {
        "dense": DenseSparsityConfig(**common),
        "fixed": FixedSparsityConfig(**common, num_local_blocks=4, num_global_blocks=1),
        "variable": VariableSparsityConfig(
            **common, num_random_blocks=1, local_window_blocks=(2, 4, 8), global_block_indices=(0, 16)
        ),
        "bigbird": BigBirdSparsityConfig(**common, num_random_blocks=2),
        "bslongformer": BSLongformerSparsityConfig(
            **common, num_sliding_window_blocks=5, global_block_indices=(0, 12)
        ),
        "local_sliding_window": LocalSlidingWindowSparsityConfig(**common, num_sliding_window_blocks=7),
    }


def main() -> None:
    """Draw the gallery."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gallery.png"))
    args = parser.parse_args()

    names = list(patterns(DIRECTIONS[0], args.block))
    figure, axes = plt.subplots(
        len(DIRECTIONS),
        len(names),
        figsize=(2.15 * len(names), 5.0),
        layout="constrained",
        sharex=True,
        sharey=True,
    )
    for row, direction in zip(axes, DIRECTIONS, strict=True):
        for ax, (name, config) in zip(row, patterns(direction, args.block).items(), strict=True):
            layout = config.layout(args.seq_len)
            layout.plot(ax)
            ax.set(xlabel="", ylabel="", xticks=[], yticks=[])
            ax.set_title(f"{name}\n{layout.density:.0%} of the blocks", fontsize=9)
        row[0].set_ylabel(direction, fontsize=10)
    figure.savefig(args.out, dpi=160)
    print(f"wrote {args.out.name}: {args.seq_len} tokens in blocks of {args.block}")


if __name__ == "__main__":
    main()
