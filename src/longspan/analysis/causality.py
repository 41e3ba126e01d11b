"""Asking a model itself, by gradients, which inputs an output depends on.

This is the independent check of `reach`: a gradient that is not zero proves a path, and in float64, with
weights drawn at random, a path whose gradients cancel to zero exactly does not occur.
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
    """Tell which inputs each output depends on.

    Takes the gradient of a random projection of each output with respect to all inputs, ``chunk`` outputs at
    a time, each in a copy of the sequence of its own.

    Args:
        function: ``[batch, length, dim] -> [batch, length, any]``, its sequences independent of one another,
            without dropout.
        inputs: ``[length, dim]``, floating point, best float64: small gradients underflow in less.
        outputs: the positions that are asked; None: all.
        seed: of the projections.
        chunk: sequences of a batch.

    Returns:
        bool ``[outputs, length]``, True where the output's gradient is not zero in every component.

    Raises:
        ValueError: an output out of range, ``chunk`` under 1, or a function that returns another shape.

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
        asked = positions[start : start + chunk]
        copies = inputs.detach().expand(len(asked), *inputs.shape).clone().requires_grad_(True)
        result = function(copies)
        if result.ndim != 3 or result.shape[:2] != copies.shape[:2]:
            raise ValueError(
                f"function must return [batch, length, any] = [{len(asked)}, {length}, any], got "
                f"{list(result.shape)}"
            )
        chosen = result[torch.arange(len(asked)), torch.tensor(asked)]
        weights = torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((chosen * weights.to(chosen)).sum(), copies)
        if not torch.isfinite(gradient).all():
            raise ValueError("function has gradients that are not finite at these inputs")
        seen[start : start + len(asked)] = (gradient != 0).any(-1).cpu()
    return seen


def model_seen_by_gradients(
    model: nn.Module, seq_len: int, outputs: Sequence[int] | None = None, *, seed: int = 0, chunk: int = 16
) -> Tensor:
    """Tell which input tokens' embeddings each position's logits depend on, of a Hugging Face language model.

    The model runs in evaluation mode (no dropout), in the dtype that its weights have, on random tokens.

    Args:
        model: takes ``inputs_embeds`` and returns ``logits``.
        seq_len: tokens of the sequence.
        outputs: the positions that are asked; None: all.
        seed: of the tokens and projections.
        chunk: sequences of a batch.

    Returns:
        bool ``[outputs, seq_len]``.

    Raises:
        ValueError: as `seen_by_gradients`.

    """
    of_model: Any = model
    embedding = of_model.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(embedding.num_embeddings, (seq_len,), generator=generator)
    with torch.no_grad():
        embedded = embedding(tokens.to(embedding.weight.device))
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return seen_by_gradients(
            lambda inputs: of_model(inputs_embeds=inputs).logits, embedded, outputs, seed=seed, chunk=chunk
        )
    finally:
        for module, mode in training.items():
            module.training = mode


def leaks(seen: Tensor, outputs: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Pairs ``(output, input)`` in which an output depends on a later input; none of a causal model.

    Args:
        seen: bool ``[outputs, inputs]``.
        outputs: the positions of the rows; None: all, in order.

    """
    positions = torch.arange(seen.shape[0]) if outputs is None else torch.tensor(list(outputs))
    later = seen & (torch.arange(seen.shape[1]) > positions[:, None])
    return [(int(positions[row]), int(column)) for row, column in later.nonzero()]


def predicted(reach: Reach, outputs: Sequence[int] | None = None) -> Tensor:
    """What `seen_by_gradients` has to return by reach after the last layer: bool ``[outputs, seq_len]``.

    Raises:
        ValueError: the reach is of a sample, or an output is out of range.

    """
    positions = range(reach.seq_len) if outputs is None else outputs
    return torch.tensor(
        [[reach.reaches(source, one) for source in range(reach.seq_len)] for one in positions]
    )
