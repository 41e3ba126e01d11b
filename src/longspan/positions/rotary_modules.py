"""A model's rotary embeddings and what its configuration says of them: found, read and written."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

# The configuration's field: what was done, and from which length. Plain transformers ignores it.
CONFIG_KEY = "longspan_rotary"

# What a model's configuration says of its positions.
FIELDS = ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings", CONFIG_KEY)


@dataclass(frozen=True)
class RotaryState:
    """A model's rotary positions at some moment: the fields of its configuration, copied."""

    fields: dict[str, Any]


def rotary_state(model: nn.Module) -> RotaryState:
    """Note a model's rotary positions, for `restore_rotary`.

    Raises:
        ValueError: the model has no rotary positions.

    """
    return RotaryState(fields_of(rotary_modules(model)[0].config))


def restore_rotary(model: Model, state: RotaryState) -> Model:
    """Give a model the rotary positions that `rotary_state` noted, in place; they may be fewer.

    Raises:
        ValueError: the model has no rotary positions.

    """
    modules = rotary_modules(model)
    if fields_of(modules[0].config) != state.fields:
        write_fields(modules, copy.deepcopy(state.fields), keep=())
    return model


def rotary_modules(model: nn.Module) -> list[Any]:
    """Find the rotary embeddings of a model's text part; they share one configuration."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = [
        module
        for module in model.modules()
        if "RotaryEmbedding" in type(module).__name__
        and hasattr(module, "rope_type")
        and getattr(module, "config", None) is text
    ]
    if not found or not getattr(text, "rope_parameters", None):
        raise ValueError(
            f"{type(model).__name__} has no rotary positions that follow transformers' rope parameters "
            "(config.rope_parameters and a RotaryEmbedding module), as Llama, Mistral, Qwen2 and ModernBERT "
            "do"
        )
    return found


def layer_types_of(config: Any) -> tuple[str | None, ...]:
    """Name the layer types that have rope parameters of their own; (None,) where all layers share them."""
    nested = {name: value for name, value in config.rope_parameters.items() if isinstance(value, dict)}
    # Some configurations name both kinds of layers where the model has one alone.
    used = [name for name in nested if name in (getattr(config, "layer_types", None) or ())]
    return tuple(used) or (None,)


def parameters_of(config: Any, layer_type: str | None) -> dict[str, Any]:
    """Return a layer type's rope parameters: the configuration's own dictionary."""
    return config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]


def prefix_of(layer_type: str | None) -> str:
    """How a rotary embedding's attributes for a layer type begin."""
    return "" if layer_type is None else f"{layer_type}_"


def fields_of(config: Any) -> dict[str, Any]:
    """Copy what a configuration says of its positions."""
    return {name: copy.deepcopy(getattr(config, name)) for name in FIELDS if hasattr(config, name)}


def write_fields(modules: list[Any], fields: dict[str, Any], keep: tuple[str, ...]) -> None:
    """Set the configuration's fields, and make the rotary embeddings what that configuration gives.

    Each is made a second time by its own class, so that it is what loading the model would make. Nothing is
    changed where the configuration's own check refuses the fields: Phi-3 knows "longrope" alone.

    Raises:
        ValueError: the configuration does not take them.

    """
    config = modules[0].config
    wanted = copy.deepcopy(config)
    _set_fields(wanted, fields)
    try:
        wanted.validate_rope()
    except (ValueError, KeyError) as error:
        raise ValueError(f"{type(config).__name__} does not take this scaling: {error}") from error
    # On the CPU, whatever the default device: the same bits as in a model that is built there and moved.
    with torch.device("cpu"):
        made = [type(module)(wanted) for module in modules]
    for module, fresh in zip(modules, made, strict=True):
        _adopt(module, fresh, keep)
    _set_fields(config, fields)


def _set_fields(config: Any, fields: dict[str, Any]) -> None:
    for name in FIELDS:
        if name in fields:
            setattr(config, name, fields[name])
        elif hasattr(config, name):
            delattr(config, name)


def _adopt(module: Any, fresh: Any, keep: tuple[str, ...]) -> None:
    """Take over all that the embedding `fresh` computed, but for what begins as `keep` says."""
    device = next(module.buffers()).device
    # What transformers caches at the first forward beside its buffers.
    caches = ("long_inv_freq", "max_seq_len_cached")
    for name in [name for name in vars(module) if name.endswith(caches)]:
        delattr(module, name)
    for name, buffer in fresh.named_buffers(recurse=False):
        if not name.startswith(keep):
            setattr(module, name, nn.Buffer(buffer.to(device), persistent=False))
    for name, value in vars(fresh).items():
        if name.startswith(("_", *keep)) or name in ("training", "config"):
            continue
        setattr(module, name, value.to(device) if isinstance(value, Tensor) else value)
