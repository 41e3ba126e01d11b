"""AdamW with decay groups, and learning-rate schedules, as factories a configuration can name.

A factory holds numbers only; the parameters and the length of training reach it when training starts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# The device types for which torch has a fused AdamW kernel.
FUSED_DEVICES = ("cuda", "cpu", "xpu", "mps")


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


def decay_groups(
    model: nn.Module, weight_decay: float, decay_embeddings: bool = False, decay_vectors: bool = False
) -> list[dict]:
    """Split the trainable parameters of `model` into those with and without weight decay.

    Vectors (parameters of fewer than two dimensions: biases, and the gains of norms) are not decayed unless
    `decay_vectors`; the weights of `nn.Embedding` are not decayed unless `decay_embeddings`. A weight that an
    embedding shares with an output layer counts as an embedding.

    Returns:
        One or two groups with the keys `params`, `weight_decay` and `name` ("decay" or "no_decay").

    Raises:
        ValueError: when no parameter requires a gradient.

    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    decay, no_decay = [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        matrix = decay_vectors or parameter.ndim >= 2
        decayed = decay_embeddings if id(parameter) in embeddings else matrix
        (decay if decayed else no_decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": weight_decay, "name": "decay"},
        {"params": no_decay, "weight_decay": 0.0, "name": "no_decay"},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
    return groups


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) with decay groups.

    Args:
        lr: peak learning rate; the schedule multiplies it.
        beta1: decay of the running mean of the gradient.
        beta2: decay of the running mean of its square.
        eps: added to the denominator.
        weight_decay: decoupled decay of the matrices.
        decay_embeddings: whether embeddings are decayed as well.
        decay_vectors: whether biases and norm gains are decayed as well.
        fused: one kernel for all parameters; None takes it wherever torch has one for the parameters' device.

    Raises:
        ValueError: on a number outside its range.

    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    decay_vectors: bool = False
    fused: bool | None = None

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, got {self.eps}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")

    def __call__(self, model: nn.Module) -> Optimizer:
        """Return the optimizer over the trainable parameters of `model`."""
        groups = decay_groups(model, self.weight_decay, self.decay_embeddings, self.decay_vectors)
        fused = self.fused
        if fused is None:
            fused = all(
                parameter.device.type in FUSED_DEVICES and torch.is_floating_point(parameter)
                for group in groups
                for parameter in group["params"]
            )
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=fused
        )


def _check_warmup(warmup_steps: int | None, warmup_fraction: float) -> None:
    if warmup_steps is not None and warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
    if not 0 <= warmup_fraction <= 1:
        raise ValueError(f"warmup_fraction must lie in [0, 1], got {warmup_fraction}")


def _warmup(warmup_steps: int | None, warmup_fraction: float, total_steps: int | None, name: str) -> int:
    """Return the length of the warm-up in steps."""
    if warmup_steps is not None:
        return warmup_steps
    if warmup_fraction == 0:
        return 0
    if total_steps is None:
        raise ValueError(
            f"scheduler {name}: warmup_fraction={warmup_fraction} is a share of a number of steps that is "
            "not known; set trainer.max_steps, or warmup_steps"
        )
    return round(warmup_fraction * total_steps)


def _known(total_steps: int | None, name: str) -> int:
    if total_steps is None:
        raise ValueError(
            f"scheduler {name} needs to know how many steps there are; set trainer.max_steps, or use "
            "scheduler=constant"
        )
    return total_steps


def _lambda(optimizer: Optimizer, warmup: int, after: Callable[[int], float]) -> LambdaLR:
    # A plain function: LambdaLR writes no state of it into a checkpoint, so the configuration of the resumed
    # run decides, not the one of the interrupted run.
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return after(step)

    return LambdaLR(optimizer, factor)


def _progress(step: int, warmup: int, total: int) -> float:
    """Return how far training is after the warm-up, in [0, 1]: 0 at its end, 1 at step `total`."""
    return min(1.0, (step - warmup) / max(1, total - warmup))


@dataclass(frozen=True)
class _Decay(ABC):
    """Linear warm-up, then down to `min_ratio` of the peak, in a way of the subclass's own."""

    warmup_steps: int | None = None
    warmup_fraction: float = 0.05
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps, self.warmup_fraction)
        _check_ratio(self.min_ratio)

    @abstractmethod
    def _left(self, progress: float) -> float:
        """Share of the way from `min_ratio` to the peak that is left: 1 at progress 0, 0 at progress 1."""

    def __call__(self, optimizer: Optimizer, total_steps: int | None) -> LambdaLR:
        """Return the schedule over `total_steps` optimizer steps; ValueError when the number is not known."""
        name = type(self).__name__.lower()
        total = _known(total_steps, name)
        warmup = _warmup(self.warmup_steps, self.warmup_fraction, total, name)

        def after(step: int) -> float:
            return self.min_ratio + (1 - self.min_ratio) * self._left(_progress(step, warmup, total))

        return _lambda(optimizer, warmup, after)


@dataclass(frozen=True)
class Cosine(_Decay):
    """Linear warm-up, then half a cosine to `min_ratio` of the peak (arXiv:1608.03983, no restarts).

    Args:
        warmup_steps: length of the warm-up in optimizer steps; when given, it counts, not the fraction.
        warmup_fraction: length of the warm-up as a share of all steps.
        min_ratio: the learning rate at the end, as a share of the peak.

    """

    min_ratio: float = 0.1

    def _left(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear(_Decay):
    """Linear warm-up, then a straight line down to `min_ratio` of the peak.

    Args:
        warmup_steps: length of the warm-up in optimizer steps; when given, it counts, not the fraction.
        warmup_fraction: length of the warm-up as a share of all steps.
        min_ratio: the learning rate at the end, as a share of the peak.

    """

    def _left(self, progress: float) -> float:
        return 1 - progress


@dataclass(frozen=True)
class Constant:
    """Linear warm-up, then the peak to the end.

    Args:
        warmup_steps: length of the warm-up in optimizer steps; when given, it counts, not the fraction.
        warmup_fraction: length of the warm-up as a share of all steps; needs a known number of steps.

    """

    warmup_steps: int | None = None
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps, self.warmup_fraction)

    def __call__(self, optimizer: Optimizer, total_steps: int | None) -> LambdaLR:
        """Return the schedule; `total_steps` matters to `warmup_fraction` alone."""
        warmup = _warmup(self.warmup_steps, self.warmup_fraction, total_steps, "constant")
        return _lambda(optimizer, warmup, lambda step: 1.0)


def _check_ratio(min_ratio: float) -> None:
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio must lie in [0, 1], got {min_ratio}")
