"""What is trained: tasks, patterns and seeds, at the size of a GPU and at that of two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from longspan.data.tasks import ListOps, Needle, Recall, Task
from longspan.sparsity import SparsityConfig
from longspan.sparsity.registry import PATTERNS, from_dict

# Causal, each row keeping about four blocks where the pattern has a width to choose. What a newer Longspan
# adds takes part where it is there.
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "dense": {},
    "local_sliding_window": {"num_sliding_window_blocks": 7},
    "bslongformer": {"num_sliding_window_blocks": 5},
    "bigbird": {"num_sliding_window_blocks": 3, "num_random_blocks": 1, "num_global_blocks": 1},
    "fixed": {"num_local_blocks": 4, "num_global_blocks": 1},
    "variable": {"num_random_blocks": 1, "local_window_blocks": (4,), "global_block_indices": (0,)},
    "strided": {"stride": 4},
    "dilated": {"segment_blocks": (4, 16, 64), "dilations": (1, 4, 16)},
    "hierarchical": {"num_sliding_window_blocks": 1},
    "random": {"density": 0.15},
}


@dataclass(frozen=True)
class Lesson:
    """A task and how long it is trained.

    Attributes:
        task: what makes the texts.
        seq_len: tokens a sequence.
        steps: optimizer steps at the most.
        batch: sequences a step.
        chance: accuracy of a model that knows nothing of the text.
        shorter: tokens and steps of shorter texts that are read before. At once at its length recall takes
            far longer to be learned (LOG.md).

    """

    task: Task
    seq_len: int
    steps: int
    batch: int
    chance: float
    shorter: tuple[tuple[int, int], ...] = ()

    @property
    def stages(self) -> list[Lesson]:
        """Lessons of one length each, this one the last."""
        first = [replace(self, seq_len=tokens, steps=steps, shorter=()) for tokens, steps in self.shorter]
        return [*first, replace(self, shorter=())]


@dataclass(frozen=True)
class Scale:
    """Sizes of the experiment.

    Attributes:
        hidden, layers, heads: of the model, a Llama.
        block: tokens a block.
        lr: peak learning rate.
        seeds: of weights and texts.
        validation: sequences of the validation split that are read, the same ones for all.
        lessons: by the names of their tasks.
        patterns: names of the patterns that take part.

    """

    hidden: int
    layers: int
    heads: int
    block: int
    lr: float
    seeds: int
    validation: int
    lessons: Mapping[str, Lesson]
    patterns: tuple[str, ...] = tuple(name for name in ARGUMENTS if name in PATTERNS)

    def pattern(self, name: str) -> SparsityConfig:
        """Make a pattern; dense, too, is one, so that all run through the same code."""
        arguments = {"attention": "unidirectional", **ARGUMENTS[name]}
        return from_dict({"name": name, "num_heads": self.heads, "block": self.block, **arguments})


# The global blocks of these patterns are the first: pairs lie behind them.
GPU_BLOCK, CPU_BLOCK = 16, 4

GPU = Scale(
    hidden=128,
    layers=3,
    heads=2,
    block=GPU_BLOCK,
    lr=1e-3,
    seeds=3,
    validation=512,
    lessons={
        "needle": Lesson(
            Needle([n / 8 for n in range(9)], [128, 256, 384, 512], keep_free=GPU_BLOCK), 512, 800, 64, 1 / 16
        ),
        "recall": Lesson(
            Recall([1, 2, 4], 0.5, 8, 8, 4, 1.0, GPU_BLOCK),
            256,
            1000,
            64,
            1 / 8,
            shorter=((64, 2000), (128, 500)),
        ),
        "listops": Lesson(ListOps(50, 500, 5, 10), 512, 1200, 64, 1 / 10),
    },
)
CPU = replace(
    GPU,
    hidden=64,
    layers=2,
    heads=1,
    block=CPU_BLOCK,
    seeds=1,
    validation=256,
    lessons={
        "needle": Lesson(Needle([0.0, 0.5, 1.0], [32, 64], keep_free=CPU_BLOCK), 64, 400, 32, 1 / 16),
        "recall": Lesson(Recall([1, 2, 4], 0.5, 8, 8, 4, 1.0, CPU_BLOCK), 64, 1000, 64, 1 / 8),
        "listops": Lesson(ListOps(4, 62, 3, 5), 64, 600, 32, 1 / 10),
    },
    patterns=("dense", "local_sliding_window", "bslongformer", "bigbird", "fixed", "variable"),
)
TINY = replace(
    CPU,
    hidden=16,
    seeds=2,
    validation=16,
    lessons={name: replace(lesson, steps=2, batch=4) for name, lesson in CPU.lessons.items()},
    patterns=("dense", "local_sliding_window", "bigbird"),
)
SCALES = {"gpu": GPU, "cpu": CPU, "tiny": TINY}


def cells(scale: Scale) -> list[dict[str, Any]]:
    """List the trainings in the order in which they begin: all patterns of a seed before the next seed."""
    return [
        {"task": task, "pattern": pattern, "seed": seed}
        for seed in range(scale.seeds)
        for task in scale.lessons
        for pattern in scale.patterns
    ]


def name_of(cell: dict[str, Any]) -> str:
    """Name a cell, as recall/bigbird/0."""
    return "/".join(map(str, cell.values()))
