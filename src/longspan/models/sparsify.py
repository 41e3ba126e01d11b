"""Make a Hugging Face model sparse, in place and without rewriting any of its forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from longspan.models.layers import (
    CONFIG_KEY,
    attach,
    noted,
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
    """Give each self-attention layer of a model its `SparseSelfAttention`.

    The model's parameters and their names stay as they are. The patterns are noted in ``model.config``, so
    that ``save_pretrained`` keeps them and ``from_pretrained(path, attn_implementation="longspan")`` is
    sparse again; plain transformers ignores the note.

    With a key-value cache each new query attends what the pattern's last rows say at the present length. That
    is what one forward over the whole text computes if the pattern's rows do not depend on the length (local
    windows and fixed global blocks do not; random blocks and a short last window may).

    Args:
        model: a Hugging Face model whose attention goes through transformers' attention interface.
        sparsity: one pattern for all layers, or one a layer, where None leaves a layer dense. ALBERT, whose
            layers share their weights, has as many layers here as sets of weights.
        backend: what computes the attention, see `longspan.block_sparse_attention`. It is not kept with the
            model: one that is loaded has "auto".

    Returns:
        The same model, its attention implementation set to ``longspan``.

    Raises:
        ValueError: another number of patterns than layers, a pattern of another number of heads than the
            model, a model with cross attention, one with T5's dense position bias, or one that does not
            follow the attention interface (BLOOM and MPT, for example, whose ALiBi is in their own code).

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
    setattr(config, CONFIG_KEY, noted(sparsity, patterns))
    return model


def _refuse_relative_bias(model: Any, layers: Sequence[Any]) -> None:
    """Raise ValueError for T5 and its kin, whose first layer hands a bias of [heads, length, length] on."""
    if any(hasattr(layer, "has_relative_attention_bias") for layer in layers):
        raise ValueError(
            f"{type(model).__name__} hands every layer a position_bias [heads, length, length], as large as "
            "dense attention, which sparsify does not serve; for a model of your own block_sparse_attention "
            "and SparseSelfAttention take relative_bias=T5Buckets(table), which makes nothing of that size"
        )
