"""Counter-based dropout with Philox4x32-10: the mask of attention dropout is a pure function of positions.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).

The draw of one attention weight depends on the seed, its batch entry, head, query position and key position,
and on nothing else: neither on tiles nor on devices nor on which blocks are kept. Key position ``j`` takes
lane ``j % 4`` of the four words at counter ``(j // 4, query position, head, batch)`` under the key ``(seed's
low word, high word)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the four output words of Philox4x32-10.

    Args:
        counter: four int64 tensors that broadcast together, each a 32-bit word.
        key: two int64 tensors that broadcast with them, each a 32-bit word.

    Returns:
        Four int64 tensors of the broadcast shape, each a 32-bit word.

    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for step in range(_ROUNDS):
        # A product of two words fills 64 bits: int64 wraps, and the mask clears the sign of the shifted half.
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (odd >> 32).bitwise_and_(_WORD).bitwise_xor(c1).bitwise_xor(k0 + step * _WEYL[0] & _WORD)
        c2 = (even >> 32).bitwise_and_(_WORD).bitwise_xor(c3).bitwise_xor(k1 + step * _WEYL[1] & _WORD)
        c1, c3 = odd.bitwise_and_(_WORD), even.bitwise_and_(_WORD)
    return c0, c1, c2, c3


def dropout_threshold(p: float) -> int:
    """Return the word under which a draw means "dropped": probability ``p`` in units of 2**-32."""
    return round(p * 2**32)


def keep_mask(
    seed: Tensor, p: float, *, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, aligned: bool
) -> Tensor:
    """Return which attention weights dropout keeps.

    Args:
        seed: int64, no dimension.
        p: probability of dropping, ``0 <= p < 1``.
        batch: int64, number of the batch entry.
        head: int64, number of the head.
        query: int64, absolute query positions.
        key: int64 ``[..., keys]``, key positions. The last dimension of all other tensors has size 1.
        aligned: whether the keys come in whole aligned fours (``4 i, 4 i + 1, 4 i + 2, 4 i + 3``); the four
            words of each draw are then all used.

    Returns:
        bool, the broadcast shape of batch, head, query and key.

    """
    words = (seed & _WORD, (seed >> 32) & _WORD)
    fours = (key[..., ::4] if aligned else key) // 4
    lanes = philox4x32((fours & _WORD, query & _WORD, head & _WORD, batch & _WORD), words)
    threshold = dropout_threshold(p)
    if aligned:
        return torch.stack([lane >= threshold for lane in lanes], dim=-1).flatten(-2)
    keep = lanes[3] >= threshold
    for number, lane in enumerate(lanes[:3]):
        keep = torch.where(key % 4 == number, lane >= threshold, keep)
    return keep
