"""Heads of one layer with patterns of their own, against each of them alone."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention import SparseSelfAttention
from longspan.sparsity import (
    BigBirdSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    HeadMixtureSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    from_dict,
)

DIRECTIONS = st.sampled_from(["bidirectional", "unidirectional"])
KINDS = [DenseSparsityConfig, FixedSparsityConfig, LocalSlidingWindowSparsityConfig, BigBirdSparsityConfig]


@st.composite
def mixtures(draw):
    common = {"block": draw(st.integers(1, 4)), "attention": draw(DIRECTIONS)}
    children = []
    for _ in range(draw(st.integers(1, 4))):
        cls = draw(st.sampled_from(KINDS))
        arguments = {"num_heads": draw(st.integers(1, 3)), **common}
        if cls is LocalSlidingWindowSparsityConfig:
            arguments["num_sliding_window_blocks"] = draw(st.integers(0, 9))
        if cls is BigBirdSparsityConfig:
            arguments |= {"num_random_blocks": 0, "num_global_blocks": draw(st.integers(0, 3))}
        children.append(cls(**arguments))
    heads = sum(child.num_heads for child in children)
    return HeadMixtureSparsityConfig(heads, patterns=tuple(children), **common)


@settings(deadline=None, max_examples=60)
@given(mixtures(), st.integers(3, 12), st.data())
def test_blocks_by_the_rule_of_each_heads_own_pattern(rule_by_rule, pattern, blocks, data):
    length = pattern.block * blocks - data.draw(st.integers(0, pattern.block - 1))
    expected = [rows for child in pattern.children for rows in rule_by_rule(child, blocks)]
    layout = pattern.layout(length)
    assert layout.to_dense().bool().tolist() == expected
    distinct = {json.dumps(rows) for rows in expected}
    assert layout.layouts == len(distinct)  # heads of equal layout share one
    assert from_dict(json.loads(json.dumps(pattern.to_dict()))) == pattern
    q_len = data.draw(st.integers(1, length))
    first = (length - q_len) // pattern.block
    assert torch.equal(pattern.layout(length, q_len).to_dense(), layout.to_dense()[:, first:])


def test_random_blocks_are_those_of_the_pattern_alone():
    random = BigBirdSparsityConfig(3, 8, True, seed=5)
    mixture = HeadMixtureSparsityConfig(5, 8, patterns=[DenseSparsityConfig(2, 8), random])
    assert torch.equal(mixture.make_layout(128)[2:], random.make_layout(128))


def test_memory_does_not_grow_with_heads_of_one_pattern():
    small, large = (HeadMixtureSparsityConfig(heads, 8).layout(512) for heads in (2, 32))
    assert (small.layouts, large.layouts) == (2, 2)
    assert large.nbytes - small.nbytes == 4 * 30  # the map of the heads


@pytest.mark.parametrize(
    "pattern",
    [
        HeadMixtureSparsityConfig(4, 8, patterns="local*3 dense", attention="unidirectional"),
        HeadMixtureSparsityConfig(4, 8, patterns="bigbird local(num_sliding_window_blocks=1) fixed dense"),
    ],
    ids=["causal", "bidirectional"],
)
def test_attention_is_that_of_each_head_by_its_dense_mask(pattern):
    length, dim = 61, 4
    torch.manual_seed(0)
    leaves = [torch.randn(2, 4, length, dim, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    out = SparseSelfAttention(pattern, backend="torch")(*leaves)
    heads, head = [], 0
    for child in pattern.children:
        blocks = replace(child, num_heads=1).make_layout(length)[0].bool()
        kept = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)[:length, :length]
        if pattern.attention == "unidirectional":
            kept = kept & torch.ones(length, length).tril().bool()
        for _ in range(child.num_heads):
            q, k, v = (leaf[:, head] for leaf in leaves)
            scores = (q @ k.mT / math.sqrt(dim)).masked_fill(~kept, -math.inf)
            heads.append(scores.softmax(-1) @ v)
            head += 1
    expected = torch.stack(heads, 1)
    torch.testing.assert_close(out, expected)
    torch.manual_seed(1)
    weight = torch.randn_like(expected)
    got = torch.autograd.grad((out * weight).sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad((expected * weight).sum(), leaves))


def test_a_line_shares_out_the_heads():
    pattern = HeadMixtureSparsityConfig(8, 32, patterns="local*3 dense", attention="unidirectional")
    assert pattern.children == (
        LocalSlidingWindowSparsityConfig(6, 32, 3, "unidirectional"),
        DenseSparsityConfig(2, 32, attention="unidirectional"),
    )
    by_name = {"near": pattern.children[0], "all": pattern.children[1]}
    again = HeadMixtureSparsityConfig(8, 32, patterns=by_name, attention="unidirectional")
    assert again == pattern
    assert hash(again) == hash(pattern)


def test_patterns_of_a_line_draw_blocks_of_their_own():
    line = "bigbird dense bigbird"
    pattern = HeadMixtureSparsityConfig(3, 8, patterns=line, attention="unidirectional")
    first, _, last = pattern.layout(512).to_dense()
    assert not torch.equal(first, last)


def test_a_sequence_too_short_for_one_of_the_patterns():
    pattern = HeadMixtureSparsityConfig(2, 8, patterns="bigbird dense")
    assert not pattern.defined_for(16)
    with pytest.raises(ValueError, match=r"bigbird: num_sliding_window_blocks must be at most .* 2 here"):
        pattern.layout(16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"patterns": "local*3"},
            "gives 3 heads their pattern and num_heads is 4: 4 must be a multiple of 3",
        ),
        ({"patterns": "local*8"}, "gives 8 heads their pattern and num_heads is 4"),
        ({"patterns": "local dense(num_heads=3)"}, "heads are counted by"),
        (
            {"patterns": "local dense(block=8)"},
            r"patterns\[1\] \(dense\) must have the block of the whole, 16",
        ),
        ({"patterns": "nothing"}, "no pattern is called 'nothing'"),
        ({"patterns": []}, "patterns must be a line, or a list of at least one pattern"),
        ({"patterns": [3]}, r"patterns\[0\] must be a pattern, got 3"),
        ({"patterns": [DenseSparsityConfig(3, 16)]}, "sum of the patterns' num_heads, 3 = 3, got 4"),
        ({"patterns": [LocalSlidingWindowSparsityConfig(4, 16)]}, "must have the attention of the whole"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        HeadMixtureSparsityConfig(4, **arguments)
