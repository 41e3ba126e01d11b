"""Random columns from a counter-based hash: the same on every rank, after every restart, with every NumPy."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(state: np.ndarray) -> np.ndarray:
    """Apply a step and the finaliser of SplitMix64, a bijection of 64-bit integers.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Args:
        state: uint64, any shape but ``[]`` (NumPy warns when a scalar wraps around).

    """
    state = state + _GOLDEN
    state = (state ^ (state >> _SHIFTS[0])) * _MULTIPLIERS[0]
    state = (state ^ (state >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return state ^ (state >> _SHIFTS[2])


def draw_ranks(free: np.ndarray, draws: int, seed: int, head: int, rows: np.ndarray) -> np.ndarray:
    """Draw ``min(draws, free)`` distinct numbers of ``[0, free)`` for each row.

    Every set of that many is equally likely: Floyd's algorithm (Bentley and Floyd, "A sample of brilliance",
    Communications of the ACM 30(9), 1987) for all rows at once. A draw depends only on the seed, the head,
    the row and the index of the draw, not on the other rows of the call.

    Args:
        free: size of the range that each row draws from, int64 ``[rows]``.
        draws: draws per row.
        seed: seed of the draw, in ``[0, 2**64)``.
        head: index of the head.
        rows: indices of the rows, int64 ``[rows]``.

    Returns:
        int64 ``[rows, min(draws, max(free))]``, -1 where a row has no number left.

    """
    state = mix(np.array([seed], dtype=np.uint64))
    state = mix(state ^ np.uint64(head))
    state = mix(state ^ rows.astype(np.uint64))
    possible = np.minimum(free, draws)
    chosen = np.full((rows.size, int(possible.max())), -1, dtype=np.int64)
    for draw in range(chosen.shape[1]):
        last = free - possible + draw
        # 64 bits against bounds under 2**31: the bias of the remainder is under 2**-33.
        candidate = (mix(state ^ np.uint64(draw)) % (last + 1).astype(np.uint64)).astype(np.int64)
        repeated = (chosen[:, :draw] == candidate[:, None]).any(axis=1)
        chosen[:, draw] = np.where(draw < possible, np.where(repeated, last, candidate), -1)
    return chosen
