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
# By model_type: architectures whose attention layers carry no number and count in the model's order.
_WITHOUT_NUMBERS = ("albert", "distilbert")


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
    layers = layers_with_weights(config)
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
    """Count the attention layers that have weights of their own: ALBERT runs each of them several times."""
    if config.model_type == "albert":
        return config.num_hidden_groups * config.inner_group_num
    return config.num_hidden_layers


def attach(module: nn.Module, pattern: SparsityConfig, backend: str = "auto") -> SparseSelfAttention:
    """Give an attention layer the SparseSelfAttention of a pattern: a submodule without parameters."""
    # A BertSparseSelfAttention has one already, and leaves the dropout to it.
    dropout_p = getattr(getattr(module, _ATTRIBUTE, None), "dropout_p", 0.0)
    attention = SparseSelfAttention(pattern, dropout_p=dropout_p, backend=backend).train(module.training)
    setattr(module, _ATTRIBUTE, attention)
    return attention


def self_attention_layers(model: nn.Module) -> list[nn.Module]:
    """Find the self-attention layers of a Hugging Face model, in the order of their layers.

    ALBERT's layers share their weights within a group: it has one for each layer of a group.

    Raises:
        ValueError: the model attends to an encoder, or its layers do not follow transformers' attention
            interface.

    """
    config: Any = model.config
    refuse_cross_attention(config)
    found = [module for module in model.modules() if is_self_attention(module)]
    if getattr(config, "model_type", None) in _WITHOUT_NUMBERS:
        indices = list(range(len(found)))
    else:
        found.sort(key=_layer_index)
        indices = [_layer_index(module) for module in found]
    if not found or indices != list(range(len(found))) or len({id(module.config) for module in found}) != 1:
        raise ValueError(
            f"{type(model).__name__} must have one self-attention per layer that follows transformers' "
            f"attention interface (attributes is_causal and layer_idx); found layers {indices}"
        )
    return found


def is_self_attention(module: nn.Module) -> bool:
    """Say whether a module is an attention layer that calls transformers' attention interface."""
    if not hasattr(module, "is_causal"):
        return False
    kind = getattr(getattr(module, "config", None), "model_type", None)
    return kind in _WITHOUT_NUMBERS or isinstance(getattr(module, "layer_idx", None), int)


def refuse_cross_attention(config: Any) -> None:
    """Raise ValueError for a model that attends to an encoder: such layers have no pattern."""
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
