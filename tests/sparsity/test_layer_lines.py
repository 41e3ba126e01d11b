"""One line for the patterns of a model's layers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.sparsity import (
    PATTERNS,
    BigBirdSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    SparsityConfig,
    layer_patterns,
    mixture,
    registry,
)

OWN = BigBirdSparsityConfig(
    4, 32, num_random_blocks=2, num_sliding_window_blocks=5, attention="unidirectional", seed=7
)
LOCAL = LocalSlidingWindowSparsityConfig(4, 32, 5, "unidirectional")
DENSE = DenseSparsityConfig(4, 32, attention="unidirectional")
# By the words of a line: what each must give beside OWN.
MEANT = {
    "bigbird": OWN,
    "big": OWN,
    "local_sliding_window": LOCAL,
    "local": LOCAL,
    "sliding_window": LOCAL,
    "dense": DENSE,
    "fixed": FixedSparsityConfig(4, 32, attention="unidirectional"),
    "local(num_sliding_window_blocks=9, block=16)": LocalSlidingWindowSparsityConfig(
        4, 16, 9, "unidirectional"
    ),
    "bigbird(different_layout_per_head=true)": BigBirdSparsityConfig(
        4, 32, True, 2, 5, 1, "unidirectional", 7
    ),
}


def test_the_form_of_the_issue():
    assert layer_patterns("local*3 dense", OWN, 4) == [LOCAL, LOCAL, LOCAL, DENSE]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(MEANT)), st.integers(1, 3), st.booleans()), min_size=1, max_size=5
    ),
    st.integers(1, 4),
)
def test_a_line_written_out_by_hand(words, times):
    line = "  ".join(word + (f"*{count}" if starred or count > 1 else "") for word, count, starred in words)
    by_hand = []
    for _ in range(times):
        for word, count, _ in words:
            by_hand += [MEANT[word]] * count
    assert layer_patterns(line, OWN, len(by_hand)) == by_hand


def test_every_registered_pattern_shares_heads_block_and_direction():
    for name in PATTERNS:
        if name in ("union", "intersection", "difference"):
            continue  # they need patterns of their own
        (pattern,) = layer_patterns(name, OWN, 1)
        assert pattern.name == name
        assert (pattern.num_heads, pattern.block, pattern.attention) == (4, 32, "unidirectional")


def test_arguments_of_one_name_and_another_meaning_are_not_shared():
    own = replace(OWN, num_global_blocks=3, different_layout_per_head=True)
    assert layer_patterns("fixed bigbird", own, 2) == [MEANT["fixed"], own]
    fixed = FixedSparsityConfig(4, 32, num_local_blocks=8)
    assert layer_patterns("a_shape", fixed, 1)[0].num_local_blocks == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bigbird(num_heads=2)", "num_heads is the model's"),
        ("local(num_sliding_window_blocks=3, num_sliding_window_blocks=9)", "each once"),
    ],
)
def test_arguments_that_are_refused(line, message):
    with pytest.raises(ValueError, match=message):
        layer_patterns(line, OWN, 1)


def test_null_is_none():
    assert (
        layer_patterns("variable(global_block_end_indices=null)", OWN, 1)[0].global_block_end_indices is None
    )


def test_equal_layers_have_one_layout():
    layers = layer_patterns("local*2 dense", OWN, 6)
    assert layers[0].layout(256) is layers[4].layout(256)


class Unregistered(BigBirdSparsityConfig):
    name = "local_of_mine"


def test_the_groups_own_pattern_need_not_be_registered():
    own = Unregistered(4, 32)
    assert layer_patterns("local_of_mine dense", own, 2)[0] == own
    with pytest.raises(
        ValueError, match="'local' fits several patterns: local_sliding_window, local_of_mine"
    ):
        layer_patterns("local", own, 2)


def test_patterns_inside_of_the_groups_own_are_not_shared():
    own = OWN | LOCAL
    assert layer_patterns("union local", own, 2) == [own, replace(LOCAL, num_sliding_window_blocks=3)]
    with pytest.raises(ValueError, match="intersection needs patterns"):
        layer_patterns("intersection", own, 1)


def test_a_pattern_of_ones_own_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "sparsity").mkdir()
    (tmp_path / "sparsity" / "far_window.py").write_text(
        "from dataclasses import dataclass\n"
        "from longspan.sparsity import BigBirdSparsityConfig\n\n"
        "@dataclass(frozen=True)\nclass FarWindow(BigBirdSparsityConfig):\n    name = 'far_window'\n"
    )
    monkeypatch.setenv("LONGSPAN_PATH", str(tmp_path))
    monkeypatch.setattr(registry, "_patterns", registry._patterns | {})
    monkeypatch.setattr(mixture, "PATTERNS", registry._patterns)
    one, other = layer_patterns("far_window dense", OWN, 2)
    assert (one.name, one.num_heads, one.seed) == ("far_window", 4, 7)
    assert other == DENSE


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("local*3 dense", r"gives 4 layers their pattern and the model has 6: 6 must be a multiple of 4"),
        ("dense*7", r"gives 7 layers their pattern and the model has 6"),
        ("", r"layers='' must be names of patterns"),
        ("local*0 dense", r"'local\*0' is none"),
        ("local*-1", r"'local\*-1' is none"),
        ("local * 3", r"'\*' is none"),
        ("local, dense", r"'local,' is none"),
        ("lokal", r"no pattern is called 'lokal'; known are dense, fixed"),
        ("local(width=3)", r"local_sliding_window has no argument 'width'; allowed are num_heads"),
        ("bigbird(width=3)", r"bigbird has no argument 'width'"),
        (
            "local(3)",
            r"in the parentheses of local, arguments must be name=value with commas between, .* got '3'",
        ),
        ("local(block=)", r"arguments must be name=value"),
        ("local(block=open)", r"local_sliding_window: block must be an integer of at least 1, got 'open'"),
        ("local(block=0)", r"local_sliding_window: block must be an integer of at least 1, got 0"),
        (3, r"layers=3 must be names"),
    ],
)
def test_lines_that_are_none(line, message):
    with pytest.raises(ValueError, match=message):
        layer_patterns(line, OWN, 6)


def test_all_are_patterns():
    assert all(isinstance(one, SparsityConfig) for one in layer_patterns("dense big", OWN, 8))
