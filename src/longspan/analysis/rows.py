"""Statistics of the rows of a layout: kept blocks, empty rows and attention distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longspan.analysis.connections import check_square, rows_of_layout
from longspan.analysis.pair_counts import kept_by_distance
from longspan_kernels.layout import BlockLayout


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of the rows of a layout, over all heads.

    Attributes:
        minimum: smallest number of kept blocks of a row; with causality, blocks above the diagonal do not
            count.
        median: median number of kept blocks.
        maximum: largest number of kept blocks.
        empty: number of rows that keep no block: their queries attend nothing, and their context is zero.
        rows: number of rows of all heads.
        kept_pairs: number of attended query-key pairs of all heads.
        all_pairs: number of pairs if every block were kept.
        mean_distance: mean distance ``|query - key|`` of the attended pairs in tokens; NaN without any.
        all_mean_distance: mean distance if every block were kept.

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
        """Attended pairs divided by all allowed pairs: also the share of the FLOPs of attention."""
        return self.kept_pairs / self.all_pairs


def row_statistics(layout: BlockLayout, seq_len: int, causal: bool | None = None) -> RowStatistics:
    """Compute the statistics of the rows of a layout.

    Args:
        layout: layout of all queries and keys.
        seq_len: tokens in the sequence.
        causal: whether attention is causal to the token; None for that of the layout.

    Raises:
        ValueError: the layout has another length.

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
    """Return the number of attended blocks per row of one distinct layout: int64 ``[blocks]``."""
    offsets, columns = rows_of_layout(layout, number)
    if not causal:
        return np.diff(offsets)
    rows = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    return np.bincount(rows[columns <= rows], minlength=offsets.size - 1)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = int(weights.sum())
    # In float64, since sums for a million tokens exceed 63 bits.
    return float(values.astype(np.float64) @ weights.astype(np.float64) / total) if total else float("nan")
