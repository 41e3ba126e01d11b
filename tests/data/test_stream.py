import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data import ByteTokenizer, PackedStream
from longspan.data.rows import RowStream, text_of

TOKENIZER = ByteTokenizer()


def text(number):
    return f"<{number}>" + "x" * (number * 7 % 23)


def row_stream(count=40, shards=4, block=8, seed=0, texts=None):
    rows = Dataset.from_dict({"text": texts or [text(i) for i in range(count)]})
    return RowStream(
        rows.to_iterable_dataset(num_shards=shards), text_of("text", ["text"], "rows"), seed, block
    )


def take(packed, count):
    return [sample for _, sample in zip(range(count), packed, strict=False)]


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.epoch, a.index) == (b.epoch, b.index)
        # What a task alone has is None in both.
        assert all(np.array_equal(x, y) for x, y in zip(a[2:], b[2:], strict=True))


def test_an_epoch_has_every_document_once_in_its_own_order():
    stream = row_stream()
    epochs = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        epochs.append([(document.name, document.text) for document in stream])
    expected = sorted((str(i), text(i).encode()) for i in range(40))
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected
    assert epochs[0] == epochs[2] != epochs[1]
    assert epochs[0] != [(document.name, document.text) for document in row_stream(seed=1)]


def test_block_of_one_keeps_the_order():
    assert [document.name for document in row_stream(block=1)] == [str(i) for i in range(40)]


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 9, 16, 39, 40])
def test_a_stream_resumes_between_any_two_documents(stop):
    stream = row_stream()
    documents = iter(stream)
    for _ in range(stop):
        next(documents)
    state = stream.state_dict()
    rest = list(documents)
    again = row_stream()
    again.load_state_dict(state)
    assert list(again) == rest
    assert len(rest) == 40 - stop


@pytest.mark.parametrize(("shards", "world_size"), [(4, 2), (3, 2), (1, 3)])
def test_processes_share_the_documents(shards, world_size):
    parts = [
        {document.text for document in row_stream(shards=shards).shard(rank, world_size)}
        for rank in range(world_size)
    ]
    assert sum(len(part) for part in parts) == 40
    assert set.union(*parts) == {text(i).encode() for i in range(40)}
    assert min(len(part) for part in parts) > 0


@pytest.mark.parametrize("lookahead", [0, 1])
def test_no_token_is_lost_or_invented_over_epochs(lookahead):
    packed = PackedStream(row_stream(), TOKENIZER, seq_len=13, lookahead=lookahead)
    stream = row_stream()
    expected = []
    for epoch in range(3):
        stream.set_epoch(epoch)
        for document in stream:
            expected += [*document.text, 259]
    samples = take(packed, (len(expected) - lookahead) // 13)
    found = np.concatenate([sample.input_ids[:13] for sample in samples])
    assert found.tolist() == expected[: len(found)]
    assert all(len(sample.input_ids) == 13 + lookahead for sample in samples)
    if lookahead:
        assert [sample.input_ids[-1] for sample in samples] == expected[13 : len(found) + 1 : 13]
    assert [sample.index for sample in samples] == list(range(len(samples)))


@pytest.mark.parametrize("lookahead", [0, 1])
def test_document_numbers_change_after_each_end_token(lookahead):
    for sample in take(PackedStream(row_stream(), TOKENIZER, 50, lookahead), 30):
        ends = sample.input_ids[:-1] == 259
        assert (np.diff(sample.document_ids) == ends).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1))
def test_packing_resumes_anywhere(seq_len, stop, lookahead):
    packed = PackedStream(row_stream(), TOKENIZER, seq_len, lookahead)
    samples = iter(packed)
    for _ in range(stop):
        next(samples)
    state = packed.state_dict()
    expected = [next(samples) for _ in range(8)]
    again = PackedStream(row_stream(), TOKENIZER, seq_len, lookahead)
    again.load_state_dict(state)
    assert again.state_dict() == state
    same(take(again, 8), expected)


def test_processes_number_their_samples_apart():
    indices = [
        sample.index
        for rank in range(2)
        for sample in take(PackedStream(row_stream().shard(rank, 2), TOKENIZER, 9, 0, rank, 2), 5)
    ]
    assert sorted(indices) == list(range(10))


def test_a_stream_without_documents_does_not_run_forever():
    packed = PackedStream(row_stream(texts=["", ""], shards=1), TOKENIZER, 4)
    with pytest.raises(ValueError, match="no document"):
        next(iter(packed))


def test_length_is_told_only_where_it_is_known():
    assert len(PackedStream(row_stream(), TOKENIZER, 4, num_samples=12)) == 12
    with pytest.raises(TypeError, match="no length"):
        len(PackedStream(row_stream(), TOKENIZER, 4))
