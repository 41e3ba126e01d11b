"""Any data set of the Hugging Face hub, streamed or not."""

from collections.abc import Mapping
from typing import Any

from longspan.data.corpus import Corpus, CorpusInfo, SplitInfo, Splits, check_fraction, split_documents
from longspan.data.rows import RowStream, documents_of, text_of


class Hub(Corpus):
    """A data set by name, through Hugging Face `datasets`; a row is a document.

    Args:
        path: name on the hub ("org/name"), or path of a local folder that `load_dataset` reads.
        name: configuration of the data set, where it has several.
        revision: branch, tag or commit; None for the default. Name a commit for runs that can be repeated.
        split: split to train on.
        validation_split: split to validate on; None: held out from `split`, by document.
        text_column: column of the text.
        validation_fraction: not streamed: part of the bytes held out at most, in (0, 1).
        split_seed: not streamed: chooses what is held out.
        streaming: read on the fly: nothing is stored, and training has no epochs.
        validation_documents: streamed: so many documents are the validation data, the first of
            `validation_split`, or else the first of `split`, which training then leaves out.
        shuffle_block: streamed: documents are shuffled in blocks of this many; 1 keeps their order.

    Raises:
        ValueError: if a fraction or number is out of range.

    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        revision: str | None = None,
        split: str = "train",
        validation_split: str | None = None,
        text_column: str = "text",
        validation_fraction: float = 0.01,
        split_seed: int = 0,
        streaming: bool = False,
        validation_documents: int = 256,
        shuffle_block: int = 1024,
    ) -> None:
        check_fraction(validation_fraction)
        for argument, value in (
            ("validation_documents", validation_documents),
            ("shuffle_block", shuffle_block),
        ):
            if value < 1:
                raise ValueError(f"{argument}={value!r} must be at least 1")
        if validation_split == split:
            raise ValueError(
                f"validation_split={validation_split!r} must not be the split to train on; null holds out"
            )
        self.path = path
        self.name = name
        self.revision = revision
        self.split = split
        self.validation_split = validation_split
        self.text_column = text_column
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.streaming = streaming
        self.validation_documents = validation_documents
        self.shuffle_block = shuffle_block

    def load(self) -> Splits:
        """Read the data set, or the beginning of it where it is streamed.

        Raises:
            ValueError: if a split or the text column does not exist, or nothing can be held out.
            FileNotFoundError: if the data set does not exist or cannot be reached (an error of `datasets`).

        """
        return self._load_stream() if self.streaming else self._load_whole()

    def _load_whole(self) -> Splits:
        rows = self._rows(self.split)
        train = documents_of(rows, text_of(self.text_column, rows.column_names, self.path))
        if self.validation_split is None:
            train, validation = split_documents(train, self.validation_fraction, self.split_seed)
        else:
            held_out = self._rows(self.validation_split)
            validation = documents_of(held_out, text_of(self.text_column, held_out.column_names, self.path))
        info = CorpusInfo("hub", SplitInfo.of(train), SplitInfo.of(validation), self._details(rows))
        return Splits(train, validation, info)

    def _load_stream(self) -> Splits:
        rows = self._rows(self.split)
        text = text_of(self.text_column, rows.column_names, self.path)
        held_out = rows if self.validation_split is None else self._rows(self.validation_split)
        validation = documents_of(held_out.take(self.validation_documents), text)
        known = (getattr(rows.info, "splits", None) or {}).get(self.split)
        documents = getattr(known, "num_examples", None)
        if self.validation_split is None:
            rows = rows.skip(self.validation_documents)
            documents = None if documents is None else max(documents - self.validation_documents, 0)
        train = RowStream(rows, text, shuffle_block=self.shuffle_block)
        account = SplitInfo(documents=documents, bytes=None, sha256=None, long_bytes=None)
        return Splits(
            train, validation, CorpusInfo("hub", account, SplitInfo.of(validation), self._details(rows))
        )

    def _rows(self, split: str) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(
                self.path, name=self.name, revision=self.revision, split=split, streaming=self.streaming
            )
        except ValueError as error:
            raise ValueError(
                f"cannot read split={split!r} of path={self.path!r}, name={self.name!r}: {error}"
            ) from error

    def _details(self, rows: Any) -> Mapping[str, Any]:
        return {
            "path": self.path,
            "name": self.name,
            "revision": self.revision,
            "split": self.split,
            "validation_split": self.validation_split,
            "streaming": self.streaming,
            "version": str(rows.info.version) if rows.info.version is not None else None,
        }
