"""Mixtures of patterns among layers, or among the heads of a layer, written as ``local*3 dense``."""

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
_YAML_WORDS = {"true": True, "false": False, "null": None}
# The arguments that mean the same in every pattern. `num_global_blocks`, for example, does not: it counts
# columns in BigBird and blocks of each window in Fixed.
_SHARED_ARGUMENTS = frozenset({
    "num_heads", "block", "attention", "seed", "num_sliding_window_blocks", "num_random_blocks",
    "global_block_indices", "global_block_end_indices",
})  # fmt: skip


class Share(NamedTuple):
    """One word of a line: a pattern and its share of the layers or heads.

    Attributes:
        name: name of the pattern, as written.
        arguments: the arguments in parentheses.
        count: number of layers or heads.

    """

    name: str
    arguments: dict[str, Any]
    count: int


def layer_patterns(line: str, pattern: SparsityConfig, num_layers: int) -> list[SparsityConfig]:
    """Return the pattern of each layer of a model, from a line such as ``local*3 dense``.

    A word of the line names a pattern: a registered one, one in a folder of the user
    (`longspan.sparsity.custom`), ``pattern``, or an unambiguous short form (the first letters, or whole words
    of the name: ``local``, ``sinks``). ``*k`` repeats it for ``k`` layers. Arguments may follow in
    parentheses: ``local(num_sliding_window_blocks=9)*2``. A pattern other than ``pattern`` takes from it the
    arguments that mean the same in both: heads, block, direction, seed, window, number of random blocks and
    chosen global blocks; the others have the defaults of the class. A line for fewer layers is repeated if
    its length divides ``num_layers``.

    Args:
        line: as above, the lowest layer first.
        pattern: the pattern whose arguments are shared.
        num_layers: layers of the model, at least 1.

    Returns:
        One pattern per layer.

    Raises:
        ValueError: the line is malformed, a name is unknown or ambiguous, an argument is unknown or out of
            range, or the number of layers is not a multiple of the line's.

    """
    # The parts of a combined pattern are not shared.
    values = {name: getattr(pattern, name) for name in (*arguments(type(pattern)), "attention")}
    shared = {name: value for name, value in values.items() if not patterns_in(value)}
    patterns: list[SparsityConfig] = []
    for share in parse(line, "layers"):
        if "num_heads" in share.arguments:
            raise ValueError(f"layers={line!r}: num_heads is the model's, the same in every layer")
        patterns += [named_pattern(share, shared, pattern)] * share.count
    times, rest = divmod(num_layers, len(patterns))
    if rest:
        raise ValueError(
            f"layers={line!r} gives {len(patterns)} layers their pattern and the model has {num_layers}: "
            f"{num_layers} must be a multiple of {len(patterns)}"
        )
    return patterns * times


def parse(line: str, argument: str) -> list[Share]:
    """Parse a line into its words.

    Args:
        line: names with counts and arguments.
        argument: name of the argument that holds the line, for errors.

    Raises:
        ValueError: the line is empty or malformed, or a count is 0.

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
    share: Share, shared: Mapping[str, Any], pattern: SparsityConfig | None = None
) -> SparsityConfig:
    """Make the pattern of one word.

    Args:
        share: the word.
        shared: arguments for every pattern that takes them.
        pattern: a pattern that its name stands for, with all its arguments.

    Raises:
        ValueError: the name is unknown or ambiguous, or an argument is wrong.

    """
    if share.name not in PATTERNS and (cls := custom.find(share.name)) is not None:
        register(share.name, cls)
    known = dict(PATTERNS) if pattern is None else {**PATTERNS, pattern.name: type(pattern)}
    name = _full_name(share.name, known)
    if pattern is not None and name == pattern.name:
        if unknown := set(share.arguments) - set(arguments(type(pattern))):
            raise ValueError(f"{name} has no argument {', '.join(map(repr, sorted(unknown)))}")
        return replace(pattern, **share.arguments)
    cls = known[name]
    same_class = pattern is None or issubclass(cls, type(pattern))
    taken = {
        key: shared[key]
        for key in arguments(cls)
        if key in shared and (same_class or key in _SHARED_ARGUMENTS)
    }
    try:
        return build(cls, {**taken, **share.arguments})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def patterns_in(value: Any) -> list[SparsityConfig]:
    """Return the patterns in the value of an argument: the value itself, or the items of a tuple."""
    values = value if isinstance(value, tuple) else (value,)
    return [one for one in values if isinstance(one, SparsityConfig)]


def _full_name(short: str, known: Mapping[str, Any]) -> str:
    if short in known:
        return short
    matches = [name for name in known if name.startswith(short) or f"_{short}_" in f"_{name}_"]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"the name {short!r} fits several patterns: {', '.join(matches)}")
    raise ValueError(f"no pattern is called {short!r}; known are {', '.join(known)}")


def _literals(text: str) -> dict[str, Any]:
    """Parse ``a=1, b=[2, 3]`` into a dictionary."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
            raise ValueError
        values = {str(one.arg): _literal(one.value) for one in call.keywords}
        if len(values) < len(call.keywords):
            raise ValueError
        return values
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"arguments must be name=value with commas between, each once and lists as [2, 4], got {text!r}"
        ) from error


def _literal(node: ast.expr) -> Any:
    # Bare words as in YAML: true, false, null, and strings.
    if isinstance(node, ast.Name):
        return _YAML_WORDS.get(node.id, node.id)
    return ast.literal_eval(node)
