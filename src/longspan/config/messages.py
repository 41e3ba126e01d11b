"""What is said of a mistake in a configuration: what is wrong, and what would be right."""

from __future__ import annotations

from typing import Any

from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from longspan.config.folders import config_dir
from longspan.errors import ConfigError, nearest

# Errors that tell of a mistake of the user, and need no traceback.
USER_ERRORS = (ConfigError, CompactHydraException, HydraException, OmegaConfBaseException)

# What an option of Hydra's own groups needs beside the packages that are always installed.
EXTRAS = {
    f"hydra/{option}": f"hydra/{option} needs {package}: pip install 'longspan[{extra}]'"
    for option, package, extra in (
        ("launcher=joblib", "hydra-joblib-launcher", "joblib"),
        ("launcher=submitit_slurm", "hydra-submitit-launcher", "slurm"),
        ("launcher=submitit_local", "hydra-submitit-launcher", "slurm"),
        ("launcher=ray", "hydra-ray-launcher", "ray"),
        ("sweeper=optuna", "hydra-optuna-sweeper", "optuna"),
    )
}

_CONTROL = ("_target_", "_partial_", "defaults", "hydra")


def allowed_keys(node: DictConfig, wrong: str) -> str:
    """The keys that may stand where `wrong` was written, and the nearest one."""
    keys = [str(key) for key in node if key not in _CONTROL]
    if not keys:
        return "no key may stand here"
    return f"allowed: {', '.join(keys)}{nearest(wrong, keys)}"


def explain(error: OmegaConfBaseException) -> str:
    """One line for an error of OmegaConf: the allowed keys for a key, the expected type for a value."""
    first = str(error.msg or error).strip().splitlines()[0]
    full_key, parent = error.full_key or str(error.key or ""), error.parent_node
    if isinstance(error, AttributeError | ConfigKeyError) and isinstance(parent, DictConfig):
        return f"unknown key '{full_key}'; {allowed_keys(parent, str(error.key))}"
    if isinstance(error, ValidationError):
        wanted = _wanted(parent, error.key)
        return f"{full_key}: {first}{f'; expected {wanted}' if wanted else ''}"
    return f"{full_key}: {first}" if full_key else first


def _wanted(parent: Any, key: Any) -> str:
    if not isinstance(parent, DictConfig):
        return ""
    hint = (getattr(OmegaConf.get_type(parent), "__annotations__", None) or {}).get(key)
    if hint is None:
        return ""
    return hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)


def describe(error: Exception) -> str:
    """The message for a mistake of the user, whether Hydra, OmegaConf or this package found it."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if f"{group}={option}" in EXTRAS:
            return EXTRAS[f"{group}={option}"]
        options = error.options or sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
        known = f"{', '.join(options)}{nearest(option, options)}"
        return f"no option '{option}' in the group {group}; options: {known}"
    if isinstance(error, OmegaConfBaseException):
        return explain(error)
    if isinstance(error, ConfigCompositionException):
        if isinstance(cause, OmegaConfBaseException):
            origin = str(error).splitlines()[0].partition(": ")[0]
            return f"{origin}: {explain(cause)}" if origin.startswith("In '") else explain(cause)
        message = str(error).partition("\nTo append")[0]
        if message.startswith("Multiple values for"):
            message = f"{message.partition('. ')[0]}: write it once, without a +."
        if "defaults list" in message or "config group" in message:
            groups = sorted(
                path.name for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra"
            )
            message += f" Groups: {', '.join(groups)}"
        return message
    return str(error)
