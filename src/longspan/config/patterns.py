"""The patterns of a run: one for all layers, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from longspan.config.instantiate import instantiate
from longspan.errors import ConfigError
from longspan.sparsity import SparsityConfig, layer_patterns


def read_patterns(
    config: DictConfig, num_layers: Callable[[], int]
) -> SparsityConfig | list[SparsityConfig | None]:
    """The pattern of a configuration; one a layer where `sparsity.layers` says which.

    Args:
        config: the whole configuration.
        num_layers: gives the number of the model's layers; asked only where it matters.

    Raises:
        ConfigError: the pattern or the line of the layers is wrong.

    """
    own: SparsityConfig = instantiate(config.sparsity)
    line = OmegaConf.select(config, "sparsity.layers")
    if line is None:
        return own
    layers = num_layers()
    try:
        return list(layer_patterns(line, own, layers))
    except ValueError as error:
        named = f"layers={line!r}"
        message = str(error) if str(error).startswith(named) else f"{named}: {error}"
        raise ConfigError(f"sparsity.{message}") from error


def distinct_patterns(sparsity: Any) -> list[Any]:
    """The distinct patterns in the order of their first layer.

    Args:
        sparsity: a pattern, or one (or None) for each layer, or None.

    """
    patterns = sparsity if isinstance(sparsity, Sequence) else [sparsity]
    return list(dict.fromkeys(pattern for pattern in patterns if pattern is not None))
