"""The number of optimizer steps of a run."""

from __future__ import annotations

import math

import lightning.pytorch as pl


def total_steps(trainer: pl.Trainer) -> int | None:
    """Return the number of optimizer steps of a training run; None where nothing bounds it but time."""
    steps = trainer.estimated_stepping_batches
    # Lightning gives -1 for a loader without length and without max_steps, and infinity for unbounded epochs.
    return None if steps == -1 or math.isinf(steps) else int(steps)
