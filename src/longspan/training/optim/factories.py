"""Factories of optimizers and learning-rate schedules: what a configuration names and the module calls.

A factory holds numbers only; the parameters and the length of training reach it when training starts.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class OptimizerFactory(Protocol):
    """Makes an optimizer for a model's parameters."""

    def __call__(self, model: nn.Module) -> Optimizer:
        """Return an optimizer over the trainable parameters of `model`."""
        ...


class SchedulerFactory(Protocol):
    """Makes a learning-rate schedule counted in optimizer steps."""

    def __call__(self, optimizer: Optimizer, total_steps: int | None) -> LambdaLR:
        """Return the schedule of `optimizer` over `total_steps` steps; None when the length is not known."""
        ...
