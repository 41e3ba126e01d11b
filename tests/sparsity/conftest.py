"""The rules of the patterns once more: plain loops over single blocks, written apart from the package."""

from __future__ import annotations

import pytest


def keeps(pattern, nb, h, r, c):
    """Whether head ``h`` keeps block ``[r, c]`` of ``nb`` x ``nb``, random blocks and direction aside."""
    if not pattern.different_layout_per_head:
        h = 0
    return RULES[pattern.name](pattern, nb, h, r, c)


def fixed(p, nb, h, r, c):
    nl, g = p.num_local_blocks, p.num_global_blocks
    if r // nl == c // nl:
        return True
    f = nl - (1 + h % p.num_different_global_patterns) * g
    end = nb - nb % nl
    chosen = [s + n for s in range(f, end, nl) for n in range(g)]
    if nb % nl:
        s = min(end + f, nb - g)
        chosen += list(range(nb))[s : s + g] if s >= 0 else list(range(nb))[s:]
    return c in chosen or (p.horizontal_global_attention and r in chosen)


def global_blocks(p):
    ends = p.global_block_end_indices
    if ends is None:
        ends = [start + 1 for start in p.global_block_indices]
    return [n for start, end in zip(p.global_block_indices, ends, strict=True) for n in range(start, end)]


def variable(p, nb, h, r, c):
    window_of = []
    sizes = list(p.local_window_blocks)
    while len(window_of) < nb:
        number = len(set(window_of))
        window_of += [number] * (sizes[number] if number < len(sizes) else sizes[-1])
    if window_of[r] == window_of[c] or c in global_blocks(p):
        return True
    return p.horizontal_global_attention and r in global_blocks(p)


def bigbird(p, nb, h, r, c):
    g = p.num_global_blocks
    return abs(r - c) <= p.num_sliding_window_blocks // 2 or c < g or r < g


def bslongformer(p, nb, h, r, c):
    near = abs(r - c) <= p.num_sliding_window_blocks // 2
    return near or c in global_blocks(p) or r in global_blocks(p)


RULES = {
    "dense": lambda p, nb, h, r, c: True,
    "fixed": fixed,
    "variable": variable,
    "bigbird": bigbird,
    "bslongformer": bslongformer,
    "local_sliding_window": lambda p, nb, h, r, c: abs(r - c) <= p.num_sliding_window_blocks // 2,
}


@pytest.fixture(scope="session")
def rule_by_rule():
    """``[heads][rows][columns]`` of booleans: what a pattern keeps, random blocks aside."""

    def blocks(pattern, nb):
        uni = pattern.attention == "unidirectional"
        return [
            [[keeps(pattern, nb, h, r, c) and not (uni and c > r) for c in range(nb)] for r in range(nb)]
            for h in range(pattern.num_heads)
        ]

    return blocks
