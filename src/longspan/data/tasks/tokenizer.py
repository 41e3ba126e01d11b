"""The vocabulary of a task: words between spaces."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from longspan.data.tokenizer import Encoding, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("<pad>", "<mask>", "<s>", "</s>")


class TaskTokenizer(Tokenizer):
    """Each word is a token; ids 0 to 3 are pad, mask, begin and end, then come the words in their order.

    Args:
        words: the vocabulary, without spaces in a word.

    Raises:
        ValueError: if a word is empty, holds a space, comes twice or is a special token's.

    """

    pad_token_id = 0
    mask_token_id = 1
    bos_token_id = 2
    eos_token_id = 3
    special_ids = (0, 1, 2, 3)

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        every = [*SPECIAL, *self.words]
        self._ids = {word: number for number, word in enumerate(every)}
        bad = [word for word in self.words if word.split() != [word]]
        if bad or len(self._ids) != len(every):
            raise ValueError(
                f"words must be distinct, without spaces and none of {', '.join(SPECIAL)}; got "
                f"{bad or sorted(word for word in self._ids if every.count(word) > 1)}"
            )
        self.vocab_size = len(every)

    def ids(self, *words: str) -> np.ndarray:
        """Ids of words, special ones too, int64 `[words]`.

        Raises:
            ValueError: if a word is not in the vocabulary.

        """
        for word in words:
            if word not in self._ids:
                raise ValueError(f"the word {word!r} is not in the vocabulary of {self.vocab_size} words")
        return np.array([self._ids[word] for word in words], dtype=np.int64)

    def encode_with_bytes(self, text: str | bytes) -> Encoding:
        """Words of a text; ids uint32. The space before a word counts for it, that at the end for the last.

        Raises:
            ValueError: if a word is not in the vocabulary.

        """
        string = text if isinstance(text, str) else text.decode("utf-8")
        parts = re.findall(r"\s*\S+", string)
        ids = self.ids(*(part.strip() for part in parts)).astype(np.uint32)
        lengths = np.array([len(part.encode()) for part in parts], dtype=np.uint32)
        if len(parts):
            lengths[-1] += len(string.encode()) - int(lengths.sum())
        return Encoding(ids, lengths)

    def decode(self, ids: Iterable[int]) -> str:
        """The words, a space between two; special tokens stand for no text."""
        return " ".join(self.words[int(i) - len(SPECIAL)] for i in ids if int(i) >= len(SPECIAL))

    def to_hugging_face(self) -> "PreTrainedTokenizerBase":
        """Return a fast tokenizer with the same ids; a word that is not in the vocabulary has none."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        backend = Backend(models.WordLevel(vocab=self._ids))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        names = ("pad_token", "mask_token", "bos_token", "eos_token")
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
            **dict(zip(names, SPECIAL, strict=True)),
        )


def tokenizer_of(task: Any) -> Tokenizer:
    """The tokenizer of a synthetic task, for `tokenizer=task`.

    Args:
        task: the task that `data=` names.

    Raises:
        ValueError: if it is a corpus of text, which has no vocabulary of its own.

    """
    tokenizer = getattr(task, "tokenizer", None)
    if not isinstance(tokenizer, TaskTokenizer):
        raise ValueError(
            "tokenizer=task is the vocabulary of a synthetic task, data=copy, needle, recall or listops; "
            f"{type(task).__name__} is none: choose tokenizer=bytes or huggingface"
        )
    return tokenizer
