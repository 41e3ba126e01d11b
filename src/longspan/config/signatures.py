"""The signature of what a configuration names: of a class or function by its dotted name.

That of this package's own classes and functions is read from the source, since their modules import torch,
Lightning and transformers, which takes seconds; see `longspan.config.source`. Anything else is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from longspan.config import source
from longspan.config.instantiate import locate
from longspan.config.source import NO_DEFAULT, Parameter, Signature
from longspan.errors import ConfigError


@functools.cache
def signature_of(target: str) -> Signature:
    """The signature of a dotted name.

    Raises:
        ConfigError: the target cannot be had, or an argument has the name of a key that the run reads itself.

    """
    signature = source.read_signature(target) or imported_signature(locate(target))
    names = {parameter.name for parameter in signature.parameters}
    if taken := names.intersection(signature.read_by_run):
        raise ConfigError(
            f"{target.rpartition('.')[2]}: the argument {taken.pop()} needs another name: a run reads it"
        )
    return signature


def imported_signature(function: Callable[..., Any]) -> Signature:
    """The signature of a class or function that is imported."""
    parameters = inspect.signature(function).parameters.values()
    hints = _hints(function)
    return Signature(
        parameters=tuple(
            Parameter(one.name, hints.get(one.name, Any), _default(function, one))
            for one in parameters
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        ),
        takes_any_key=any(one.kind is one.VAR_KEYWORD for one in parameters),
        supplied_by_run=tuple(getattr(function, "supplied_by_run", ())),
        read_by_run=dict(getattr(function, "read_by_run", {})),
    )


def _hints(function: Any) -> dict[str, Any]:
    owner = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(owner)
    except (NameError, TypeError, AttributeError):
        # Some names exist for type checkers alone: the others are read one by one.
        owner = inspect.unwrap(owner)
    hints = {}
    for name, annotation in owner.__annotations__.items():
        single = types.SimpleNamespace(__annotations__={name: annotation})
        with contextlib.suppress(NameError, TypeError, AttributeError):
            hints |= typing.get_type_hints(single, globalns=owner.__globals__)
    return hints


def _default(function: Any, parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return NO_DEFAULT
    if dataclasses.is_dataclass(function):
        for field in dataclasses.fields(function):
            if field.name == parameter.name and field.default_factory is not dataclasses.MISSING:
                return field.default_factory()
    return parameter.default
