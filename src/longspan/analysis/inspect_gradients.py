"""The model of a configuration asked by gradients, for `longspan.analysis.inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig
from rich.text import Text

from longspan.analysis.causality import leaks, model_seen_by_gradients, predicted
from longspan.config.instantiate import instantiate
from longspan.errors import ConfigError
from longspan.models import sparsify

if TYPE_CHECKING:
    from longspan.analysis.inspect import Inspection


def ask_gradients(config: DictConfig, inspection: Inspection, outputs: int) -> Text:
    """Build the model with random weights, and say whether its gradients agree with causality and reach.

    Args:
        config: names model, objective and tokenizer.
        inspection: of that configuration.
        outputs: how many positions are asked, spread over the sequence.

    Raises:
        ConfigError: a model that cannot be made, of another number of layers, or a length of which reach
            knows a sample only.

    """
    import torch

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
        asked = np.unique(np.linspace(0, inspection.seq_len - 1, outputs).astype(int)).tolist()
        seen = model_seen_by_gradients(model, inspection.seq_len, asked, chunk=1)
    except ValueError as error:
        raise ConfigError(f"gradients: {error}") from error
    expected = predicted(inspection.reach, asked)
    ahead = leaks(seen, asked)
    lines = [
        f"Gradients of {type(model).__name__}: {len(asked)} outputs depend on {int(seen.sum()):,} inputs; of "
        f"{seen.numel():,} pairs {int((seen == expected).sum()):,} are as reach says"
    ]
    for name, wrong in (
        ("without a path", seen & ~expected),
        ("with a path but no gradient", expected & ~seen),
    ):
        if wrong.any():
            row, source = (int(one) for one in wrong.nonzero()[0])
            lines.append(f"  {int(wrong.sum()):,} {name}, such as from token {source:,} to {asked[row]:,}")
    if objective.causal:
        lines.append(
            f"  not causal: output {ahead[0][0]:,} depends on the later input {ahead[0][1]:,}"
            if ahead
            else "  causal: no output depends on a later input"
        )
    return Text("\n".join(lines))
