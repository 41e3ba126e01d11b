"""Sparse attention for a Hugging Face model, in place and without changes to its forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from longspan.models.layers import (
    CONFIG_KEY,
    attach,
    config_entry,
    pattern_or_dense,
    per_layer,
    self_attention_layers,
)
from longspan.models.registration import NAME
from longspan.sparsity import SparsityConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")


def sparsify(
    model: Model, sparsity: SparsityConfig | Sequence[SparsityConfig | None], *, backend: str = "auto"
) -> Model:
    """Give each self-attention layer of a model a `SparseSelfAttention`.

    Parameters and their names do not change. The patterns are stored in ``model.config``, so
    ``save_pretrained`` keeps them and ``from_pretrained(path, attn_implementation="longspan")`` is sparse
    again; plain transformers ignores the entry.

    With a key-value cache, new queries follow the last rows of the pattern at the current length. The result
    equals one forward over the whole text if the rows of the pattern do not depend on the length, as for
    local windows and fixed global blocks; random blocks and a short last window may depend on it.

    Args:
        model: a Hugging Face model that uses transformers' attention interface.
        sparsity: one pattern for all layers, or one per layer, where None keeps a layer dense. ALBERT, whose
            layers share weights, has one per set of weights.
        backend: backend of `longspan.block_sparse_attention`. It is not saved: loaded models have "auto".

    Returns:
        The same model, with the attention implementation ``longspan``.

    Raises:
        ValueError: the number of patterns or of heads differs from that of the model, or the model has cross
            attention, has T5's dense position bias, or does not use the attention interface (BLOOM and MPT,
            for example).

    """
    layers = self_attention_layers(model)
    _refuse_relative_bias(model, layers)
    patterns = per_layer(sparsity, len(layers))
    config: Any = layers[0].config
    heads = config.num_attention_heads
    for index, pattern in enumerate(patterns):
        if pattern is not None and pattern.num_heads != heads:
            raise ValueError(
                f"the pattern of layer {index} has num_heads={pattern.num_heads}, but {type(model).__name__} "
                f"has {heads} heads"
            )
    model.set_attn_implementation(NAME)
    if config._attn_implementation != NAME:
        raise ValueError(
            f"{type(model).__name__} does not let transformers choose its attention implementation"
        )
    for layer, pattern in zip(layers, patterns, strict=True):
        attach(layer, pattern_or_dense(pattern, config), backend)
    setattr(config, CONFIG_KEY, config_entry(sparsity, patterns))
    return model


def _refuse_relative_bias(model: Any, layers: Sequence[Any]) -> None:
    """Raise ValueError for T5 and related models, whose layers share a bias [heads, length, length]."""
    if any(hasattr(layer, "has_relative_attention_bias") for layer in layers):
        raise ValueError(
            f"{type(model).__name__} hands every layer a position_bias [heads, length, length], as large as "
            "dense attention, which sparsify does not serve; for a model of your own block_sparse_attention "
            "and SparseSelfAttention take relative_bias=T5Buckets(table), which makes nothing of that size"
        )
