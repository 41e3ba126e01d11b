"""How an object is made of a part of a configuration: an OmegaConf node, a dictionary or a list.

A class or function may say what a run has to do with its arguments:

- `supplied_by_run = ("tokenizer", "objective")`: the run hands these to it beside its configuration. They are
  no keys there, so that none can be set and then be overruled.
- `read_by_run = {"layers": str | None}`: further keys of its configuration, with their types, which the run
  reads itself. All of them may be null.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longspan.errors import ConfigError

# A configuration may come from anywhere: what it may call is limited.
ALLOWED_PACKAGES = ("longspan", "torch", "lightning", "transformers", "datasets", "functools")

_CONTROL_KEYS = ("_target_", "_partial_")


def locate(target: str) -> Callable[..., Any]:
    """The class or function of a dotted name such as `longspan.sparsity.BigBirdSparsityConfig`.

    Raises:
        ConfigError: the name lies outside ALLOWED_PACKAGES, does not exist or cannot be called.

    """
    allowed = ", ".join(ALLOWED_PACKAGES)
    if not isinstance(target, str) or target.partition(".")[0] not in ALLOWED_PACKAGES:
        raise ConfigError(f"_target_={target}: a target lies in one of {allowed}")
    try:
        found = _resolve(target)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"_target_={target}: {error}") from error
    if not callable(found):
        raise ConfigError(f"_target_={target}: a {type(found).__name__} cannot be called")
    # `torch.os.system` begins with an allowed name as well: the object says where it comes from.
    home = str(getattr(found, "__module__", None) or "")
    if home.partition(".")[0] not in ALLOWED_PACKAGES:
        raise ConfigError(f"_target_={target}: it comes from {home or 'nowhere'}; allowed are {allowed}")
    return found


def _resolve(target: str) -> Any:
    """Import the modules of a dotted name, then read attributes; import errors inside a module are raised."""
    parts = target.split(".")
    found: Any = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        if inspect.ismodule(found) and not hasattr(found, part):
            name = ".".join(parts[:depth])
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
        found = getattr(found, part)
    return found


def instantiate(config: Any, /, **arguments: Any) -> Any:
    """The object that a configuration describes by `_target_` and its arguments, inner ones first.

    With `_partial_: true` it is a factory, which is called with the remaining arguments. None gives None; a
    dictionary or list without `_target_` is rebuilt with what is in it instantiated. Values that are missing
    (`???`) are left to the target's own defaults.

    Args:
        config: an OmegaConf node, a dictionary, a list or None.
        arguments: handed to the outermost target beside those of the configuration, in whose place they come.

    Raises:
        ConfigError: a target that is not allowed, a value that is missing, or a ValueError, TypeError,
            OSError or ImportError of the target itself; the message names the key.

    """
    where = ""
    if OmegaConf.is_config(config):
        where = str(config._get_full_key(None))
        try:
            config = OmegaConf.to_container(config, resolve=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where or 'configuration'}: {str(error).splitlines()[0]}") from error
    return _build(config, where, arguments)


def _build(node: Any, where: str, arguments: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_build(item, f"{where}[{index}]", {}) for index, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    inner = {
        key: _build(value, f"{where}.{key}" if where else str(key), {})
        for key, value in node.items()
        if key not in _CONTROL_KEYS and not (isinstance(value, str) and value == "???")
    }
    if "_target_" not in node:
        return inner
    target = locate(node["_target_"])
    for key in getattr(target, "read_by_run", ()):
        if inner.pop(key, None) is not None and ("." in where or "[" in where):
            raise ConfigError(f"{where}.{key} is for the whole group: set {where.partition('.')[0]}.{key}")
    inner.update(arguments)
    if node.get("_partial_", False):
        return _Factory(target, inner, where)
    return _call(target, inner, where)


class _Factory:
    """A target with some of its arguments, as functools.partial; errors of a call name the key."""

    def __init__(self, target: Callable[..., Any], arguments: dict[str, Any], where: str):
        self.func, self.keywords, self.where = target, arguments, where

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(lambda **given: self.func(*args, **given), {**self.keywords, **kwargs}, self.where)

    def __repr__(self) -> str:
        return f"{self.func.__qualname__}({', '.join(f'{k}={v!r}' for k, v in self.keywords.items())})"


def _call(target: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:
    try:
        return target(**arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise ConfigError(f"{where or target.__qualname__}: {error}") from error
