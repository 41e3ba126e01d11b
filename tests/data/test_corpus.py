import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data import Document, SplitInfo
from longspan.data.corpus import hold_out, split_documents
from longspan.data.entropy import byte_entropy

SIZES = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 1000), min_size=2)


@given(SIZES, st.floats(0.01, 0.99), st.integers(0, 5))
def test_hold_out_stays_within_the_fraction(sizes, fraction, seed):
    chosen = hold_out(sizes, fraction, seed)
    held = sum(sizes[name] for name in chosen)
    assert chosen
    assert len(chosen) < len(sizes)
    assert held <= fraction * sum(sizes.values()) or held == min(sizes.values())


@given(SIZES, st.integers(0, 5))
def test_hold_out_does_not_depend_on_the_order_of_reading(sizes, seed):
    assert hold_out(sizes, 0.3, seed) == hold_out(dict(reversed(sizes.items())), 0.3, seed)


def test_hold_out_follows_the_seed():
    sizes = {str(i): 1 for i in range(100)}
    assert hold_out(sizes, 0.1, 0) != hold_out(sizes, 0.1, 1)
    assert len(hold_out(sizes, 0.1, 0)) == 10


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, math.nan])
def test_hold_out_refuses_other_fractions(fraction):
    with pytest.raises(ValueError, match="validation_fraction"):
        hold_out({"a": 1, "b": 1}, fraction, 0)


def test_hold_out_needs_two_units():
    with pytest.raises(ValueError, match=r"1 unit\(s\) \['a'\]"):
        hold_out({"a": 1}, 0.5, 0)


def test_equal_texts_fall_on_the_same_side():
    documents = [Document(str(i), b"%d" % (i % 20)) for i in range(60)]
    train, validation = split_documents(documents, 0.2, 0)
    assert train
    assert validation
    assert sorted(train + validation, key=lambda document: int(document.name)) == documents
    assert not {document.text for document in train} & {document.text for document in validation}


def test_split_info_counts_and_hashes():
    info = SplitInfo.of([Document("a", b"xy"), Document("b", b"z" * 65537)])
    assert (info.documents, info.bytes, info.long_bytes) == (2, 65539, 65537)
    content = b"".join(len(part).to_bytes(8, "little") + part for part in (b"a", b"xy", b"b", b"z" * 65537))
    assert info.sha256 == hashlib.sha256(content).hexdigest()


def test_sha256_tells_divisions_of_the_same_bytes_apart():
    whole = SplitInfo.of([Document("a", b"xyz")])
    assert whole.sha256 != SplitInfo.of([Document("a", b"xy"), Document("a", b"z")]).sha256
    assert whole.sha256 != SplitInfo.of([Document("b", b"xyz")]).sha256


def test_byte_entropy():
    assert byte_entropy([bytes(range(256)), bytes(range(256))]) == pytest.approx(math.log(256))
    assert byte_entropy([b"aab", b"b"]) == pytest.approx(math.log(2))
    assert byte_entropy([b"aaa"]) == 0.0
    with pytest.raises(ValueError, match="no byte"):
        byte_entropy([b""])
