"""A list of a model's layers made sparse: what DeepSpeed's replace_self_attention_layer did."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from longspan.attention import BertSparseSelfAttention
from longspan.models.layers import (
    CONFIG_KEY,
    attach,
    is_self_attention,
    layers_with_weights,
    noted,
    refuse_cross_attention,
    sparsity_of,
)
from longspan.models.registration import NAME
from longspan.sparsity import FixedSparsityConfig, SparsityConfig

Layers = TypeVar("Layers", bound=Iterable[nn.Module])


def sparsify_layers(config: Any, layers: Layers, pattern: SparsityConfig | None = None) -> Layers:
    """Make the self-attention of some layers of a model sparse, in place.

    In an encoder of BERT's form (BERT, RoBERTa, XLM-R, ELECTRA) each ``layer.attention.self`` becomes a
    `BertSparseSelfAttention` around the very projections that were there. Every other layer keeps its module
    and is made sparse as by `longspan.sparsify`. Either way ``config`` is set to the attention implementation
    ``longspan`` and notes the patterns; layers that are not in the list attend densely.

    Args:
        config: the configuration that the layers belong to, ``model.config``.
        layers: modules with one self-attention or more in each, such as ``model.bert.encoder.layer``.
        pattern: of as many heads as the model's; None: see `default_pattern`.

    Returns:
        The layers.

    Raises:
        ValueError: no layer, a layer without a self-attention that follows transformers' attention interface,
            a configuration that is not the layers' own, a pattern of another number of heads, a model with
            cross attention, or some layers of a model whose layers do not know which they are.

    """
    refuse_cross_attention(config)
    members = list(layers)
    found = [_attentions(layer) for layer in members]
    modules = list(dict.fromkeys(module for of_layer in found for module in of_layer))
    if not all(found) or not modules:
        raise ValueError(
            "layers must be one or more modules, each with a self-attention that follows transformers' "
            f"attention interface; found {[len(of_layer) for of_layer in found]} in them"
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
    note = _note(config, modules, pattern)
    for layer in members:
        holder: Any = getattr(layer, "attention", None)
        if _is_berts(holder):
            holder.self = _bert_sparse(holder.self, config, pattern)
        else:
            for module in _attentions(layer):
                attach(module, pattern)
    config._attn_implementation = NAME
    setattr(config, CONFIG_KEY, note)
    return layers


def default_pattern(config: Any, attentions: Iterable[Any]) -> SparsityConfig:
    """Make the pattern of DeepSpeed's default mode, with the heads and the direction of a model."""
    causal = any(attention.is_causal for attention in attentions)
    return FixedSparsityConfig(
        config.num_attention_heads, attention="unidirectional" if causal else "bidirectional"
    )


def _attentions(layer: nn.Module) -> list[Any]:
    return [module for module in layer.modules() if is_self_attention(module)]


def _is_berts(holder: Any) -> bool:
    """Say whether it holds a self-attention that BertSparseSelfAttention can stand for: an encoder's."""
    attention: Any = getattr(holder, "self", None)
    projections = [getattr(attention, name, None) for name in ("query", "key", "value")]
    return all(isinstance(one, nn.Linear) for one in projections) and not attention.is_causal


def _bert_sparse(old: Any, config: Any, pattern: SparsityConfig) -> BertSparseSelfAttention:
    # The fresh projections are never filled: those that were trained take their place.
    with torch.device("meta"):
        new: Any = BertSparseSelfAttention(config, pattern)
    new.query, new.key, new.value = old.query, old.key, old.value
    # So that the layer can be found and replaced again.
    new.config, new.layer_idx, new.is_causal = config, old.layer_idx, False
    return new.train(old.training)


def _note(config: Any, modules: list[nn.Module], pattern: SparsityConfig) -> Any:
    """Write the patterns of all layers of the model: the list's have a new one, others keep theirs."""
    total = layers_with_weights(config)
    indices = [getattr(module, "layer_idx", None) for module in modules]
    if len(modules) == total:
        return noted(pattern, [pattern] * total)
    if None in indices:
        raise ValueError(
            f"layers must be all {total} of the model, as they do not know which they are; got {len(modules)}"
        )
    before = sparsity_of(config) if getattr(config, CONFIG_KEY, None) is not None else [None] * total
    patterns = [pattern if index in indices else other for index, other in enumerate(before)]
    return noted(patterns, patterns)
