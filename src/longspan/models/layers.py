"""Which pattern each attention layer has: its SparseSelfAttention, and the entry in the configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from longspan.attention import SparseSelfAttention
from longspan.sparsity import DenseSparsityConfig, SparsityConfig, from_dict

# The configuration's field: one pattern's to_dict() for all layers, or a list with one, or None, a layer.
CONFIG_KEY = "longspan_sparsity"

_ATTRIBUTE = "sparse_self_attention"
_DENSE_BLOCK = 64


def sparsity_of(config: Any) -> list[SparsityConfig]:
    """Read each layer's pattern from a Hugging Face configuration.

    Args:
        config: the configuration of a model that `sparsify` has changed, or that was loaded from one.

    Returns:
        One pattern a layer; for ALBERT, whose layers share their weights, one a set of weights.

    Raises:
        ValueError: the configuration names no pattern, one of another number of layers, or an unknown one.

    """
    entry = getattr(config, CONFIG_KEY, None)
    if entry is None:
        raise ValueError(
            f"the {type(config).__name__} of this model has no sparsity ({CONFIG_KEY}), so attention "
            "implementation 'longspan' does not know what to keep: call longspan.sparsify(model, pattern)"
        )
    layers = attention_layers(config)
    entries = [entry] * layers if isinstance(entry, dict) else list(entry)
    if len(entries) != layers:
        raise ValueError(f"{CONFIG_KEY} lists {len(entries)} patterns for {layers} layers")
    return [pattern_or_dense(item if item is None else from_dict(item), config) for item in entries]


def pattern_or_dense(pattern: SparsityConfig | None, config: Any) -> SparsityConfig:
    """Return the pattern, or for None the dense one with the heads of the configuration."""
    if pattern is not None:
        return pattern
    return DenseSparsityConfig(num_heads=config.num_attention_heads, block=_DENSE_BLOCK)


def attention_of(module: nn.Module) -> SparseSelfAttention:
    """Return the layer's SparseSelfAttention; a model loaded from disk makes it in its first forward.

    Raises:
        ValueError: the layer has none and its configuration names no pattern, or it is cross attention.

    """
    attention = getattr(module, _ATTRIBUTE, None)
    if attention is None:
        refuse_cross_attention(module.config)
        attention = attach(module, _pattern_of(module))
    return attention


def _pattern_of(module: nn.Module) -> SparsityConfig:
    """Look a layer's pattern up; a layer that does not know its index can tell only one that all share."""
    patterns = sparsity_of(module.config)
    index = layer_index(module)
    if index is None:
        if len(set(patterns)) > 1:
            raise ValueError(
                f"{type(module).__name__} does not know which layer it is, and {CONFIG_KEY} lists patterns "
                "that differ: call longspan.sparsify(model, longspan.models.sparsity_of(model.config)) once "
                "the model is loaded"
            )
        index = 0
    return patterns[index]


def attach(module: nn.Module, pattern: SparsityConfig, backend: str = "auto") -> SparseSelfAttention:
    """Give an attention layer the SparseSelfAttention of a pattern: a submodule without parameters."""
    # A BertSparseSelfAttention has one already, and leaves the dropout to it.
    dropout_p = getattr(getattr(module, _ATTRIBUTE, None), "dropout_p", 0.0)
    attention = SparseSelfAttention(pattern, dropout_p=dropout_p, backend=backend)
    setattr(module, _ATTRIBUTE, attention)
    return attention


def self_attention_layers(model: nn.Module) -> list[nn.Module]:
    """Find the self-attention layers of a Hugging Face model, in the order of their layers.

    Layers that share their weights (ALBERT's) are one.

    Raises:
        ValueError: the model attends to an encoder, or its layers do not follow transformers' attention
            interface.

    """
    config: Any = model.config
    refuse_cross_attention(config)
    found = [module for module in model.modules() if is_self_attention(module)]
    numbered = [(index, module) for module in found if (index := layer_index(module)) is not None]
    if numbered:
        numbered.sort(key=lambda pair: pair[0])
        found = [module for _, module in numbered]
        indices, expected = [index for index, _ in numbered], list(range(len(numbered)))
    else:
        # DistilBERT's and ALBERT's do not know their index; they lie in the order of the layers.
        indices, expected = [None] * len(found), [None] * attention_layers(config)
    if not found or indices != expected or len({id(module.config) for module in found}) != 1:
        raise ValueError(
            f"{type(model).__name__} must have one self-attention per layer that follows transformers' "
            f"attention interface (attributes config and is_causal); found layers {indices}"
        )
    return found


def is_self_attention(module: nn.Module) -> bool:
    """Say whether a module is an attention layer that calls transformers' attention interface."""
    return hasattr(module, "is_causal") and hasattr(module, "config")


def layer_index(module: nn.Module) -> int | None:
    """Return the index that an attention layer knows of itself, if it does."""
    index = getattr(module, "layer_idx", None)
    return index if isinstance(index, int) else None


def attention_layers(config: Any) -> int:
    """Count the self-attention modules of a model by its configuration; ALBERT's are shared by its layers."""
    groups = getattr(config, "num_hidden_groups", None)
    return config.num_hidden_layers if groups is None else groups * config.inner_group_num


def refuse_cross_attention(config: Any) -> None:
    """Raise ValueError for a model that attends to an encoder: such layers have no pattern."""
    for name in ("is_encoder_decoder", "add_cross_attention"):
        if getattr(config, name, False):
            raise ValueError(
                f"models with cross attention are not supported: config.{name} is True in "
                f"{type(config).__name__}, and a pattern is for self-attention"
            )


def per_layer(
    sparsity: SparsityConfig | Sequence[SparsityConfig | None], layers: int
) -> Sequence[SparsityConfig | None]:
    """Spread one pattern over the layers, or check that there is one a layer.

    Raises:
        ValueError: another number of patterns than layers.

    """
    if isinstance(sparsity, SparsityConfig):
        return [sparsity] * layers
    if len(sparsity) != layers:
        raise ValueError(f"sparsity must be one pattern or {layers}, one per layer; got {len(sparsity)}")
    return sparsity


def noted(
    sparsity: SparsityConfig | Sequence[SparsityConfig | None], patterns: Sequence[SparsityConfig | None]
) -> Any:
    """Write the patterns as what JSON can hold, in the form in which they will be read back."""
    entry = (
        sparsity.to_dict()
        if isinstance(sparsity, SparsityConfig)
        else [None if pattern is None else pattern.to_dict() for pattern in patterns]
    )
    return json.loads(json.dumps(entry))
