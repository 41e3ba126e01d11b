"""Typed schemas, derived from the signatures of what a configuration file makes.

A file of conf/ that says `_target_: package.Class` gets that class's signature as its schema when it is read:
unknown keys and values of a wrong type fail while the configuration is composed, and every argument of the
class can be overridden, written in the file or not. Schema and code cannot drift apart, since there is no
second list of keys, and a group holds nothing but its options, so that a sweep may run over all of them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import pathlib
import types
import typing
import warnings
from collections import abc
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from longspan.config import search_path
from longspan.config.messages import allowed_keys, explain
from longspan.config.signatures import signature_of
from longspan.config.source import NO_DEFAULT
from longspan.errors import ConfigError

# The file from which a run is composed.
PRIMARY = "train"

# The options of conf/hydra/launcher have the names of those that the plugins bring, and Hydra checks them
# against the schemas of the plugins. That is intended; Hydra warns of it at each job, in their processes too.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

# Stands for the dots of a target in the name of its schema: a dot there would be a class inside of a class.
_DOT = "·"

_PRIMITIVES = (bool, int, float, str, pathlib.Path)


@dataclasses.dataclass
class RunConfig:
    """What a run is made of: the top level of train.yaml. Each group fills the key of its name."""

    seed: int = 0
    ckpt_path: str | None = None
    sweep: str | None = None
    compile: bool = False
    attention_backend: str = "auto"
    loss_chunk: int | None = None
    output_dir: str = MISSING
    data: Any = MISSING
    tokenizer: Any = MISSING
    objective: Any = MISSING
    model: Any = MISSING
    sparsity: Any = MISSING
    position: Any = MISSING
    budget: Any = MISSING
    schedule: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING


@functools.cache
def schema_of(target: str) -> type:
    """A dataclass with the parameters of `target`, a dotted name: their names, types and defaults.

    A type that OmegaConf cannot check (a module, a tensor, a union with lists) becomes Any. A parameter
    without a default, or with one that a configuration cannot hold, is missing (`???`) until it is given.
    Parameters that the run supplies are no keys; keys that the run reads are, though no parameters.

    Raises:
        ConfigError: the target cannot be had.

    """
    signature = signature_of(target)
    fields: list[tuple[str, Any, Any]] = [("_target_", str, dataclasses.field(default=target))]
    for name, annotation, default in signature.parameters:
        if name in signature.supplied_by_run:
            continue
        kind = config_type(annotation)
        if default is None and kind is not Any:
            kind = kind | None
        fields.append((name, kind, _field(kind, MISSING if default is NO_DEFAULT else default)))
    fields += [(name, kind, _field(kind, None)) for name, kind in signature.read_by_run.items()]
    schema = dataclasses.make_dataclass(_schema_name(target), fields)
    # A configuration is sent to the process of a job, and back, with its types by reference: sent by value,
    # they would arrive as other types.
    schema.__module__, schema.__qualname__ = __name__, target.replace(".", _DOT)
    return schema


def __getattr__(name: str) -> type:
    """The schema of a target, by the name under which it is pickled."""
    if _DOT not in name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return schema_of(name.replace(_DOT, "."))


def config_type(annotation: Any) -> Any:
    """The type by which OmegaConf checks a parameter with this annotation; Any where it has none."""
    if annotation in _PRIMITIVES or (isinstance(annotation, type) and issubclass(annotation, enum.Enum)):
        return annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin is typing.Literal:
        return str if all(isinstance(value, str) for value in arguments) else Any
    if origin in (list, tuple, abc.Sequence, abc.Iterable):
        items = {config_type(item) for item in arguments if item is not Ellipsis}
        return list[items.pop()] if len(items) == 1 else list[Any]
    if origin in (dict, abc.Mapping) and arguments[0] is str:
        return dict[str, config_type(arguments[1])]
    return Any


def _union(arguments: tuple[Any, ...]) -> Any:
    # A tensor or a device can be given in code alone, never in a file.
    members = [
        config_type(member)
        for member in arguments
        if member is not types.NoneType and getattr(member, "__module__", "").partition(".")[0] != "torch"
    ]
    if not members or Any in members:
        return Any
    if len(members) > 1 and any(member not in _PRIMITIVES for member in members):
        return Any
    kind = functools.reduce(lambda left, right: left | right, members)
    return kind | None if types.NoneType in arguments else kind


def _field(kind: Any, default: Any) -> Any:
    """A dataclass field; its default is missing where OmegaConf cannot hold it."""
    if isinstance(default, tuple):
        default = list(default)
    try:
        OmegaConf.structured(dataclasses.make_dataclass("Probe", [("value", kind, _as_field(default))]))
    except (OmegaConfBaseException, ValueError):
        default = MISSING
    return _as_field(default)


def _as_field(default: Any) -> Any:
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: default.copy())
    return dataclasses.field(default=default)


def _schema_name(target: str) -> str:
    return target.rpartition(".")[2]


def typed(config: Any, where: str) -> Any:
    """`config` with the schema of its target behind each node that has a `_target_`.

    Args:
        config: the content of a file, or a part of it.
        where: the name of the file in errors.

    Raises:
        ConfigCompositionException: a key that the target does not take, a value of a wrong type, a target
            that cannot be had.

    """
    if isinstance(config, ListConfig):
        for index in range(len(config)):
            if OmegaConf.is_config(config._get_node(index)):
                config._set_item_impl(index, typed(config._get_node(index), where))
        return config
    if not isinstance(config, DictConfig) or config._is_none() or config._is_interpolation():
        return config
    defaults = config.pop("defaults", None)
    for key in list(config):
        child = config._get_node(key)
        if OmegaConf.is_config(child):
            config[key] = typed(child, where)
    if "_target_" in config:
        config = _with_schema(config, where)
    if defaults is not None:
        with open_dict(config):
            config["defaults"] = defaults
    return config


def _with_schema(config: DictConfig, where: str) -> DictConfig:
    try:
        schema = OmegaConf.structured(schema_of(config["_target_"]))
        extra = [key for key in config if key not in set(schema) and key != "_partial_"]
        if extra and not signature_of(config["_target_"]).takes_any_key:
            raise ConfigError(f"unknown key '{extra[0]}'; {allowed_keys(schema, str(extra[0]))}")
        with open_dict(schema):
            for key in (*extra, *(["_partial_"] if "_partial_" in config else [])):
                schema[key] = None
            schema.merge_with(config)
        return schema
    except ConfigError as error:
        raise ConfigCompositionException(f"In '{where}': {error}") from error
    except OmegaConfBaseException as error:
        raise ConfigCompositionException(f"In '{where}': {explain(error)}") from error


class TypedFileSource(FileConfigSource):
    """Hydra's reader of YAML files, which gives each file the schemas of its targets."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one file; raises ConfigCompositionException where it does not fit its schema."""
        result = super().load_config(config_path)
        if config_path.startswith("hydra/"):
            # Hydra makes its own parts, and checks their keys.
            return result
        result.config = typed(result.config, config_path)
        if config_path == PRIMARY and isinstance(result.config, DictConfig):
            result.config = _with_run_schema(result.config)
        return result


# Hydra registers its own source again in the processes of a launcher, unless one of this name is there.
TypedFileSource.__name__ = FileConfigSource.__name__


def _with_run_schema(config: DictConfig) -> DictConfig:
    schema = OmegaConf.structured(RunConfig)
    aside = {key: config.pop(key) for key in ("defaults", "hydra") if key in config}
    try:
        schema.merge_with(config)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException(f"In '{PRIMARY}': {explain(error)}") from error
    with open_dict(schema):
        for key, value in aside.items():
            schema[key] = value
    return schema


def register() -> None:
    """Make Hydra read its files through TypedFileSource, in this process; may be called again.

    Options in the user's folders are found too.
    """
    # This registers Hydra's own sources, which has to come first: a second one for `file` would be refused.
    search_path.register()
    SourcesRegistry.instance().types["file"] = TypedFileSource
