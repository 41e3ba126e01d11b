"""Checks of the arguments of patterns: each returns the value to store, or raises a ValueError."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, Literal

Attention = Literal["bidirectional", "unidirectional"]


def integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return ``value`` as an int.

    Raises:
        ValueError: ``value`` is not an integer (booleans are not) or lies outside ``[minimum, maximum]``.

    """
    allowed = f"an integer of at least {minimum}" + ("" if maximum is None else f" and at most {maximum}")
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return number


def integers(name: str, value: Any, minimum: int) -> tuple[int, ...]:
    """Return a list-like ``value`` as a tuple of ints.

    Raises:
        ValueError: ``value`` is not a list of integers of at least ``minimum``.

    """
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | dict):
        raise ValueError(f"{name} must be a list of integers of at least {minimum}, got {value!r}")
    return tuple(integer(f"{name}[{n}]", item, minimum) for n, item in enumerate(value))


def share(name: str, value: Any) -> float:
    """Return ``value``, a fraction in (0, 1], as a float.

    Raises:
        ValueError: ``value`` is not a number (booleans are not) or lies outside ``(0, 1]``.

    """
    try:
        number = 0.0 if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number <= 1:
        raise ValueError(f"{name} must be a number above 0 and at most 1, got {value!r}")
    return number


def boolean(name: str, value: Any) -> bool:
    """Return ``value``.

    Raises:
        ValueError: ``value`` is neither True nor False.

    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def direction(value: Any) -> Attention:
    """Return ``value``, the ``attention`` of a pattern.

    Raises:
        ValueError: ``value`` is neither "bidirectional" nor "unidirectional".

    """
    if value == "bidirectional" or value == "unidirectional":
        return value
    raise ValueError(f"attention must be 'bidirectional' or 'unidirectional', got {value!r}")


def bidirectional_if_horizontal(attention: Attention, horizontal_global_attention: bool) -> None:
    """Raise ValueError if a unidirectional pattern has global rows that keep every column."""
    if horizontal_global_attention and attention == "unidirectional":
        raise ValueError(
            "horizontal_global_attention must be False with attention 'unidirectional', got True: a global "
            "row that attends every column sees its future; only 'bidirectional' allows it"
        )
