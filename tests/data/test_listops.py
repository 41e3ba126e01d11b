"""ListOps against an evaluator of its own, and its texts against the grammar."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.tasks import ListOps

RULES = {
    "MIN": min,
    "MAX": max,
    "MED": lambda values: math.floor(statistics.median(values)),
    "SM": lambda values: sum(values) % 10,
}


def parse(words):
    """(value, depth, sizes of the lists, rest) of the node that the words begin with."""
    head, *rest = words
    if head.isdigit():
        return int(head), 1, [], rest
    assert head[0] == "["
    values, depths, sizes = [], [], []
    while rest[0] != "]":
        value, depth, inner, rest = parse(rest)
        values.append(value)
        depths.append(depth)
        sizes += inner
    return RULES[head[1:]](values), 1 + max(depths), [len(values), *sizes], rest[1:]


def expression(task, text):
    words = task.tokenizer.decode(text.ids).split()
    assert words[-2] == "="
    return words[:-2], int(words[-1])


@given(st.integers(0, 10**6), st.integers(3, 6), st.integers(2, 6), st.sampled_from([0.25, 0.5]))
def test_a_text_is_a_list_and_what_it_comes_to(seed, max_depth, max_arguments, probability):
    task = ListOps(6, 60, max_depth, max_arguments, probability)
    text = task.text(np.random.default_rng(seed), 70)
    words, answer = expression(task, text)
    value, depth, sizes, rest = parse(words)
    assert not rest
    assert answer == value
    assert 6 <= len(words) <= 60
    assert task.cells()[text.cell] == {"depth": depth}
    assert depth <= max_depth
    assert all(2 <= size <= max_arguments for size in sizes)
    assert text.answers.tolist() == [False] * 69 + [True]
    assert (text.ids[: 68 - len(words)] == 0).all()
    assert (text.ids[68 - len(words) :] > 3).all()
    assert (text.sources == -1).all()


def test_the_grammar_is_drawn_with_its_probabilities():
    # 37 tokens at the most: no length is refused but that of a single digit.
    task = ListOps(4, 40, 3, 5)
    draws = np.random.default_rng(0)
    operators, arguments, second, digits = [], [], [], []
    for _ in range(3000):
        words, _ = expression(task, task.text(draws, 42))
        value, _, sizes, _ = parse(words)
        operators += [word for word in words if word[0] == "["]
        digits += [word for word in words if word.isdigit()]
        arguments.append(sizes[0])
        # The root's arguments are lists with probability 0.25; the lists below hold digits alone.
        second.append((len(sizes) - 1) / sizes[0])
        assert 0 <= value <= 9
    assert np.mean(arguments) == pytest.approx(3.5, abs=0.1)
    assert np.mean(second) == pytest.approx(0.25, abs=0.02)
    for found, kinds in ((operators, RULES), (digits, range(10))):
        _, counts = np.unique(found, return_counts=True)
        assert len(counts) == len(kinds)
        assert counts / len(found) == pytest.approx(1 / len(kinds), abs=0.02)


def test_the_setting_of_the_long_range_arena():
    task = ListOps()
    lengths = []
    for seed in range(20):
        words, answer = expression(task, task.text(np.random.default_rng(seed), 2049))
        value, depth, sizes, _ = parse(words)
        assert value == answer
        assert depth <= 10
        assert max(sizes) <= 10
        lengths.append(len(words))
    assert 500 <= min(lengths) <= max(lengths) <= 2000
    assert max(lengths) > 1000
    with pytest.raises(ValueError, match=r"max_length=2000 needs 2002 tokens"):
        task.check_length(2001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_length": 3}, "min_length=3 must be at least 4"),
        ({"max_length": 499}, "max_length=499 must be at least 500"),
        ({"max_depth": 1}, "max_depth=1 must be at least 2"),
        ({"max_arguments": 1}, "max_arguments=1 must be at least 2"),
        ({"list_probability": 1.0}, r"list_probability=1.0 must lie in \(0, 1\)"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        ListOps(**arguments)


def test_a_length_that_never_comes(monkeypatch):
    monkeypatch.setattr("longspan.data.tasks.listops._ATTEMPTS", 50)
    with pytest.raises(ValueError, match="no list of min_length=100 to max_length=100 tokens came in 50"):
        ListOps(100, 100, 2, 2).text(np.random.default_rng(0), 102)
