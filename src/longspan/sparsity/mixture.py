"""Mixtures in one line, ``local*3 dense``: which pattern each layer, or each head of a layer, has."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from longspan.sparsity import custom
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.registry import PATTERNS, arguments, build, register

_WORD = re.compile(r"(?P<name>[A-Za-z_]\w*)(?:\((?P<arguments>[^()]*)\))?(?:\*(?P<count>\d+))?(?=\s|$)")
_FORM = 'names of patterns with spaces between, each maybe with a count, as in "local*3 dense"'
_WORDS = {"true": True, "false": False, "null": None}
# What means the same in every pattern that has it; `num_global_blocks`, for one, is a number of columns in
# BigBird and a share of each window in Fixed.
_CARRIED = frozenset({
    "num_heads", "block", "attention", "seed", "num_sliding_window_blocks", "num_random_blocks",
    "global_block_indices", "global_block_end_indices",
})  # fmt: skip


class Share(NamedTuple):
    """One word of a line.

    Attributes:
        name: of a pattern, as written.
        arguments: those in parentheses.
        count: how many layers or heads.

    """

    name: str
    arguments: dict[str, Any]
    count: int


def layer_patterns(line: str, own: SparsityConfig, num_layers: int) -> list[SparsityConfig]:
    """Give each layer of a model its pattern by one line.

    A word of the line is the name of a pattern: a registered one, one of the user's own
    (`longspan.sparsity.custom`), ``own``, or a short form that fits one of them alone (its first letters, or
    whole words of it: ``local``, ``sinks``). ``*k`` repeats it for ``k`` layers, and arguments may stand in
    parentheses: ``local(num_sliding_window_blocks=9)*2``. A pattern other than ``own`` gets those of
    ``own``'s arguments that it takes and that mean the same in it: heads, block, direction, seed, the window,
    the number of random blocks and chosen global blocks; else its class's defaults. A line for fewer layers
    than there are is repeated, where it comes out even.

    Args:
        line: as above, the lowest layer first.
        own: the pattern whose arguments are shared.
        num_layers: layers of the model, at least 1.

    Returns:
        A pattern a layer.

    Raises:
        ValueError: the line has another form, a name is unknown or fits several patterns, an argument is not
            the pattern's or out of its range, or the layers do not come out even.

    """
    # Patterns inside of it are its own affair.
    values = {name: getattr(own, name) for name in (*arguments(type(own)), "attention")}
    shared = {name: value for name, value in values.items() if not patterns_in(value)}
    patterns = []
    for share in parse(line, "layers"):
        if "num_heads" in share.arguments:
            raise ValueError(f"layers={line!r}: num_heads is the model's, the same in every layer")
        pattern = named_pattern(share, shared, own)
        patterns += [pattern] * share.count
    times, rest = divmod(num_layers, len(patterns))
    if rest:
        raise ValueError(
            f"layers={line!r} gives {len(patterns)} layers their pattern and the model has {num_layers}: "
            f"{num_layers} must be a multiple of {len(patterns)}"
        )
    return patterns * times


def parse(line: str, argument: str) -> list[Share]:
    """Read a line.

    Args:
        line: names with counts and arguments.
        argument: what the line is called, for errors.

    Raises:
        ValueError: it is empty, has another form, or a count of 0.

    """
    shares, place = [], 0
    text = line.strip() if isinstance(line, str) else ""
    while place < len(text):
        word = _WORD.match(text, place)
        if word is None or (word["count"] is not None and int(word["count"]) < 1):
            wrong = text[place:].split()[0]
            raise ValueError(f"{argument}={line!r} must be {_FORM}; {wrong!r} is none")
        try:
            given = _literals(word["arguments"] or "")
        except ValueError as error:
            raise ValueError(f"{argument}={line!r}: in the parentheses of {word['name']}, {error}") from error
        shares.append(Share(word["name"], given, int(word["count"] or 1)))
        place = word.end()
        while place < len(text) and text[place].isspace():
            place += 1
    if not shares:
        raise ValueError(f"{argument}={line!r} must be {_FORM}")
    return shares


def named_pattern(
    share: Share, shared: Mapping[str, Any], own: SparsityConfig | None = None
) -> SparsityConfig:
    """Make the pattern of one word.

    Args:
        share: the word.
        shared: arguments for every pattern that takes them.
        own: a pattern that its name means just as it is.

    Raises:
        ValueError: the name is unknown or fits several patterns, or an argument is wrong.

    """
    if share.name not in PATTERNS and (cls := custom.find(share.name)) is not None:
        register(share.name, cls)
    known = dict(PATTERNS) if own is None else {**PATTERNS, own.name: type(own)}
    name = _full_name(share.name, known)
    if own is not None and name == own.name:
        if unknown := set(share.arguments) - set(arguments(type(own))):
            raise ValueError(f"{name} has no argument {', '.join(map(repr, sorted(unknown)))}")
        return replace(own, **share.arguments)
    cls = known[name]
    alike = own is None or issubclass(cls, type(own))
    taken = {key: shared[key] for key in arguments(cls) if key in shared and (alike or key in _CARRIED)}
    try:
        return build(cls, {**taken, **share.arguments})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def patterns_in(value: Any) -> list[SparsityConfig]:
    """Return the patterns that the value of an argument is, or holds in a tuple."""
    values = value if isinstance(value, tuple) else (value,)
    return [one for one in values if isinstance(one, SparsityConfig)]


def _full_name(short: str, known: Mapping[str, Any]) -> str:
    if short in known:
        return short
    found = [name for name in known if name.startswith(short) or f"_{short}_" in f"_{name}_"]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the name {short!r} fits several patterns: {', '.join(found)}")
    raise ValueError(f"no pattern is called {short!r}; known are {', '.join(known)}")


def _literals(text: str) -> dict[str, Any]:
    """Read ``a=1, b=[2, 3]`` as a dictionary."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
            raise ValueError
        found = {str(one.arg): _literal(one.value) for one in call.keywords}
        if len(found) < len(call.keywords):
            raise ValueError
        return found
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"arguments must be name=value with commas between, each once and lists as [2, 4], got {text!r}"
        ) from error


def _literal(node: ast.expr) -> Any:
    # As YAML writes truth, nothing, and strings.
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    return ast.literal_eval(node)
