"""Which `+key=value` is refused: Hydra itself takes every one."""

from __future__ import annotations

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from longspan.config import schemas
from longspan.config.folders import config_dir
from longspan.config.messages import allowed_keys
from longspan.config.signatures import signature_of
from longspan.errors import ConfigError


def refuse_additions(overrides: list[str], config_name: str = schemas.PRIMARY) -> None:
    """Refuse `+key=value` where a schema says which keys there are: Hydra itself would take it and go on.

    Free dictionaries (`model.config_overrides`), targets with `**kwargs` and Hydra's own keys take additions.

    Args:
        overrides: all overrides of a command line.
        config_name: the file that a run is composed from.

    Raises:
        ConfigError: a key that is not allowed; the message names the allowed ones.

    """
    added = [override for override in overrides if override.startswith("+")]
    keys = [override.lstrip("+").partition("=")[0].partition("@")[0] for override in added]
    keys = [key for key in keys if not (config_dir() / key).is_dir() and key.partition(".")[0] != "hydra"]
    if not keys:
        return
    config = _compose_without(added, overrides, config_name)
    for key in keys:
        node, name = _deepest(config, key)
        if node is None:
            continue
        target = node.get("_target_") if "_target_" in node else None
        closed = node is config or (target is not None and not signature_of(target).takes_any_key)
        if closed:
            raise ConfigError(f"unknown key '{key}'; {allowed_keys(node, name)}")


def _deepest(config: DictConfig, key: str) -> tuple[DictConfig | None, str]:
    """The deepest mapping on the way to `key`, and the name that is missing in it; None where none is."""
    node: object = config
    for name in key.split("."):
        if not isinstance(node, DictConfig):
            return None, name
        if name not in set(node):
            return node, name
        node = node._get_node(name)
    return None, key


def _compose_without(added: list[str], overrides: list[str], config_name: str) -> DictConfig:
    """The configuration without the additions, of the first job where it is a sweep."""
    kept = []
    for override in OverridesParser.create().parse_overrides([o for o in overrides if o not in added]):
        text = override.input_line or ""
        if override.is_sweep_override():
            if not override.is_choice_sweep():
                continue
            text = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        kept.append(text)
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(config_name, overrides=kept)
