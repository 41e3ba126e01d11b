"""Where the configuration lies, and how an object is made of a part of it.

Nothing here knows Hydra: a configuration is an OmegaConf node, a dictionary or a list.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longspan.errors import ConfigError
from longspan.models.pretrained import num_heads_of
from longspan.sparsity import SparsityConfig

# A configuration file may come from anywhere; what it may call may not.
ALLOWED_PACKAGES = ("longspan", "torch", "lightning", "transformers", "datasets", "functools")

# What the run hands to these beside their configuration, by target: no key of a configuration, so that none
# can be set there and then be overruled.
SUPPLIED: dict[str, tuple[str, ...]] = {
    "longspan.training.data_module.DataModule": ("tokenizer", "objective"),
    "longspan.models.build.build_model": (
        "objective",
        "vocab_size",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    ),
    "longspan.models.pretrained.load_pretrained": (
        "objective",
        "vocab_size",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    ),
    "longspan.positions.extend": ("model", "sparsity", "tokenizer", "backend"),
    "longspan.training.trainer.make_trainer": ("callbacks", "loggers"),
}

# What the run reads beside the arguments of a target, by the class that the target derives from: keys of its
# configuration, with their types, that are no arguments. All of them may be null, which says nothing.
RUN_KEYS: tuple[tuple[type, dict[str, Any]], ...] = ((SparsityConfig, {"layers": str | None}),)

# `${heads_of:name}` is the number of heads of a pretrained model, which stands in its own config.json.
OmegaConf.register_new_resolver("heads_of", num_heads_of, replace=True)


def _sweep_folder(name: str | None, otherwise: str) -> str:
    """The name of a sweep's folder, for `${sweep_folder:…}`."""
    if name is None:
        return otherwise
    if not re.fullmatch(r"\w[\w.=+-]*", str(name)):
        raise ValueError(f"sweep={name} must be the name of a folder: letters, digits and any of _ . = + -")
    return str(name)


def _jobs_at_once(accelerator: str) -> int:
    """How many jobs of a sweep this machine has a device for, for `${jobs_at_once:…}`."""
    from longspan.sweeps import devices

    return devices.jobs_at_once(accelerator)


def _gpus_here(accelerator: str) -> int:
    """How many GPUs this machine has for jobs, for `${gpus_here:…}`."""
    from longspan.sweeps import devices

    return len(devices.visible_gpus(accelerator))


def _gpus_of_a_job(accelerator: str) -> int:
    """1 where this machine has a GPU for a job, or else 0, for `${gpus_of_a_job:…}`."""
    return min(1, _gpus_here(accelerator))


for _name, _resolver in (
    ("sweep_folder", _sweep_folder),
    ("jobs_at_once", _jobs_at_once),
    ("gpus_here", _gpus_here),
    ("gpus_of_a_job", _gpus_of_a_job),
):
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)

_CONTROL_KEYS = ("_target_", "_partial_")


def config_dir() -> Path:
    """The folder that holds train.yaml and the groups: `conf` of a checkout, `longspan/conf` of a wheel.

    Raises FileNotFoundError where neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "conf", package.parents[1] / "conf")
    for candidate in candidates:
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no train.yaml in {' nor in '.join(str(path) for path in candidates)}")


def locate(target: str) -> Callable[..., Any]:
    """The class or function of a dotted name such as `longspan.sparsity.BigBirdSparsityConfig`.

    Raises ConfigError where the name lies outside ALLOWED_PACKAGES, does not exist or cannot be called.
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
    # `torch.os.system` begins with an allowed name as well, so ask the object where it is from.
    home = str(getattr(found, "__module__", None) or "")
    if home.partition(".")[0] not in ALLOWED_PACKAGES:
        raise ConfigError(f"_target_={target}: it comes from {home or 'nowhere'}; allowed are {allowed}")
    return found


def _resolve(target: str) -> Any:
    """Import as far as there are modules, then look up; an import failing inside a module tells itself."""
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


def run_keys(target: Any) -> dict[str, Any]:
    """The keys, with their types, that the run reads beside the arguments of a target that has been located.

    Raises ConfigError where an argument of the target has the same name.
    """
    keys: dict[str, Any] = {}
    for base, own in RUN_KEYS:
        if inspect.isclass(target) and issubclass(target, base):
            keys |= own
    if taken := set(keys) & set(inspect.signature(target).parameters):
        raise ConfigError(
            f"{target.__qualname__}: the argument {taken.pop()} needs another name: a run reads it"
        )
    return keys


def instantiate(config: Any, /, **arguments: Any) -> Any:
    """The object that a configuration describes by `_target_` and its arguments, inner ones first.

    `_partial_: true` gives a factory that waits for the remaining arguments. `arguments` are handed to the
    outermost target beside those of the configuration, and win over them. Values still missing (`???`)
    are left to the target's own defaults. None gives None; a dictionary or list without `_target_` is
    rebuilt with what is in it instantiated.

    Raises ConfigError, which names the key, for a target that is not allowed, a value that is missing, and
    any ValueError, TypeError, OSError or ImportError of the target itself.
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
    for key in run_keys(target):
        if inner.pop(key, None) is not None and ("." in where or "[" in where):
            raise ConfigError(f"{where}.{key} is for the whole group: set {where.partition('.')[0]}.{key}")
    inner.update(arguments)
    if node.get("_partial_", False):
        return _Factory(target, inner, where)
    return _call(target, inner, where)


class _Factory:
    """A target that waits for its remaining arguments, as functools.partial; its errors name the key."""

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
