"""Names of patterns, and patterns from dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from types import MappingProxyType
from typing import Any

from longspan.sparsity import custom
from longspan.sparsity.base import SparsityConfig

_patterns: dict[str, type[SparsityConfig]] = {}

PATTERNS: Mapping[str, type[SparsityConfig]] = MappingProxyType(_patterns)
"""The registered patterns, name -> class; read-only, see `register`."""


def register(name: str, cls: type[SparsityConfig]) -> type[SparsityConfig]:
    """Register a pattern class under its ``name``, and return the class.

    Raises:
        ValueError: ``cls`` is not a SparsityConfig, its ``name`` differs, or another class has the name.

    """
    if not (isinstance(cls, type) and issubclass(cls, SparsityConfig)):
        raise ValueError(f"cls must be a subclass of SparsityConfig, got {cls!r}")
    class_name = getattr(cls, "name", None)
    if class_name != name:
        raise ValueError(
            f"name must be the class's own `name`, {class_name!r} of {cls.__name__}, got {name!r}"
        )
    if _patterns.get(name, cls) is not cls:
        raise ValueError(f"name {name!r} already belongs to {_patterns[name].__name__}; choose another name")
    _patterns[name] = cls
    return cls


def arguments(cls: type[SparsityConfig]) -> tuple[str, ...]:
    """Return the names of the arguments of a pattern class, in order."""
    return tuple(field.name for field in fields(cls) if field.init)


def from_dict(values: Mapping[str, Any]) -> SparsityConfig:
    """Make a pattern from ``{"name": ..., argument: value, ...}``; the inverse of ``SparsityConfig.to_dict``.

    A value that is such a dictionary becomes a pattern, also inside lists. A name that is not registered is
    looked up in the user's folders; see `longspan.sparsity.custom`.

    Raises:
        ValueError: the name is missing or unknown, a key is not an argument of the pattern, ``num_heads`` or
            another argument without a default is missing, or a value is out of range.

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
    return build(_patterns[name], {key: _with_patterns(key, value) for key, value in rest.items()})


def _with_patterns(where: str, value: Any) -> Any:
    """Replace each dictionary in the value of an argument by the pattern that it describes."""
    if isinstance(value, list | tuple):
        return type(value)(_with_patterns(f"{where}[{n}]", item) for n, item in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    try:
        return from_dict(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def build(cls: type[SparsityConfig], values: Mapping[str, Any]) -> SparsityConfig:
    """Make a pattern of a class, with clear errors for unknown and missing arguments.

    Raises:
        ValueError: a key is not an argument of the pattern, ``num_heads`` or another argument without a
            default is missing, or a value is out of range.

    """
    allowed = arguments(cls)
    unknown = [key for key in values if key not in allowed]
    if unknown:
        raise ValueError(
            f"{cls.name} has no argument {', '.join(map(repr, unknown))}; allowed are {', '.join(allowed)}"
        )
    required = [field.name for field in fields(cls) if field.init and _is_required(field)]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{cls.name} needs {', '.join(missing)}, got only {', '.join(values) or 'nothing'}")
    return cls(**values)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
