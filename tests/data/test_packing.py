import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data import ByteTokenizer, PackedDocuments
from longspan.data.packing import encode_document
from longspan.data.tokenizer import Encoding

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) > 0)


def documents_of(lengths):
    """Documents whose tokens are all different: token = number in the whole; its bytes = its number + 1."""
    tokens = np.arange(sum(lengths), dtype=np.uint32)
    parts = np.split(tokens, np.cumsum(lengths)[:-1])
    return [Encoding(part, part + 1) for part in parts]


@given(LENGTHS, st.integers(1, 15), st.integers(0, 3))
def test_no_token_is_lost_or_invented(lengths, seq_len, epoch):
    documents = documents_of(lengths)
    if sum(lengths) < seq_len:
        with pytest.raises(ValueError, match=f"seq_len={seq_len}"):
            PackedDocuments(documents, seq_len)
        return
    packed = PackedDocuments(documents, seq_len, seed=1)
    samples = [packed[epoch, index] for index in range(len(packed))]
    seen = np.concatenate([sample.input_ids for sample in samples])
    assert all(len(sample.input_ids) == seq_len for sample in samples)
    # Distinct, all from the documents, and all but a remainder shorter than a sequence.
    assert len(set(seen.tolist())) == len(seen) == sum(lengths) // seq_len * seq_len
    assert set(seen.tolist()) <= set(range(sum(lengths)))
    assert (np.concatenate([sample.byte_lengths for sample in samples]) == seen + 1).all()
    owner = np.repeat(np.arange(len(lengths)), lengths)
    assert (np.concatenate([sample.document_ids for sample in samples]) == owner[seen]).all()


@given(LENGTHS, st.integers(1, 15))
def test_sequences_are_pieces_of_whole_documents_laid_end_to_end(lengths, seq_len):
    if sum(lengths) < seq_len:
        return
    packed = PackedDocuments(documents_of(lengths), seq_len)
    for index in range(len(packed)):
        sample = packed[0, index]
        inside = sample.document_ids[1:] == sample.document_ids[:-1]
        assert (np.diff(sample.input_ids)[inside] == 1).all()
        # Where a document ends inside a sequence, it ends as a whole, and the next one starts at its start.
        starts = np.concatenate([[0], np.cumsum(lengths)])
        assert np.isin(sample.input_ids[1:][~inside], starts).all()
        assert np.isin(sample.input_ids[:-1][~inside] + 1, starts).all()


@given(LENGTHS, st.integers(1, 15))
def test_lookahead_is_the_first_token_of_what_follows(lengths, seq_len):
    if sum(lengths) < seq_len + 1:
        return
    packed = PackedDocuments(documents_of(lengths), seq_len, lookahead=1)
    samples = [packed[0, index] for index in range(len(packed))]
    assert len(samples) == (sum(lengths) - 1) // seq_len
    assert all(len(sample.input_ids) == seq_len + 1 for sample in samples)
    body = np.concatenate([sample.input_ids[:-1] for sample in samples])
    assert len(set(body.tolist())) == len(body)
    targets = np.concatenate([sample.input_ids[1:] for sample in samples])
    assert len(set(targets.tolist())) == len(targets)


def test_order_follows_seed_and_epoch_alone():
    documents = documents_of([30, 5, 70, 25])

    def order(seed, epoch, indices):
        packed = PackedDocuments(documents, 8, seed=seed)
        return {index: packed[epoch, index].input_ids.tolist() for index in indices}

    forward = order(0, 1, range(16))
    assert forward == order(0, 1, reversed(range(16)))
    assert forward != order(0, 2, range(16))
    assert forward != order(1, 1, range(16))


def test_epochs_may_be_mixed():
    packed = PackedDocuments(documents_of([30, 5, 70, 25]), 8)
    first = packed[0, 3].input_ids
    assert packed[1, 3].input_ids.tolist() != first.tolist()
    assert packed[0, 3].input_ids.tolist() == first.tolist()


def test_documents_end_with_the_end_token_which_is_no_byte():
    ids, byte_lengths = encode_document(b"ab", ByteTokenizer())
    assert ids.tolist() == [97, 98, 259]
    assert byte_lengths.tolist() == [1, 1, 0]
    assert len(encode_document(b"", ByteTokenizer()).ids) == 0
