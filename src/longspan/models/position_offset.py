"""Where an architecture starts to count its positions."""

from torch import nn


def position_offset(model: nn.Module) -> int:
    """Return the row of the learned position embedding that stands for position 0.

    It is 0 but for RoBERTa and its relatives, which keep the rows up to ``pad_token_id`` for padding and
    count from the next one (Liu et al. 2019). They do so by themselves when no ``position_ids`` are given;
    ``position_ids`` that restart at each document must be raised by this much before they are passed.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
