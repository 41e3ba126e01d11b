"""Sparse attention for a list of layers: DeepSpeed's replace_self_attention_layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from longspan.attention import BertSparseSelfAttention
from longspan.models.layers import (
    CONFIG_KEY,
    attach,
    config_entry,
    is_self_attention,
    layers_with_weights,
    refuse_cross_attention,
    sparsity_of,
)
from longspan.models.registration import NAME
from longspan.sparsity import FixedSparsityConfig, SparsityConfig

Layers = TypeVar("Layers", bound=Iterable[nn.Module])


def sparsify_layers(config: Any, layers: Layers, pattern: SparsityConfig | None = None) -> Layers:
    """Make the self-attention of some layers of a model sparse, in place.

    In BERT-like encoders (BERT, RoBERTa, XLM-R, ELECTRA) each ``layer.attention.self`` becomes a
    `BertSparseSelfAttention` with the same projections. Other layers keep their module and become sparse as
    by `longspan.sparsify`. In both cases ``config`` gets the attention implementation ``longspan`` and the
    entry with the patterns; layers outside of the list attend densely.

    Args:
        config: configuration of the layers, ``model.config``.
        layers: modules with at least one self-attention each, such as ``model.bert.encoder.layer``.
        pattern: a pattern with the heads of the model; None for `default_pattern`.

    Returns:
        The layers.

    Raises:
        ValueError: there is no layer, a layer has no self-attention that follows transformers' attention
            interface, the configuration belongs to another model, the pattern has another number of heads,
            the model has cross attention, or only some layers of a model without layer indices are given.

    """
    refuse_cross_attention(config)
    members = list(layers)
    attentions = [_attentions(layer) for layer in members]
    modules = list(dict.fromkeys(module for modules_of_layer in attentions for module in modules_of_layer))
    if not all(attentions) or not modules:
        raise ValueError(
            "layers must be one or more modules, each with a self-attention that follows transformers' "
            f"attention interface; found {[len(one) for one in attentions]} in them"
        )
    if any(module.config is not config for module in modules):
        raise ValueError("config must be the layers' own configuration, model.config; got another object")
    if pattern is None:
        pattern = default_pattern(config, modules)
    if pattern.num_heads != config.num_attention_heads:
        raise ValueError(
            f"the pattern has num_heads={pattern.num_heads}, but the model has "
            f"{config.num_attention_heads} heads"
        )
    entry = _config_entry(config, modules, pattern)
    for layer in members:
        holder: Any = getattr(layer, "attention", None)
        if _is_bert_encoder(holder):
            holder.self = _to_bert_sparse(holder.self, config, pattern)
        else:
            for module in _attentions(layer):
                attach(module, pattern)
    config._attn_implementation = NAME
    setattr(config, CONFIG_KEY, entry)
    return layers


def default_pattern(config: Any, attentions: Iterable[Any]) -> SparsityConfig:
    """Return the pattern of DeepSpeed's default mode, with the heads and the direction of a model."""
    causal = any(attention.is_causal for attention in attentions)
    return FixedSparsityConfig(
        config.num_attention_heads, attention="unidirectional" if causal else "bidirectional"
    )


def _attentions(layer: nn.Module) -> list[Any]:
    return [module for module in layer.modules() if is_self_attention(module)]


def _is_bert_encoder(holder: Any) -> bool:
    """Return whether ``holder.self`` is an encoder's attention that BertSparseSelfAttention can replace."""
    attention: Any = getattr(holder, "self", None)
    projections = [getattr(attention, name, None) for name in ("query", "key", "value")]
    return all(isinstance(one, nn.Linear) for one in projections) and not attention.is_causal


def _to_bert_sparse(old: Any, config: Any, pattern: SparsityConfig) -> BertSparseSelfAttention:
    # On the meta device, since the trained projections replace the new ones.
    with torch.device("meta"):
        new: Any = BertSparseSelfAttention(config, pattern)
    new.query, new.key, new.value = old.query, old.key, old.value
    # These attributes mark the layer as a self-attention, so that it can be replaced again.
    new.config, new.layer_idx, new.is_causal = config, old.layer_idx, False
    return new.train(old.training)


def _config_entry(config: Any, modules: list[nn.Module], pattern: SparsityConfig) -> Any:
    """Return the entry of the configuration: the new pattern for ``modules``, others unchanged."""
    total = layers_with_weights(config)
    indices = [getattr(module, "layer_idx", None) for module in modules]
    if len(modules) == total:
        return config_entry(pattern, [pattern] * total)
    if None in indices:
        raise ValueError(
            f"layers must be all {total} of the model, as they do not know which they are; got {len(modules)}"
        )
    before = sparsity_of(config) if getattr(config, CONFIG_KEY, None) is not None else [None] * total
    patterns = [pattern if index in indices else other for index, other in enumerate(before)]
    return config_entry(patterns, patterns)
