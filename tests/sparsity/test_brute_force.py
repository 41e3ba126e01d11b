"""The six patterns of DeepSpeed against the rules restated block by block, on random configurations."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.sparsity import (
    PATTERNS,
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    VariableSparsityConfig,
    from_dict,
)

property_test = settings(deadline=None, max_examples=150)  # a busy machine is no failure
DIRECTIONS = st.sampled_from(["bidirectional", "unidirectional"])


@st.composite
def common(draw):
    return {
        "num_heads": draw(st.integers(1, 4)),
        "block": draw(st.integers(1, 5)),
        "different_layout_per_head": draw(st.booleans()),
        "attention": draw(DIRECTIONS),
    }


@st.composite
def ranges(draw):
    starts = draw(st.lists(st.integers(0, 16), max_size=3))
    ends = [start + draw(st.integers(1, 4)) for start in starts] if draw(st.booleans()) else None
    return {"global_block_indices": starts, "global_block_end_indices": ends}


@st.composite
def fixed_patterns(draw):
    arguments = draw(common())
    chosen = draw(st.integers(0, 3))
    window = max(1, chosen) * draw(st.integers(1, 4))
    choices = window // chosen if chosen and arguments["different_layout_per_head"] else 1
    return FixedSparsityConfig(
        **arguments,
        num_local_blocks=window,
        num_global_blocks=chosen,
        horizontal_global_attention=arguments["attention"] == "bidirectional" and draw(st.booleans()),
        num_different_global_patterns=draw(st.integers(1, choices)),
    )


@st.composite
def variable_patterns(draw):
    arguments = draw(common())
    return VariableSparsityConfig(
        **arguments,
        **draw(ranges()),
        num_random_blocks=draw(st.integers(0, 4)),
        local_window_blocks=draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)),
        horizontal_global_attention=arguments["attention"] == "bidirectional" and draw(st.booleans()),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@st.composite
def bigbird_patterns(draw):
    return BigBirdSparsityConfig(
        **draw(common()),
        num_random_blocks=draw(st.integers(0, 4)),
        num_sliding_window_blocks=draw(st.integers(0, 6)),
        num_global_blocks=draw(st.integers(0, 4)),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@st.composite
def bslongformer_patterns(draw):
    window = draw(st.integers(0, 6))
    return BSLongformerSparsityConfig(**draw(common()), **draw(ranges()), num_sliding_window_blocks=window)


@st.composite
def window_patterns(draw):
    arguments = draw(common())
    del arguments["different_layout_per_head"]
    return LocalSlidingWindowSparsityConfig(**arguments, num_sliding_window_blocks=draw(st.integers(0, 6)))


@st.composite
def patterns_and_lengths(draw):
    """A pattern and a length for which it is defined."""
    dense = common().map(lambda arguments: DenseSparsityConfig(**arguments))
    others = (fixed_patterns(), variable_patterns(), bigbird_patterns(), bslongformer_patterns())
    pattern = draw(st.one_of(dense, *others, window_patterns()))
    least = getattr(pattern, "num_random_blocks", 0)
    if isinstance(pattern, BigBirdSparsityConfig):
        least = max(least, pattern.num_sliding_window_blocks, pattern.num_global_blocks)
    num_blocks = draw(st.integers(max(1, least), max(1, least) + 12))
    return pattern, num_blocks * pattern.block - draw(st.integers(0, pattern.block - 1))


@property_test
@given(patterns_and_lengths())
def test_each_block_is_what_the_rules_say(rule_by_rule, pattern_and_length):
    pattern, seq_len = pattern_and_length
    layout = pattern.layout(seq_len)
    ours = layout.to_dense()
    nb = -(-seq_len // pattern.block)
    certain = torch.tensor(rule_by_rule(pattern, nb)).long()
    uni = pattern.attention == "unidirectional"
    allowed = torch.ones_like(certain).tril() if uni else torch.ones_like(certain)
    drawn = ours - certain
    assert bool((drawn >= 0).all())
    assert bool((ours <= allowed).all())
    free = (allowed - certain).sum(-1)
    assert torch.equal(drawn.sum(-1), free.clamp(max=getattr(pattern, "num_random_blocks", 0)))
    assert (layout.block, layout.causal, layout.lead) == (pattern.block, uni, 0)
    assert torch.equal(pattern.make_layout(seq_len), ours)
    if not pattern.different_layout_per_head:
        assert layout.layouts == 1


@property_test
@given(patterns_and_lengths(), st.data())
def test_the_last_queries_have_the_last_rows(pattern_and_length, data):
    pattern, seq_len = pattern_and_length
    q_len = data.draw(st.integers(1, seq_len))
    lower = pattern.layout(seq_len, q_len)
    first_row, lead = divmod(seq_len - q_len, pattern.block)
    assert lower.lead == lead
    assert lower.causal == (pattern.attention == "unidirectional")
    assert torch.equal(lower.to_dense(), pattern.layout(seq_len).to_dense()[:, first_row:])
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
