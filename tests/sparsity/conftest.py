"""The rules of the patterns once more: plain loops over single blocks, written apart from the package."""

from __future__ import annotations

import math

import pytest

# Their parts may have a layout for each head.
COMBINED = ("union", "intersection", "difference")


def keeps(pattern, nb, h, r, c):
    """Whether head ``h`` keeps block ``[r, c]`` of ``nb`` x ``nb``, random blocks and direction aside."""
    if not pattern.different_layout_per_head and pattern.name not in COMBINED:
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


def strided(p, nb, h, r, c):
    near, in_step = abs(r - c) <= p.stride, abs(r - c) % p.stride == 0
    if not p.different_layout_per_head:
        return near or in_step
    return in_step if h % 2 else near


def dilated(p, nb, h, r, c):
    for length, dilation in zip(p.segment_blocks, p.dilations, strict=True):
        offset = h % dilation if p.different_layout_per_head else 0
        for first in range(0, nb, length):
            selected = list(range(first, first + length))[offset::dilation]
            if r in selected and c in selected:
                return True
    return False


def hierarchical(p, nb, h, r, c):
    distances = {2**level for level in range(nb)}
    return abs(r - c) <= p.num_sliding_window_blocks // 2 or abs(r - c) in distances


MASK = 2**64 - 1


def splitmix(state):
    """One step of SplitMix64 in whole numbers."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def random(p, nb, h, r, c):
    """The columns whose hash's upper half is smallest, the own one first."""
    allowed = range(r + 1 if p.attention == "unidirectional" else nb)
    count = max(1, math.floor(p.density * len(allowed) + 0.5))
    row = splitmix(splitmix(splitmix(p.seed) ^ h) ^ r)
    ranked = sorted(allowed, key=lambda column: (column != r, splitmix(row ^ column) >> 32, column))
    return c in ranked[:count]


RULES = {
    "dense": lambda p, nb, h, r, c: True,
    "fixed": fixed,
    "variable": variable,
    "bigbird": bigbird,
    "bslongformer": bslongformer,
    "local_sliding_window": lambda p, nb, h, r, c: abs(r - c) <= p.num_sliding_window_blocks // 2,
    "strided": strided,
    "dilated": dilated,
    "attention_sinks": lambda p, nb, h, r, c: (
        c < p.num_sink_blocks or abs(r - c) <= p.num_sliding_window_blocks // 2
    ),
    "a_shape": lambda p, nb, h, r, c: c < p.num_initial_blocks or abs(r - c) < p.num_local_blocks,
    "vertical_slash": lambda p, nb, h, r, c: c in p.vertical_blocks or abs(r - c) in p.slash_offsets,
    "random": random,
    "hierarchical": hierarchical,
    "union": lambda p, nb, h, r, c: any(keeps(part, nb, h, r, c) for part in p.patterns),
    "intersection": lambda p, nb, h, r, c: all(keeps(part, nb, h, r, c) for part in p.patterns),
    "difference": lambda p, nb, h, r, c: keeps(p.pattern, nb, h, r, c) and not keeps(p.without, nb, h, r, c),
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
