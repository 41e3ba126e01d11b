"""The first row of position 0 in the table of learned positions."""

from torch import nn


def position_offset(model: nn.Module) -> int:
    """Return the row of the learned position embedding that stands for position 0.

    The row is 0, except for RoBERTa and related models, which reserve the rows up to ``pad_token_id`` for
    padding (Liu et al. 2019). They add the offset if no ``position_ids`` are given; ``position_ids`` that
    restart at each document must include it.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
