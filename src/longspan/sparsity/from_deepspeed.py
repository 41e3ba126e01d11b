"""Patterns from DeepSpeed's configuration files."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.registry import PATTERNS, arguments, build

_MODES = ("dense", "fixed", "variable", "bigbird", "bslongformer", "local_sliding_window")
# DeepSpeed's parser reads the first spelling; its examples and documentation use the second.
_PARSER_KEY, _DOCUMENTED_KEY = "num_differnt_global_patterns", "num_different_global_patterns"
# The defaults of DeepSpeed's parser for absent keys, where they differ from those of the class.
_PARSER_DEFAULTS = {"num_random_blocks": 0}


def from_deepspeed(config: Mapping[str, Any] | str | os.PathLike[str], num_heads: int) -> SparsityConfig:
    """Make the pattern that a DeepSpeed configuration names.

    The block ``"sparse_attention": {"mode": ..., ...}`` needs no change. As in DeepSpeed, an absent mode
    means "fixed", absent keys have DeepSpeed's defaults (no random blocks in BigBird, for example), and keys
    that only other modes read are ignored, with a warning that names them.

    Args:
        config: the whole configuration or its ``sparse_attention`` block, or the path of a JSON file of
            either.
        num_heads: number of attention heads of the model.

    Raises:
        ValueError: there is no such block, DeepSpeed does not know the mode or a key, or a value is out of
            range.
        OSError: the file cannot be read.

    """
    block = dict(_block(config))
    mode = block.pop("mode", "fixed")
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
    if _PARSER_KEY in block:
        value = block.pop(_PARSER_KEY)
        if block.setdefault(_DOCUMENTED_KEY, value) != value:
            raise ValueError(
                f"{_PARSER_KEY} is {value!r} but {_DOCUMENTED_KEY} is {block[_DOCUMENTED_KEY]!r}: "
                "give one of them"
            )
    cls = PATTERNS[mode]
    allowed = [name for name in arguments(cls) if name != "num_heads"]
    known = _known_keys()
    unknown = [key for key in block if key not in known]
    if unknown:
        raise ValueError(
            f"sparse_attention has unknown keys {', '.join(map(repr, unknown))}; mode {mode!r} allows mode, "
            f"{', '.join(allowed)}"
        )
    unused = [key for key in block if key not in allowed]
    if unused:
        warnings.warn(
            f"mode {mode!r} does not use {', '.join(unused)} of sparse_attention, as in DeepSpeed; it uses "
            f"{', '.join(allowed)}",
            stacklevel=2,
        )
    defaults = {key: value for key, value in _PARSER_DEFAULTS.items() if key in allowed}
    used = {key: value for key, value in block.items() if key in allowed}
    return build(cls, {"num_heads": num_heads, **defaults, **used})


def _known_keys() -> set[str]:
    return {name for mode in _MODES for name in arguments(PATTERNS[mode])} - {"num_heads"}


def _block(config: Mapping[str, Any] | str | os.PathLike[str]) -> Mapping[str, Any]:
    if isinstance(config, str | os.PathLike):
        path = Path(config)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"the file {path} is not JSON: {error}") from error
        origin = f"the file {path}"
    else:
        origin = "config"
    if not isinstance(config, Mapping):
        raise ValueError(f"{origin} must hold a dictionary, got {config!r}")
    block = config.get("sparse_attention", config)
    if not isinstance(block, Mapping):
        raise ValueError(f"sparse_attention must be a dictionary with a mode, got {block!r}")
    if block is config and not ({"mode", _PARSER_KEY, *_known_keys()} & set(config)):
        raise ValueError(
            f"{origin} has no sparse_attention block and is none itself; its keys are "
            f"{', '.join(map(str, config)) or 'none'}"
        )
    return block
