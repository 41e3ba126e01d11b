"""Multi-query associative recall."""

import math
from collections.abc import Sequence

import numpy as np

from longspan.data.tasks.base import Task, TaskText, check_choices, check_least, numbered
from longspan.data.tasks.tokenizer import SPECIAL, TaskTokenizer


class Recall(Task):
    """Say the value of each key that comes again (MQAR; Arora et al. 2023, arXiv:2312.04927, section 3).

    A text begins with `keep_free` words of noise, then come pairs of a key and its value, and then noise in
    which some of the keys come again, each followed by its value, the answer. Keys of a text differ, and so
    do its values; no key is asked twice.

    Args:
        num_pairs: numbers of pairs of a key and a value; each text has one of them. Several, few ones among
            them, are learned much sooner than one large number, and the paper's models are trained so.
        query_share: share of the keys that come again, rounded up. 1.0 is the paper's; a model can then find
            the last values by elimination, since every value comes again once.
        num_keys, num_values, num_fillers: different keys, values and words of noise.
        power: where the queries lie: their distance from the pairs, as a share of the room, has the density
            power * x ** (power - 1). 1.0 is uniform; the paper takes 0.01, which puts most of them right
            behind the pairs, where any window sees them.
        keep_free: tokens before the pairs: global blocks lie there, and a pattern that has them would read
            the pairs for free. One block of 64, as the shipped patterns have; 0 is the paper's.

    Raises:
        ValueError: if a number is out of range.

    """

    name = "recall"

    def __init__(
        self,
        num_pairs: Sequence[int] = (2, 4, 8, 16),
        query_share: float = 0.5,
        num_keys: int = 64,
        num_values: int = 64,
        num_fillers: int = 16,
        power: float = 1.0,
        keep_free: int = 64,
    ) -> None:
        self.num_pairs = check_choices("num_pairs", num_pairs)
        least, most = min(self.num_pairs), max(self.num_pairs)
        if least < 1:
            raise ValueError(f"num_pairs={list(self.num_pairs)!r} must each be at least 1")
        check_least(
            num_keys=(num_keys, most),
            num_values=(num_values, max(most, 2)),
            num_fillers=(num_fillers, 1),
            keep_free=(keep_free, 0),
        )
        if not 0.0 < query_share <= 1.0:
            raise ValueError(f"query_share={query_share!r} must lie in (0, 1]")
        if not power > 0.0:
            raise ValueError(f"power={power!r} must be positive")
        self.query_share = query_share
        self.num_keys = num_keys
        self.num_values = num_values
        self.num_fillers = num_fillers
        self.power = power
        self.keep_free = keep_free
        self.tokenizer = TaskTokenizer(
            [*numbered("k", num_keys), *numbered("v", num_values), *numbered("f", num_fillers)]
        )
        self.arguments = {
            "num_pairs": list(self.num_pairs),
            "query_share": query_share,
            "num_keys": num_keys,
            "num_values": num_values,
            "num_fillers": num_fillers,
            "power": power,
            "keep_free": keep_free,
        }

    def cells(self) -> tuple[dict[str, float], ...]:
        """A cell for each number of pairs."""
        return tuple({"num_pairs": number} for number in self.num_pairs)

    def num_queries(self, num_pairs: int) -> int:
        """Keys that come again in a text of so many pairs."""
        return math.ceil(self.query_share * num_pairs)

    def check_length(self, tokens: int) -> None:
        """Raise ValueError unless the most pairs and their queries fit."""
        most = max(self.num_pairs)
        needed = self.keep_free + 2 * most + 2 * self.num_queries(most)
        if tokens < needed:
            raise ValueError(
                f"keep_free={self.keep_free}, num_pairs={list(self.num_pairs)} and "
                f"query_share={self.query_share} need {needed} tokens, and a sequence has {tokens}; choose a "
                "longer data.seq_len"
            )

    def text(self, draws: np.random.Generator, tokens: int) -> TaskText:
        """Noise, pairs, and noise with queries in it."""
        cell = int(draws.integers(len(self.num_pairs)))
        num_pairs = self.num_pairs[cell]
        num_queries = self.num_queries(num_pairs)
        key_base = len(SPECIAL)
        value_base = key_base + self.num_keys
        filler_base = value_base + self.num_values
        ids = draws.integers(filler_base, filler_base + self.num_fillers, size=tokens)
        keys = key_base + draws.permutation(self.num_keys)[:num_pairs]
        values = value_base + draws.permutation(self.num_values)[:num_pairs]
        pairs = self.keep_free + 2 * np.arange(num_pairs)
        ids[pairs], ids[pairs + 1] = keys, values

        asked = draws.permutation(num_pairs)[:num_queries]
        # Queries take places of two tokens, counted from the end so that the last token can be an answer.
        room = (tokens - self.keep_free - 2 * num_pairs) // 2
        if self.power == 1.0:
            places = draws.permutation(room)[:num_queries]
        else:
            # The share of the density that falls on each place.
            edges = (np.arange(room + 1) / room) ** self.power
            places = draws.choice(room, num_queries, replace=False, p=np.diff(edges))
        starts = tokens - 2 * room + 2 * places
        ids[starts], ids[starts + 1] = keys[asked], values[asked]

        answers = np.zeros(tokens, dtype=bool)
        answers[starts + 1] = True
        sources = np.full(tokens, -1)
        sources[starts + 1] = pairs[asked] + 1
        return TaskText(ids, sources, answers, cell)
