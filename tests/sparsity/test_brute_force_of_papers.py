"""The patterns of papers, and those combined of others, against their rules restated block by block."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.sparsity import (
    PATTERNS,
    AShapeSparsityConfig,
    AttentionSinksSparsityConfig,
    DifferenceSparsityConfig,
    DilatedSparsityConfig,
    HierarchicalSparsityConfig,
    IntersectionSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    RandomSparsityConfig,
    StridedSparsityConfig,
    UnionSparsityConfig,
    VerticalSlashSparsityConfig,
    from_dict,
)

property_test = settings(deadline=None, max_examples=150)  # a busy machine is no failure
COUNTS = st.integers(0, 6)
BLOCKS = st.lists(st.integers(0, 16), max_size=4)
DENSITIES = st.floats(0, 1, exclude_min=True) | st.sampled_from([0.5, 0.25, 1])


@st.composite
def strided(draw, common):
    return StridedSparsityConfig(
        **common, different_layout_per_head=draw(st.booleans()), stride=draw(st.integers(1, 6))
    )


@st.composite
def dilated(draw, common):
    lengths = draw(st.lists(st.integers(1, 16), min_size=1, max_size=3))
    dilations = [draw(st.integers(1, min(length, 5))) for length in lengths]
    own = draw(st.booleans())
    return DilatedSparsityConfig(
        **common, different_layout_per_head=own, segment_blocks=lengths, dilations=dilations
    )


@st.composite
def attention_sinks(draw, common):
    return AttentionSinksSparsityConfig(
        **common, num_sink_blocks=draw(COUNTS), num_sliding_window_blocks=draw(COUNTS)
    )


@st.composite
def a_shape(draw, common):
    return AShapeSparsityConfig(**common, num_initial_blocks=draw(COUNTS), num_local_blocks=draw(COUNTS))


@st.composite
def vertical_slash(draw, common):
    vertical = draw(BLOCKS)
    slash = draw(BLOCKS if vertical else BLOCKS.filter(len))
    return VerticalSlashSparsityConfig(**common, vertical_blocks=vertical, slash_offsets=slash)


@st.composite
def random(draw, common):
    return RandomSparsityConfig(
        **common,
        different_layout_per_head=draw(st.booleans()),
        density=draw(DENSITIES),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@st.composite
def hierarchical(draw, common):
    return HierarchicalSparsityConfig(**common, num_sliding_window_blocks=draw(COUNTS))


@st.composite
def window(draw, common):
    return LocalSlidingWindowSparsityConfig(**common, num_sliding_window_blocks=draw(COUNTS))


SINGLE = [strided, dilated, attention_sinks, a_shape, vertical_slash, random, hierarchical]


@st.composite
def commons(draw):
    return {
        "num_heads": draw(st.integers(1, 4)),
        "block": draw(st.integers(1, 5)),
        "attention": draw(st.sampled_from(["bidirectional", "unidirectional"])),
    }


@st.composite
def patterns(draw, common, depth=2):
    kinds = [*SINGLE, window] if depth < 2 else SINGLE
    kind = draw(st.sampled_from([*kinds, *["combined"] * 4] if depth else kinds))
    if kind != "combined":
        return draw(kind(common))
    parts = draw(st.lists(patterns(common, depth - 1), min_size=1, max_size=3))
    name = draw(st.sampled_from(["union", "intersection", "difference"]))
    if name == "difference":
        return DifferenceSparsityConfig(**common, pattern=parts[0], without=parts[-1])
    cls = UnionSparsityConfig if name == "union" else IntersectionSparsityConfig
    return cls(**common, patterns=parts)


@st.composite
def patterns_and_lengths(draw):
    pattern = draw(patterns(draw(commons())))
    num_blocks = draw(st.integers(1, 18))
    return pattern, num_blocks * pattern.block - draw(st.integers(0, pattern.block - 1))


@property_test
@given(patterns_and_lengths())
def test_each_block_is_what_the_rules_say(rule_by_rule, pattern_and_length):
    pattern, seq_len = pattern_and_length
    layout = pattern.layout(seq_len)
    expected = torch.tensor(rule_by_rule(pattern, -(-seq_len // pattern.block))).long()
    assert torch.equal(layout.to_dense(), expected)
    assert torch.equal(pattern.make_layout(seq_len), expected)
    causal = pattern.attention == "unidirectional"
    assert (layout.block, layout.causal, layout.lead) == (pattern.block, causal, 0)
    assert layout.layouts == len({head.numpy().tobytes() for head in expected})


@property_test
@given(patterns_and_lengths(), st.data())
def test_the_last_queries_have_the_last_rows(rule_by_rule, pattern_and_length, data):
    pattern, seq_len = pattern_and_length
    q_len = data.draw(st.integers(1, seq_len))
    lower = pattern.layout(seq_len, q_len)
    first_row, lead = divmod(seq_len - q_len, pattern.block)
    assert lower.lead == lead
    assert lower.causal == (pattern.attention == "unidirectional")
    expected = torch.tensor(rule_by_rule(pattern, -(-seq_len // pattern.block))).long()
    assert torch.equal(lower.to_dense(), expected[:, first_row:])
    lower.check_lengths(q_len, seq_len)


@property_test
@given(patterns_and_lengths())
def test_a_dictionary_makes_the_same_pattern(pattern_and_length):
    pattern, _ = pattern_and_length
    values = pattern.to_dict()
    assert PATTERNS[values["name"]] is type(pattern)
    again = from_dict(values)
    assert again == pattern
    assert hash(again) == hash(pattern)
    assert again.to_dict() == values
