"""AdamW with decay groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

# The device types for which torch has a fused AdamW kernel.
FUSED_DEVICES = ("cuda", "cpu", "xpu", "mps")


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
