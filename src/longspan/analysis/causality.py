"""The inputs that each output of a model depends on, computed by gradients.

This is an independent check of `reach`: a nonzero gradient proves a path. In float64 with random weights, the
gradients along a path do not cancel to exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longspan.analysis.reach import Reach


def seen_by_gradients(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    outputs: Sequence[int] | None = None,
    *,
    seed: int = 0,
    chunk: int = 16,
) -> Tensor:
    """Compute which inputs each output depends on.

    Takes the gradient of a random projection of each output with respect to all inputs, for ``chunk`` outputs
    at a time, each in its copy of the sequence.

    Args:
        function: ``[batch, length, dim] -> [batch, length, any]``, whose sequences are independent of each
            other, without dropout.
        inputs: ``[length, dim]``, floating point, preferably float64, in which small gradients do not
            underflow.
        outputs: positions to check; None for all.
        seed: seed of the projections.
        chunk: sequences per batch.

    Returns:
        bool ``[outputs, length]``, True where the gradient of the output has a nonzero component.

    Raises:
        ValueError: an output is out of range, ``chunk`` is below 1, or the function returns another shape.

    """
    length = inputs.shape[0]
    positions = list(range(length)) if outputs is None else [int(one) for one in outputs]
    if bad := [one for one in positions if not 0 <= one < length]:
        raise ValueError(f"outputs must lie in [0, {length}), got {bad[0]}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    generator = torch.Generator().manual_seed(seed)
    seen = torch.zeros(len(positions), length, dtype=torch.bool)
    for start in range(0, len(positions), chunk):
        part = positions[start : start + chunk]
        copies = inputs.detach().expand(len(part), *inputs.shape).clone().requires_grad_(True)
        result = function(copies)
        if result.ndim != 3 or result.shape[:2] != copies.shape[:2]:
            raise ValueError(
                f"function must return [batch, length, any] = [{len(part)}, {length}, any], got "
                f"{list(result.shape)}"
            )
        chosen = result[torch.arange(len(part)), torch.tensor(part)]
        weights = torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((chosen * weights.to(chosen)).sum(), copies)
        if not torch.isfinite(gradient).all():
            raise ValueError("function has gradients that are not finite at these inputs")
        seen[start : start + len(part)] = (gradient != 0).any(-1).cpu()
    return seen


def model_seen_by_gradients(
    model: nn.Module, seq_len: int, outputs: Sequence[int] | None = None, *, seed: int = 0, chunk: int = 16
) -> Tensor:
    """Compute on which input embeddings the logits of a Hugging Face language model depend.

    The model runs in evaluation mode (no dropout), in the dtype of its weights, on random tokens.

    Args:
        model: takes ``inputs_embeds`` and returns ``logits``.
        seq_len: tokens in the sequence.
        outputs: positions to check; None for all.
        seed: seed of the tokens and projections.
        chunk: sequences per batch.

    Returns:
        bool ``[outputs, seq_len]``.

    Raises:
        ValueError: as `seen_by_gradients`.

    """
    untyped: Any = model
    embedding = untyped.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(embedding.num_embeddings, (seq_len,), generator=generator)
    with torch.no_grad():
        embedded = embedding(tokens.to(embedding.weight.device))
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return seen_by_gradients(
            lambda inputs: untyped(inputs_embeds=inputs).logits, embedded, outputs, seed=seed, chunk=chunk
        )
    finally:
        for module, mode in training.items():
            module.training = mode


def leaks(seen: Tensor, outputs: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Return pairs ``(output, input)`` where an output depends on a later input; a causal model has none.

    Args:
        seen: bool ``[outputs, inputs]``.
        outputs: positions of the rows; None for all, in order.

    """
    positions = torch.arange(seen.shape[0]) if outputs is None else torch.tensor(list(outputs))
    later = seen & (torch.arange(seen.shape[1]) > positions[:, None])
    return [(int(positions[row]), int(column)) for row, column in later.nonzero()]


def predicted(reach: Reach, outputs: Sequence[int] | None = None) -> Tensor:
    """Return the result of `seen_by_gradients` that reach predicts: bool ``[outputs, seq_len]``.

    Raises:
        ValueError: the reach is a sample, or an output is out of range.

    """
    positions = range(reach.seq_len) if outputs is None else outputs
    return torch.tensor(
        [[reach.reaches(source, one) for source in range(reach.seq_len)] for one in positions]
    )
