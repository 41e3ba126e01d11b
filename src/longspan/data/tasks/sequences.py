"""The texts of a task as samples, each a function of seed, split and number."""

import hashlib
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from longspan.data.packing import Sample
from longspan.data.tasks.base import Task, TaskText

Split = Literal["train", "validation"]

# Sequences that count as an epoch. Epochs have samples of their own: nothing is ever read twice.
EPOCH = 1 << 16
# One text of so many belongs to validation: which, its own content says.
_SHARE = 4
# Draws after which a task is taken to have no text of the split.
_ATTEMPTS = 400


class TaskSequences(Dataset[Sample]):
    """Samples of a task.

    A text belongs to validation if a hash of its tokens says so, else to training: the two cannot share one,
    whatever their seeds. A sample is drawn from (seed, split, number) until a text of the split comes.

    Args:
        task: the rule.
        split: "train" or "validation".
        seq_len: tokens a sequence.
        lookahead: further tokens of each text.
        seed: of the draws.
        size: sequences an epoch.

    Raises:
        ValueError: if no text of the task fits.

    """

    def __init__(
        self, task: Task, split: Split, seq_len: int, lookahead: int = 0, seed: int = 0, size: int = EPOCH
    ) -> None:
        task.check_length(seq_len + lookahead)
        self.task = task
        self.split: Split = split
        self.tokens = seq_len + lookahead
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        """Sequences an epoch."""
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Sample of (epoch, index): number `epoch * len(self) + index`.

        Raises:
            ValueError: if the task has so few texts that none of the split is found.

        """
        epoch, index = key
        draws = np.random.default_rng([self.seed, self.split == "validation", epoch * self.size + index])
        for _ in range(_ATTEMPTS):
            text = self.task.text(draws, self.tokens)
            if split_of(text) == self.split:
                return Sample(
                    epoch,
                    index,
                    text.ids,
                    np.zeros(self.tokens, dtype=np.int64),
                    np.zeros(self.tokens, dtype=np.int64),
                    answers=text.answers,
                    sources=text.sources,
                    cell=text.cell,
                )
        raise ValueError(
            f"the task {self.task.name} has too few different texts for a {self.split} split of its own; "
            "give it more words or longer sequences"
        )


def split_of(text: TaskText) -> Split:
    """The split that a text belongs to, by a hash of its tokens."""
    digest = hashlib.blake2b(text.ids.astype("<i8").tobytes(), digest_size=4).digest()
    return "validation" if int.from_bytes(digest, "little") % _SHARE == 0 else "train"
