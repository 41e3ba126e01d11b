"""Where a text has said the same before."""

import numpy as np


def last_occurrence(tokens: np.ndarray, n: int, documents: np.ndarray | None = None) -> np.ndarray:
    """Where the n-gram that ends at each token ended the last time before.

    Args:
        tokens: integers `[length]`.
        n: tokens of the n-gram, at least 1.
        documents: integers `[length]`; an n-gram that is not of one document has no earlier occurrence, and
            none is found in another document. None: all is one document.

    Returns:
        int64 `[length]`: the earlier place, -1 where the n-gram comes for the first time or is not whole.

    """
    # Numbers of the 1-gram, 2-gram, … that end at each place: equal where the n-grams are equal.
    _, words = np.unique(tokens, return_inverse=True)
    numbers = words
    if documents is not None:
        # A document is part of the first token's name, and an n-gram that crosses into another is unlike all.
        _, of_document = np.unique(documents, return_inverse=True)
        _, numbers = np.unique(words + of_document * (words.max(initial=0) + 1), return_inverse=True)
    count = int(words.max(initial=0)) + 1
    for _ in range(n - 1):
        numbers = numbers[:-1] * count + words[len(words) - len(numbers) + 1 :]
        _, numbers = np.unique(numbers, return_inverse=True)
    found = np.full(len(tokens), -1)
    if n > len(tokens):
        return found
    order = np.argsort(numbers, kind="stable")
    again = numbers[order[1:]] == numbers[order[:-1]]
    first = n - 1
    found[order[1:][again] + first] = order[:-1][again] + first
    if documents is not None:
        whole = np.zeros(len(tokens), dtype=bool)
        whole[first:] = documents[first:] == documents[: len(documents) - first]
        found[~whole] = -1
    return found
