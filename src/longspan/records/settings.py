"""Which settings of a run may differ, and between which two runs: the one table of it.

A key stands for everything below it: `logger` is also `logger.csv.save_dir`. A setting that is not in the
table is part of what a run computes: with another value it is another run.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Flag, auto
from typing import Any


class MayDiffer(Flag):
    """Between which two runs a setting may differ."""

    # Two commands that ask for the same job of a sweep: the setting says where a run's files lie and what is
    # recorded of it, and changes nothing of what it computes.
    SAME_JOB = auto()
    # Two runs that a comparison puts in one series.
    SAME_SERIES = auto()
    # A run and the checkpoint that it resumes from.
    ON_RESUME = auto()
    # Two runs that repeat each other with another seed.
    OTHER_SEED = auto()


_RECORDED = MayDiffer.SAME_JOB | MayDiffer.SAME_SERIES | MayDiffer.ON_RESUME | MayDiffer.OTHER_SEED
_RESUME = MayDiffer.ON_RESUME

# The order is that of the error about a checkpoint of a run with other settings.
_SETTINGS: dict[str, MayDiffer] = {
    # How long a run trains, and in what arithmetic.
    "trainer": _RESUME,
    "budget": _RESUME,
    "callbacks": _RESUME,
    "callbacks.best": _RECORDED,
    "callbacks.last": _RECORDED,
    "callbacks.throughput": _RECORDED,
    "callbacks.progress": _RECORDED,
    "logger": _RECORDED,
    "output_dir": _RECORDED,
    "sweep": _RECORDED,
    "ckpt_path": _RESUME | MayDiffer.SAME_SERIES,
    "compile": _RESUME,
    "attention_backend": _RESUME,
    "loss_chunk": _RESUME,
    "data.pin_memory": _RECORDED,
    "seed": MayDiffer.OTHER_SEED,
}


def is_within(key: str, keys: Iterable[str]) -> bool:
    """Whether a dotted key is one of `keys`, or lies below one of them."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def _keys(role: MayDiffer) -> tuple[str, ...]:
    """The keys with a role, without those that lie below another one of them."""
    keys = [key for key, roles in _SETTINGS.items() if role in roles]
    return tuple(key for key in keys if not is_within(key.rpartition(".")[0], keys))


# A job of a sweep with other values of these is the same job.
NOT_PART_OF_A_JOBS_IDENTITY = _keys(MayDiffer.SAME_JOB)
# Runs with other values of these may be one series of a comparison.
NOT_PART_OF_A_SERIES = _keys(MayDiffer.SAME_SERIES)
# Overrides of these do not keep two runs of a sweep out of one mean over seeds.
NOT_PART_OF_A_MEAN = _keys(MayDiffer.OTHER_SEED)
# A run may resume from a checkpoint with other values of these: everything else is either restored from the
# checkpoint, whatever the configuration says, or would make it another run halfway.
MAY_CHANGE_ON_RESUME = _keys(MayDiffer.ON_RESUME)
# Settings within MAY_CHANGE_ON_RESUME that may not change all the same, since they are part of what a step
# computes and a budget of tokens or FLOPs was planned with them; and their values where none is given.
EXCEPT_ON_RESUME: dict[str, Any] = {"trainer.accumulate_grad_batches": 1, "trainer.gradient_clip_val": 1.0}
# Keys that are known to hold a run's seed, even where only one seed was run.
SEED_KEYS = ("seed", "data.seed")
