import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.repeats import last_occurrence


def brute_force(tokens, n, documents):
    found = []
    for end in range(len(tokens)):
        found.append(-1)
        grams = [(tokens[e - n + 1 : e + 1], documents[e - n + 1 : e + 1]) for e in range(n - 1, end + 1)]
        if not grams or len(set(grams[-1][1])) > 1:
            continue
        earlier = [e + n - 1 for e, gram in enumerate(grams[:-1]) if gram == grams[-1]]
        found[-1] = earlier[-1] if earlier else -1
    return found


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 5), st.lists(st.integers(1, 12), max_size=5))
def test_against_a_search(tokens, n, lengths):
    tokens = [7 * token - 3 for token in tokens]
    assert last_occurrence(np.array(tokens, dtype=int), n).tolist() == brute_force(
        tokens, n, [0] * len(tokens)
    )
    documents = [number for number, length in enumerate(lengths) for _ in range(length)]
    documents = (documents + [9] * len(tokens))[: len(tokens)]
    found = last_occurrence(np.array(tokens, dtype=int), n, np.array(documents, dtype=int)).tolist()
    assert found == brute_force(tokens, n, documents)


def test_a_large_vocabulary_and_a_long_text():
    tokens = np.random.default_rng(0).integers(2**31, size=50_000)
    tokens[40_000:40_100] = tokens[100:200]
    found = last_occurrence(tokens, 8)
    assert found[40_007:40_100].tolist() == list(range(107, 200))
    assert (np.delete(found, range(40_007, 40_100)) == -1).all()
