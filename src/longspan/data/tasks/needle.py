"""A needle in a haystack: the value of a key, at a grid of depths and lengths."""

from collections.abc import Sequence

import numpy as np

from longspan.data.tasks.base import Task, TaskText, check_choices, check_least, numbered
from longspan.data.tasks.tokenizer import SPECIAL, TaskTokenizer


class Needle(Task):
    """Say the value of the key that is asked for at the end (Liu et al. 2024, arXiv:2307.03172, section 3).

    A text is noise with `num_pairs` pairs of a key and its value, `? key` at its end, and the value as the
    answer. The pair that is asked for lies at the depth of the text's cell, the others anywhere. A text
    shorter than the sequence is followed by padding.

    Args:
        depths: where the pair may lie: 0.0 right after the tokens that are kept free, 1.0 right before the
            question.
        lengths: lengths of the text in tokens of the sequence; None: the whole sequence alone.
        num_pairs: pairs in a text, the others with other keys.
        num_keys, num_values, num_fillers: different keys, values and words of noise.
        keep_free: tokens at the start of the text that hold no pair: global blocks lie there, and a pattern
            that has them would read the pair for free.

    Raises:
        ValueError: if a number is out of range.

    """

    name = "needle"

    def __init__(
        self,
        depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        lengths: Sequence[int] | None = None,
        num_pairs: int = 1,
        num_keys: int = 16,
        num_values: int = 16,
        num_fillers: int = 16,
        keep_free: int = 64,
    ) -> None:
        check_least(
            num_pairs=(num_pairs, 1),
            num_keys=(num_keys, num_pairs),
            num_values=(num_values, 2),
            num_fillers=(num_fillers, 1),
            keep_free=(keep_free, 0),
        )
        self.depths = check_choices("depths", depths)
        if not all(0.0 <= depth <= 1.0 for depth in self.depths):
            raise ValueError(f"depths={list(self.depths)!r} must each lie in [0, 1]")
        self.lengths = None if lengths is None else check_choices("lengths", lengths)
        self.num_pairs = num_pairs
        self.num_keys = num_keys
        self.num_values = num_values
        self.num_fillers = num_fillers
        self.keep_free = keep_free
        self.tokenizer = TaskTokenizer(
            ["?", *numbered("k", num_keys), *numbered("v", num_values), *numbered("f", num_fillers)]
        )
        self.arguments = {
            "depths": list(self.depths),
            "lengths": None if self.lengths is None else list(self.lengths),
            "num_pairs": num_pairs,
            "num_keys": num_keys,
            "num_values": num_values,
            "num_fillers": num_fillers,
            "keep_free": keep_free,
        }

    def cells(self) -> tuple[dict[str, float], ...]:
        """A cell for each length and depth; of the whole sequence, for each depth."""
        if self.lengths is None:
            return tuple({"depth": depth} for depth in self.depths)
        return tuple({"length": length, "depth": depth} for length in self.lengths for depth in self.depths)

    def check_length(self, tokens: int) -> None:
        """Raise ValueError unless all pairs fit into the shortest text and the longest fills the sequence.

        Shorter ones alone would be a training on padding. One token is left to the objective that looks one
        ahead: its sequences have one more than `data.seq_len`.
        """
        # `? key value` at the end; pairs keep to every other place, so one place may be lost on either side.
        needed = self.keep_free + 2 * self.num_pairs + 2 + 3
        lengths = self.lengths or (tokens,)
        if min(lengths) < needed or max(lengths) > tokens:
            raise ValueError(
                f"lengths={list(lengths)!r} must lie in [{needed}, {tokens}]: keep_free={self.keep_free}, "
                f"num_pairs={self.num_pairs} and the question need {needed} tokens, a sequence has {tokens}"
            )
        if max(lengths) < tokens - 1:
            raise ValueError(
                f"lengths={list(lengths)!r}: the longest text must fill the sequence of {tokens} tokens, "
                f"or all but one of them: the rest would be padding. Give data.corpus.lengths up to "
                f"{tokens - 1} or {tokens}, or null for the whole sequence alone"
            )

    def text(self, draws: np.random.Generator, tokens: int) -> TaskText:
        """Noise with pairs in it, the question, the value, and padding up to `tokens`."""
        depth_number = int(draws.integers(len(self.depths)))
        length_number = 0 if self.lengths is None else int(draws.integers(len(self.lengths)))
        length = tokens if self.lengths is None else int(self.lengths[length_number])
        key_base = len(SPECIAL) + 1
        value_base = key_base + self.num_keys
        filler_base = value_base + self.num_values
        ids = np.full(tokens, self.tokenizer.pad_token_id)
        ids[:length] = draws.integers(filler_base, filler_base + self.num_fillers, size=length)
        keys = key_base + draws.permutation(self.num_keys)[: self.num_pairs]
        values = draws.integers(value_base, value_base + self.num_values, size=self.num_pairs)

        last = length - 5  # the latest start of a pair
        asked = self.keep_free + round(self.depths[depth_number] * (last - self.keep_free))
        # The other pairs' places are an even number of tokens away, so that no two pairs touch one token.
        places = np.arange(self.keep_free + (asked - self.keep_free) % 2, last + 1, 2)
        others = draws.permutation(places[places != asked])[: self.num_pairs - 1]
        starts = np.concatenate([[asked], others])
        ids[starts], ids[starts + 1] = keys, values
        ids[length - 3 : length] = len(SPECIAL), keys[0], values[0]

        answers = np.zeros(tokens, dtype=bool)
        answers[length - 1] = True
        sources = np.full(tokens, -1)
        sources[length - 1] = asked + 1
        return TaskText(ids, sources, answers, length_number * len(self.depths) + depth_number)
