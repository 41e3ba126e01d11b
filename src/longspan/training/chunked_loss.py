"""Cross-entropy over a vocabulary without the logits of a whole sequence: scored positions alone, in chunks.

The logits of 131,072 tokens over 50,257 words are 26 GB in float32, and their gradient as much again. Here
they exist for one chunk of positions at a time. Each chunk's gradient is taken at once, while its logits are
there, so nothing is kept or computed twice (Hsu et al. 2024, "Liger Kernel", section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# (head, hidden [n, width], targets [n]) -> the cross-entropy summed over the n positions, in nats.
ChunkLossSum = Callable[[nn.Module, Tensor, Tensor], Tensor]


def chunk_loss_sum(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy in nats, in float32, summed over positions.

    Args:
        head: hidden states to logits.
        hidden: ``[n, width]``.
        targets: int64 ``[n]``.

    """
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum")


def chunked_loss(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    positions: Tensor,
    chunk: int,
    summed: ChunkLossSum = chunk_loss_sum,
) -> Tensor:
    """Mean cross-entropy over the scored labels, in nats a token: `Objective.loss` of the head's logits.

    The logits of positions that are not scored are never computed. Gradients can be taken once, not of
    gradients.

    Args:
        head: hidden states ``[n, width]`` to logits ``[n, vocabulary]``, each position by itself and without
            dropout.
        hidden: ``[batch, length, width]``.
        labels: int64 ``[batch, length]``, -100 where not scored.
        positions: int64 ``[n]``, where the flattened labels are scored: `scored_positions` of them.
        chunk: positions whose logits exist at a time.
        summed: as `chunk_loss_sum`, or that compiled.

    Returns:
        float32 scalar; zero, with zero gradients, where no label is scored.

    """
    hidden, targets = hidden.flatten(0, -2), labels.flatten()[positions]
    if torch.is_grad_enabled():
        parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
        total = _ChunkedSum.apply(head, summed, chunk, hidden, targets, positions, *parameters)
    else:
        total = torch.zeros((), device=hidden.device)
        for where, wanted in zip(positions.split(chunk), targets.split(chunk), strict=True):
            total = total + summed(head, hidden[where], wanted)
    return total / max(len(positions), 1)


def scored_positions(labels: Tensor) -> Tensor:
    """Return where the flattened labels are scored, int64 ``[n]``; waits for a GPU, since n is read."""
    return (labels.flatten() != -100).nonzero()[:, 0]


class TokenScores(NamedTuple):
    """What a model made of each scored position.

    Attributes:
        positions: int64 ``[n]``, their places in the flattened labels, ascending.
        nats: float32 ``[n]``, the cross-entropy.
        correct: bool ``[n]``, whether the label is the likeliest token.

    """

    positions: Tensor
    nats: Tensor
    correct: Tensor


@torch.no_grad()
def token_scores(
    head: nn.Module, hidden: Tensor, labels: Tensor, positions: Tensor, chunk: int = 8192
) -> TokenScores:
    """Cross-entropy and correctness of each scored position; no gradients.

    Args:
        head: hidden states ``[n, width]`` to logits ``[n, vocabulary]``; the identity where they are logits.
        hidden: ``[batch, length, width]``.
        labels: int64 ``[batch, length]``.
        positions: int64 ``[n]``, `scored_positions` of the labels.
        chunk: positions whose logits exist in float32 at a time.

    """
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    nats = torch.zeros(len(positions), device=hidden.device)
    correct = torch.zeros(len(positions), dtype=torch.bool, device=hidden.device)
    for first in range(0, len(positions), chunk):
        part = slice(first, first + chunk)
        targets = labels[positions[part]]
        logits = head(hidden[positions[part]]).float()
        nats[part] = F.cross_entropy(logits, targets, reduction="none")
        correct[part] = logits.argmax(-1) == targets
    return TokenScores(positions, nats, correct)


class _ChunkedSum(torch.autograd.Function):
    """The sum of the chunks; its gradients are computed in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        head: nn.Module,
        summed: ChunkLossSum,
        chunk: int,
        hidden: Tensor,
        targets: Tensor,
        positions: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.zeros_like(hidden)
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for where, wanted in zip(positions.split(chunk), targets.split(chunk), strict=True):
            if not len(where):
                continue
            with torch.enable_grad():
                piece = hidden[where].detach().requires_grad_()
                loss = summed(head, piece, wanted)
            first, *others = torch.autograd.grad(loss, [piece, *parameters])
            total += loss.detach()
            hidden_gradient.index_copy_(0, where, first)
            for gradient, other in zip(gradients, others, strict=True):
                gradient += other
        ctx.save_for_backward(hidden_gradient, *gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, *gradients = (saved * outputs[0] for saved in ctx.saved_tensors)
        return None, None, None, hidden_gradient, None, None, *gradients
