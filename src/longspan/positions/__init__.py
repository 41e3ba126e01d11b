"""Longer documents for pretrained models: learned and rotary positions extended."""

from longspan.positions.extend import LEARNED_METHODS, ROTARY_METHODS, extend, learned_limit, max_positions_of

__all__ = ["LEARNED_METHODS", "ROTARY_METHODS", "extend", "learned_limit", "max_positions_of"]
