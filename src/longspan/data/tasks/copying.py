"""Copying at a distance."""

from collections.abc import Sequence

import numpy as np

from longspan.data.tasks.base import Task, TaskText, check_choices, check_least, numbered
from longspan.data.tasks.tokenizer import SPECIAL, TaskTokenizer


class Copy(Task):
    """Repeat a string that was read `distance` tokens before (Hochreiter & Schmidhuber 1997, section 5).

    A text is noise, a string of random symbols, noise, the word `copy` and the string again. The string and
    its copy lie `distance` tokens apart, first symbol to first symbol, and the copy ends the text. A causal
    model predicts each symbol at the token before it, so it has to look `distance - 1` tokens back.

    Args:
        distances: tokens between the string and its copy; each text has one of them. Above `num_tokens`.
        num_tokens: symbols of the string.
        num_symbols, num_fillers: different symbols, and different words of noise.
        keep_free: tokens at the start of the text that never hold the string: global blocks lie there.

    Raises:
        ValueError: if a number is out of range.

    """

    name = "copy"

    def __init__(
        self,
        distances: Sequence[int] = (256,),
        num_tokens: int = 16,
        num_symbols: int = 16,
        num_fillers: int = 16,
        keep_free: int = 64,
    ) -> None:
        check_least(
            num_tokens=(num_tokens, 1),
            num_symbols=(num_symbols, 2),
            num_fillers=(num_fillers, 1),
            keep_free=(keep_free, 0),
        )
        self.distances = check_choices("distances", distances)
        if min(self.distances) <= num_tokens:
            raise ValueError(
                f"distances={list(self.distances)!r} must each be above num_tokens={num_tokens}: the word "
                "`copy` stands between the string and its copy"
            )
        self.num_tokens = num_tokens
        self.keep_free = keep_free
        self.tokenizer = TaskTokenizer(
            ["copy", *numbered("s", num_symbols), *numbered("f", num_fillers)],
        )
        first = len(SPECIAL) + 1
        self._symbols = (first, first + num_symbols)
        self._fillers = (first + num_symbols, first + num_symbols + num_fillers)
        self.arguments = {
            "distances": list(self.distances),
            "num_tokens": num_tokens,
            "num_symbols": num_symbols,
            "num_fillers": num_fillers,
            "keep_free": keep_free,
        }

    def cells(self) -> tuple[dict[str, float], ...]:
        """A cell for each distance."""
        return tuple({"distance": distance} for distance in self.distances)

    def check_length(self, tokens: int) -> None:
        """Raise ValueError unless the farthest string fits."""
        needed = self.keep_free + max(self.distances) + self.num_tokens
        if tokens < needed:
            raise ValueError(
                f"distances={list(self.distances)!r} need {needed} tokens (keep_free={self.keep_free}, the "
                f"distance and num_tokens={self.num_tokens}), and a sequence has {tokens}; choose a longer "
                "data.seq_len"
            )

    def text(self, draws: np.random.Generator, tokens: int) -> TaskText:
        """Noise, string, noise, `copy`, string."""
        cell = int(draws.integers(len(self.distances)))
        ids = draws.integers(*self._fillers, size=tokens)
        copied = np.arange(tokens - self.num_tokens, tokens)
        source = copied - self.distances[cell]
        ids[copied] = ids[source] = draws.integers(*self._symbols, size=self.num_tokens)
        ids[copied[0] - 1] = len(SPECIAL)
        answers = np.zeros(tokens, dtype=bool)
        answers[copied] = True
        sources = np.full(tokens, -1)
        sources[copied] = source
        return TaskText(ids, sources, answers, cell)
