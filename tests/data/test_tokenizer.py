import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longspan.data import ByteTokenizer, HuggingFaceTokenizer

TEXT = "def f(x):\n    return x  # naïve, 東京 🙂\n"


@given(st.binary(max_size=200))
def test_bytes_are_their_own_ids(data):
    ids, byte_lengths = ByteTokenizer().encode_with_bytes(data)
    assert ids.tolist() == list(data)
    assert byte_lengths.tolist() == [1] * len(data)


@given(st.text(max_size=100))
def test_bytes_decode_to_the_same_text(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text).tolist()
    assert tokenizer.decode([258, *ids, 259, 256, 257]) == text


def test_special_ids_lie_above_the_bytes():
    tokenizer = ByteTokenizer()
    assert (
        np.flatnonzero(tokenizer.is_special).tolist() == list(tokenizer.special_ids) == [256, 257, 258, 259]
    )
    assert tokenizer.vocab_size == 260


def save(folder, backend, **special):
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def byte_level(tmp_path):
    """A byte-level BPE tokenizer: a character outside its merges becomes several tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["def f(x): return x"] * 3, trainer)
    return save(tmp_path / "byte_level", backend, eos_token="<eos>")


@pytest.fixture
def word_level(tmp_path):
    """A tokenizer that swallows white space and names its ends as BERT does."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "return", "x", "def"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(
        zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], words[:5], strict=True)
    )
    return save(tmp_path / "word_level", backend, **special)


@pytest.mark.parametrize("kind", ["byte_level", "word_level"])
def test_byte_lengths_add_up_to_the_text(kind, request):
    tokenizer = HuggingFaceTokenizer(request.getfixturevalue(kind))
    ids, byte_lengths = tokenizer.encode_with_bytes(TEXT)
    assert len(ids) == len(byte_lengths) > 5
    assert byte_lengths.sum() == len(TEXT.encode())
    assert tokenizer.encode(TEXT.encode()).tolist() == ids.tolist()


def test_white_space_counts_for_the_word_after_it(word_level):
    tokenizer = HuggingFaceTokenizer(word_level)
    ids, byte_lengths = tokenizer.encode_with_bytes("def  x\n")
    assert ids.tolist() == [7, 6]
    assert byte_lengths.tolist() == [3, 4]


def test_an_empty_text_has_no_tokens(word_level):
    ids, byte_lengths = HuggingFaceTokenizer(word_level).encode_with_bytes("  ")
    assert len(ids) == len(byte_lengths) == 0


def test_ends_fall_back_on_cls_and_sep(word_level):
    tokenizer = HuggingFaceTokenizer(word_level)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (2, 3)
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.vocab_size) == (0, 4, 8)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.decode([2, 7, 6, 3]) == "def x"


def test_byte_level_round_trip(byte_level):
    tokenizer = HuggingFaceTokenizer(byte_level)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.mask_token_id is None


def test_slow_tokenizers_are_refused(monkeypatch):
    class Slow:
        is_fast = False

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name, **options: Slow())
    with pytest.raises(ValueError, match="name_or_path='slow' is not a fast tokenizer"):
        HuggingFaceTokenizer("slow")
