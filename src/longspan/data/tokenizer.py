"""Tokenizers: text -> token ids, with the number of bytes that each token stands for."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoding(NamedTuple):
    """The tokens of one document.

    Attributes:
        ids: token ids, unsigned integers `[tokens]`.
        byte_lengths: bytes of the document's UTF-8 text that each token stands for, unsigned integers
            `[tokens]`; they add up to the text's length, so that bits per byte is right for any tokenizer.

    """

    ids: np.ndarray
    byte_lengths: np.ndarray


class Tokenizer(ABC):
    """The face that packing and the objectives see.

    Attributes:
        vocab_size: number of ids, special ones included.
        pad_token_id, mask_token_id, bos_token_id, eos_token_id: special ids, None where there is none.
        special_ids: all special ids, ascending: never masked, never drawn as a random replacement.

    """

    vocab_size: int
    pad_token_id: int | None
    mask_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None
    special_ids: tuple[int, ...]

    @abstractmethod
    def encode_with_bytes(self, text: str | bytes) -> Encoding:
        """Tokens of one document, without special tokens, and the bytes that each stands for."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens; special tokens stand for no text."""

    def encode(self, text: str | bytes) -> np.ndarray:
        """Token ids of one document, unsigned integers `[tokens]`, without special tokens."""
        return self.encode_with_bytes(text).ids

    def to_hugging_face(self) -> "PreTrainedTokenizerBase":
        """Return a tokenizer of transformers with the same ids.

        Raises:
            ValueError: there is none.

        """
        raise ValueError(
            f"{type(self).__name__} has no Hugging Face form: it does not define to_hugging_face"
        )

    @property
    def is_special(self) -> np.ndarray:
        """Boolean `[vocab_size]`: True for special ids."""
        table = np.zeros(self.vocab_size, dtype=bool)
        table[list(self.special_ids)] = True
        return table


class ByteTokenizer(Tokenizer):
    """Every byte is a token: ids 0 to 255 are the bytes, 256 to 259 pad, mask, begin and end of document.

    It needs no vocabulary, loses nothing, and its loss in nats is bits per byte times ln 2
    (Xue et al. 2022, "ByT5: Towards a Token-Free Future with Pre-trained Byte-to-Byte Models").
    """

    vocab_size = 260
    pad_token_id = 256
    mask_token_id = 257
    bos_token_id = 258
    eos_token_id = 259
    special_ids = (256, 257, 258, 259)

    def encode_with_bytes(self, text: str | bytes) -> Encoding:
        """One token a byte; ids uint16, byte lengths uint8 ones, both `[bytes]`."""
        data = text.encode("utf-8") if isinstance(text, str) else text
        ids = np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
        return Encoding(ids, np.ones(len(ids), dtype=np.uint8))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the bytes; bytes that are not UTF-8 become U+FFFD, special ids nothing."""
        array = np.asarray(list(ids), dtype=np.int64)
        return array[array < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_hugging_face(self) -> "PreTrainedTokenizerBase":
        """Return a fast tokenizer with the same ids for every text.

        As here, every text is bytes: a special token's name in it is the bytes of that name, until
        ``split_special_tokens`` is False, and none is added.
        """
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        # In the order of their ids, which follow the bytes'.
        names = {"pad_token": "<pad>", "mask_token": "<mask>", "bos_token": "<s>", "eos_token": "</s>"}
        backend.add_special_tokens(list(names.values()))
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            split_special_tokens=True,
            model_input_names=["input_ids", "attention_mask"],
            **names,
        )


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of Hugging Face `transformers`, by name on the hub or by local path.

    It must be a fast one (of the `tokenizers` library): only these tell which characters a token came from,
    and so how many bytes it stands for. What lies between two tokens (a space that the tokenizer swallows)
    counts for the later one, what follows the last token for the last one.

    Args:
        name_or_path: what `AutoTokenizer.from_pretrained` takes.
        revision: branch, tag or commit on the hub; None for its default.

    Raises:
        ValueError: if the tokenizer is not a fast one.

    """

    def __init__(self, name_or_path: str, revision: str | None = None) -> None:
        from transformers import AutoTokenizer

        revisions = {} if revision is None else {"revision": revision}
        backend: Any = AutoTokenizer.from_pretrained(name_or_path, **revisions)
        if not backend.is_fast:
            raise ValueError(
                f"tokenizer name_or_path={name_or_path!r} is not a fast tokenizer, and only fast ones "
                "tell how many bytes a token stands for; choose one with a tokenizer.json"
            )
        # Documents are cut after tokenization: the tokenizer's own limit does not concern us.
        backend.model_max_length = int(1e30)
        self.backend = backend
        self.vocab_size = len(backend)
        self.pad_token_id = backend.pad_token_id
        self.mask_token_id = backend.mask_token_id
        # BERT's tokenizers call the two ends of a text cls and sep.
        self.bos_token_id = backend.bos_token_id if backend.bos_token_id is not None else backend.cls_token_id
        self.eos_token_id = backend.eos_token_id if backend.eos_token_id is not None else backend.sep_token_id
        self.special_ids = tuple(sorted(set(backend.all_special_ids)))

    def encode_with_bytes(self, text: str | bytes) -> Encoding:
        """Tokens without special ones; ids uint32, byte lengths the smallest unsigned type that fits."""
        string = text if isinstance(text, str) else text.decode("utf-8", errors="replace")
        encoded = self.backend(
            string,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.uint32)
        ends = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 1]
        return Encoding(ids, _byte_lengths(string, ends))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens, special tokens left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def to_hugging_face(self) -> "PreTrainedTokenizerBase":
        """Return the tokenizer itself, a copy."""
        return copy.deepcopy(self.backend)


def _byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in the `tokenizers` library."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _byte_lengths(text: str, ends: np.ndarray) -> np.ndarray:
    """Bytes of UTF-8 between successive token ends, which are counted in characters `[tokens]`."""
    if not len(ends):
        return np.zeros(0, dtype=np.uint8)
    points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    # Several tokens may share one character, and then end at the same place: the first of them has its bytes.
    ends = np.maximum.accumulate(ends)
    ends[-1] = len(points)
    lengths = np.diff(bytes_before[ends], prepend=0)
    return lengths.astype(np.min_scalar_type(int(lengths.max())))
