"""Names of patterns, and patterns from dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from types import MappingProxyType
from typing import Any

from longspan.sparsity import custom
from longspan.sparsity.a_shape import AShapeSparsityConfig
from longspan.sparsity.attention_sinks import AttentionSinksSparsityConfig
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.bigbird import BigBirdSparsityConfig
from longspan.sparsity.bslongformer import BSLongformerSparsityConfig
from longspan.sparsity.combined import (
    DifferenceSparsityConfig,
    IntersectionSparsityConfig,
    UnionSparsityConfig,
)
from longspan.sparsity.dense import DenseSparsityConfig
from longspan.sparsity.dilated import DilatedSparsityConfig
from longspan.sparsity.fixed import FixedSparsityConfig
from longspan.sparsity.heads import HeadMixtureSparsityConfig
from longspan.sparsity.hierarchical import HierarchicalSparsityConfig
from longspan.sparsity.local_sliding_window import LocalSlidingWindowSparsityConfig
from longspan.sparsity.random import RandomSparsityConfig
from longspan.sparsity.strided import StridedSparsityConfig
from longspan.sparsity.variable import VariableSparsityConfig
from longspan.sparsity.vertical_slash import VerticalSlashSparsityConfig

_patterns: dict[str, type[SparsityConfig]] = {
    cls.name: cls
    for cls in (
        DenseSparsityConfig,
        FixedSparsityConfig,
        VariableSparsityConfig,
        BigBirdSparsityConfig,
        BSLongformerSparsityConfig,
        LocalSlidingWindowSparsityConfig,
        StridedSparsityConfig,
        DilatedSparsityConfig,
        AttentionSinksSparsityConfig,
        AShapeSparsityConfig,
        VerticalSlashSparsityConfig,
        RandomSparsityConfig,
        HierarchicalSparsityConfig,
        UnionSparsityConfig,
        IntersectionSparsityConfig,
        DifferenceSparsityConfig,
        HeadMixtureSparsityConfig,
    )
}

PATTERNS: Mapping[str, type[SparsityConfig]] = MappingProxyType(_patterns)
"""The registered patterns, name -> class; read-only, see `register`."""


def register(name: str, cls: type[SparsityConfig]) -> type[SparsityConfig]:
    """Make a pattern of one's own known under its ``name``, and return it.

    Raises:
        ValueError: ``cls`` is no SparsityConfig, its ``name`` is another one, or the name is another class's.

    """
    if not (isinstance(cls, type) and issubclass(cls, SparsityConfig)):
        raise ValueError(f"cls must be a subclass of SparsityConfig, got {cls!r}")
    own = getattr(cls, "name", None)
    if own != name:
        raise ValueError(f"name must be the class's own `name`, {own!r} of {cls.__name__}, got {name!r}")
    if _patterns.get(name, cls) is not cls:
        raise ValueError(f"name {name!r} already belongs to {_patterns[name].__name__}; choose another name")
    _patterns[name] = cls
    return cls


def arguments(cls: type[SparsityConfig]) -> tuple[str, ...]:
    """Return the names of a pattern's arguments, in order."""
    return tuple(field.name for field in fields(cls) if field.init)


def from_dict(values: Mapping[str, Any]) -> SparsityConfig:
    """Make a pattern from ``{"name": ..., argument: value, ...}``; the inverse of ``SparsityConfig.to_dict``.

    A value that is such a dictionary itself becomes a pattern, in lists too. A name that is not registered is
    looked for among the patterns of one's own; see `longspan.sparsity.custom`.

    Raises:
        ValueError: the name is missing or unknown, a key is no argument of the pattern, ``num_heads`` or
            another argument without a default is missing, or a value is out of its range.

    """
    if not isinstance(values, Mapping):
        raise ValueError(f"a pattern is made from a dictionary with a 'name', got {values!r}")
    rest = {str(key): value for key, value in values.items()}
    name = rest.pop("name", None)
    if name not in _patterns:
        cls = custom.find(name)
        if cls is None:
            known = ", ".join(_patterns)
            raise ValueError(f"name must be one of {known}, got {name!r}; {custom.where(name)}")
        register(str(name), cls)
    return build(_patterns[name], {key: _made(key, value) for key, value in rest.items()})


def _made(where: str, value: Any) -> Any:
    """Make the patterns that an argument's value holds as dictionaries."""
    if isinstance(value, list | tuple):
        return type(value)(_made(f"{where}[{n}]", item) for n, item in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    try:
        return from_dict(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def build(cls: type[SparsityConfig], values: Mapping[str, Any]) -> SparsityConfig:
    """Make a pattern of one class, with clear errors for unknown and missing arguments.

    Raises:
        ValueError: a key is no argument of the pattern, ``num_heads`` or another argument without a default
            is missing, or a value is out of its range.

    """
    allowed = arguments(cls)
    unknown = [key for key in values if key not in allowed]
    if unknown:
        raise ValueError(
            f"{cls.name} has no argument {', '.join(map(repr, unknown))}; allowed are {', '.join(allowed)}"
        )
    needed = [field.name for field in fields(cls) if field.init and _is_required(field)]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{cls.name} needs {', '.join(missing)}, got only {', '.join(values) or 'nothing'}")
    return cls(**values)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
