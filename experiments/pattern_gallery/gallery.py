"""Draw every pattern side by side; writes gallery.png beside this file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from longspan import (
    AShapeSparsityConfig,
    AttentionSinksSparsityConfig,
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    DilatedSparsityConfig,
    FixedSparsityConfig,
    HierarchicalSparsityConfig,
    IntersectionSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    RandomSparsityConfig,
    SparsityConfig,
    StridedSparsityConfig,
    VariableSparsityConfig,
    VerticalSlashSparsityConfig,
)

DIRECTIONS = ("bidirectional", "unidirectional")
COLUMNS = 8


def patterns(direction: str, block: int) -> dict[str, SparsityConfig]:
    """One configuration of each pattern, by the name under which `sparsity=` takes it."""
    common: dict[str, Any] = {"num_heads": 1, "block": block, "attention": direction}
    sinks = AttentionSinksSparsityConfig(**common, num_sink_blocks=2, num_sliding_window_blocks=5)
    levels = HierarchicalSparsityConfig(**common)
    random = RandomSparsityConfig(**common, density=0.2)
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
        "strided": StridedSparsityConfig(**common, stride=5),
        "dilated": DilatedSparsityConfig(**common, segment_blocks=(4, 16, 32), dilations=(1, 2, 4)),
        "attention_sinks": sinks,
        "a_shape": AShapeSparsityConfig(**common, num_initial_blocks=3, num_local_blocks=5),
        "vertical_slash": VerticalSlashSparsityConfig(
            **common, vertical_blocks=(0, 5, 19), slash_offsets=(0, 1, 8, 9, 20)
        ),
        "random": random,
        "hierarchical": levels,
        "union": sinks | levels,
        "intersection": IntersectionSparsityConfig(
            **common,
            patterns=(
                LocalSlidingWindowSparsityConfig(**common, num_sliding_window_blocks=21),
                StridedSparsityConfig(**common, stride=3),
            ),
        ),
        "difference": DenseSparsityConfig(**common) - random,
    }


def main() -> None:
    """Draw the gallery."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gallery.png"))
    args = parser.parse_args()

    drawn = {direction: patterns(direction, args.block) for direction in DIRECTIONS}
    names = list(drawn[DIRECTIONS[0]])
    rows = [
        (direction, names[first : first + COLUMNS])
        for first in range(0, len(names), COLUMNS)
        for direction in DIRECTIONS
    ]
    figure, axes = plt.subplots(
        len(rows), COLUMNS, figsize=(2.15 * COLUMNS, 2.5 * len(rows)), layout="constrained"
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for (direction, chosen), row in zip(rows, axes, strict=True):
        for name, ax in zip(chosen, row, strict=False):
            layout = drawn[direction][name].layout(args.seq_len)
            layout.plot(ax)
            ax.set_axis_on()
            ax.set(xlabel="", ylabel="", xticks=[], yticks=[])
            ax.set_title(f"{name}\n{layout.density:.0%} of the blocks", fontsize=9)
        row[0].set_ylabel(direction, fontsize=10)
    figure.savefig(args.out, dpi=160)
    print(f"wrote {args.out.name}: {args.seq_len} tokens in blocks of {args.block}")


if __name__ == "__main__":
    main()
