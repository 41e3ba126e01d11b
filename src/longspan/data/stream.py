"""Streamed documents, packed on the fly into sequences of one length without padding."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset

from longspan.data.corpus import DocumentStream
from longspan.data.packing import Sample, encode_document
from longspan.data.tokenizer import Encoding, Tokenizer


class _Piece(NamedTuple):
    """What is left of a document: its number, its tokens, and where the stream stood before it."""

    number: int
    encoding: Encoding
    origin: dict[str, Any]


class PackedStream(IterableDataset[Sample]):
    """Sequences cut from a stream of documents in the order in which they come, without end.

    When the stream is through it begins again with the next epoch. No token is lost or read twice. The state
    is the place of the next sequence's first token, so that a stream resumes exactly, also inside a document.
    The state belongs to this process's part: a run must resume with as many processes.

    Args:
        stream: the documents that this process reads.
        tokenizer: turns them into tokens.
        seq_len: tokens a sequence.
        lookahead: further tokens that each sample shares with the beginning of the next.
        rank, world_size: this process; they number the samples, so that no two processes draw the same masks.
        num_samples: samples that will be read, the value of `len` (a training's length); None: not known.

    """

    def __init__(
        self,
        stream: DocumentStream,
        tokenizer: Tokenizer,
        seq_len: int,
        lookahead: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_samples: int | None = None,
    ) -> None:
        self.stream = stream
        self.tokenizer = tokenizer
        self.seq_len = seq_len
        self.lookahead = lookahead
        self.rank = rank
        self.world_size = world_size
        self.num_samples = num_samples
        self._pieces: deque[_Piece] = deque()
        self._offset = 0
        self._count = 0
        self._number = 0
        self._resume: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Samples that will be read."""
        if self.num_samples is None:
            raise TypeError("a stream has no length")
        return self.num_samples

    def state_dict(self) -> dict[str, Any]:
        """Where the next sequence begins: the stream before its first document, and the offset inside."""
        if self._resume is not None:
            return self._resume
        piece = self._pieces[0] if self._pieces else None
        return {
            "stream": piece.origin if piece else self.stream.state_dict(),
            "number": piece.number if piece else self._number,
            "offset": self._offset,
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin there at the next iteration."""
        self._resume = state

    def __iter__(self) -> Iterator[Sample]:
        """Sequences from where the state stands, without end.

        Raises:
            ValueError: if the stream holds no document.

        """
        if self._resume is not None:
            self.stream.load_state_dict(self._resume["stream"])
            self._number = self._resume["number"]
            self._offset = self._resume["offset"]
            self._count = self._resume["count"]
            self._resume = None
        else:
            self.stream.set_epoch(0)
            self._number = self._offset = self._count = 0
        self._pieces.clear()
        source = self._endless()
        available = -self._offset
        while True:
            while available < self.seq_len + self.lookahead:
                piece = next(source)
                self._pieces.append(piece)
                available += len(piece.encoding.ids)
            sample = self._cut()
            available -= self.seq_len
            yield sample

    def _endless(self) -> Iterator[_Piece]:
        """Documents, epoch after epoch, each with the place before it."""
        epoch = self.stream.state_dict()["epoch"]
        from_the_start = False
        while True:
            found = False
            documents = iter(self.stream)
            while True:
                origin = self.stream.state_dict()
                document = next(documents, None)
                if document is None:
                    break
                encoding = encode_document(document.text, self.tokenizer)
                if len(encoding.ids):
                    found = True
                    self._number += 1
                    yield _Piece(self._number - 1, encoding, origin)
            # An epoch that was resumed at its very end may rightly be empty; a whole one may not.
            if from_the_start and not found:
                raise ValueError(
                    "the stream holds no document for this process; use fewer processes or more data"
                )
            from_the_start = True
            epoch += 1
            self.stream.set_epoch(epoch)

    def _cut(self) -> Sample:
        """The sequence that begins at the offset in the first piece; moves on by `seq_len` tokens."""
        ids, byte_lengths, documents = [], [], []
        missing = self.seq_len + self.lookahead
        offset = self._offset
        for piece in self._pieces:
            part = slice(offset, offset + missing)
            ids.append(piece.encoding.ids[part])
            byte_lengths.append(piece.encoding.byte_lengths[part])
            documents.append(np.full(len(ids[-1]), piece.number, dtype=np.int64))
            missing -= len(ids[-1])
            offset = 0
            if not missing:
                break
        self._offset += self.seq_len
        while self._pieces and self._offset >= len(self._pieces[0].encoding.ids):
            self._offset -= len(self._pieces.popleft().encoding.ids)
        index = self._count * self.world_size + self.rank
        self._count += 1
        return Sample(
            0,
            index,
            np.concatenate(ids).astype(np.int64),
            np.concatenate(byte_lengths).astype(np.int64),
            np.concatenate(documents),
        )
