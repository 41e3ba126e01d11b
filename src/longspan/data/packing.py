"""Documents in memory, packed into sequences of one length without padding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from longspan.data.tokenizer import Encoding, Tokenizer


class Sample(NamedTuple):
    """One packed sequence of `seq_len + lookahead` tokens.

    Attributes:
        epoch, index: the sample's number, unique in a training; masks are drawn from it.
        input_ids: int64 `[tokens]`.
        byte_lengths: int64 `[tokens]`, the bytes of text that each token stands for; 0 for special tokens.
        document_ids: int64 `[tokens]`, the number of the document that each token is of.
        answers: bool `[tokens]`, the tokens that are to be predicted, where the sample is one of a task;
            None: the objective chooses.
        sources: int64 `[tokens]`, of a task: where each answer has to be read from, -1 where no single token
            holds it.
        cell: of a task: which of its cells the sample belongs to.

    """

    epoch: int
    index: int
    input_ids: np.ndarray
    byte_lengths: np.ndarray
    document_ids: np.ndarray
    answers: np.ndarray | None = None
    sources: np.ndarray | None = None
    cell: int = 0


def encode_document(text: bytes, tokenizer: Tokenizer) -> Encoding:
    """Tokens of a document, closed by the tokenizer's end token (of no bytes) where it has one."""
    ids, byte_lengths = tokenizer.encode_with_bytes(text)
    if tokenizer.eos_token_id is None or not len(ids):
        return Encoding(ids, byte_lengths)
    return Encoding(
        np.append(ids, np.array([tokenizer.eos_token_id], dtype=ids.dtype)),
        np.append(byte_lengths, np.zeros(1, dtype=byte_lengths.dtype)),
    )


class PackedDocuments(Dataset[Sample]):
    """Sequences cut from the documents, laid end to end in an order of their own in each epoch.

    In an epoch documents are permuted, concatenated and cut every `seq_len` tokens; then the sequences are
    permuted, so that a batch mixes documents. No token is lost or read twice, but for the end of the
    concatenation, shorter than a sequence, which is another one in each epoch. The sample of a key
    (epoch, index) depends on the key and the seed alone: any process may make any of them.

    Args:
        documents: encodings of the documents.
        seq_len: tokens a sequence.
        lookahead: further tokens that each sample shares with the beginning of the next.
        seed: of the order.

    Raises:
        ValueError: if the documents do not fill one sequence.

    """

    def __init__(
        self, documents: Sequence[Encoding], seq_len: int, lookahead: int = 0, seed: int = 0
    ) -> None:
        self.seq_len = seq_len
        self.lookahead = lookahead
        self.seed = seed
        lengths = np.array([len(document.ids) for document in documents], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self.num_tokens = int(self._starts[-1])
        if len(self) < 1:
            raise ValueError(
                f"the documents hold {self.num_tokens} tokens and do not fill one sequence of "
                f"seq_len={seq_len}; choose a smaller seq_len or more data"
            )
        self._ids = np.concatenate([document.ids for document in documents])
        self._byte_lengths = np.concatenate([document.byte_lengths for document in documents])
        self._epoch: int | None = None

    def __len__(self) -> int:
        """Sequences an epoch."""
        return max(self.num_tokens - self.lookahead, 0) // self.seq_len

    def _lay_out(self, epoch: int) -> None:
        """Draw the order of documents and of sequences; kept until another epoch is asked for."""
        if self._epoch == epoch:
            return
        draws = np.random.default_rng([self.seed, epoch])
        self._documents = draws.permutation(len(self._starts) - 1)
        lengths = np.diff(self._starts)[self._documents]
        self._laid = np.concatenate([[0], np.cumsum(lengths)])
        self._sequences = draws.permutation(len(self))
        self._epoch = epoch

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Sample of (epoch, index), with `0 <= index < len(self)`."""
        epoch, index = key
        self._lay_out(epoch)
        begin = int(self._sequences[index]) * self.seq_len
        end = begin + self.seq_len + self.lookahead
        ids, byte_lengths, documents = [], [], []
        place = int(np.searchsorted(self._laid, begin, side="right")) - 1
        while begin < end:
            document = int(self._documents[place])
            stop = min(end, int(self._laid[place + 1]))
            offset = int(self._starts[document] - self._laid[place])
            ids.append(self._ids[begin + offset : stop + offset])
            byte_lengths.append(self._byte_lengths[begin + offset : stop + offset])
            documents.append(np.full(stop - begin, document, dtype=np.int64))
            begin = stop
            place += 1
        return Sample(
            epoch,
            index,
            np.concatenate(ids).astype(np.int64),
            np.concatenate(byte_lengths).astype(np.int64),
            np.concatenate(documents),
        )
