"""What a synthetic task is: a text of its own small vocabulary, some of whose tokens are answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from longspan.data.tasks.tokenizer import TaskTokenizer
from longspan.data.tokenizer import Tokenizer


class TaskText(NamedTuple):
    """One text of a task.

    Attributes:
        ids: int64 `[tokens]`.
        sources: int64 `[tokens]`: at an answer, the place of the token that it has to be read from; -1 where
            no single token holds it.
        answers: bool `[tokens]`: the tokens that are to be predicted.
        cell: which of the task's `cells` the text belongs to.

    """

    ids: np.ndarray
    sources: np.ndarray
    answers: np.ndarray
    cell: int = 0


class Task(ABC):
    """Texts made by a rule, whose answers are to be predicted and nothing else.

    A causal model predicts an answer at the token before it; for a masked one the answers are hidden behind
    the mask token. The task has a vocabulary of its own, `tokenizer`.

    Attributes:
        name: as `data=` knows it.
        tokenizer: its words and their ids.
        arguments: what it was made with, for the account of a run.

    """

    name: str
    tokenizer: TaskTokenizer
    arguments: dict[str, Any]

    @abstractmethod
    def check_length(self, tokens: int) -> None:
        """Raise ValueError unless a text of the task fits into so many tokens."""

    @abstractmethod
    def text(self, draws: np.random.Generator, tokens: int) -> TaskText:
        """Draw a text of exactly `tokens` tokens, a function of the state of `draws` alone."""

    def cells(self) -> tuple[dict[str, float], ...]:
        """What divides the texts beside distance, in the order of `TaskText.cell`; empty: nothing does."""
        return ()

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError unless the tokenizer is the task's own."""
        if not isinstance(tokenizer, TaskTokenizer) or tokenizer.words != self.tokenizer.words:
            raise ValueError(
                f"the task {self.name} has a vocabulary of its own, tokenizer=task; got "
                f"{type(tokenizer).__name__} with {tokenizer.vocab_size} ids instead of "
                f"{self.tokenizer.vocab_size}"
            )


def check_least(**limits: tuple[int, int]) -> None:
    """Raise ValueError for each argument, given as name=(value, least), that lies below its least value."""
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(f"{name}={value!r} must be at least {least}")


def check_choices(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """Return the values of a list argument as a tuple; ValueError where it is empty or holds one twice."""
    found = tuple(values)
    if not found or len(set(found)) != len(found):
        raise ValueError(f"{name}={list(found)!r} must hold at least one value, and none twice")
    return found


def numbered(letter: str, count: int) -> list[str]:
    """Words of one kind: `k0 k1 k2 …`."""
    return [f"{letter}{number}" for number in range(count)]
