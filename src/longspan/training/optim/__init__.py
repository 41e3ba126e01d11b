"""Optimizers and learning-rate schedules, as factories that a configuration names.

The names here are the `_target_`s of `conf/optimizer/` and `conf/scheduler/`. They stand in checkpoints.
"""

from longspan.training.optim.adamw import AdamW, decay_groups
from longspan.training.optim.factories import OptimizerFactory, SchedulerFactory
from longspan.training.optim.lr_schedulers import Constant, Cosine, Linear

__all__ = [
    "AdamW",
    "Constant",
    "Cosine",
    "Linear",
    "OptimizerFactory",
    "SchedulerFactory",
    "decay_groups",
]
