"""What a corpus is: documents for training, documents held out, and an account of both."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

# A file over this many bytes counts as long in the account of a corpus.
LONG_DOCUMENT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: where it comes from, the same on every machine that has the same corpus.
        text: UTF-8 bytes.

    """

    name: str
    text: bytes


class DocumentStream(Protocol):
    """Documents that are read on the fly and never held in memory together.

    One stream is read by one process. Its state, taken between two documents, is small and resumes exactly.
    """

    def shard(self, rank: int, world_size: int) -> "DocumentStream":
        """The part of the stream that process `rank` of `world_size` reads; the parts are disjoint."""
        ...

    def __iter__(self) -> Iterator[Document]:
        """Documents from where the state stands to the end of the epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of the epoch with this number, which has its own order."""
        ...

    def reseeded(self, seed: int) -> "DocumentStream":
        """The same documents in the order of another seed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; "epoch" is the number of the epoch."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where the state says."""
        ...


@dataclass(frozen=True)
class SplitInfo:
    """Account of one side of a corpus; None where a stream cannot know.

    Attributes:
        documents: number of documents (files, where a document is a file).
        bytes: UTF-8 bytes of their text.
        sha256: over names and texts in the order of the corpus, hexadecimal.
        long_bytes: bytes in documents over 64 KiB.

    """

    documents: int | None
    bytes: int | None
    sha256: str | None
    long_bytes: int | None

    @classmethod
    def of(cls, documents: Sequence[Document]) -> "SplitInfo":
        """Account of documents in memory."""
        digest = hashlib.sha256()
        for document in documents:
            for part in (document.name.encode("utf-8"), document.text):
                # Lengths first: no other division of the same bytes into documents has the same digest.
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
        sizes = [len(document.text) for document in documents]
        return cls(
            documents=len(sizes),
            bytes=sum(sizes),
            sha256=digest.hexdigest(),
            long_bytes=sum(size for size in sizes if size > LONG_DOCUMENT_BYTES),
        )


@dataclass(frozen=True)
class CorpusInfo:
    """Account of a corpus, for the record of every result.

    Attributes:
        name: the corpus, "python_source" for example.
        train, validation: the two sides.
        details: what else identifies the corpus: versions of packages, name and revision on the hub.

    """

    name: str
    train: SplitInfo
    validation: SplitInfo
    details: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Splits:
    """The two sides of a corpus, as `Corpus.load` gives them."""

    train: Sequence[Document] | DocumentStream
    validation: Sequence[Document]
    info: CorpusInfo


class Corpus(ABC):
    """A source of documents that knows which of them are held out for validation."""

    @abstractmethod
    def load(self) -> Splits:
        """Read the corpus; the same corpus gives the same documents in the same order, every time."""


def hold_out(sizes: Mapping[str, int], fraction: float, seed: int) -> set[str]:
    """Choose the units that are held out for validation.

    Units come in the order of a hash of their name and the seed, and each is taken that still fits into
    `fraction` of the bytes; so the choice does not depend on the order of reading, and a corpus that gains
    a unit keeps most of its validation. Where no unit fits, the smallest is taken.

    Args:
        sizes: bytes of each unit, by name.
        fraction: part of the bytes to hold out at most, in (0, 1).
        seed: another seed, another choice.

    Raises:
        ValueError: if the fraction is not in (0, 1) or there are fewer than two units.

    """
    check_fraction(fraction)
    if len(sizes) < 2:
        raise ValueError(
            f"cannot hold out validation from {len(sizes)} unit(s) {sorted(sizes)}: at least two are needed; "
            "name more sources, or validation data of their own"
        )
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    room = fraction * sum(sizes.values())
    chosen = set()
    for name in order:
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    return chosen or {min(order, key=lambda name: sizes[name])}


def check_fraction(fraction: float) -> None:
    """Raise ValueError unless the fraction of the bytes to hold out lies in (0, 1)."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"validation_fraction={fraction!r} must lie between 0 and 1, both excluded")


def split_documents(
    documents: Sequence[Document], fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """(train, validation), held out by document; equal texts always fall on the same side.

    Raises:
        ValueError: as `hold_out`.

    """
    keys = [hashlib.sha256(document.text).hexdigest() for document in documents]
    sizes: dict[str, int] = {}
    for key, document in zip(keys, documents, strict=True):
        sizes[key] = sizes.get(key, 0) + len(document.text)
    held_out = hold_out(sizes, fraction, seed)
    train = [document for key, document in zip(keys, documents, strict=True) if key not in held_out]
    validation = [document for key, document in zip(keys, documents, strict=True) if key in held_out]
    return train, validation
