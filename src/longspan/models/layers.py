"""The pattern of each attention layer: its SparseSelfAttention, and the entry in the configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from longspan.attention import SparseSelfAttention
from longspan.sparsity import DenseSparsityConfig, SparsityConfig, from_dict

# Field of the configuration: to_dict() of one pattern for all layers, or a list with one or None per layer.
CONFIG_KEY = "longspan_sparsity"

_ATTRIBUTE = "sparse_self_attention"
_DENSE_BLOCK = 64
# By model_type: architectures whose attention layers have no layer_idx and are in the order of the model.
_WITHOUT_INDEX = ("albert", "distilbert")


def sparsity_of(config: Any) -> list[SparsityConfig]:
    """Return the pattern of each layer from a Hugging Face configuration.

    Args:
        config: configuration of a model that `sparsify` changed, also after saving and loading.

    Returns:
        One pattern per layer; for ALBERT, whose layers share weights, one per set of weights.

    Raises:
        ValueError: the configuration has no pattern, an unknown one, or one for another number of layers.

    """
    entry = getattr(config, CONFIG_KEY, None)
    if entry is None:
        raise ValueError(
            f"the {type(config).__name__} of this model has no sparsity ({CONFIG_KEY}), so attention "
            "implementation 'longspan' does not know what to keep: call longspan.sparsify(model, pattern)"
        )
    layers = layers_with_weights(config)
    entries = [entry] * layers if isinstance(entry, dict) else list(entry)
    if len(entries) != layers:
        raise ValueError(f"{CONFIG_KEY} lists {len(entries)} patterns for {layers} layers")
    return [pattern_or_dense(item if item is None else from_dict(item), config) for item in entries]


def pattern_or_dense(pattern: SparsityConfig | None, config: Any) -> SparsityConfig:
    """Return the pattern, or the dense one with the heads of the configuration for None."""
    if pattern is not None:
        return pattern
    return DenseSparsityConfig(num_heads=config.num_attention_heads, block=_DENSE_BLOCK)


def attention_of(module: nn.Module) -> SparseSelfAttention:
    """Return the SparseSelfAttention of a layer; a model loaded from disk makes it in its first forward.

    Raises:
        ValueError: the layer has none and its configuration has no pattern, or it is cross attention.

    """
    attention = getattr(module, _ATTRIBUTE, None)
    if attention is None:
        refuse_cross_attention(module.config)
        attention = attach(module, _pattern_of(module))
    return attention


def _pattern_of(module: nn.Module) -> SparsityConfig:
    config: Any = module.config
    patterns = sparsity_of(config)
    if hasattr(module, "layer_idx"):
        return patterns[_layer_index(module)]
    if len(set(patterns)) > 1:
        raise ValueError(
            f"the layers of {config.model_type} do not know their number, so none can find its own pattern "
            "among several: after loading, call longspan.sparsify(model, "
            "longspan.models.sparsity_of(model.config))"
        )
    return patterns[0]


def layers_with_weights(config: Any) -> int:
    """Return the number of attention layers with distinct weights: ALBERT runs each of them several times."""
    if config.model_type == "albert":
        return config.num_hidden_groups * config.inner_group_num
    return config.num_hidden_layers


def attach(module: nn.Module, pattern: SparsityConfig, backend: str = "auto") -> SparseSelfAttention:
    """Set the SparseSelfAttention of an attention layer: a submodule without parameters."""
    # The existing one of a BertSparseSelfAttention also applies the dropout.
    dropout_p = getattr(getattr(module, _ATTRIBUTE, None), "dropout_p", 0.0)
    attention = SparseSelfAttention(pattern, dropout_p=dropout_p, backend=backend).train(module.training)
    setattr(module, _ATTRIBUTE, attention)
    return attention


def self_attention_layers(model: nn.Module) -> list[nn.Module]:
    """Return the self-attention layers of a Hugging Face model, in the order of the layers.

    ALBERT's layers share weights within a group: it has one for each layer of a group.

    Raises:
        ValueError: the model has cross attention, or its layers do not follow transformers' attention
            interface.

    """
    config: Any = model.config
    refuse_cross_attention(config)
    attentions = [module for module in model.modules() if is_self_attention(module)]
    if getattr(config, "model_type", None) in _WITHOUT_INDEX:
        indices = list(range(len(attentions)))
    else:
        attentions.sort(key=_layer_index)
        indices = [_layer_index(module) for module in attentions]
    if (
        not attentions
        or indices != list(range(len(attentions)))
        or len({id(module.config) for module in attentions}) != 1
    ):
        raise ValueError(
            f"{type(model).__name__} must have one self-attention per layer that follows transformers' "
            f"attention interface (attributes is_causal and layer_idx); found layers {indices}"
        )
    return attentions


def is_self_attention(module: nn.Module) -> bool:
    """Return whether a module is an attention layer that calls transformers' attention interface."""
    if not hasattr(module, "is_causal"):
        return False
    kind = getattr(getattr(module, "config", None), "model_type", None)
    return kind in _WITHOUT_INDEX or isinstance(getattr(module, "layer_idx", None), int)


def refuse_cross_attention(config: Any) -> None:
    """Raise ValueError for a model with cross attention, which has no pattern."""
    for name in ("is_encoder_decoder", "add_cross_attention"):
        if getattr(config, name, False):
            raise ValueError(
                f"models with cross attention are not supported: config.{name} is True in "
                f"{type(config).__name__}, and a pattern is for self-attention"
            )


def _layer_index(module: nn.Module) -> int:
    index: Any = module.layer_idx
    return index


def per_layer(
    sparsity: SparsityConfig | Sequence[SparsityConfig | None], layers: int
) -> Sequence[SparsityConfig | None]:
    """Return one pattern per layer, given one pattern or a list.

    Raises:
        ValueError: the number of patterns is not that of the layers.

    """
    if isinstance(sparsity, SparsityConfig):
        return [sparsity] * layers
    if len(sparsity) != layers:
        raise ValueError(f"sparsity must be one pattern or {layers}, one per layer; got {len(sparsity)}")
    return sparsity


def config_entry(
    sparsity: SparsityConfig | Sequence[SparsityConfig | None], patterns: Sequence[SparsityConfig | None]
) -> Any:
    """Return the entry of the configuration, equal to the one that is read back from JSON."""
    entry = (
        sparsity.to_dict()
        if isinstance(sparsity, SparsityConfig)
        else [None if pattern is None else pattern.to_dict() for pattern in patterns]
    )
    return json.loads(json.dumps(entry))
