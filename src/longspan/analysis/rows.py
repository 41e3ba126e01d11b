"""The rows of a layout: how many blocks each attends, which attend nothing, and how far they look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longspan.analysis.connections import check_square, rows_of_layout
from longspan.analysis.pair_counts import kept_by_distance
from longspan_kernels.layout import BlockLayout


@dataclass(frozen=True)
class RowStatistics:
    """What the rows of a layout keep, those of all heads together.

    Attributes:
        minimum: kept blocks of the row that has the fewest; under causality those above the diagonal are not
            attended and do not count.
        median: of the row in the middle.
        maximum: of the row that has the most.
        empty: rows that keep no block: their queries attend nothing, and their context is zero.
        rows: rows of all heads.
        kept_pairs: pairs of a query and a key that are attended, all heads.
        all_pairs: the same if every block were kept.
        mean_distance: mean distance of those pairs in tokens, ``|query - key|``; NaN without any.
        all_mean_distance: the same if every block were kept.

    """

    minimum: int
    median: float
    maximum: int
    empty: int
    rows: int
    kept_pairs: int
    all_pairs: int
    mean_distance: float
    all_mean_distance: float

    @property
    def pair_density(self) -> float:
        """Attended pairs of tokens over all that causality allows: also the share of attention's FLOPs."""
        return self.kept_pairs / self.all_pairs


def row_statistics(layout: BlockLayout, seq_len: int, causal: bool | None = None) -> RowStatistics:
    """Describe the rows of a layout.

    Args:
        layout: of all queries and keys.
        seq_len: tokens of the sequence.
        causal: whether attention is causal to the token; None: as the layout says.

    Raises:
        ValueError: the layout is of another length.

    """
    check_square(layout, seq_len)
    causal = layout.causal if causal is None else causal
    counts = np.concatenate([row_counts(layout, int(number), causal) for number in layout.head_layouts])
    pairs = kept_by_distance(layout, seq_len, causal)
    distance = np.arange(seq_len)
    every = (seq_len - distance) * np.where(causal | (distance == 0), 1, 2) * layout.heads
    return RowStatistics(
        int(counts.min()),
        float(np.median(counts)),
        int(counts.max()),
        int((counts == 0).sum()),
        counts.size,
        int(pairs.sum()),
        int(every.sum()),
        _mean(distance, pairs),
        _mean(distance, every),
    )


def row_counts(layout: BlockLayout, number: int, causal: bool) -> np.ndarray:
    """Blocks that each row of one of the distinct layouts attends: int64 ``[blocks]``."""
    offsets, columns = rows_of_layout(layout, number)
    if not causal:
        return np.diff(offsets)
    rows = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    return np.bincount(rows[columns <= rows], minlength=offsets.size - 1)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = int(weights.sum())
    # In float64: a million tokens have sums beyond 63 bits.
    return float(values.astype(np.float64) @ weights.astype(np.float64) / total) if total else float("nan")
