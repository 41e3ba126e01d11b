"""The entropy of the byte frequencies of texts: the loss of a model that knows how often each byte comes."""

from collections.abc import Iterable

import numpy as np


def byte_entropy(texts: Iterable[bytes]) -> float:
    """Entropy of the byte frequencies of all texts together, in nats a byte (Shannon 1948).

    Raises:
        ValueError: if there is no byte.

    """
    counts = np.zeros(256, dtype=np.int64)
    for text in texts:
        counts += np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256)
    if not counts.sum():
        raise ValueError("the entropy of no byte is not defined")
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())
