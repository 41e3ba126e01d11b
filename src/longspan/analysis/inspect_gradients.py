"""The gradient check of `longspan.analysis.inspect`: does the model depend on what reach predicts?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.text import Text

from longspan.analysis.causality import leaks, model_seen_by_gradients, predicted
from longspan.analysis.inspection import Inspection
from longspan.config.instantiate import instantiate
from longspan.errors import ConfigError
from longspan.models import sparsify


def compare_with_gradients(config: DictConfig, inspection: Inspection, outputs: int) -> Text:
    """Build the model with random weights and compare its gradients with causality and reach.

    Args:
        config: names model, objective and tokenizer.
        inspection: the inspection of that configuration.
        outputs: number of output positions to check, spread over the sequence.

    Raises:
        ConfigError: the model is invalid or has another number of layers, or reach is only a sample at this
            length.

    """
    if inspection.reach.sampled:
        raise ConfigError(
            f"gradients: reach is not exact at {inspection.seq_len:,} tokens; give a smaller seq_len"
        )
    objective, tokenizer = instantiate(config.objective), instantiate(config.tokenizer)
    torch.manual_seed(0)
    model: Any = instantiate(
        config.model,
        objective=objective,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    try:
        sparsify(model, list(inspection.patterns))
        model.double()
        positions = np.unique(np.linspace(0, inspection.seq_len - 1, outputs).astype(int)).tolist()
        depends = model_seen_by_gradients(model, inspection.seq_len, positions, chunk=1)
    except ValueError as error:
        raise ConfigError(f"gradients: {error}") from error
    expected = predicted(inspection.reach, positions)
    leaked = leaks(depends, positions)
    lines = [
        f"Gradients of {type(model).__name__}: {len(positions)} outputs depend on {int(depends.sum()):,} "
        f"inputs; of {depends.numel():,} pairs {int((depends == expected).sum()):,} are as reach says"
    ]
    for name, wrong in (
        ("without a path", depends & ~expected),
        ("with a path but no gradient", expected & ~depends),
    ):
        if wrong.any():
            row, source = (int(one) for one in wrong.nonzero()[0])
            lines.append(
                f"  {int(wrong.sum()):,} {name}, such as from token {source:,} to {positions[row]:,}"
            )
    if inspection.causal:
        lines.append(
            f"  not causal: output {leaked[0][0]:,} depends on the later input {leaked[0][1]:,}"
            if leaked
            else "  causal: no output depends on a later input"
        )
    return Text("\n".join(lines))
