"""Rows of Hugging Face `datasets` as documents, in memory or streamed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from longspan.data.corpus import Document

if TYPE_CHECKING:
    from datasets import IterableDataset

Row = Mapping[str, Any]


def text_of(column: str, columns: Iterable[str] | None, source: str) -> Callable[[Row], bytes]:
    """A function that takes the text out of a row, as UTF-8.

    Args:
        column: name of the column.
        columns: names of all columns; None where the source cannot tell before it is read.
        source: name of the source, for the error.

    Raises:
        ValueError: here or at the first row, if the column is missing or holds no text.

    """

    def missing(columns: Iterable[str]) -> ValueError:
        return ValueError(f"text_column={column!r} is not in {source!r}; its columns are {sorted(columns)}")

    def text(row: Row) -> bytes:
        if column not in row:
            raise missing(row)
        value = row[column]
        if not isinstance(value, str):
            raise ValueError(f"text_column={column!r} of {source!r} holds {type(value).__name__}, not text")
        return value.encode("utf-8", errors="replace")

    if columns is not None and column not in columns:
        raise missing(columns)
    return text


def documents_of(rows: Iterable[Row], text: Callable[[Row], bytes]) -> list[Document]:
    """Every row as a document, numbered from 0; rows without text are left out."""
    documents = (Document(str(number), text(row)) for number, row in enumerate(rows))
    return [document for document in documents if document.text]


class RowStream:
    """A streamed data set as a stream of documents; see `DocumentStream`.

    Documents are shuffled in blocks: a block is read, permuted by a draw from (seed, epoch, block number) and
    handed on. Unlike a rolling shuffle buffer, this leaves nothing to save but the place where the block
    begins, so that a stream resumes exactly.

    Args:
        dataset: a streamed data set of Hugging Face, in the order of its source.
        text: takes the text out of a row.
        seed: of the order.
        shuffle_block: documents a block; 1 keeps the order of the source.

    """

    def __init__(
        self,
        dataset: "IterableDataset",
        text: Callable[[Row], bytes],
        seed: int = 0,
        shuffle_block: int = 1024,
    ) -> None:
        self.dataset = dataset
        self.text = text
        self.seed = seed
        self.shuffle_block = shuffle_block
        self._origin = dataset.state_dict()
        self.set_epoch(0)

    def shard(self, rank: int, world_size: int) -> "RowStream":
        """The part that process `rank` of `world_size` reads: shards where they divide evenly, else rows."""
        from datasets.distributed import split_dataset_by_node

        part = split_dataset_by_node(self.dataset, rank=rank, world_size=world_size)
        return RowStream(part, self.text, self.seed, self.shuffle_block)

    def reseeded(self, seed: int) -> "RowStream":
        """The same documents in the order of another seed."""
        return RowStream(self.dataset, self.text, seed, self.shuffle_block)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self._epoch = epoch
        self._block = 0
        self._taken = 0
        self._block_state = deepcopy(self._origin)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: a block, its place in the source, and the documents taken from it."""
        return {
            "epoch": self._epoch,
            "block": self._block,
            "taken": self._taken,
            "source": self._block_state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where the state says."""
        self._epoch = state["epoch"]
        self._block = state["block"]
        self._taken = state["taken"]
        self._block_state = deepcopy(state["source"])

    def __iter__(self) -> Iterator[Document]:
        """Documents to the end of the epoch."""
        self.dataset.load_state_dict(deepcopy(self._block_state))
        rows = iter(self.dataset)
        while block := [row for _, row in zip(range(self.shuffle_block), rows, strict=False)]:
            after = self.dataset.state_dict()
            order = np.random.default_rng([self.seed, self._epoch, self._block]).permutation(len(block))
            while self._taken < len(block):
                place = int(order[self._taken])
                name = str(self._block * self.shuffle_block + place)
                self._taken += 1
                yield Document(name, self.text(block[place]))
            self._block += 1
            self._taken = 0
            self._block_state = after
