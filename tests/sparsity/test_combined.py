"""Union, intersection and difference: of layouts, by operators, from dictionaries; what is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.sparsity import (
    AttentionSinksSparsityConfig,
    BigBirdSparsityConfig,
    DenseSparsityConfig,
    DifferenceSparsityConfig,
    FixedSparsityConfig,
    IntersectionSparsityConfig,
    RandomSparsityConfig,
    StridedSparsityConfig,
    UnionSparsityConfig,
    from_dict,
)
from longspan_kernels.layout import BlockLayout

UNI = "unidirectional"
# Random blocks on each head, and different choices of global blocks: two maps from heads to layouts.
BIGBIRD = BigBirdSparsityConfig(4, 16, True, num_random_blocks=2, attention=UNI)
FIXED = FixedSparsityConfig(4, 16, True, num_different_global_patterns=2, attention=UNI)
STRIDED = StridedSparsityConfig(4, 16, stride=3, attention=UNI)
LENGTH = 16 * 20 - 5


@pytest.mark.parametrize("q_len", [LENGTH, 100, 1])
def test_blocks_are_those_of_the_parts_head_by_head(q_len):
    a, b, c = (part.layout(LENGTH, q_len).to_dense().bool() for part in (BIGBIRD, FIXED, STRIDED))
    for pattern, expected in [
        (BIGBIRD | FIXED, a | b),
        (BIGBIRD & FIXED, a & b),
        (BIGBIRD - FIXED, a & ~b),
        (UnionSparsityConfig(4, patterns=[BIGBIRD, FIXED, STRIDED], attention=UNI), a | b | c),
        (IntersectionSparsityConfig(4, patterns=[BIGBIRD, FIXED, STRIDED], attention=UNI), a & b & c),
        ((BIGBIRD | FIXED) - (FIXED & STRIDED), (a | b) & ~(b & c)),
        (UnionSparsityConfig(4, patterns=[BIGBIRD], attention=UNI), a),
        (FIXED - FIXED, torch.zeros_like(a)),
    ]:
        layout = pattern.layout(LENGTH, q_len)
        assert torch.equal(layout.to_dense().bool(), expected)
        assert layout.causal
        assert pattern.layout(LENGTH, q_len) is layout


def test_patterns_are_values():
    pattern = (BIGBIRD | FIXED) - STRIDED
    assert pattern == (BIGBIRD | FIXED) - STRIDED != (FIXED | BIGBIRD) - STRIDED
    assert hash(pattern) == hash((BIGBIRD | FIXED) - STRIDED)
    assert pickle.loads(pickle.dumps(pattern)) == pattern
    assert (BIGBIRD & FIXED) != (BIGBIRD | FIXED)


def test_the_dictionary_is_nested_and_survives_json():
    pattern = (BIGBIRD | FIXED) - STRIDED
    values = pattern.to_dict()
    assert values["name"] == "difference"
    assert values["without"] == STRIDED.to_dict()
    assert values["pattern"]["patterns"] == [BIGBIRD.to_dict(), FIXED.to_dict()]
    assert json.loads(json.dumps(values)) == values
    assert from_dict(json.loads(json.dumps(values))) == pattern


def test_a_mapping_gives_its_values_in_order():
    named = UnionSparsityConfig(4, patterns={"b": BIGBIRD, "a": FIXED}, attention=UNI)
    assert named == UnionSparsityConfig(4, patterns=[BIGBIRD, FIXED], attention=UNI) == BIGBIRD | FIXED


DENSE = DenseSparsityConfig(4, 16)
SEVERAL = (UnionSparsityConfig, IntersectionSparsityConfig)
REFUSED = [
    *[
        (cls, {"patterns": ()}, r"patterns must be a list of at least one pattern.* got \(\)")
        for cls in SEVERAL
    ],
    *[(cls, {"patterns": "dense"}, "patterns must be a list .* got 'dense'") for cls in SEVERAL],
    *[(cls, {"patterns": [DENSE, 3]}, r"patterns\[1\] must be a pattern, got 3") for cls in SEVERAL],
    (DifferenceSparsityConfig, {"pattern": None, "without": DENSE}, "pattern must be a pattern, got None"),
    (DifferenceSparsityConfig, {"pattern": DENSE, "without": 1}, "without must be a pattern, got 1"),
    *[
        (
            UnionSparsityConfig,
            {"patterns": [DENSE, part]},
            r"patterns\[1\] \(dense\) must have the " + message,
        )
        for part, message in [
            (DenseSparsityConfig(2, 16), "num_heads of its union, 4, got 2"),
            (DenseSparsityConfig(4, 32), "block of its union, 16, got 32"),
            (
                DenseSparsityConfig(4, 16, attention=UNI),
                "attention of its union, 'bidirectional', got 'unidir",
            ),
        ]
    ],
    (
        DifferenceSparsityConfig,
        {"pattern": DENSE, "without": DENSE, "attention": UNI},
        r"pattern \(dense\) must have the attention of its difference, 'unidirectional', got 'bidirectional'",
    ),
]


@pytest.mark.parametrize(("cls", "arguments", "message"), REFUSED)
def test_refused_arguments(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(4, 16, **arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"patterns": [{"name": "dens", "num_heads": 4}]},
            r"patterns\[0\]: name must be one of .* got 'dens'",
        ),
        (
            {"patterns": [{"name": "dense", "num_heads": 4, "blok": 1}]},
            r"patterns\[0\]: dense has no argument",
        ),
        ({"patterns": [{"num_heads": 4}]}, r"patterns\[0\]: name must be one of .* got None"),
        (
            {"pattern": DENSE.to_dict()},
            "union has no argument 'pattern'; allowed are num_heads, block, ",
        ),
        ({}, "union needs patterns, got only num_heads"),
    ],
)
def test_refused_dictionaries(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict({"name": "union", "num_heads": 4, **values})


def test_operators_refuse_what_is_no_pattern():
    for combine in (lambda: DENSE | 3, lambda: DENSE & "dense", lambda: DENSE - None):
        with pytest.raises(TypeError, match="unsupported operand"):
            combine()
    with pytest.raises(ValueError, match="must have the attention"):
        DENSE | BIGBIRD


def test_it_is_defined_where_all_its_parts_are():
    pattern = AttentionSinksSparsityConfig(4, attention=UNI) | BIGBIRD
    assert pattern.defined_for(33)
    assert not pattern.defined_for(32)
    with pytest.raises(ValueError, match=r"patterns\[1\] \(bigbird\): num_sliding_window_blocks must be"):
        pattern.layout(32)


def test_only_the_parts_have_intervals():
    with pytest.raises(NotImplementedError, match="union is made of the layouts of its parts"):
        (FIXED | BIGBIRD).intervals(torch.arange(3).numpy(), 8, 0)


@dataclass(frozen=True)
class Diagonal(BigBirdSparsityConfig):
    name: ClassVar[str] = "diagonal"

    def intervals(self, rows, num_blocks, head):
        return rows[:, None], rows[:, None] + 1


def test_patterns_of_ones_own_combine_too():
    own = Diagonal(1, 1, num_random_blocks=0)
    less = DenseSparsityConfig(1, 1) - own
    assert torch.equal(less.make_layout(9)[0], 1 - torch.eye(9, dtype=torch.int64))


@given(st.integers(0, 2**32), st.integers(1, 30), st.booleans())
def test_the_difference_of_layouts(seed, blocks, causal):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 3, blocks, blocks + 2, generator=generator) < 0.4
    difference = BlockLayout.from_dense(a, 8, causal=causal) - BlockLayout.from_dense(b, 8, causal=causal)
    assert difference == BlockLayout.from_dense(a & ~b, 8, causal=causal)


def test_refused_differences_of_layouts():
    layout = DENSE.layout(64)
    with pytest.raises(ValueError, match="difference of a causal and a non-causal layout"):
        layout - BlockLayout.from_dense(layout.to_dense(), 16, causal=True)
    with pytest.raises(ValueError, match="- needs layouts of equal q_blocks, got 4 and 5"):
        layout - DENSE.layout(80)
    with pytest.raises(TypeError, match="- needs a BlockLayout on both sides, got int"):
        layout - 1


def test_half_a_million_tokens_cost_what_is_kept():
    parts = [
        AttentionSinksSparsityConfig(2, 64),
        RandomSparsityConfig(2, 64, density=2 / 8192),
        BigBirdSparsityConfig(2, 64, True),
    ]
    union = UnionSparsityConfig(2, 64, patterns=parts)
    difference = (union - parts[0]).layout(1 << 19)
    assert difference.nnz == union.layout(1 << 19).nnz - parts[0].layout(1 << 19).nnz
    assert difference.nbytes < 1 << 19
