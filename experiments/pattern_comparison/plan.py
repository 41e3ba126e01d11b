"""What is trained: the patterns, and the sizes for a GPU, for two CPU cores and for a test."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Options of conf/sparsity with their default arguments. Dense comes first: its runs take longest.
PATTERNS = (
    "dense", "fixed", "strided", "hierarchical", "bigbird", "variable", "bslongformer",
    "local_sliding_window",
)  # fmt: skip
# An architecture with rotary positions for each objective: learned ones would have to be learned first.
ARCHITECTURES = {"clm": "llama", "mlm": "modernbert"}


@dataclass(frozen=True)
class Scale:
    """Sizes of the experiment.

    Attributes:
        trainer: option of conf/trainer.
        patterns, objectives, seeds: every one with every other is a run.
        seq_len, batch_size: of a batch, which is a step.
        block: tokens a block of the patterns.
        hidden, layers, heads: of the models.
        steps, validate_every: of training.
        validation_sequences: held-out sequences that each validation reads.
        lr: peak learning rate.
        packages: installed packages whose source is read beside the standard library.
        timed_steps: of a run that is alone on its device, for speed and memory.

    """

    trainer: str
    patterns: tuple[str, ...]
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    seq_len: int
    batch_size: int
    block: int
    hidden: int
    layers: int
    heads: int
    steps: int
    validate_every: int
    validation_sequences: int
    lr: float
    packages: tuple[str, ...]
    timed_steps: int


# Many steps of few tokens: a masked model of bytes needs steps before it uses its context at all (LOG.md).
GPU = Scale(
    trainer="gpu", patterns=PATTERNS, objectives=("clm", "mlm"), seeds=(0, 1, 2), seq_len=8192, batch_size=2,
    block=64, hidden=256, layers=4, heads=4, steps=1200, validate_every=100, validation_sequences=32, lr=1e-3,
    packages=("numpy", "matplotlib", "sympy"), timed_steps=60,
)  # fmt: skip
# Causal alone: in so few steps a masked model of bytes learns nothing of its context.
CPU = Scale(
    trainer="cpu", patterns=PATTERNS, objectives=("clm",), seeds=(0, 1, 2), seq_len=1024, batch_size=2,
    block=16, hidden=64, layers=2, heads=2, steps=200, validate_every=20, validation_sequences=32, lr=4e-3,
    packages=("numpy", "matplotlib"), timed_steps=20,
)  # fmt: skip
TINY = replace(
    CPU, patterns=("dense", "bigbird"), objectives=("clm", "mlm"), seeds=(0,), seq_len=128, hidden=32,
    layers=1, steps=4, validate_every=2, validation_sequences=2, packages=(), timed_steps=5,
)  # fmt: skip
SCALES = {"gpu": GPU, "cpu": CPU, "tiny": TINY}


@dataclass(frozen=True)
class Cell:
    """A run: a pattern, an objective and a seed; or, without a seed, the run that is timed."""

    objective: str
    pattern: str
    seed: int | None = None

    @property
    def name(self) -> str:
        """As clm/bigbird/0, or clm/bigbird/alone."""
        return f"{self.objective}/{self.pattern}/{'alone' if self.seed is None else self.seed}"


def timings(scale: Scale) -> list[Cell]:
    """The runs that are timed."""
    return [Cell(objective, pattern) for objective in scale.objectives for pattern in scale.patterns]


def trainings(scale: Scale) -> list[Cell]:
    """The runs that are compared; one seed after the other, so that a cut leaves all patterns."""
    return [
        Cell(objective, pattern, seed)
        for seed in scale.seeds
        for pattern in scale.patterns
        for objective in scale.objectives
    ]


def overrides(scale: Scale, cell: Cell, output_dir: str) -> list[str]:
    """What train.py is asked for."""
    timed = cell.seed is None
    steps = scale.timed_steps if timed else scale.steps
    return [
        f"sparsity={cell.pattern}",
        f"objective={cell.objective}",
        f"model={ARCHITECTURES[cell.objective]}",
        f"trainer={scale.trainer}",
        "logger=csv",
        f"seed={cell.seed or 0}",
        f"data.seq_len={scale.seq_len}",
        f"data.batch_size={scale.batch_size}",
        f"data.validation_batch_size={min(scale.batch_size, scale.validation_sequences)}",
        f"data.validation_sequences={scale.batch_size if timed else scale.validation_sequences}",
        f"data.corpus.packages=[{','.join(scale.packages)}]",
        f"model.hidden_size={scale.hidden}",
        f"model.num_layers={scale.layers}",
        f"model.num_heads={scale.heads}",
        f"sparsity.block={scale.block}",
        f"optimizer.lr={scale.lr}",
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps if timed else scale.validate_every}",
        "trainer.limit_val_batches=1.0",
        "trainer.log_every_n_steps=5",
        f"output_dir={output_dir}",
    ]
