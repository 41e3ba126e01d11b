"""ListOps: nested lists of digits and operations on them, to be worked out."""

from typing import NamedTuple

import numpy as np

from longspan.data.tasks.base import Task, TaskText, check_least
from longspan.data.tasks.tokenizer import SPECIAL, TaskTokenizer

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
# Draws of a tree after which none of the wanted length is expected to come.
_ATTEMPTS = 100_000


class _Level(NamedTuple):
    """The nodes of one depth of a tree: which are lists, and how many arguments each list has."""

    is_list: np.ndarray
    arguments: np.ndarray


class ListOps(Task):
    """Work out a nested list such as `[MAX 2 9 [MIN 4 7 ] 0 ]` (Nangia & Bowman 2018, arXiv:1804.06028).

    The grammar: a node is a list with `list_probability`, at the largest depth never, and else a digit. A
        list
    has an operator, drawn uniformly from minimum, maximum, median (rounded down) and sum modulo 10, and 2 to
    `max_arguments` nodes, drawn uniformly. Trees are drawn until one has the wanted length, counted in
    digits, operators and closing brackets. The defaults are those of the Long Range Arena (Tay et al. 2020,
    arXiv:2011.04006, section 2.2). A text is padding, the list, `=` and the digit that it comes to, the
    answer: it is at the end, whatever the list's length.

    Args:
        min_length, max_length: tokens of the list.
        max_depth: levels of the tree, digits included.
        max_arguments: arguments of a list at the most.
        list_probability: in (0, 1).

    Raises:
        ValueError: if a number is out of range.

    """

    name = "listops"

    def __init__(
        self,
        min_length: int = 500,
        max_length: int = 2000,
        max_depth: int = 10,
        max_arguments: int = 10,
        list_probability: float = 0.25,
    ) -> None:
        check_least(
            # The shortest list is `[MIN 1 2 ]`.
            min_length=(min_length, 4),
            max_length=(max_length, min_length),
            max_depth=(max_depth, 2),
            max_arguments=(max_arguments, 2),
        )
        if not 0.0 < list_probability < 1.0:
            raise ValueError(f"list_probability={list_probability!r} must lie in (0, 1)")
        self.min_length = min_length
        self.max_length = max_length
        self.max_depth = max_depth
        self.max_arguments = max_arguments
        self.list_probability = list_probability
        self.tokenizer = TaskTokenizer([*map(str, range(10)), *OPERATORS, "]", "="])
        self.arguments = {
            "min_length": min_length,
            "max_length": max_length,
            "max_depth": max_depth,
            "max_arguments": max_arguments,
            "list_probability": list_probability,
        }

    def cells(self) -> tuple[dict[str, float], ...]:
        """A cell for each depth of the tree: 2 for a list of digits."""
        return tuple({"depth": depth} for depth in range(2, self.max_depth + 1))

    def check_length(self, tokens: int) -> None:
        """Raise ValueError unless the longest list, `=` and the answer fit."""
        if tokens < self.max_length + 2:
            raise ValueError(
                f"max_length={self.max_length} needs {self.max_length + 2} tokens with `=` and the answer, "
                f"and a sequence has {tokens}; choose a longer data.seq_len or a smaller max_length"
            )

    def text(self, draws: np.random.Generator, tokens: int) -> TaskText:
        """Padding, the list, `=`, the answer."""
        levels = self._shape(draws)
        tokens_of_list, value = self._fill(levels, draws)
        ids = np.full(tokens, self.tokenizer.pad_token_id)
        ids[tokens - 2 - len(tokens_of_list) : tokens - 2] = tokens_of_list
        ids[-2:] = len(SPECIAL) + 15, len(SPECIAL) + value
        answers = np.zeros(tokens, dtype=bool)
        answers[-1] = True
        return TaskText(ids, np.full(tokens, -1), answers, len(levels) - 2)

    def _shape(self, draws: np.random.Generator) -> list[_Level]:
        """Draw trees level by level until one has a length in the range."""
        for _ in range(_ATTEMPTS):
            levels: list[_Level] = []
            length, nodes = 0, 1
            while nodes and length <= self.max_length:
                is_list = draws.random(nodes) < self.list_probability
                if len(levels) + 1 == self.max_depth:
                    is_list[:] = False
                arguments = draws.integers(2, self.max_arguments + 1, size=int(is_list.sum()))
                levels.append(_Level(is_list, arguments))
                length += nodes + len(arguments)  # a digit or an operator each, and the closing brackets
                nodes = int(arguments.sum())
            if not nodes and self.min_length <= length <= self.max_length:
                return levels
        raise ValueError(
            f"no list of min_length={self.min_length} to max_length={self.max_length} tokens came in "
            f"{_ATTEMPTS:,} draws with max_depth={self.max_depth}, max_arguments={self.max_arguments} and "
            f"list_probability={self.list_probability}"
        )

    def _fill(self, levels: list[_Level], draws: np.random.Generator) -> tuple[np.ndarray, int]:
        """Draw operators and digits; gives the tokens `[length]` and what they come to."""
        kinds = [draws.integers(len(OPERATORS), size=len(level.arguments)) for level in levels]
        values = [draws.integers(10, size=len(level.is_list)) for level in levels]
        words = [value.copy() for value in values]
        sizes = [np.ones(len(level.is_list), dtype=np.int64) for level in levels]
        # Upwards: what each list comes to, and how many tokens its subtree has.
        for depth in range(len(levels) - 2, -1, -1):
            lists = np.flatnonzero(levels[depth].is_list)
            ends = np.cumsum(levels[depth].arguments)
            firsts = ends - levels[depth].arguments
            for number, place in enumerate(lists):
                inner = values[depth + 1][firsts[number] : ends[number]]
                values[depth][place] = _apply(int(kinds[depth][number]), inner)
                sizes[depth][place] = 2 + sizes[depth + 1][firsts[number] : ends[number]].sum()
            words[depth][lists] = 10 + kinds[depth]
        # Downwards: where each node begins.
        tokens = np.empty(int(sizes[0][0]), dtype=np.int64)
        begins = np.zeros(1, dtype=np.int64)
        for depth, level in enumerate(levels):
            tokens[begins] = words[depth]
            lists = np.flatnonzero(level.is_list)
            if not len(lists):
                break
            tokens[begins[lists] + sizes[depth][lists] - 1] = 14
            below = sizes[depth + 1]
            before = np.cumsum(below) - below
            firsts = np.cumsum(level.arguments) - level.arguments
            parents = np.repeat(np.arange(len(lists)), level.arguments)
            begins = begins[lists][parents] + 1 + before - before[firsts][parents]
        return len(SPECIAL) + tokens, int(values[0][0])


def _apply(operator: int, values: np.ndarray) -> int:
    if operator == 0:
        return int(values.min())
    if operator == 1:
        return int(values.max())
    if operator == 3:
        return int(values.sum()) % 10
    ordered, middle = sorted(values.tolist()), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
