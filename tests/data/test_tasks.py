"""The texts of copy, needle and recall against their rules, read off word by word."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.tasks import Copy, Needle, Recall


def words_of(task, text):
    specials = ("<pad>", "<mask>", "<s>", "</s>")
    return [(*specials, *task.tokenizer.words)[i] for i in text.ids]


def draw(task, tokens, seed=0):
    task.check_length(tokens)
    text = task.text(np.random.default_rng(seed), tokens)
    assert [len(part) for part in text[:3]] == [tokens] * 3
    assert (text.sources >= 0).tolist() == text.answers.tolist()
    # Each answer stands where its source says, before it.
    answers = np.flatnonzero(text.answers)
    assert (text.ids[text.sources[answers]] == text.ids[answers]).all()
    assert (text.sources[answers] < answers).all()
    return words_of(task, text), text


@given(
    st.integers(1, 6), st.integers(0, 9), st.lists(st.integers(1, 20), min_size=1, max_size=3, unique=True)
)
def test_copy(num_tokens, keep_free, gaps):
    task = Copy([num_tokens + gap for gap in gaps], num_tokens, 3, 2, keep_free)
    tokens = keep_free + max(task.distances) + num_tokens
    with pytest.raises(ValueError, match="choose a longer"):
        task.check_length(tokens - 1)
    for seed in range(4):
        words, text = draw(task, tokens + seed, seed)
        distance = task.cells()[text.cell]["distance"]
        first = words.index("copy") + 1
        assert first == len(words) - num_tokens
        assert words[first:] == words[first - distance :][:num_tokens]
        assert np.flatnonzero(text.answers).tolist() == list(range(first, len(words)))
        assert (np.arange(first, len(words)) - text.sources[first:]).tolist() == [distance] * num_tokens
        assert text.sources[first] >= keep_free
        others = words[: first - distance] + words[first - distance + num_tokens : first - 1]
        assert {word[0] for word in others} <= {"f"}


@given(st.integers(1, 4), st.integers(0, 9), st.integers(0, 12), st.booleans())
def test_needle(num_pairs, keep_free, more, several):
    shortest = keep_free + 2 * num_pairs + 5
    lengths = (shortest, shortest + more + 1) if several else None
    task = Needle([0.0, 0.4, 1.0], lengths, num_pairs, 5, 3, 2, keep_free)
    tokens = shortest + more + 1
    with pytest.raises(ValueError, match="must lie in"):
        task.check_length(shortest - 1)
    seen = set()
    for seed in range(8):
        words, text = draw(task, tokens, seed)
        cell = task.cells()[text.cell]
        seen.add(text.cell)
        length = cell.get("length", tokens)
        assert set(words[length:]) <= {"<pad>"}
        body, question = words[: length - 3], words[length - 3 : length]
        assert question[0] == "?"
        assert np.flatnonzero(text.answers).tolist() == [length - 1]
        # The rule by hand: find the key in the body; the value is the next word.
        assert body.count(question[1]) == 1
        place = body.index(question[1])
        assert (body[place + 1], text.sources[length - 1]) == (question[2], place + 1)
        room = length - 3 - 2 - keep_free
        assert place == keep_free + round(cell["depth"] * room)
        assert sum(word[0] == "k" for word in body) == sum(word[0] == "v" for word in body) == num_pairs
        assert len({word for word in body if word[0] == "k"}) == num_pairs
        assert all(word[0] == "f" for word in body[:keep_free])
        pairs = [i for i, word in enumerate(body) if word[0] == "k"]
        assert all(body[i + 1][0] == "v" for i in pairs)
    assert len(seen) > 1


@given(
    st.integers(1, 6),
    st.integers(0, 9),
    st.integers(0, 15),
    st.sampled_from([1.0, 0.01, 3.0]),
    st.sampled_from([0.01, 0.5, 1.0]),
)
def test_recall(num_pairs, keep_free, more, power, share):
    task = Recall([7, num_pairs], share, 7, 8, 2, power, keep_free)
    tokens = keep_free + 14 + 2 * math.ceil(7 * share) + more
    if not more:
        with pytest.raises(ValueError, match="choose a longer"):
            task.check_length(tokens - 1)
    words, text = draw(task, tokens, seed=more)
    num_pairs = task.cells()[text.cell]["num_pairs"]
    assert all(word[0] == "f" for word in words[:keep_free])
    first = keep_free + 2 * num_pairs
    pairs = dict(zip(words[keep_free:first:2], words[keep_free + 1 : first : 2], strict=True))
    assert len(pairs) == len(set(pairs.values())) == num_pairs
    assert all(key[0] == "k" and value[0] == "v" for key, value in pairs.items())
    # The rule by hand: behind the pairs, a key is followed by its value, and that is the answer.
    queries = [place for place in range(first, tokens) if words[place][0] == "k"]
    assert len({words[place] for place in queries}) == len(queries) == math.ceil(num_pairs * share)
    assert np.flatnonzero(text.answers).tolist() == [place + 1 for place in queries]
    assert all(pairs[words[place]] == words[place + 1] for place in queries)
    assert sum(word[0] == "f" for word in words[first:]) == tokens - first - 2 * len(queries)


def test_the_power_says_where_queries_lie():
    def mean_place(power):
        task = Recall([4], 0.25, keep_free=0, power=power)
        texts = [task.text(np.random.default_rng(seed), 208) for seed in range(300)]
        return np.mean([(np.flatnonzero(text.answers)[0] - 9) / 200 for text in texts])

    # The mean of the density p x^(p - 1) on [0, 1] is p / (p + 1).
    assert mean_place(1.0) == pytest.approx(1 / 2, abs=0.05)
    assert mean_place(3.0) == pytest.approx(3 / 4, abs=0.05)
    assert mean_place(0.01) == pytest.approx(0.01 / 1.01, abs=0.02)


def test_the_last_token_can_be_an_answer():
    ends = [Recall([4], keep_free=0).text(np.random.default_rng(s), 31).answers[-1] for s in range(40)]
    assert any(ends)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copy([16]), r"distances=\[16\] must each be above num_tokens=16"),
        (lambda: Copy([]), r"distances=\[\] must hold at least one value"),
        (lambda: Copy([64, 64]), r"distances=\[64, 64\] must hold .* none twice"),
        (lambda: Copy(num_symbols=1), "num_symbols=1 must be at least 2"),
        (lambda: Needle([1.5]), r"depths=\[1.5\] must each lie in \[0, 1\]"),
        (lambda: Needle(num_pairs=9, num_keys=8), "num_keys=8 must be at least 9"),
        (lambda: Needle(keep_free=-1), "keep_free=-1 must be at least 0"),
        (lambda: Recall(num_pairs=[4, 0]), r"num_pairs=\[4, 0\] must each be at least 1"),
        (lambda: Recall(num_values=15), "num_values=15 must be at least 16"),
        (lambda: Recall(query_share=0.0), r"query_share=0.0 must lie in \(0, 1\]"),
        (lambda: Recall(power=0.0), "power=0.0 must be positive"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
