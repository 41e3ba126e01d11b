"""The tokenizer that goes out with a model has the ids of the one that it was trained with."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data import ByteTokenizer, Tokenizer
from longspan.data.tokenizer import HuggingFaceTokenizer

OURS = ByteTokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    OURS.to_hugging_face().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(saved):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(saved)


@given(text=st.text())
def test_every_text_has_the_same_ids_and_comes_back(theirs, text):
    ids = theirs(text).input_ids
    assert ids == OURS.encode(text).tolist()
    assert theirs.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["a <mask> b", "<s>", "</s><pad>", " two  spaces ", "\r\n\t\x00\x7f", "ü漢🦀\u00ad"]
)
def test_names_of_special_tokens_are_text_like_any_other(theirs, text):
    assert theirs(text).input_ids == OURS.encode(text).tolist()
    assert theirs.decode(theirs(text).input_ids) == text


@given(ids=st.lists(st.integers(0, OURS.vocab_size - 1)))
def test_any_ids_are_decoded_alike_special_ones_and_broken_utf8_among_them(theirs, ids):
    assert theirs.decode(ids, skip_special_tokens=True) == OURS.decode(ids)


def test_every_byte_and_every_special_token_has_its_id(theirs):
    assert len(theirs) == OURS.vocab_size
    assert theirs.pad_token_id == OURS.pad_token_id
    assert theirs.mask_token_id == OURS.mask_token_id
    assert theirs.bos_token_id == OURS.bos_token_id
    assert theirs.eos_token_id == OURS.eos_token_id
    assert sorted(theirs.all_special_ids) == list(OURS.special_ids)
    text = np.arange(256, dtype=np.uint8).tobytes().decode("latin-1")
    assert sorted(set(theirs(text).input_ids)) == sorted(set(text.encode()))


def test_special_tokens_are_read_in_text_where_that_is_asked_for(saved):
    from transformers import AutoTokenizer

    reading = AutoTokenizer.from_pretrained(saved, split_special_tokens=False)
    assert reading("a<mask>").input_ids == [ord("a"), OURS.mask_token_id]


def test_it_pads_and_truncates(theirs):
    batch = theirs(["ab", "abcd"], padding=True, truncation=True, max_length=3)
    assert batch.input_ids == [[97, 98, OURS.pad_token_id], [97, 98, 99]]
    assert batch.attention_mask == [[1, 1, 0], [1, 1, 1]]
    assert "token_type_ids" not in batch


def test_the_training_packages_read_it_back_as_a_tokenizer(saved):
    again = HuggingFaceTokenizer(str(saved))
    assert again.special_ids == OURS.special_ids
    for one, other in zip(
        again.encode_with_bytes("ab <mask>"), OURS.encode_with_bytes("ab <mask>"), strict=True
    ):
        assert one.tolist() == other.tolist()


def test_a_tokenizer_without_such_a_form_says_so():
    class Own(Tokenizer):
        def encode_with_bytes(self, text): ...

        def decode(self, ids): ...

    with pytest.raises(ValueError, match="Own has no Hugging Face form"):
        Own().to_hugging_face()
